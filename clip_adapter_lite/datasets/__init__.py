"""Image datasets: where the pictures are, what they show, and how they are split.

`load_dataset("oxford_pets", "/data")` reads the paper's eleven, ImageNet's four relatives and your
own folder. What is known of each (classes, templates, licence, size, where it comes from, what has
to be fetched by hand) is data: `TABLE`.
"""
import json
from pathlib import Path

from ..errors import BankError, one_line
from ..files import located
from . import archives, imagenet, official
from .base import ImageDataset, complete, split_by_hash, unread
from .coop import read_split
from .fashion_mnist import fashion_mnist
from .folder import own_folder

__all__ = ["TABLE", "TEMPLATE_SETS", "ImageDataset", "downloadable", "fashion_mnist",
           "load_dataset", "names", "place", "split_by_hash", "template_set"]

# By name. folders: where it may lie under the root, CoOp's place first; images: a folder in there
# that shows that it is there, and that CoOp's rows are relative to; split_json: where CoOp's file
# lies; splits: its sizes, or those without one.
TABLE: dict[str, dict] = json.loads(Path(__file__).with_name("table.json").read_text(encoding="utf-8"))
READERS = official.READERS | imagenet.READERS
TEMPLATE_SETS = ("seven", "openai-80")
SEVEN = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
         "a {} in a video game.", "art of the {}.", "a photo of the small {}.")


def names() -> list[str]:
    """The datasets that `load_dataset` knows, the paper's eleven first; "folder" is your own
    pictures.
    """
    return list(TABLE)


def downloadable(name: str) -> bool:
    """Whether there is an address that download=True (--download) can fetch it from."""
    # torchvision's address is dead, but asked, should it come back
    alive = name in official.DOWNLOADS and name != "sun397"
    return alive or "archive" in TABLE[name]


def place(name: str, root: Path) -> tuple[Path | None, bool]:
    """Where a dataset lies under the root (None if it does not), and whether CoOp's split file is
    in place.
    """
    facts = TABLE[name]
    folder = next((root / f for f in facts["folders"] if (root / f / facts["images"]).is_dir()), None)
    return folder, bool(facts["split_json"]) and (root / facts["split_json"]).is_file()


def template_set(name: str) -> tuple[str, ...]:
    """An ensemble of prompts: "seven" (the paper's, for ImageNet) or "openai-80" (CLIP's, for
    ImageNet).
    """
    if name == "seven":
        return SEVEN
    if name == "openai-80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES
        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    raise ValueError(f"Unknown set of templates '{name}'; give seven or openai-80.")


def load_dataset(name: str, root: str | Path, *, download: bool = False, allow_missing: bool = False,
                 seed: int = 1) -> ImageDataset:
    """A dataset from the folder that holds all of them (CoOp's layout, or torchvision's), or from
    your own for "folder".

    CoOp's split file is used where it is in place; otherwise the official lists, with a seeded part
    of train for validation, or CoOp's 50/20/30 rule; `protocol` says which. download: fetch what is
    not there. allow_missing: leave out missing pictures, and classes without any, instead of
    raising BankError. Pictures are listed, not opened.
    Raises ValueError for an unknown name, FileNotFoundError if there is no such folder.

    `load_dataset("dtd", "/data", download=True)`
    """
    if name not in TABLE:
        raise ValueError(f"Unknown dataset '{name}'; give one of {', '.join(TABLE)}.")
    facts, root = TABLE[name], located(root)
    about = dict(name=name, templates=tuple(facts["templates"]), source=facts["source"],
                 licence=facts["licence"])
    if not root.is_dir() and not (download and facts["folders"]):
        holds = "your pictures, a folder a class" if name == "folder" else "the datasets"
        raise FileNotFoundError(f"No folder {root}; --root (root=…) is the folder that holds {holds}.")
    if name == "folder":
        classnames, splits, protocol = own_folder(root, seed, allow_missing)
        about["name"] = root.resolve().name or name
        protocol = "; ".join(filter(None, [protocol, unread(root, sum(map(len, splits.values())))]))
        return ImageDataset(**about, classnames=classnames, splits=splits, protocol=protocol)
    folder, coops = place(name, root)
    if folder is None and download:
        _download(name, root)
        folder, coops = place(name, root)
    if folder is None:
        raise FileNotFoundError(f"{facts['title']} is not in {root} (looked for "
                                f"{', '.join(facts['folders'])}); give the folder above it as "
                                f"--root (root=…), or {_how(name)}.")
    listed = True
    if coops:
        split = root / facts["split_json"]
        classnames, splits = read_split(split, folder / facts["images"])
        protocol = f"CoOp's {split.name}"
    else:
        try:
            classnames, splits, protocol, listed = READERS[name](name, folder, seed)
        except BankError:
            raise
        # whatever torchvision's readers make of damaged annotation files
        except (RuntimeError, OSError, ValueError, LookupError, AttributeError) as error:
            raise BankError(f"{facts['title']} in {folder} could not be read "
                            f"({type(error).__name__}: {one_line(error)}); what belongs there: "
                            f"{facts['by_hand']}.") from error
    classnames, splits, note = complete(name, classnames, splits, allow_missing,
                                        None if listed else facts["pictures"])
    return ImageDataset(**about, classnames=classnames, splits=splits, plain=True,
                        protocol=f"{protocol}; {note}" if note else protocol)


def _how(name: str) -> str:
    by_hand = f"by hand: {TABLE[name]['by_hand']}"
    if downloadable(name):
        return f"fetch it with download=True (--download), or {by_hand}"
    return f"fetch it {by_hand}"


def _download(name: str, root: Path) -> None:
    facts = TABLE[name]
    root.mkdir(parents=True, exist_ok=True)
    if archive := facts.get("archive"):
        place = root / archive["into"]
        archives.unpack(archives.fetch(archive["url"], place / archive["url"].rsplit("/", 1)[1],
                                       archive["sha256"]), place)
    elif name == "imagenet":
        imagenet.unpack_archives(root)
    elif name in official.DOWNLOADS:
        archives.attempt(lambda: official.download(name, root), facts["title"],
                         "check the network, delete half-written "
                         f"archives in {root}, or fetch it by hand: {facts['by_hand']}")
    else:
        raise BankError(f"{facts['title']} has no address to download from; fetch it by hand: "
                        f"{facts['by_hand']}.")
