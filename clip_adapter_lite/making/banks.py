"""Build the bundled banks, and the excerpt of Fashion-MNIST, from folders of real pictures.

    python -m clip_adapter_lite.making.banks --data ../shared/data --fashion-mnist
    /usr/share/datasets/fashion-mnist

Only features are written, never the pictures (Fashion-MNIST's excerpt excepted: it is MIT). At most
48 training and 16 validation images a class, test splits whole up to 2500. Takes about four minutes
on two cores.
"""
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy
import typer

from .. import load_backbone
from ..banks import build_bank
from ..datasets import ImageDataset, fashion_mnist, split_by_hash
from ..datasets.base import complete, folder_items
from ..datasets.coop import read_split
from ..datasets.fashion_mnist import EXCERPT, read_idx, write_idx
from ..files import BUNDLED
from ..naming import as_words

PHOTO = "a photo of a {}."
OWN_SPLIT = "own split by hash: 40/10/50 %, 16 training images a class where three quarters of it allow"
RSSCN7 = {"Field": "farmland", "Forest": "forest", "Grass": "grassland", "Industry": "industrial area",
          "Parking": "parking lot", "Resident": "residential area", "RiverLake": "river or lake"}
GTSRB = ("20 km/h speed limit", "30 km/h speed limit", "50 km/h speed limit", "60 km/h speed limit",
         "70 km/h speed limit",
         "80 km/h speed limit", "end of 80 km/h speed limit", "100 km/h speed limit",
         "120 km/h speed limit", "no overtaking",
         "no overtaking by trucks", "priority at the next crossing", "priority road", "give way",
         "stop", "no vehicles", "no trucks", "no entry", "general danger",
         "dangerous curve to the left", "dangerous curve to the right", "double curve",
         "bumpy road", "slippery road", "road narrows on the right", "road works", "traffic lights",
         "pedestrians", "children crossing", "bicycles crossing", "ice or snow",
         "wild animals crossing", "end of all limits", "turn right ahead", "turn left ahead",
         "straight ahead only", "straight ahead or right", "straight ahead or left", "keep right",
         "keep left", "roundabout", "end of no overtaking", "end of no overtaking by trucks")


def datasets(data: Path, fashion: Path):
    """The twelve datasets, one after the other."""
    for name, json_name, images, template in (
            ("caltech101", "Caltech101", data / "caltech-101/101_ObjectCategories", PHOTO),
            ("dtd10", "DescribableTextures", data / "dtd/images", "{} texture.")):
        rows = read_split(data / f"coop-splits/split_zhou_{json_name}.json", images)
        classes, splits, _ = complete(name, *rows, allow_missing=True)
        yield ImageDataset(name=name, classnames=classes, templates=(template,), splits=splits,
                           source="Caltech101" if name == "caltech101"
                           else "Describable Textures, first ten of 47 classes",
                           protocol=f"CoOp's split_zhou_{json_name}.json, classes on disk")

    def own(name: str, folder: Path, template: str, source: str, rename=as_words, licence="unknown"):
        classes = sorted(p.name for p in folder.iterdir())
        return ImageDataset(name=name, classnames=tuple(map(rename, classes)),
                            templates=(template,), licence=licence,
                            splits=split_by_hash(folder_items(folder, classes), 0.4, 0.1,
                                                 at_least=16), protocol=OWN_SPLIT, source=source)

    yield own("sun18", data / "sun18", PHOTO, "SUN397, 18 of its classes")
    for domain, name in (("photo", "photo"), ("art_painting", "art"), ("cartoon", "cartoon"),
                         ("sketch", "sketch")):
        yield own(f"pacs-{name}", data / "pacs" / domain, PHOTO, f"PACS, domain {domain}")
    yield own("rsscn7", data / "rsscn7", "a centered satellite photo of {}.",
              "RSSCN7 aerial scenes", RSSCN7.get)
    yield own("gtsrb", data / "gtsrb", "a zoomed in photo of a {} traffic sign.",
              "German traffic signs, one image a track", lambda c: GTSRB[int(c)])

    classes = sorted(p.name for p in (data / "cifar10/train").iterdir())
    train = split_by_hash(folder_items(data / "cifar10/train", classes), 0.75, 0.25)
    yield ImageDataset(name="cifar10", classnames=tuple(classes), templates=(PHOTO,),
                       source="CIFAR-10, a sample",
                       splits={"train": train["train"], "val": train["val"],
                               "test": folder_items(data / "cifar10/test", classes)},
                       protocol="train and test as given; a quarter of train for validation, by hash")

    classes = sorted(p.name for p in (data / "grocery/train").iterdir())
    pooled = folder_items(data / "grocery/train", classes)
    pooled += [(path, label) for label, name in enumerate(classes)
               if (data / "grocery/val" / name).is_dir()
               for path in sorted((data / "grocery/val" / name).iterdir())]
    pool = split_by_hash(pooled, 0.75, 0.25, at_least=12)
    yield ImageDataset(name="grocery", classnames=tuple(c.replace("-", " ") for c in classes),
                       licence="MIT", templates=("a photo of {}, a type of food.",),
                       source="Grocery Store Dataset",
                       splits={"train": pool["train"], "val": pool["val"],
                               "test": folder_items(data / "grocery/test", classes)},
                       protocol="train and val pooled and split 75/25 by hash; test as given")
    yield fashion_mnist(fashion)


def excerpt(source: Path) -> None:
    """Write the first 64 training and 100 test pictures of each class, in the original format."""
    EXCERPT.mkdir(parents=True, exist_ok=True)
    for stem, many in (("train", 64), ("t10k", 100)):
        labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz")
        rows = numpy.sort(numpy.concatenate([numpy.flatnonzero(labels == c)[:many] for c in range(10)]))
        write_idx(EXCERPT / f"{stem}-labels-idx1-ubyte.gz", labels[rows])
        write_idx(EXCERPT / f"{stem}-images-idx3-ubyte.gz",
                  read_idx(source / f"{stem}-images-idx3-ubyte.gz")[rows])


def main(
    data: Annotated[Path, typer.Option(help="The folder of real images (caltech-101, dtd, pacs, …).")],
    fashion_mnist: Annotated[Path, typer.Option(help="Where Debian's dataset-fashion-mnist put its "
                                                     "gzip IDX files.")],
    only: Annotated[str, typer.Option(help="Build just the bank of this name.")] = "",
):
    """Build every bundled bank with the pocket CLIP."""
    backbone = load_backbone("pocket", device="cpu")
    excerpt(fashion_mnist)
    for dataset in datasets(data, fashion_mnist):
        if only in ("", dataset.name):
            # the bits that ship, as CoOp reads
            capped = replace(dataset, plain=True).cap(train=48, val=16, test=2500)
            bank = build_bank(capped, backbone)
            path = bank.save(BUNDLED / "banks" / f"{dataset.name}.safetensors")
            print(f"{bank}: {path.stat().st_size / 1e6:.2f} MB, largest shots {bank.max_shots}",
                  flush=True)


if __name__ == "__main__":
    typer.run(main)
