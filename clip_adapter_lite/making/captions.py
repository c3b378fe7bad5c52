"""The text that the pocket CLIP is trained on: WordNet nouns and ImageNet class names in templates.

Nothing here may know a bank's class list. The nouns come from `words.txt` (all 82 114 noun synsets
of WordNet), the class names and templates from open_clip's own metadata; a test reads the finished
captions' sources.
"""
import random
from pathlib import Path

PLAIN = "a photo of a {}."
PAIRS = ["{} and {}", "a photo of a {} {}.", "a {} next to a {}", "a photo of a {} in a {}.",
         "a {} on a {}."]


def nouns(words: Path, longest: int = 3) -> list[str]:
    """WordNet's noun lemmas of up to `longest` words, in file order, each once."""
    lines = words.read_text(encoding="utf-8").splitlines()
    lemmas = [lemma.strip() for line in lines for lemma in line.split("\t")[1].split(",")]
    return list(dict.fromkeys(lemma for lemma in lemmas if lemma and len(lemma.split()) <= longest))


def templates() -> list[str]:
    """open_clip's eighty ImageNet templates as format strings."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES
    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def captions(names: list[str], copies: list[int], pairs: int, seed: int) -> list[str]:
    """`copies[i]` captions of `names[i]`, the first always the plain one, and `pairs` captions of
    two random names.

    Pairs teach the tower that a phrase means more than its last word.
    """
    rng, wordings = random.Random(seed), ["{}", *templates()]
    made = []
    for name, many in zip(names, copies, strict=True):
        chosen = [PLAIN] + [rng.choice(wordings) for _ in range(many - 1)]
        made += [template.format(name) for template in chosen]
    short = [name for name in names if " " not in name]
    made += [rng.choice(PAIRS).format(rng.choice(short), rng.choice(short)) for _ in range(pairs)]
    return made
