"""A dataset through a backbone: every picture encoded once, going on after whatever stops that, to
a bank's fields.
"""
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .backbones import Backbone, classifier_weights, weights_of
from .datasets import ImageDataset
from .encoding import STYLES, Encoder, encode, encoded, open_image, preprocessing
from .files import file_hash, versions
from .naming import showable
from .progress import bar
from .shards import Shards
from .splits import SPLITS, Split

# kept notebooks import the last three from here
__all__ = ["build", "encode", "open_image", "preprocessing"]
READ_BY = "torch", "torchvision", "open_clip_torch", "timm", "pillow"  # what features depend on
SHARD = 8  # batches in a shard: what a kill can cost, seconds on a GPU and half a minute on two cores


class _Part:
    """One split in the making: features [V, N, D] in half precision, and why rows of it could not
    be read.
    """

    def __init__(self, encoder: Encoder, name: str, items: Sequence, batch: int,
                 names: Sequence[str] = ()):
        self.encoder, self.name, self.names = encoder, name, names
        self.pictures, self.labels = [picture for picture, _ in items], [label for _, label in items]
        self.features = torch.zeros(encoder.views, len(items), encoder.backbone.width,
                                    dtype=torch.float16)
        self.unreadable: dict[int, str] = {}
        self.batch = max(1, batch // encoder.views)  # pictures, each with all its views
        starts = range(0, len(items), SHARD * self.batch)
        self.todo = [range(start, min(start + SHARD * self.batch, len(items))) for start in starts]

    def take(self, shards: Shards) -> None:
        """What is finished already, except a shard of pictures that were changed or can be read by
        now, or that holds no numbers.
        """
        for rows in list(self.todo):
            found = shards.read(f"{self.name}-{rows.start:08d}")
            if "pictures" not in found or not torch.equal(found["pictures"], self._content(rows)):
                continue
            bad = {row: _unreadable_because(self.pictures[row], self.encoder.plain)
                   for row in found["unreadable"].tolist()}
            if all(bad.values()) and torch.isfinite(found["features"]).all():
                self.features[:, rows.start:rows.stop] = found["features"]
                self.unreadable |= bad
                self.todo.remove(rows)

    def _content(self, rows: range) -> Tensor:
        """SHA-256 of the pictures' bytes, as numbers [32]: a picture may change while it keeps its
        name. To read them costs little beside decoding and encoding them.
        """
        digest = hashlib.sha256()
        for row in rows:
            digest.update(_identity(self.pictures[row]).encode())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def make(self, shards: Shards | None, workers: int, advance: Callable[[int], None]) -> None:
        """The rest, batch by batch, kept shard by shard."""
        batches = [shard[i:i + self.batch] for shard in self.todo
                   for i in range(0, len(shard), self.batch)]
        ends = {shard.stop: shard for shard in self.todo}
        for rows, good, found, bad in encoded(self.encoder, self.pictures, batches, workers):
            if good:
                self.features[:, good] = found.half().transpose(0, 1)
            self.unreadable |= bad
            if shards and (whole := ends.get(rows.stop)):
                absent = [row for row in whole if row in self.unreadable]
                shards.write(f"{self.name}-{whole.start:08d}",
                             {"features": self.features[:, whole.start:whole.stop].contiguous(),
                              "pictures": self._content(whole),
                              "unreadable": torch.tensor(absent, dtype=torch.int64)})
            advance(len(rows) * self.encoder.views)

    def split(self) -> Split:
        """The split of the pictures that could be read."""
        rows = torch.tensor([row for row in range(len(self.labels)) if row not in self.unreadable],
                            dtype=torch.long)
        features = self.features if self.encoder.views > 1 else self.features[0]
        return Split(features, torch.tensor(self.labels, dtype=torch.long), self.names).take(rows)


def _names(dataset: ImageDataset) -> dict[str, tuple[str, ...]]:
    """What the pictures to be validated and judged on are called: their paths below the folder that
    all of them share. Reports name them; of training pictures, which may be a million, none is kept.
    """
    paths = {name: [picture for picture, _ in dataset.splits[name]] for name in SPLITS}
    every = [path for found in paths.values() for path in found]
    names: dict[str, tuple[str, ...]] = dict.fromkeys(SPLITS, ())
    if every and all(isinstance(path, (str, os.PathLike)) for path in every):
        above = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in every])
        for name in ("val", "test"):
            names[name] = tuple(Path(os.path.relpath(path, above)).as_posix().encode(
                errors="surrogateescape").decode(errors="replace") for path in paths[name])
    return names


