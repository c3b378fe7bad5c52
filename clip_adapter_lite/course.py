"""The course's banks under another backbone: fetched, built in the bundled banks' own rows, and what
could not be had told.
"""
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .backbones import Backbone, agree, load_backbone
from .banks import FeatureBank, build_bank, cache_place
from .datasets.base import ImageDataset
from .datasets.course import COURSE, course_dataset, is_there, size_of, source_of
from .errors import BankError, one_line
from .files import located
from .naming import count
from .values import names_given, shown

# The banks that each notebook loads; 01, and 11 for the paper's table, take whatever there is.
NOTEBOOKS = {
    "00": ("fashion-mnist", "pacs-cartoon", "cifar10"), "01": ("cifar10",),
    "02": ("fashion-mnist", "pacs-cartoon", "pacs-sketch", "rsscn7"),
    "03": ("pacs-cartoon", "dtd10", "rsscn7", "cifar10"), "04": ("cifar10",),
    "05": ("pacs-photo", "dtd10", "fashion-mnist"), "06": COURSE,
    "07": ("pacs-cartoon", "fashion-mnist", "cifar10", "dtd10", "rsscn7", "sun18"),
    "08": ("rsscn7", "dtd10", "pacs-sketch", "pacs-photo"),
    "09": ("pacs-photo", "pacs-art", "pacs-cartoon", "pacs-sketch", "cifar10", "sun18"),
    "10": ("rsscn7", "fashion-mnist", "dtd10"), "11": (),
    "12": ("caltech101", "gtsrb", "fashion-mnist")}


@dataclass(frozen=True)
class Course:
    """What `course_banks` did. built, kept: banks made now, and those that were there; lacking: why
    each of the others that were asked for is not; unasked: what is not there either.
    """
    backbone: str
    built: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    lacking: dict[str, str] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)

    @property
    def notebooks_left_out(self) -> dict[str, list[str]]:
        """The notebooks that cannot run yet, and the banks that each lacks."""
        lost = {number: [bank for bank in banks if bank in self.lacking]
                for number, banks in NOTEBOOKS.items()}
        return {number: banks for number, banks in lost.items() if banks}

    def __str__(self):
        lines = [f"{count(len(self.built), 'bank')} of {self.backbone} built, {len(self.kept)} there "
                 f"already, {len(self.lacking)} could not be had."]
        alike: dict[str, list[str]] = {}
        for bank, why in self.lacking.items():
            alike.setdefault(why, []).append(bank)
        lines += [f"  {', '.join(banks)}: {why}" for why, banks in alike.items()]
        if left := self.notebooks_left_out:
            lines.append("Notebooks that wait for them: " + "; ".join(
                f"{number} ({', '.join(banks)})" for number, banks in left.items()) + ".")
            lines.append("The same command tries these again and builds nothing twice.")
        if self.unasked:
            lines.append(f"Not asked for, and not there: {', '.join(self.unasked)}.")
        elif not self.lacking:
            lines.append(f"All {len(NOTEBOOKS)} notebooks run with BACKBONE = \"{self.backbone}\".")
        return "\n".join(lines)


def course_banks(backbone: str | Backbone, root: str | Path, *, tag: str | None = None,
                 only: Sequence[str] | str = (), download: bool = True, batch: int = 64,
                 workers: int | None = None, force: bool = False, progress: bool = True,
                 tell: Callable[[str], None] = print) -> Course:
    """Every bank that the course's notebooks load, built with `backbone` where it is not yet there.

    root: the folder of datasets; what is not in it is fetched with `download`. only: these banks.
    tag, batch, workers: as for `build_bank`. A bank is built in the rows of the bundled one of its
    name, so that episodes of the same seed hold the same pictures; where they cannot be told, its
    protocol says so. Finished banks are kept whatever happens to the others, and an unfinished one
    goes on from its shards. tell: is given a line on each bank, with the time left.
    Raises ValueError for a name in `only` that is none of the course's, for what is no path or no
    backbone, or for the pocket CLIP, whose banks ship; NotADirectoryError for a root that is a
    file; RuntimeError if the weights cannot be had.

    `cal.course_banks("RN50-quickgelu", "/data")`
    """
    root, todo = located(root), names_given(only, "only") or list(COURSE)
    if os.path.isfile(root):
        raise NotADirectoryError(f"{root} is a file; give the folder of datasets, or one to be made.")
    for name in todo:
        source_of(name)
    if not isinstance(backbone, (str, Backbone)):
        raise ValueError(f"{shown(backbone)} is no backbone; give a name, such as RN50-quickgelu, or "
                         "what load_backbone gave.")
    if "pocket" in (backbone, getattr(backbone, "name", "")):
        raise ValueError("The pocket CLIP's banks ship with the package; give another backbone, such "
                         "as RN50-quickgelu.")
    if isinstance(backbone, str):
        tell(f"Loading {backbone}; the first time its weights are downloaded, which wants a network.")
        backbone = load_backbone(backbone, tag)
    found = Course(backbone.name)
    left, done, seconds = sum(map(size_of, todo)), 0, 0.0
    lost: dict[str, str] = {}
    for number, name in enumerate(todo, 1):
        left -= size_of(name)
        place = cache_place(name, backbone.name)
        try:
            if place.is_file() and not force:
                _check(FeatureBank.load(place), backbone, place)
                found.kept.append(name)
                continue
            dataset = _dataset(name, root, download, lost)
            start = time.perf_counter()
            bank = build_bank(dataset, backbone, out=place, force=force, batch=batch, workers=workers,
                              progress=progress)
            many = sum(map(len, bank.splits.values()))
            done, seconds = done + many, seconds + time.perf_counter() - start
            found.built.append(name)
            tell(f"{number} of {len(todo)}: {name}, {many} images; {bank.meta['protocol']} · "
                 f"{done / seconds:.0f} images/s, {_left(left * seconds / done)}")
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            found.lacking[name] = f"{one_line(error)}."
            tell(f"{number} of {len(todo)}: {name} could not be had: {found.lacking[name]}")
    found.unasked.extend(name for name in COURSE if name not in todo
                         and not cache_place(name, backbone.name).is_file())
    return found


def _dataset(name: str, root: Path, download: bool, lost: dict[str, str]) -> ImageDataset:
    """`course_dataset`; a source that could not be had is not asked again for another of its banks."""
    title = source_of(name)["title"]
    if title in lost:
        raise BankError(lost[title])
    try:
        return course_dataset(name, root, download=download)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if not is_there(name, root):
            lost[title] = f"{one_line(error)}."
        raise


def _check(bank: FeatureBank, model: Backbone, place: Path) -> None:
    """Raise ValueError for a bank of other weights, which would be taken for this backbone's."""
    if not agree(bank.meta.get("weights_tag", ""), model.tag):
        raise ValueError(f"{place} is of other weights ({bank.meta.get('weights_tag')}) than those "
                         f"given ({model.tag}); build it again with --force (force=True)")


def _left(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left, downloads apart"

