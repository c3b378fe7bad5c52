"""JPEG and PNG files decoded by torchvision, which does not hold Python's lock: on a machine with a
GPU the lock is what building waits for.

Its pixels are PIL's to the bit. Its antialiased resize, on bytes, differs from PIL's by up to 2 of
255 (600 real pictures; cosines of the pocket's features from 0.99993), so where the tower is on a
CPU, which PIL's decoding keeps up with, pictures go PIL's way and features stay what they were.

torchvision 0.29 announces that its decoding will go, for TorchCodec's. A torchvision without it, as
any file that it cannot read, leaves all to PIL.
"""
import os
from collections.abc import Callable
from io import BytesIO

import torch
from torch import Tensor

# of PNG files: where an orientation may be written, behind the pixels too
TURNED = b"eXIf", b"Raw profile type", b"com.adobe.xmp"
TO_RGB = "_convert_to_rgb", "MaybeConvertMode"  # open_clip's, which change no RGB picture


def decoded(item, plain: bool = False) -> Tensor | None:
    """The bytes [3, H, W] of a JPEG or PNG file as `encoding.open_image` gives them; None for what
    PIL reads otherwise or not at all, such as turned, transparent, grey, 16-bit or damaged pictures.
    """
    from PIL import Image
    if not isinstance(item, (str, os.PathLike)):
        return None
    try:
        from torchvision.io import ImageReadMode, decode_image
        with open(item, "rb") as file:
            content = file.read()
        with Image.open(BytesIO(content)) as picture:  # its header
            if picture.format not in ("JPEG", "PNG") or picture.mode != "RGB":
                return None
            if picture.has_transparency_data or not max(picture.size) <= 200 * min(picture.size):
                return None
            if not plain and _turned(picture, content):
                return None
        found = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8),
                             ImageReadMode.RGB)
    except Exception:  # whatever it is, PIL's way reads the picture or says what is wrong
        return None
    return found if found.dtype == torch.uint8 else None


def _turned(picture, content: bytes) -> bool:
    """Whether an orientation other than upright may be written in it."""
    if picture.format == "PNG":  # where PIL would decode all of it to know
        return any(mark in content for mark in TURNED)
    return picture.getexif().get(0x0112, 1) != 1


def can_decode() -> bool:
    """Whether this torchvision decodes pictures."""
    import torchvision.io
    return hasattr(torchvision.io, "decode_image")


def resizing(transforms, interpolation: str) -> Callable[[Tensor], Tensor] | None:
    """torchvision's v2 of the Resize and CenterCrop among `transforms`, on bytes with antialias.

    None if anything else changes a picture's geometry, and where both sides are squashed: there the
    two round between their passes in another order, and cosines of features go down to 0.999.
    """
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize, v2
    found = []
    for step in transforms:
        if isinstance(step, Resize) and isinstance(step.size, int) and not step.max_size:
            found.append(v2.Resize(step.size, InterpolationMode(interpolation), antialias=True))
        elif isinstance(step, CenterCrop):
            found.append(v2.CenterCrop(step.size))
        elif getattr(step, "__name__", type(step).__name__) not in TO_RGB:
            return None
    return v2.Compose(found)