def _identity(item) -> str:
    """SHA-256 of a picture's file, or of its pixels if it is in memory; "" for no file."""
    if not isinstance(item, (str, os.PathLike)):
        return hashlib.sha256(item.tobytes() + repr((item.mode, item.size)).encode()).hexdigest()
    try:
        return file_hash(Path(item))
    except OSError:
        return ""


def _unreadable_because(item, plain: bool) -> str:
    """Why a picture cannot be read; empty if it can."""
    try:
        open_image(item, plain)
    except OSError as error:
        return str(error)
    return ""


def build(dataset: ImageDataset, backbone: Backbone, templates: Sequence[str], *,
          out: str | Path | None, force: bool, views: int, style: str, normalize_each: bool,
          batch: int, workers: int, seed: int, skip_unreadable: bool, progress: bool,
          descriptions: dict[str, Sequence[str]] | None = None) -> tuple[dict, Shards | None]:
    """The fields of a `FeatureBank` of the dataset, and the shards to remove once it is saved: see
    `build_bank`.
    """
    encoders = {name: Encoder(backbone, style, views if name == "train" else 1, seed, dataset.plain)
                for name in SPLITS}
    text = classifier_weights(backbone, dataset.classnames, templates, normalize_each=normalize_each,
                              descriptions=descriptions)
    _warn_of_equal_words(dataset, text)
    names = _names(dataset)
    parts = [_Part(encoders[name], name, dataset.splits[name], batch, names[name]) for name in SPLITS]
    shards = Shards(Path(f"{out}.parts"), _job(dataset, encoders["train"], batch),
                    force) if out else None
    if shards:
        for part in parts:
            part.take(shards)
    with _progress(dataset.name, parts, progress) as advance:
        for part in parts:
            part.make(shards, workers, advance)
    unreadable = [why for part in parts for _, why in sorted(part.unreadable.items())]
    if unreadable and not skip_unreadable:
        raise OSError(_refusal(unreadable, shards))
    left_out = f"; {_pictures(len(unreadable), 'unreadable ')} left out" if unreadable else ""
    meta = {"weights_tag": backbone.tag, "protocol": dataset.protocol + left_out,
            "source": dataset.source, "licence": dataset.licence,
            "preprocessing": preprocessing(backbone, style),
            "reading": "stored pixels, as CoOp" if dataset.plain else "as viewers show it",
            "decoder": encoders["test"].decoder,
            "normalize_each": normalize_each, "versions": versions()}
    bias = getattr(backbone, "logit_bias", None)  # of a backbone that somebody made by hand
    if bias is not None:
        meta["logits"] = (f"trained with a sigmoid of scaled cosines and a bias of {bias:.4g}; here a "
                          "softmax over the scaled cosines, which a bias that all classes share does "
                          "not change")
    if views > 1:
        meta["views"] = {"count": views, "first": "plain",
                         "others": "random resized crop, mirrored half of the time",
                         "area": list(STYLES[style]), "seed": seed}
    if descriptions:
        meta["descriptions"] = {name: list(texts) for name, texts in descriptions.items()}
    fields = {"dataset": dataset.name, "backbone": backbone.name, "classnames": dataset.classnames,
              "templates": templates, "text_features": text, "logit_scale": backbone.logit_scale,
              "meta": meta, "splits": {part.name: part.split() for part in parts}}
    return fields, shards


