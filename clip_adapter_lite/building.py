"""From pictures to a feature bank: decode, preprocess and encode every image once, and go on after whatever stops that."""
import hashlib
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .backbones import Backbone, classifier_weights, load_backbone
from .banks import SPLITS, BankError, FeatureBank, Split
from .datasets.base import ImageDataset, one_line
from .shards import Shards

# The two preprocessings of the literature, and how much of a picture's area a random training view of each shows.
STYLES = {"clip": (0.5, 1.0),  # keeps the aspect ratio and crops the middle; views as in Tip-Adapter
          "coop": (0.08, 1.0)}  # squashes both sides; views as in CoOp
TEMPLATE_SETS = ("seven", "openai-80")
SHARD = 8  # batches in a shard: what a kill can cost, seconds on a GPU and half a minute on two cores


def open_image(item):
    """The RGB picture of a path, or the PIL image itself. Raises OSError, naming the file, if it cannot be read."""
    from PIL import Image
    if isinstance(item, Image.Image):
        return item.convert("RGB")
    try:
        with Image.open(item) as picture:
            return picture.convert("RGB")
    except Exception as error:  # PIL raises many types for damaged files
        raise OSError(f"{item} is not a readable picture ({one_line(error)}); replace or remove it.") from error


def preprocessing(backbone: Backbone, style: str = "clip") -> dict:
    """What happens to a picture before the image tower: size, resizing, mean and deviation, as JSON has it.

    style: "clip" is the backbone's own way, which for CLIP resizes the short side and crops the middle; "coop" squashes
    both sides to the input size, as CoOp does. Raises ValueError for another.
    """
    import json
    if style not in STYLES:
        raise ValueError(f"preprocess must be one of {', '.join(STYLES)}; got {style!r}.")
    facts = json.loads(json.dumps(backbone.model.visual.preprocess_cfg, sort_keys=True))
    return facts if style == "clip" else facts | {"resize_mode": "squash"}


