"""CoOp's fixed splits: `split_zhou_<Name>.json`, which hold {"train": [[path, label, class name],
…], "val", "test"}.
"""
from pathlib import Path

from ..errors import BankError
from ..files import parsed
from ..splits import SPLITS
from .base import Item


def read_split(path: Path, images: Path) -> tuple[tuple[str, ...], dict[str, list[Item]]]:
    """Class names and splits of the file at `path`, whose rows name pictures under `images`; they
    may be missing.

    Raises BankError if the file is not such a split, or a label goes by two names.
    """
    try:
        rows = parsed(path.read_bytes())
        splits = {part: [(images / str.replace(file, "\\", "/"), int(label))
                         for file, label, _ in rows[part]]
                  for part in SPLITS}
        named = sorted({(int(label), str(name)) for part in SPLITS for _, label, name in rows[part]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BankError(f"{path} is not one of CoOp's split files ({type(error).__name__}), which "
                        "hold train, val and test as lists of [path, label, class name]; fetch it "
                        "again.") from error
    names = dict(named)
    if not names or len(names) != len(named):
        twice = next((label for (label, _), (other, _) in zip(named, named[1:]) if label == other),
                     None)
        raise BankError(f"{path} " + ("lists no picture" if twice is None
                                      else f"gives label {twice} two class names")
                        + "; fetch it again.")
    place = {label: i for i, label in enumerate(names)}
    return tuple(names.values()), {part: [(p, place[label]) for p, label in items]
                                   for part, items in splits.items()}
