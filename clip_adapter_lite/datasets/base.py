"""The one shape that every dataset takes before a backbone sees it, and how we split what comes
without a split.
"""
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import BankError
from ..naming import count
from ..splits import SPLITS, drawn, rank

Item = tuple[Any, int]  # a picture's path, or the PIL image itself, and its label
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".bmp", ".webp", ".gif", ".tif",
            ".tiff", ".ppm", ".pgm")
# What lies beside pictures and is none; whatever else is left out is told of: it may be pictures of
# another format.
NOTES = (".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".html", ".yaml", ".yml", ".log", ".db",
         ".ini", ".aae", ".xmp")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """Pictures by split. splits maps "train", "val" and "test" to lists of (path or PIL image, label).

    protocol: how it was split, in words. source: where the pictures come from. plain: pictures are
    read as CoOp reads the paper's datasets (stored pixels), not as viewers show them. Raises
    BankError for a wrong label.
    """
    name: str
    classnames: tuple[str, ...]
    splits: dict[str, list[Item]]
    templates: tuple[str, ...]
    protocol: str
    source: str
    licence: str = "unknown"
    plain: bool = False

    def __post_init__(self):
        for split in SPLITS:
            wrong = [label for _, label in self.splits[split] if not 0 <= label < len(self.classnames)]
            if wrong:
                raise BankError(f"{self.name}, {split}: label {wrong[0]} does not name one of the "
                                f"{len(self.classnames)} classes.")

    def cap(self, **most: int) -> "ImageDataset":
        """At most so many images a class (train, val) or in all (test), chosen by hash; the
        protocol says so.

        `dataset.cap(train=48, val=16, test=2500)`
        """
        splits = {}
        for name, items in self.splits.items():
            rows = _by_class(items)
            limit = most.get(name, len(items))
            if name == "test":  # every class keeps its share
                # so that the shares add up to the limit
                sums = accumulate(map(len, rows.values()), initial=0)
                edges = [n * limit // max(len(items), 1) for n in sums]
                limit_of = {c: b - a for c, a, b in zip(rows, edges, edges[1:])}
            else:
                limit_of = dict.fromkeys(rows, limit)
            kept = sorted(i for c, r in rows.items() for i in rank(0, c, r)[:limit_of[c]])
            splits[name] = [items[i] for i in kept]
        note = ", ".join(f"{n} ≤ {most[n]}{'' if n == 'test' else ' a class'}" for n in SPLITS
                         if len(splits[n]) < len(self.splits[n]))
        return ImageDataset(**{**vars(self), "splits": splits,
                               "protocol": f"{self.protocol}; {note}" if note else self.protocol})

    def draw(self, split: str, per_class: int | None, seed: int) -> list[Item]:
        """The pictures that an episode of a bank built from the dataset has: `per_class` of each
        class by hash, or all.

        Raises BankError if the split has no pictures or, naming the class, train has fewer of one.
        """
        items = self.splits[split]
        if not items:
            raise BankError(f"{self.name} has no {split} pictures; give a dataset with pictures in "
                            "every split.")
        if per_class is None:
            return items
        labels = [label for _, label in items]
        counts = Counter(labels)
        few = min(range(len(self.classnames)), key=counts.__getitem__)
        if split == "train" and not 1 <= per_class <= counts[few]:
            raise BankError(f"shots must be from 1 to {counts[few]}, the training pictures of "
                            f"{self.name}'s class '{self.classnames[few]}'; got {per_class}.")
        return [items[row] for row in drawn(labels, len(self.classnames), per_class, seed)]


def _by_class(items: Sequence[Item]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for index, (_, label) in enumerate(items):
        rows.setdefault(label, []).append(index)
    return rows


def split_by_hash(items: Sequence[Item], train: float = 0.5, val: float = 0.2, seed: int = 0,
                  at_least: int = 0) -> dict[str, list[Item]]:
    """Split each class by the SHA-256 order of its images: `train`, `val` and the rest for test
    (CoOp's 50/20/30).

    at_least: give train this many where that leaves at least a quarter of the class to validation
        and test.
    """
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for label, rows in _by_class(items).items():
        order, many = rank(seed, label, rows), len(rows)
        # leave one for validation
        first = min(max(round(many * train), min(at_least, many * 3 // 4)), max(1, many - 1))
        second = first + max(1, round((many - first) * val / (1 - train)))
        for name, part in zip(SPLITS, (order[:first], order[first:second], order[second:])):
            splits[name] += part
    return {name: [items[i] for i in sorted(rows)] for name, rows in splits.items()}


def hold_out(items: Sequence[Item], seed: int, share: float = 0.2,
             most: int | None = None) -> tuple[list, list]:
    """Two lists, what stays and what is held out: of each class `share` (CoOp's fifth), at most
    `most`, by hash.
    """
    held = set()
    for label, rows in _by_class(items).items():
        wanted = max(1, round(len(rows) * share))
        held.update(rank(seed, label, rows)[:min(wanted, most or wanted, len(rows) - 1)])
    return ([x for i, x in enumerate(items) if i not in held],
            [x for i, x in enumerate(items) if i in held])


def pictures(folder: Path) -> list[Path]:
    """The picture files under `folder`, by their suffix, in name order; hidden files and folders
    are left out.
    """
    return [path for path in _visible(folder) if path.name.lower().endswith(SUFFIXES)]


def hidden(name: str) -> bool:
    """Whether a file or folder is a system's and not the user's: dot files, a Mac's in archives, a
    Synology's previews.
    """
    return name.startswith((".", "__MACOSX", "@eaDir"))


def _visible(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not hidden(name))
        found += [Path(place, name) for name in sorted(files) if not hidden(name)]
    return found


def unread(folder: Path, read: int) -> str:
    """What lies under `folder` beside the `read` pictures that a dataset has of it, in words; ""
    for nothing but notes.
    """
    every = _visible(folder)
    mine = [path for path in every if path.name.lower().endswith(SUFFIXES)]
    others = Counter(path.suffix.lower() or "without a suffix" for path in every
                     if not path.name.lower().endswith(SUFFIXES + NOTES))
    said = [f"{count(len(mine) - read, 'picture')} outside of class folders left "
            "out"] if len(mine) > read else []
    if others:
        kinds = [f"{many} {kind}" for kind, many in others.most_common()]
        kinds = kinds[:5] + [count(len(kinds) - 5, 'more kind')] * (len(kinds) > 5)
        said.append(f"{', '.join(kinds)} left out, which are not read: convert them to JPEG or PNG")
    return "; ".join(said)


def folder_items(root: Path, classes: Sequence[str]) -> list[Item]:
    """The pictures in `root/<class>/`, in name order, labelled by the class's place in `classes`."""
    return [(path, label) for label, name in enumerate(classes) for path in pictures(root / name)]


def complete(name: str, classnames: Sequence[str], splits: dict[str, list[Item]],
             allow_missing: bool = False, expected: int | None = None
             ) -> tuple[tuple[str, ...], dict[str, list[Item]], str]:
    """Class names and splits of what is on disk, and a note on what is not ("" if nothing is missing).

    expected: how many pictures there should be, for folders; without it each listed file is looked
    for. A class without any picture disappears and the labels close up. Raises BankError, with the
    count and the first file, for a missing file without `allow_missing`, or if there is none at
    all.
    """
    paths = [path for items in splits.values() for path, _ in items]
    if expected is None:
        @cache
        # one listing a folder, where a look at each file takes minutes on NFS
        def files(folder: Path) -> frozenset[str]:
            return frozenset(os.listdir(folder) if folder.is_dir() else ())

        gone = [path for path in paths if path.name not in files(path.parent)]
        total, missing, first = len(paths), len(gone), f", the first {gone[0]}" if gone else ""
    else:
        gone, total, missing, first = [], expected, max(0, expected - len(paths)), ""
    if missing and (missing == total or not allow_missing):
        leave_out = ", or leave them out with allow_missing=True (--allow-missing)"
        either = "" if missing == total else leave_out
        raise BankError(f"{name}: {missing} of {total} pictures are missing{first}; unpack the "
                        f"dataset again (--download does so only where its folder is gone){either}.")
    lost = set(gone)
    kept = {part: [item for item in items if item[0] not in lost] for part, items in splits.items()}
    labels = sorted({label for items in kept.values() for _, label in items})
    place = {label: i for i, label in enumerate(labels)}
    note = f"{missing} missing pictures left out" if missing else ""
    if len(labels) < len(classnames):
        note += f"{', ' if note else ''}{len(labels)} of {len(classnames)} classes there"
    return (tuple(classnames[label] for label in labels),
            {part: [(path, place[label]) for path, label in items] for part, items in kept.items()},
            note)


