"""The course's datasets with the bundled banks' own rows, from public files: what the notebooks need
under another backbone.

`course.json` says where each comes from and how that is known, `course_splits.json` which picture
stands in which row of the bundled bank (`making/course.py` wrote it). A bank of the same rows draws
the same episodes.
"""
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..errors import BankError
from ..files import located, unwritten
from ..splits import SPLITS, rank
from . import archives
from .base import SUFFIXES, ImageDataset, Item, hidden, pictures
from .fashion_mnist import fashion_mnist
from .parquet import unpack_parquet

SPLITS_FILE = Path(__file__).with_name("course_splits.json")
SOURCES: dict[str, dict] = json.loads(
    Path(__file__).with_name("course.json").read_text(encoding="utf-8"))
COURSE = tuple(bank for source in SOURCES.values() for bank in source["banks"])
PARTS = ("train", "val", "test")
CIFAR = "cifar-10-batches-py"  # torchvision's


@cache
def rows_of() -> dict[str, dict]:
    """By bank: classnames, templates, label of each folder, and the rows of each split as runs
    [folder, "stem stem …"].
    """
    return json.loads(SPLITS_FILE.read_text(encoding="utf-8"))


def source_of(bank: str) -> dict:
    """What is known of where a bank's pictures come from. Raises ValueError for another name."""
    for source in SOURCES.values():
        if bank in source["banks"]:
            return source
    raise ValueError(f"'{bank}' is none of the course's banks; give one of {', '.join(COURSE)}.")


def size_of(bank: str) -> int:
    """How many pictures the bundled bank has."""
    if bank == "fashion-mnist":
        return 480 + 160 + 2500
    return sum(len(stems.split()) for split in SPLITS for _, stems in rows_of()[bank][split])


def is_there(bank: str, root: Path) -> bool:
    """Whether any pictures of a bank's source lie in the folder of datasets."""
    return _there(source_of(bank), root) is not None


def course_dataset(bank: str, root: str | Path, *, download: bool = False) -> ImageDataset:
    """The pictures of a bank of the course, in the rows that the bundled bank has.

    root: the folder of datasets, where the source's `folders` are looked for, and fetched to with
    `download`. Where its pictures have no names to be known by, as many of each class are drawn by
    hash; pictures that are not there are left out; `protocol` says so.
    Raises BankError or FileNotFoundError, one sentence, if there is too little.
    """
    source, root = source_of(bank), located(root)
    folder = _there(source, root)
    if folder is None and download:
        _fetch(source, root)
        folder = _there(source, root)
    if folder is None:
        how = "the source could not be unpacked there" if download else "fetch it with --download"
        raise FileNotFoundError(f"{source['title']} is not in {root} (looked for "
                                f"{', '.join(source['folders'])}); {how}, or by hand: "
                                f"{source['by_hand']}.")
    if bank == "fashion-mnist":
        try:
            return fashion_mnist(folder).cap(train=48, val=16, test=2500)
        except (OSError, ValueError, EOFError, IndexError) as error:
            raise BankError(f"Fashion-MNIST in {folder} could not be read ({error}); what belongs "
                            f"there: {source['by_hand']}.") from error
    about = rows_of()[bank]
    splits, note = _rows(bank, about, _found(bank, source, folder))
    # read as CoOp reads the paper's datasets, as the bundled banks were
    return ImageDataset(name=bank, classnames=tuple(about["classnames"]), splits=splits,
                        templates=tuple(about["templates"]), plain=True, source=source["source"],
                        licence=source["licence"], protocol=f"{about['protocol']}; {note}")


def _there(source: dict, root: Path) -> Path | None:
    """The folder of a source that holds pictures, or torchvision's files of them."""
    return next((root / f for f in source["folders"] if _holds(root / f)), None)


def _holds(folder: Path) -> bool:
    raw = (".gz", "data_batch_1")
    return any(name.lower().endswith((*SUFFIXES, *raw)) for place, _, names in os.walk(folder)
               if not any(map(hidden, Path(place).relative_to(folder).parts)) for name in names)


def _fetch(source: dict, root: Path) -> None:
    fetch, title = source["fetch"], source["title"]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(root, error, "fetch again") from error
    by_hand = f"check the network, or fetch it by hand: {source['by_hand']}"
    if kind := fetch.get("torchvision"):
        import torchvision
        archives.attempt(lambda: getattr(torchvision.datasets, kind)(root, download=True), title,
                         by_hand)
        return
    place = root / fetch["into"]
    if files := fetch.get("parquet"):
        wanted = rows_of()[source["banks"][0]]["labels"]
        archives.attempt(lambda: unpack_parquet(files, place, wanted), title, by_hand)
        return
    known = source["sha256"] if len(source["sha256"]) == 64 else None
    file = place / fetch["url"].rsplit("/", 1)[1]
    given = file.is_file()
    try:
        file = archives.fetch(fetch["url"], file, known)
        if file.suffix == ".parquet":
            unpack_parquet(str(file), place)
        else:
            archives.unpack(file, place)
    except BankError as error:
        if not given:  # what cannot be unpacked would else be taken for the archive ever after
            file.unlink(missing_ok=True)
        again = f" (remove {file} first)" if file.is_file() else ""
        raise BankError(f"{title}: {str(error).rstrip('.')}{again}; by hand: "
                        f"{source['by_hand']}.") from error


