"""Pictures to features: opened, preprocessed and encoded, decoding ahead of the tower."""
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .backbones import Backbone
from .decoding import can_decode, decoded, resizing
from .devices import as_array, in_parts
from .errors import one_line

# The two preprocessings of the literature, and how much of a picture's area a random training view
# of each shows.
STYLES = {"clip": (0.5, 1.0),  # keeps the aspect ratio and crops the middle; views as in Tip-Adapter
          "coop": (0.08, 1.0)}  # squashes both sides; views as in CoOp


def open_image(item, plain: bool = False):
    """The RGB picture of a path, an array (bytes [H, W, 3], [H, W, 4] or [H, W]) or a PIL image.

    As viewers show it: upright, 16-bit greys at 8 bits, transparency on white. plain: as CoOp reads
    the paper's datasets instead, the stored pixels converted. Raises OSError, naming it, if it
    cannot be read or is too long and narrow to be brought to a tower's size.
    """
    from PIL import Image
    def shown(picture):
        # its short side at 224 px would take gigabytes
        if not 0 < max(picture.size) <= 200 * min(picture.size):
            raise ValueError(f"it has {picture.width} x {picture.height} pixels, and one side may "
                             "be at most 200 times the other")
        return picture.convert("RGB") if plain else as_seen(picture)

    if hasattr(item, "shape"):
        return shown(_of_array(item))
    try:
        if isinstance(item, Image.Image):
            return shown(item)
        if not isinstance(item, (str, os.PathLike)):  # a number would open, and close, a stream of ours
            raise TypeError("it is no path, PIL image or array")
        # by name, PIL garbles turned grey TIFFs
        with open(item, "rb") as file, Image.open(file) as picture:
            return shown(picture)
    except Exception as error:  # PIL raises many types for damaged files
        name = f"what was given, {type(item).__name__},"
        if isinstance(item, (str, os.PathLike)):
            name = item
        raise OSError(f"{name} is not a readable picture ({one_line(error)}); replace or remove "
                      "it.") from error


