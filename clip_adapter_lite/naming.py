"""What classes, methods, backbones and numbers of things are called where people read."""
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
