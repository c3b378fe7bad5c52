"""What classes, methods, backbones and numbers of things are called where people read."""
import codecs
import sys
import unicodedata
from collections.abc import Iterable

NAMES = {"zero-shot": "zero-shot CLIP", "linear-probe": "linear probe", "coop": "CoOp",
         "clip-adapter": "CLIP-Adapter", "tip-adapter": "Tip-Adapter",
         "tip-adapter(finetune=True)": "Tip-Adapter-F",
         "clip-adapter(branch=text)": "CLIP-Adapter, text",
         "clip-adapter(branch=both)": "CLIP-Adapter, both",
         "clip-adapter(alpha=0.2)": "CLIP-Adapter, α = 0.2",
         "clip-adapter(alpha=val)": "CLIP-Adapter, searched α",
         "clip-adapter(alpha=learned)": "CLIP-Adapter, α = Q(f, W)",
         "clap": "CLAP", "clap(constraint=False)": "ZS-LP", "gda": "GDA-CLIP",
         "linear-adapter": "linear adapter"}


STAND_INS = {"α": "alpha", "β": "beta", "τ": "tau", "λ": "lambda", "μ": "mu", "σ": "sigma",
             "±": "+-", "×": "x", "·": "-", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=",
             "≥": ">=", "²": "^2", "✓": "ok", "✗": "wrong", "→": "->", "━": "-"}


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """What an output that cannot show a character gets in its place: Windows writes cp1252, which
    has no α, into a file.
    """
    lost = error.object[error.start:error.end]
    return "".join(STAND_INS.get(letter, "?") for letter in lost), error.end


codecs.register_error("stand-in", _stand_in)


def showable(text: str) -> str:
    """The text with stand-ins for what the standard output cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "stand-in").decode(encoding)


def features_of(backbone: str) -> str:
    """Whose features a figure shows, as every figure says."""
    return "pocket CLIP (ImageNet-supervised image tower)" if backbone == "pocket" else backbone


def count(number: int, what: str) -> str:
    """"1 seed", "3 seeds"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def composed(name: str) -> str:
    """The name with its accents in one character each (NFC), whichever way a system wrote them."""
    return unicodedata.normalize("NFC", name)


def as_words(classname: str) -> str:
    """A class name as a text tower reads it: underscores are spaces, accents composed."""
    return composed(classname.replace("_", " "))


def prompts(classnames: Iterable[str], template: str) -> list[str]:
    """The template with each class name, as words, in place of {}."""
    return [template.replace("{}", as_words(name)) for name in classnames]