def random_view(picture, draw: random.Random, area: tuple[float, float], size: tuple[int, int], resample: int):
    """A random part of a picture at (width, height) `size`, mirrored half of the time; torchvision's RandomResizedCrop
    and RandomHorizontalFlip, which only know the one global generator and so cannot be used in threads.

    area: the least and the largest share of the picture; its aspect ratio is 3/4 to 4/3.
    """
    from PIL import Image
    width, height = picture.size
    for _ in range(10):
        share, aspect = draw.uniform(*area) * width * height, math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(share * aspect)), round(math.sqrt(share / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:  # a long narrow picture: as much of it as has such an aspect ratio
        w, h = min(width, max(1, height * 4 // 3)), min(height, max(1, width * 4 // 3))
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    view = picture.crop((left, top, left + w, top + h)).resize(size, resample)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else view


class Encoder:
    """Pictures to features: `pixels` of one picture in a worker thread, then `features` of a batch where the tower is.

    Between them they give the tower what `backbone.preprocess` gives, to the last bit on a CPU. They are two because bytes
    become numbers quickest for a whole batch at once (on a GPU a quarter of the bytes travel), and because PyTorch's
    operations in many threads compete with the tower for the cores. JPEGs are decoded in full: PIL's quicker draft mode
    would give other pixels.
    """

    def __init__(self, backbone: Backbone, style: str = "clip", views: int = 1, seed: int = 1):
        from PIL import Image
        from torchvision.transforms import Compose, Normalize
        if views < 1:
            raise ValueError(f"views must be at least 1, the plain picture; got {views}.")
        self.backbone, self.style, self.views, self.seed = backbone, style, views, seed
        size, facts = backbone.model.visual.preprocess_cfg["size"], preprocessing(backbone, style)
        self.size = (size, size) if isinstance(size, int) else (size[1], size[0])  # (width, height)
        self.resample = Image.Resampling.BILINEAR if facts.get("interpolation") == "bilinear" else Image.Resampling.BICUBIC
        steps = getattr(backbone.preprocess, "transforms", ())
        self.normalize = steps[-1] if len(steps) > 2 and isinstance(steps[-1], Normalize) else None
        self.geometry = Compose(steps[:-2]) if self.normalize else backbone.preprocess  # the last but one makes a tensor
        self.most: int | None = None  # pictures at a time that fit into the device's memory

    def pixels(self, item, row: int = 0) -> Tensor:
        """The views of one picture: bytes [V, H, W, 3], or [V, 3, H, W] for a `preprocess` that is not torchvision's.

        View 0 is the plain picture; the others depend on (seed, row, view) alone.
        """
        import numpy
        whole = open_image(item)
        pictures = [whole if self.style == "clip" else whole.resize(self.size, self.resample)]
        pictures += [random_view(whole, random.Random(f"{self.seed}/{row}/{view}"), STYLES[self.style], self.size,
                                 self.resample) for view in range(1, self.views)]
        made = [self.geometry(picture) for picture in pictures]  # changes nothing of what already has the input size
        return torch.from_numpy(numpy.stack(list(map(numpy.asarray, made)))) if self.normalize else torch.stack(made)

    def features(self, pixels: Sequence[Tensor]) -> Tensor:
        """Features [N, V, D], float32 on the backbone's device, of what `pixels` gave for N pictures.

        The batch is halved, for good, when the device has too little memory. Raises RuntimeError if one picture is too many.
        """
        pictures = torch.cat(list(pixels))
        if self.backbone.device.type == "cuda":
            pictures = pictures.pin_memory()
        while True:
            try:
                parts = [self.backbone.encode_images(self._prepared(part))
                         for part in pictures.split(self.most or len(pictures))]
                return torch.cat(parts).unflatten(0, (-1, self.views))
            except torch.cuda.OutOfMemoryError as error:
                tried = min(self.most or len(pictures), len(pictures))
                if tried == 1:
                    raise RuntimeError(f"{self.backbone.device} has too little free memory for one picture "
                                       f"({one_line(error)}); stop what else uses it, or hide it with "
                                       "CUDA_VISIBLE_DEVICES= to build on the CPU.") from error
            self.most = tried // 2  # here, where the failed attempt's tensors are no longer held by its traceback
            torch.cuda.empty_cache()

    def _prepared(self, part: Tensor) -> Tensor:
        part = part.to(self.backbone.device, non_blocking=True)
        if not self.normalize:
            return part
        mean, std = (torch.tensor(v, device=part.device).view(3, 1, 1) for v in (self.normalize.mean, self.normalize.std))
        return part.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)  # channels-last, as the bytes lie


def _ahead(steps: Iterable) -> Iterator:
    """The same, each drawn before the one before it is handed on: decoding goes on while the tower works."""
    waiting = None
    for coming in steps:
        if waiting is not None:
            yield waiting
        waiting = coming
    if waiting is not None:
        yield waiting


def _stream(encoder: Encoder, items: Sequence, batches: Iterable[range], workers: int
            ) -> Iterator[tuple[range, list[int], Tensor | None, dict[int, str]]]:
    """For each batch of rows: the rows, those of them that could be read, their features, and why the others could not."""
    def load(row: int) -> Tensor | str:
        try:
            return encoder.pixels(items[row], row)
        except OSError as error:
            return str(error)

    def encoded():
        for rows, futures in _ahead((rows, [pool.submit(load, row) for row in rows]) for rows in batches):
            found = dict(zip(rows, (future.result() for future in futures)))
            bad = {row: why for row, why in found.items() if isinstance(why, str)}
            good = [row for row in rows if row not in bad]
            yield rows, good, encoder.features([found[row] for row in good]) if good else None, bad

    pool = ThreadPoolExecutor(workers)
    try:
        yield from _ahead(encoded())
    finally:
        pool.shutdown(cancel_futures=True)


def encode(backbone: Backbone, items: Sequence, *, style: str = "clip", batch: int = 64, workers: int = 2,
           advance: Callable[[int], None] | None = None) -> Tensor:
    """Features [N, D] of pictures (paths or PIL images); `advance(n)` is called after each batch of n.

    Raises OSError, naming the file, for the first picture that cannot be read.
    """
    features = [torch.empty(0, backbone.width)]
    batches = [range(start, min(start + batch, len(items))) for start in range(0, len(items), batch)]
    for rows, _, found, bad in _stream(Encoder(backbone, style), items, batches, workers):
        if bad:
            raise OSError(next(iter(bad.values())))
        features.append(found[:, 0].cpu())
        if advance:
            advance(len(rows))
    return torch.cat(features)


class _Part:
    """One split in the making: features [V, N, D] in half precision, and why rows of it could not be read."""

    def __init__(self, encoder: Encoder, name: str, items: Sequence, batch: int):
        self.encoder, self.name = encoder, name
        self.pictures, self.labels = [picture for picture, _ in items], [label for _, label in items]
        self.features = torch.zeros(encoder.views, len(items), encoder.backbone.width, dtype=torch.float16)
        self.unreadable: dict[int, str] = {}
        self.batch = max(1, batch // encoder.views)  # pictures, each with all its views
        starts = range(0, len(items), SHARD * self.batch)
        self.todo = [range(start, min(start + SHARD * self.batch, len(items))) for start in starts]

    def take(self, shards: Shards) -> None:
        """What is finished already, except a shard that lacks a picture which can be read by now, or holds no numbers."""
        for rows in list(self.todo):
            found = shards.read(f"{self.name}-{rows.start:08d}")
            bad = {row: _trouble(self.pictures[row]) for row in found["unreadable"].tolist()} if found else {}
            if found and all(bad.values()) and torch.isfinite(found["features"]).all():
                self.features[:, rows.start:rows.stop] = found["features"]
                self.unreadable |= bad
                self.todo.remove(rows)

    def make(self, shards: Shards | None, workers: int, advance: Callable[[int], None]) -> None:
        """The rest, batch by batch, kept shard by shard."""
        batches = [shard[i:i + self.batch] for shard in self.todo for i in range(0, len(shard), self.batch)]
        ends = {shard.stop: shard for shard in self.todo}
        for rows, good, found, bad in _stream(self.encoder, self.pictures, batches, workers):
            if good:
                self.features[:, good] = found.half().cpu().transpose(0, 1)
            self.unreadable |= bad
            if shards and (whole := ends.get(rows.stop)):
                absent = [row for row in whole if row in self.unreadable]
                shards.write(f"{self.name}-{whole.start:08d}",
                             {"features": self.features[:, whole.start:whole.stop].contiguous(),
                              "unreadable": torch.tensor(absent, dtype=torch.int64)})
            advance(len(rows) * self.encoder.views)

    def split(self) -> Split:
        """The split of the pictures that could be read."""
        rows = torch.tensor([row for row in range(len(self.labels)) if row not in self.unreadable], dtype=torch.long)
        features = self.features if self.encoder.views > 1 else self.features[0]
        return Split(features, torch.tensor(self.labels, dtype=torch.long)).take(rows)


def _trouble(item) -> str:
    """Why a picture cannot be read; empty if it can."""
    try:
        open_image(item)
    except OSError as error:
        return str(error)
    return ""


def build_bank(dataset: ImageDataset | str, backbone: str | Backbone = "pocket", *, root: str | Path | None = None,
               download: bool = False, allow_missing: bool = False, tag: str | None = None,
               out: str | Path | None = None, force: bool = False, views: int = 1, preprocess: str = "clip",
               templates: str | Sequence[str] | None = None, normalize_each: bool = True, batch: int = 64,
               workers: int | None = None, skip_unreadable: bool = False, seed: int = 1,
               progress: bool = True) -> FeatureBank:
    """The feature bank of a dataset (an `ImageDataset`, or a name for `load_dataset`) under a backbone (loaded, or a name).

    root, download, allow_missing: as `load_dataset` has them, for a name. tag: the weights, for a backbone's name.
    out: where the bank is written. Until it is, finished shards are kept beside it, in `OUT.parts`: after a kill, a full
        disk or Ctrl-C the same call goes on and gives the same tensors. force: build though `out` is there already, or
        though the shards are another build's.
    views: of each training picture, [V, N, D]: view 0 is the plain picture, the others are random crops, half of them
        mirrored, that depend on `seed`, the picture's place and the view alone. val and test are plain.
    preprocess: "clip" keeps the aspect ratio (the backbone's own way; views show 0.5 to 1 of the area, as Tip-Adapter's),
        "coop" squashes both sides (views show 0.08 to 1, as CoOp's). Recorded; `predict` does as the bank did.
    templates: prompts with {} for the class name, or sets of them by name (seven, openai-80); the dataset's own by default.
        Their features are averaged at unit length, or raw with normalize_each=False.
    batch: pictures at a time, halved where the memory does not suffice. workers: threads that decode; one a core.
    skip_unreadable: leave out pictures that cannot be read; `protocol` says how many.
    Raises OSError, naming all of them, for unreadable pictures, once everything else is finished; BankError, ValueError and
    FileNotFoundError for what cannot be right, before any work.
    """
    from .compare import versions
    if isinstance(dataset, str):
        from .datasets import load_dataset
        if root is None:
            raise ValueError(f"To build the bank of {dataset}, root=DIR (--root DIR) must say which folder holds the "
                             "datasets.")
        dataset = load_dataset(dataset, root, download=download, allow_missing=allow_missing, seed=seed)
    workers = os.cpu_count() or 1 if workers is None else workers
    if batch < 1 or workers < 1:
        raise ValueError(f"batch and workers must be at least 1; got {batch} and {workers}.")
    if out and Path(out).exists() and not force:
        raise BankError(f"{out} is there already; load it, give another --out, or build it again with --force (force=True).")
    templates = _prompts(templates or dataset.templates)
    backbone = load_backbone(backbone, tag) if isinstance(backbone, str) else backbone
    encoders = {name: Encoder(backbone, preprocess, views if name == "train" else 1, seed) for name in SPLITS}
    text = classifier_weights(backbone, dataset.classnames, templates, normalize_each=normalize_each).cpu()
    parts = [_Part(encoders[name], name, dataset.splits[name], batch) for name in SPLITS]
    shards = Shards(Path(f"{out}.parts"), _job(dataset, encoders["train"], batch), force) if out else None
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
    meta = {"weights_tag": backbone.tag, "protocol": dataset.protocol + left_out, "source": dataset.source,
            "licence": dataset.licence, "preprocessing": preprocessing(backbone, preprocess),
            "normalize_each": normalize_each, "versions": versions()}
    if views > 1:
        meta["views"] = {"count": views, "first": "plain", "others": "random resized crop, mirrored half of the time",
                         "area": list(STYLES[preprocess]), "seed": seed}
    bank = FeatureBank(dataset=dataset.name, backbone=backbone.name, classnames=dataset.classnames, templates=templates,
                       text_features=text, logit_scale=backbone.logit_scale, meta=meta,
                       splits={part.name: part.split() for part in parts})
    if shards:
        shards.put(lambda: bank.save(out))
        shards.remove()
    return bank


def _prompts(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The prompts, with the sets among them by name taken apart."""
    from .datasets import template_set
    given = [templates] if isinstance(templates, str) else templates
    return tuple(one for text in given for one in (template_set(text) if text in TEMPLATE_SETS else (text,)))


def _job(dataset: ImageDataset, encoder: Encoder, batch: int) -> dict:
    """What the tensors of a build depend on: two builds that agree in it may share shards."""
    from importlib.metadata import version
    backbone, digest = encoder.backbone, hashlib.sha256()
    for name in SPLITS:
        for item, label in dataset.splits[name]:  # the names: to read the files would take as long as the build
            if not isinstance(item, (str, os.PathLike)):
                item = hashlib.sha256(item.tobytes() + repr((item.mode, item.size)).encode()).hexdigest()
            digest.update(f"{name} {label} {item}\n".encode(errors="surrogateescape"))
    weights = Path(backbone.tag)
    if weights.is_file():
        with weights.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    return {"pictures": digest.hexdigest(), "backbone": backbone.name, "weights": str(weights),
            "preprocessing": preprocessing(backbone, encoder.style), "views": encoder.views,
            "seed": encoder.seed if encoder.views > 1 else None, "batch": batch, "device": backbone.device.type,
            "versions": {name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm", "pillow")}}


@contextmanager
def _progress(name: str, parts: Sequence[_Part], shown: bool):
    """A bar over all views of all pictures, with rate and time left; gives the function that moves it on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    total = sum(part.features.shape[0] * part.features.shape[1] for part in parts)
    done = total - sum(len(rows) * part.encoder.views for part in parts for rows in part.todo)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn(), TextColumn("left"))
    start = time.monotonic()
    with Progress(*columns, disable=not shown) as bar:
        task = bar.add_task(name, total=total, completed=done, rate="")

        def advance(many: int) -> None:
            bar.advance(task, many)
            rate = (bar.tasks[0].completed - done) / max(time.monotonic() - start, 1e-3)
            bar.update(task, rate=f"{rate:.{0 if rate > 10 else 1}f} images/s")

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
    return (f"{_pictures(len(unreadable))} could not be read: {', '.join(names)}; mend or replace and give the same command "
            f"again{kept}, or leave them out with --skip-unreadable (skip_unreadable=True).")
