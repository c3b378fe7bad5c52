"""Decoding for a GPU, by torchvision: the same pixels as PIL's where it is used, and PIL where they would differ."""
import io
import random
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image, PngImagePlugin

from clip_adapter_lite import load_backbone
from clip_adapter_lite.decoding import decoded, resizing
from clip_adapter_lite.encoding import Encoder, open_image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # see `decoding`


def drawn(width=90, height=60, seed=0):
    """Smooth colours with edges and grain."""
    draw = numpy.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 9, 3), dtype=numpy.uint8)).resize((width, height), 3)
    grain = draw.integers(-12, 13, (height, width, 3))
    values = numpy.clip(numpy.asarray(coarse, int) + grain, 0, 255).astype(numpy.uint8)
    values[height // 3:height // 2, width // 4:width // 2] = 255, 20, 60
    return Image.fromarray(values)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    return info


def written(tmp_path, name, picture, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name, options", [
    ("a.jpg", {}), ("a.jpg", {"quality": 30, "subsampling": 2}), ("a.jpg", {"progressive": True}), ("a.png", {}),
    ("a.jpg", {"exif": turned(1)}), ("jpeg-by-another-name.png", {"format": "JPEG"})],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain")
@pytest.mark.parametrize("size", [(90, 60), (61, 97), (1, 1), (200, 1)])
def test_files_are_decoded_to_the_bits_of_pil(name, options, size, tmp_path):
    path = written(tmp_path, name, drawn(*size), **options)
    found = decoded(path)
    assert found.dtype == torch.uint8
    assert numpy.array_equal(found.permute(1, 2, 0).numpy(), numpy.asarray(open_image(path)))


OTHERS = {
    "turned.jpg": dict(exif=turned(6)), "mirrored.jpg": dict(exif=turned(2)), "turned.png": dict(exif=turned(8)),
    "xmp.png": dict(pnginfo=xmp()), "clear.png": dict(transparency=(255, 20, 60)), "a.bmp": {}, "a.gif": {}, "a.tif": {},
    "a.webp": {}, "long.jpg": {}}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_seen_otherwise_than_stored_goes_pils_way(name, tmp_path):
    picture = drawn(402, 2) if name == "long.jpg" else drawn()
    assert decoded(written(tmp_path, name, picture, **OTHERS[name])) is None


@pytest.mark.parametrize("name, mode", [("grey.jpg", "L"), ("grey.png", "L"), ("palette.png", "P"), ("alpha.png", "RGBA"),
                                        ("print.jpg", "CMYK"), ("deep.png", "I;16"), ("bits.png", "1"), ("la.png", "LA")])
def test_other_colours_go_pils_way(name, mode, tmp_path):
    picture = drawn().convert("L").convert("I").convert(mode) if mode == "I;16" else drawn().convert(mode)
    path = written(tmp_path, name, picture)
    assert decoded(path) is None and open_image(path).mode == "RGB"


def test_sixteen_bits_of_colour_go_pils_way(tmp_path):
    """PIL calls such a file RGB; written by hand, as PIL writes none."""
    import struct
    import zlib
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + struct.pack(">6H", 257 * y, 0, 65535, 1, 2, 3) for y in range(2))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert decoded(path) is None and open_image(path).getpixel((0, 1)) == (1, 0, 255)


def test_a_turn_is_left_alone_where_stored_pixels_are_wanted(tmp_path):
    path = written(tmp_path, "turned.jpg", drawn(), exif=turned(6))
    assert numpy.array_equal(decoded(path, plain=True).permute(1, 2, 0).numpy(), numpy.asarray(open_image(path, plain=True)))


@pytest.mark.parametrize("damage", ["cut", "noise", "absent"])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_damaged_files_go_pils_way_which_names_them(kind, damage, tmp_path):
    path = written(tmp_path, f"a.{kind}", drawn())
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:len(whole) // 2], "noise": b"no picture", "absent": b""}[damage])
    if damage == "absent":
        path.unlink()
    assert decoded(path) is None
    with pytest.raises(OSError, match=f"a.{kind} is not a readable picture"):
        open_image(path)


def test_what_is_in_memory_goes_pils_way():
    assert decoded(drawn()) is None and decoded(numpy.zeros((4, 4, 3), numpy.uint8)) is None
    assert decoded(io.BytesIO()) is None


@pytest.fixture(scope="module")
def pocket():
    return load_backbone("pocket", device="cpu")


@pytest.mark.parametrize("style", ["clip", "coop"])
def test_features_of_what_a_gpu_would_be_given_are_those_of_pil(style, pocket, tmp_path):
    sizes = [(320, 200), (170, 220), (80, 80), (500, 501), (161, 160), (160, 160)]
    paths = [written(tmp_path, f"{i}.{('jpg', 'png')[i % 2]}", drawn(*size, seed=i)) for i, size in enumerate(sizes)]
    usual, quick = Encoder(pocket, style), Encoder(replace(pocket, device=torch.device("cuda")), style)
    assert usual.decoder == "PIL" and quick.decoder.startswith("torchvision") and bool(quick.resizing) == (style == "clip")
    apart = [(usual.pixels(path).int() - quick.pixels(path).int()).abs().max().item() for path in paths]
    assert max(apart) <= 5 and apart[-1] == 0
    assert style == "clip" or max(apart) == 0  # decoded by torchvision, squashed by PIL
    usual, quick = (usual.features([each.pixels(path) for path in paths])[:, 0] for each in (usual, quick))
    assert torch.cosine_similarity(usual, quick).min() > 0.9999


def test_random_views_of_what_torchvision_decoded_are_pils_to_the_bit(pocket, tmp_path):
    path = written(tmp_path, "a.jpg", drawn(300, 200))
    usual = Encoder(pocket, views=3)
    quick = Encoder(replace(pocket, device=torch.device("cuda")), views=3)
    assert torch.equal(usual.pixels(path, 5), quick.pixels(path, 5))


def test_a_turned_picture_is_upright_on_a_gpu_too(pocket, tmp_path):
    path = written(tmp_path, "a.jpg", drawn(300, 200), exif=turned(random.choice((3, 6, 8))))
    quick = Encoder(replace(pocket, device=torch.device("cuda")))
    assert torch.equal(quick.pixels(path), Encoder(pocket).pixels(path))


def test_geometry_that_torchvisions_resize_does_not_know_stays_with_pil():
    from torchvision.transforms import CenterCrop, Resize
    found = resizing([Resize(8), CenterCrop((8, 6))], "bicubic")
    assert found(torch.zeros(3, 20, 30, dtype=torch.uint8)).shape == (3, 8, 6)
    assert resizing([Resize(8), lambda picture: picture.rotate(90)], "bicubic") is None
    assert resizing([Resize((8, 8))], "bicubic") is None  # squashed


def test_a_torchvision_that_does_not_decode_leaves_all_to_pil(pocket, tmp_path, monkeypatch):
    import torchvision.io
    path = written(tmp_path, "a.jpg", drawn())
    monkeypatch.delattr(torchvision.io, "decode_image")
    assert decoded(path) is None
    assert Encoder(replace(pocket, device=torch.device("cuda"))).decoder == "PIL"
