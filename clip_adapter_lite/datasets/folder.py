"""Your own pictures: a folder of classes, split by you (train, val, test) or by seed."""
import re
from collections import Counter
from pathlib import Path

from ..errors import BankError, one_line
from ..files import parsed
from ..naming import as_words, composed, count
from ..splits import SPLITS
from .base import SUFFIXES, Item, folder_items, hidden, hold_out, pictures, split_by_hash

LAYOUT = "put pictures in ROOT/<class>/, or in ROOT/train/<class>/ with optional val and test"
RULE = "split 50/20/30"
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "dev": "val", "eval": "val", "evaluation": "val", "test": "test", "tests": "test",
         "testing": "test"}
# What stands around these words: seg_train, Training-Set, testset, val_images, train1 …
FILLING = re.compile(r"seg|dataset|data|set|images?|imgs?|pictures?|photos?|folder|dir|split|[\W\d_]+")


def own_folder(root: Path, seed: int,
               allow_missing: bool = False) -> tuple[tuple[str, ...], dict[str, list[Item]], str]:
    """Class names, splits and the protocol in words of the pictures in `root`; subfolders of a
    class belong to it.

    Names are the folders' with underscores as spaces, or those that `root/classes.json` gives:
    {"folder": "name"}. A lone folder of folders, as archives have it, is gone into. allow_missing
    leaves out classes without a picture.
    Raises BankError, one sentence, for what cannot be right.
    """
    asked, root = root, _inner(root)
    given = _parts(root)
    if given and "train" not in given:
        raise BankError(f"{root} has a folder {next(iter(given.values())).name} with classes but "
                        f"no folder train; {LAYOUT}.")
    others = [name for name in _subfolders(root) if given and pictures(root / name)
              and not any(folder.is_relative_to(root / name) for folder in given.values())]
    if others:
        raise BankError(f"{root} holds pictures in {_few(others)} beside train; only train, val "
                        "and test are read, each with a folder a class, so rename or move the rest.")
    if not given:
        _refuse_other_layouts(root)
    classes = _classes(given.get("train", root), allow_missing)
    without = len(_subfolders(given.get("train", root))) - len(classes)
    left = f"; {count(without, 'folder')} without pictures left out" if without else ""
    names = _names(classes, next((p for p in (root, asked) if (p / "classes.json").is_file()), root))
    items = {part: _part(given[part], classes)
             for part in given} or {"train": folder_items(root, classes)}
    whose = "one folder a class"
    if given:
        whose = f"own {' and '.join(given)} folder{'s' if len(given) > 1 else ''}"
    if len(items) == 1:
        splits, how = _by_rule(items["train"], classes, seed), RULE
    elif len(items) == 2:  # a lone val folder is what the classifier is judged on, as ImageNet's is
        train, val = hold_out(items["train"], seed)
        splits = {"train": train, "val": val, "test": items[list(given)[1]]}
        how = f"{'val as test, ' if 'val' in given else ''}a fifth of train for validation"
    else:
        return names, items, f"own train, val and test folders{left}"
    return names, splits, f"{whose}, {how}, by hash, seed {seed}{left}"


def part_named(name: str) -> str | None:
    """The split that a folder's name stands for: "Training", "seg_test", "training_set", "valid" …;
    None for others.
    """
    return PARTS.get(FILLING.sub("", name.lower()))


def _inner(folder: Path) -> Path:
    """The folder itself, or the only one in it where that has folders but no pictures, as in
    seg_train/seg_train.
    """
    while len(found := _subfolders(folder)) == 1 and (part_named(found[0]) is None
                                                      or found[0] == folder.name):
        within = folder / found[0]
        if not _subfolders(within) or any(path.parent == within for path in pictures(within)):
            break
        folder = within
    return folder


def _refuse_other_layouts(root: Path) -> None:
    """Raise BankError for parts within classes, and for parts that go by names we do not know."""
    within = {name: _subfolders(root / name) for name in _subfolders(root)}
    for name, folders in within.items():
        if len({part for part in map(part_named, folders) if part}) > 1:
            raise BankError(f"{root} has {_few(folders)} inside of '{name}', which would be read "
                            f"as one; {LAYOUT}.")
    shared = set.intersection(*map(set, within.values())) if len(within) > 1 else set()
    if len(shared) > 1 and any(re.search("train|test|valid", name.lower()) for name in within):
        raise BankError(f"{root} has the folders {_few(sorted(shared))} in each of "
                        f"{_few(list(within))}, which look like parts and not like classes; call "
                        "them train, val and test.")


