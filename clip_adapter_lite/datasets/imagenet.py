"""ImageNet's folders and the four test sets for shift, named by WordNet id (or by class index:
ImageNetV2).
"""
from pathlib import Path

from ..errors import BankError, one_line
from .base import Item, folder_items, hold_out

FOR_VALIDATION = 16  # pictures a class; CoOp has none of its own and reads test there


def class_ids() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 1000 WordNet ids in class order (timm's list) and open_clip's names for them."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo
    return tuple(ImageNetInfo("imagenet-1k").label_names()), tuple(IMAGENET_CLASSNAMES)


def imagenet(name: str, folder: Path, seed: int):
    """Train and val folders: val is the test split, as everywhere; validation is a seeded part of
    train.
    """
    ids, names = class_ids()
    train, val = hold_out(_items(folder / "train", ids), seed, most=FOR_VALIDATION)
    return names, {"train": train, "val": val, "test": _items(folder / "val", ids)}, (
        f"official val as test, {FOR_VALIDATION} training pictures a class for validation by hash, "
        f"seed {seed}"), False


def variant(name: str, folder: Path, seed: int):
    """ImageNetV2, -Sketch, -A and -R: test pictures only; -A and -R have 200 of the classes."""
    ids, names = class_ids()
    # V2: 0 … 999, once ids
    found = [str(i) if (folder / str(i)).is_dir() else wnid for i, wnid in enumerate(ids)]
    there = [i for i, folder_name in enumerate(found) if (folder / folder_name).is_dir()]
    if name in ("imagenetv2", "imagenet_sketch"):
        there = range(len(ids))
    splits = {"train": [], "val": [], "test": _items(folder, [found[i] for i in there])}
    return tuple(names[i] for i in there), splits, "test only, for shift from ImageNet", False


def _items(folder: Path, classes) -> list[Item]:
    from rich.progress import track
    rows = track(enumerate(classes), f"{folder.name}: listing", total=len(classes), transient=True)
    return [(path, i) for i, c in rows for path, _ in folder_items(folder, [c])]


def unpack_archives(root: Path) -> None:
    """Let torchvision check and unpack ImageNet's three archives, which must lie in `root/imagenet`."""
    import torchvision
    try:
        for part in ("val", "train"):
            torchvision.datasets.ImageNet(root / "imagenet", split=part)
    except (RuntimeError, OSError) as error:
        raise BankError(f"ImageNet's archives in {root / 'imagenet'} could not be unpacked "
                        f"({one_line(error)}); register at image-net.org and put "
                        "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
                        "ILSVRC2012_img_val.tar there.") from error


READERS = {"imagenet": imagenet} | dict.fromkeys(("imagenetv2", "imagenet_sketch", "imagenet_a",
                                                  "imagenet_r"), variant)