def _found(bank: str, source: dict, folder: Path) -> dict[tuple[str, str], object]:
    """The pictures of a source by (folder, stem), the folder under every name it may go by."""
    if folder.name == CIFAR:
        return _cifar10(folder.parent)
    within = folder / source.get("within", {}).get(bank, "")
    inside = [place for place, _, _ in os.walk(folder) if Path(place).name == within.name]
    if not within.is_dir() and inside:  # an archive's own folder lies between
        within = Path(inside[0])
    found: dict[tuple[str, str], object] = {}
    for path in pictures(within):
        for name in _names(path.relative_to(within).parts[:-1]):
            found.setdefault((name, path.stem), path)
    return found


def _names(parts: tuple[str, ...]) -> Iterable[str]:
    """What a folder may be called in `course_splits.json`: a/b/ice_skating_rink/indoor is
    ice_skating_rink_indoor in SUN, bField is Field in RSSCN7, and train/Fruit/Pear/Anjou is
    train/Anjou.
    """
    if not parts:
        return
    yield parts[-1]
    yield "_".join(parts[-2:])
    if parts[-1][:1].islower() and parts[-1][1:2].isupper():
        yield parts[-1][1:]
    if part := next((one for one in parts if one in PARTS), None):
        yield f"{part}/{parts[-1]}"


def _cifar10(root: Path) -> dict[tuple[str, str], object]:
    """CIFAR-10's pictures by ("train/cat", "0143"): the place among the cats, from 0, in the order
    of the batches. torchvision checks the files' MD5 before it opens them.
    """
    from PIL import Image
    from torchvision.datasets import CIFAR10
    wanted = {(folder, stem) for split in SPLITS for folder, stems in rows_of()["cifar10"][split]
              for stem in stems.split()}
    found: dict[tuple[str, str], object] = {}
    for part, train in (("train", True), ("test", False)):
        try:
            data = CIFAR10(root, train=train)
        except RuntimeError as error:
            raise BankError(f"{root / CIFAR} is not CIFAR-10 as its authors published it (its MD5 "
                            "differs); remove it and fetch it again.") from error
        places: dict[int, int] = {}
        for pixels, label in zip(data.data, data.targets):
            place = places[label] = places.get(label, -1) + 1
            key = f"{part}/{data.classes[label]}", f"{place:04}"
            if key in wanted:
                found[key] = Image.fromarray(pixels)
    return found


def _rows(bank: str, about: dict, found: dict) -> tuple[dict[str, list[Item]], str]:
    """Splits, and in words whether they are the bundled bank's."""
    splits: dict[str, list[Item]] = {}
    total = 0
    for split in SPLITS:
        keys = [(folder, stem) for folder, stems in about[split] for stem in stems.split()]
        total += len(keys)
        splits[split] = [(found[key], about["labels"][key[0]]) for key in keys if key in found]
    there = sum(map(len, splits.values()))
    if there == 0:
        return _drawn(bank, about, found)
    lacking = next((name for label, name in enumerate(about["classnames"])
                    if not any(y == label for _, y in splits["train"])), None)
    if lacking:
        raise BankError(f"{bank}: no training picture of class '{lacking}' is there, by the names "
                        "in the bundled split; fetch the whole dataset again.")
    if there == total:
        return splits, "the bundled bank's rows, picture by picture"
    return splits, f"the bundled bank's rows, {total - there} of {total} pictures missing and left out"


def _drawn(bank: str, about: dict, found: dict) -> tuple[dict[str, list[Item]], str]:
    """As many pictures of each class as the bundled bank has, by hash, where no name tells which."""
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for folder, label in about["labels"].items():
        own = sorted({str(path): path for (name, _), path in found.items() if name == folder}.items())
        order = rank(0, label, list(range(len(own))))
        for split in SPLITS:
            many = sum(len(stems.split()) for name, stems in about[split] if name == folder)
            splits[split] += [(own[i][1], label) for i in order[:many]]
            order = order[many:]
        if not any(y == label for _, y in splits["train"]):
            raise BankError(f"{bank}: there are no pictures of '{folder}'; fetch the whole dataset "
                            "again.")
    return splits, ("not the bundled bank's pictures, which cannot be told here, but as many of each "
                    "class, by hash")