def _parts(root: Path) -> dict[str, Path]:
    """The folders of `root` that are splits and hold folders themselves, by split.

    Raises BankError if two stand for the same split.
    """
    found: dict[str, Path] = {}
    for name in _subfolders(root):
        part = part_named(name)
        if part and _subfolders(root / name):
            if part in found:
                raise BankError(f"{root} has two folders for {part}, {found[part].name} and "
                                f"{name}; keep one.")
            found[part] = _inner(root / name)
    return {part: found[part] for part in SPLITS if part in found}


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not hidden(p.name))


def _classes(folder: Path, allow_missing: bool) -> list[str]:
    """The class folders that hold pictures, in name order."""
    found = _subfolders(folder)
    full = [name for name in found if pictures(folder / name)]
    if not full:
        raise BankError(f"{folder} has no pictures in class folders; {LAYOUT} ({', '.join(SUFFIXES)}).")
    if len(full) < len(found) and not allow_missing:
        empty = [name for name in found if name not in full]
        raise BankError(f"{folder} has no pictures of {_few(empty)}; add some "
                        f"({', '.join(SUFFIXES)}), remove the folder, or leave the class out with "
                        "allow_missing=True (--allow-missing).")
    if len(full) == 1:
        raise BankError(f"{folder} has pictures of one class only, '{full[0]}'; a classifier needs "
                        f"two: {LAYOUT}.")
    return full


def _part(folder: Path, classes: list[str]) -> list[Item]:
    found = _subfolders(folder)
    forms = {composed(name): name for name in found}  # one part from a Mac, the other not
    here = [name if name in found else forms.get(composed(name), name) for name in classes]
    unknown = [name for name in found if name not in here and pictures(folder / name)]
    if unknown:
        raise BankError(f"{folder} has pictures of {_few(unknown)}, which train has none of; every "
                        "class needs training pictures.")
    items = folder_items(folder, here)
    if not items:
        raise BankError(f"{folder} has class folders but no pictures; add some "
                        f"({', '.join(SUFFIXES)}) or remove it.")
    return items


def _by_rule(items: list[Item], classes: list[str], seed: int) -> dict[str, list[Item]]:
    label, fewest = min(Counter(label for _, label in items).items(), key=lambda pair: pair[1])
    if fewest < 4:
        raise BankError(f"Class '{classes[label]}' has {fewest} pictures, and at least 4 are "
                        "needed for some to train, to validate and to test with; add some or make "
                        "folders train and test yourself.")
    return split_by_hash(items, seed=seed)


def _names(classes: list[str], root: Path) -> tuple[str, ...]:
    names = {name: as_words(name) for name in classes}
    path = root / "classes.json"
    if path.is_file():
        try:
            given = parsed(path.read_bytes())  # any UTF, with a mark or without
        # a guess among the old code pages would be wrong without a word
        except UnicodeDecodeError as error:
            raise BankError(f"{path} is text of an old Windows or Mac code page "
                            f"({one_line(error)}); save it again as UTF-8.") from error
        except ValueError as error:
            raise BankError(f"{path} is not JSON ({one_line(error)}); write {{\"folder\": \"class "
                            f"name\", …}}.") from error
        if not isinstance(given, dict) or not all(isinstance(name, str) and name.strip()
                                                  for name in given.values()):
            raise BankError(f"{path} must hold {{\"folder\": \"class name\", …}}.")
        # a Mac's accents are characters of their own
        folders = {composed(folder): folder for folder in classes}
        given = {folders.get(composed(folder), folder): name for folder, name in given.items()}
        if unknown := sorted(set(given) - set(classes)):
            raise BankError(f"{path} names {_few(unknown)}, which is no class folder with "
                            f"pictures; the folders are {_few(classes)}.")
        names |= {folder: name.strip() for folder, name in given.items()}
    twice = [name for name, many in Counter(names.values()).items() if many > 1]
    if twice:
        raise BankError(f"{root}: two classes are called '{twice[0]}'; give them different names "
                        "in classes.json.")
    return tuple(names[name] for name in classes)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