def as_seen(picture):
    """A PIL image as viewers show it, RGB. Raises ValueError for numbers that have no known black
    and white.
    """
    import numpy
    from PIL import Image
    deep = picture.format in ("PNG", "PPM")  # older versions of PIL read their 16 bits as mode I
    picture.load()  # before EXIF is asked: PIL turns a TIFF itself, and then forgets its orientation
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits of grey, or floats
        values, mode = numpy.asarray(picture, dtype=float), picture.mode
        sixteen = mode.startswith("I;16") or mode == "I" and (deep or values.max() > 255)
        white = 65535 if sixteen else 255 if mode == "I" else 1
        if not (0 <= values.min() and values.max() <= white):  # NaN too
            raise ValueError(f"its numbers run from {values.min():g} to {values.max():g}, and "
                             "which are black and white is not known, so save it with 8 bits")
        picture = Image.fromarray((values * (255 / white)).round().astype(numpy.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _upright(picture):
    """A PIL image turned as its EXIF orientation says; as stored if it says nothing that can be
    read.
    """
    from PIL.Image import Transpose
    turns = (Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM,
             Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
    try:
        turn = dict(enumerate(turns, 2)).get(picture.getexif().get(0x0112))
    # PIL raises many types for damaged EXIF, which keeps no viewer from showing the picture
    except Exception:
        return picture
    return picture if turn is None else picture.transpose(turn)


def _of_array(values):
    """A PIL image of bytes [H, W, 3] (RGB), [H, W, 4] or [H, W]. Raises OSError, one sentence, for
    other arrays.
    """
    import numpy
    from PIL import Image
    values = as_array(values)
    coloured = values.ndim == 3 and values.shape[2] in (3, 4)
    if values.dtype != numpy.uint8 or values.ndim != 2 and not coloured:
        raise OSError(f"An array of {values.dtype} of shape {list(values.shape)} is not a readable "
                      "picture; give a list of paths or PIL images, or bytes (uint8) of shape [H, "
                      "W, 3] in the order red, green, blue.")
    return Image.fromarray(values)


def preprocessing(backbone: Backbone, style: str = "clip") -> dict:
    """What happens to a picture before the image tower: size, resizing, mean and deviation, as JSON
    has it.

    style: "clip" is the backbone's own way, which for CLIP resizes the short side and crops the
    middle; "coop" squashes both sides to the input size, as CoOp does. Raises ValueError for
    another.
    """
    import json
    if style not in STYLES:
        raise ValueError(f"preprocess must be one of {', '.join(STYLES)}; got {style!r}.")
    visual = backbone.model.visual
    # of a tower built by hand
    known = getattr(visual, "preprocess_cfg", None) or {"size": visual.image_size}
    facts = json.loads(json.dumps(known, sort_keys=True))
    return facts if style == "clip" else facts | {"resize_mode": "squash"}


def random_view(picture, draw: random.Random, area: tuple[float, float], size: tuple[int, int],
                resample: int):
    """A random part of a picture at (width, height) `size`, mirrored half of the time;
    torchvision's RandomResizedCrop and RandomHorizontalFlip, which only know the one global
    generator and so cannot be used in threads.

    area: the least and the largest share of the picture; its aspect ratio is 3/4 to 4/3.
    """
    from PIL import Image
    width, height = picture.size
    for _ in range(10):
        share = draw.uniform(*area) * width * height
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(share * aspect)), round(math.sqrt(share / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:  # a long narrow picture: as much of it as has such an aspect ratio
        w, h = min(width, max(1, height * 4 // 3)), min(height, max(1, width * 4 // 3))
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    view = picture.crop((left, top, left + w, top + h)).resize(size, resample)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else view


class Encoder:
    """Pictures to features: `pixels` of one picture in a worker thread, then `features` of a batch
    where the tower is.

    Between them they give the tower what `backbone.preprocess` gives, to the last bit on a CPU.
    They are two because bytes become numbers quickest for a whole batch at once (on a GPU a quarter
    of the bytes travel), and because PyTorch's operations in many threads compete with the tower
    for the cores. JPEGs are decoded in full: PIL's quicker draft mode would give other pixels.
    decoder: on CUDA, where PIL's lock would be waited for, torchvision (`decoding`), else "PIL".
    """

    def __init__(self, backbone: Backbone, style: str = "clip", views: int = 1, seed: int = 1,
                 plain: bool = False):
        from PIL import Image
        from torchvision.transforms import Compose, Normalize
        if views < 1:
            raise ValueError(f"views must be at least 1, the plain picture; got {views}.")
        self.backbone, self.style, self.views = backbone, style, views
        self.seed, self.plain = seed, plain
        facts = preprocessing(backbone, style)
        size = facts["size"]
        self.size = (size, size) if isinstance(size, int) else (size[1], size[0])  # (width, height)
        bilinear = facts.get("interpolation") == "bilinear"
        self.resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        steps = getattr(backbone.preprocess, "transforms", ())
        self.normalize = steps[-1] if len(steps) > 2 and isinstance(steps[-1], Normalize) else None
        # the last but one makes a tensor
        self.geometry = Compose(steps[:-2]) if self.normalize else backbone.preprocess
        self.quick = backbone.device.type == "cuda" and can_decode()
        self.resizing = None  # of what torchvision decoded, where its resize does as PIL's
        if self.quick and self.normalize and style == "clip" and views == 1:
            self.resizing = resizing(steps[:-2], self.resample.name.lower())
        self.decoder = "torchvision, PIL for what it reads otherwise" if self.quick else "PIL"
        self.most: int | None = None  # pictures at a time that fit into the device's memory

    def pixels(self, item, row: int = 0) -> Tensor:
        """The views of one picture: bytes [V, H, W, 3], or [V, 3, H, W] for a `preprocess` that is
        not torchvision's.

        View 0 is the plain picture; the others depend on (seed, row, view) alone.
        """
        import numpy
        from PIL import Image
        found = decoded(item, self.plain) if self.quick else None  # [3, H, W]
        if found is None:
            whole = open_image(item, self.plain)
        elif self.resizing:
            return self.resizing(found).permute(1, 2, 0)[None].contiguous()
        else:
            whole = Image.fromarray(found.permute(1, 2, 0).numpy())
        pictures = [whole if self.style == "clip" else whole.resize(self.size, self.resample)]
        pictures += [random_view(whole, random.Random(f"{self.seed}/{row}/{view}"),
                                 STYLES[self.style], self.size, self.resample)
                     for view in range(1, self.views)]
        # changes nothing of what already has the input size
        made = [self.geometry(picture) for picture in pictures]
        if not self.normalize:
            return torch.stack(made)
        return torch.from_numpy(numpy.stack(list(map(numpy.asarray, made))))

    def features(self, pixels: Sequence[Tensor]) -> Tensor:
        """Features [N, V, D], float32 on the CPU, of what `pixels` gave for N pictures.

        The batch is halved, for good, when the device has too little memory. Raises RuntimeError if
        one picture is too many.
        """
        pictures = torch.cat(list(pixels))
        if self.backbone.device.type == "cuda":
            pictures = pictures.pin_memory()
        encode = lambda part: self.backbone.encode_images(self._prepared(part))
        found, self.most = in_parts(encode, pictures, self.most or len(pictures), "picture",
                                    self.backbone.device)
        return found.unflatten(0, (-1, self.views))

    def _prepared(self, part: Tensor) -> Tensor:
        part = part.to(self.backbone.device, non_blocking=True)
        if not self.normalize:
            return part
        mean, std = (torch.tensor(v, device=part.device).view(3, 1, 1)
                     for v in (self.normalize.mean, self.normalize.std))
        # channels-last, as the bytes lie
        return part.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


def prefetched(steps: Iterable) -> Iterator:
    """The same, each drawn before the one before it is handed on: decoding goes on while the tower
    works.
    """
    waiting = None
    for coming in steps:
        if waiting is not None:
            yield waiting
        waiting = coming
    if waiting is not None:
        yield waiting


def encoded(encoder: Encoder, items: Sequence, batches: Iterable[range], workers: int
            ) -> Iterator[tuple[range, list[int], Tensor | None, dict[int, str]]]:
    """For each batch of rows: the rows, those of them that could be read, their features, and why
    the others could not.
    """
    def load(row: int) -> Tensor | str:
        try:
            return encoder.pixels(items[row], row)
        except OSError as error:
            return str(error)

    def batchwise():
        for rows, futures in prefetched((rows, [pool.submit(load, row) for row in rows])
                                        for rows in batches):
            found = dict(zip(rows, (future.result() for future in futures)))
            bad = {row: why for row, why in found.items() if isinstance(why, str)}
            good = [row for row in rows if row not in bad]
            yield rows, good, encoder.features([found[row] for row in good]) if good else None, bad

    pool = ThreadPoolExecutor(workers)
    try:
        yield from prefetched(batchwise())
    finally:
        pool.shutdown(cancel_futures=True)


def encode(backbone: Backbone, items: Sequence, *, style: str = "clip", batch: int = 64,
           workers: int = 2, advance: Callable[[int], None] | None = None) -> Tensor:
    """Features [N, D] of pictures (paths or PIL images); `advance(n)` is called after each batch of n.

    Raises OSError, naming the file, for the first picture that cannot be read.
    """
    features = [torch.empty(0, backbone.width)]
    batches = [range(start, min(start + batch, len(items))) for start in range(0, len(items), batch)]
    for rows, _, found, bad in encoded(Encoder(backbone, style), items, batches, workers):
        if bad:
            raise OSError(next(iter(bad.values())))
        features.append(found[:, 0])
        if advance:
            advance(len(rows))
    return torch.cat(features)
