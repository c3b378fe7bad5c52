"""Fashion-MNIST (Xiao et al., 2017; MIT licence) from its gzip IDX files: the whole set, or the
excerpt we ship.
"""
import gzip
import struct
from pathlib import Path

from ..files import BUNDLED
from .base import ImageDataset, split_by_hash

EXCERPT = BUNDLED / "fashion-mnist"
CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")
TEMPLATE = "a photo of a {}, a type of clothing."


def read_idx(path: Path):
    """The uint8 array of a gzip IDX file: [N] labels or [N, H, W] pictures."""
    import numpy
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = struct.unpack(f">{dimensions}I", raw[4:4 + 4 * dimensions])
    return numpy.frombuffer(raw, numpy.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_idx(path: Path, array) -> None:
    """Write a uint8 array as gzip IDX; the same array gives the same bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def fashion_mnist(folder: Path = EXCERPT) -> ImageDataset:
    """Fashion-MNIST as RGB pictures of 28 px; by default the bundled excerpt (48 + 16 train and
    val, 100 test a class).

    The official training part is split into train and validation by hash (75/25); test is as given.
    """
    from PIL import Image
    parts = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        pictures = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        parts[part] = [(Image.fromarray(p).convert("RGB"), int(y)) for p, y in zip(pictures, labels)]
    split = split_by_hash(parts["train"], train=0.75, val=0.25)
    return ImageDataset(
        name="fashion-mnist", classnames=CLASSES, templates=(TEMPLATE,), licence="MIT",
        splits={"train": split["train"], "val": split["val"], "test": parts["test"]},
        source="Fashion-MNIST, Zalando (Debian package dataset-fashion-mnist)",
        protocol="official train (a quarter of it for validation, by hash) and test")