def _warn_of_equal_words(dataset: ImageDataset, text: Tensor) -> None:
    """Warn, naming them, of classes with the same classifier weights [C, D], or as good as: a
    text's last bits depend on the batch that it is encoded in."""
    first = (text @ text.T > 1 - 1e-5).int().argmax(1)  # of each class the first that has its weights
    for one in first.unique().tolist():
        twins = (first == one).nonzero().flatten().tolist()
        if len(twins) == 1:
            continue
        names = " and ".join(f"'{dataset.classnames[c]}'" for c in twins)
        warnings.warn(f"{dataset.name}: the text tower cannot tell {names} apart (it reads no "
                      "upper case, and nothing beyond its context length), so neither can "
                      "zero-shot or a text adapter; give other names, to an own folder in "
                      "classes.json.", stacklevel=3)


def _job(dataset: ImageDataset, encoder: Encoder, batch: int) -> dict:
    """What the tensors of a build depend on: two builds that agree in it may share shards."""
    from importlib.metadata import version
    backbone, digest = encoder.backbone, hashlib.sha256()
    for name in SPLITS:
        for item, label in dataset.splits[name]:
            # files by their names here, and by their bytes in each shard: all of them would take long
            if not isinstance(item, (str, os.PathLike)):
                item = _identity(item)
            digest.update(f"{name} {label} {item}\n".encode(errors="surrogateescape"))
    weights = weights_of(backbone.tag)
    if Path(weights).is_file():  # the tag of a backbone that somebody made by hand
        weights = file_hash(Path(weights))
    return {"pictures": digest.hexdigest(), "backbone": backbone.name, "weights": weights,
            "preprocessing": preprocessing(backbone, encoder.style), "views": encoder.views,
            "plain": encoder.plain, "decoder": encoder.decoder,
            "seed": encoder.seed if encoder.views > 1 else None, "batch": batch,
            "device": backbone.device.type, "versions": {name: version(name) for name in READ_BY}}


@contextmanager
def _progress(name: str, parts: Sequence[_Part], shown: bool):
    """A bar over all views of all pictures, with rate and time left; gives the function that moves
    it on.
    """
    from rich.progress import MofNCompleteColumn
    total = sum(part.features.shape[0] * part.features.shape[1] for part in parts)
    done = total - sum(len(rows) * part.encoder.views for part in parts for rows in part.todo)
    start = time.monotonic()
    with bar(MofNCompleteColumn(), "{task.fields[rate]}", shown=shown) as progress:
        task = progress.add_task(showable(name), total=total, completed=done, rate="")

        def advance(many: int) -> None:
            progress.advance(task, many)
            rate = (progress.tasks[0].completed - done) / max(time.monotonic() - start, 1e-3)
            progress.update(task, rate=f"{rate:.{0 if rate > 10 else 1}f} images/s")

        yield advance


def _pictures(many: int, which: str = "") -> str:
    return f"{many} {which}picture{'' if many == 1 else 's'}"


def _refusal(unreadable: list[str], shards: Shards | None) -> str:
    """One sentence that names the unreadable pictures; beyond twenty, a file beside the shards does."""
    kept, names = "", [why.split(" is not a readable picture")[0] for why in unreadable]
    if shards:
        kept = f" (everything else is kept in {shards.folder})"
        if len(names) > 20:
            listing = shards.folder / "unreadable.txt"
            shards.put(lambda: listing.write_text("\n".join(unreadable), encoding="utf-8"))
            names = [*names[:20], f"and {len(names) - 20} more, all of them listed in {listing}"]
    return (f"{_pictures(len(unreadable))} could not be read: {', '.join(names)}; mend or replace "
            f"and give the same command again{kept}, or leave them out with --skip-unreadable "
            "(skip_unreadable=True).")
