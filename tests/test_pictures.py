"""Pictures as cameras, scanners and programs write them are read as viewers show them; the paper's datasets as CoOp does."""
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_adapter_lite import load_backbone
from clip_adapter_lite.encoding import STYLES, encode, open_image

RED, WHITE = (255, 0, 0), (255, 255, 255)
# How each EXIF orientation maps the stored picture to the one that is seen (TIFF 6.0, tag 274), on arrays [H, W].
SEEN = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: a.swapaxes(0, 1)[::-1]}


def pixels(item, **options):
    return numpy.asarray(open_image(item, **options))


def shown(stored):
    """Bytes [H, W, 1 to 4] or 16-bit greys [H, W] as RGB on white paper, in floating point."""
    if stored.dtype == numpy.uint16:
        return numpy.repeat(stored[..., None] / 257, 3, axis=2)
    grey, alpha = stored.shape[2] < 3, stored.shape[2] in (2, 4)
    colour = numpy.repeat(stored[..., :1], 3, axis=2) if grey else stored[..., :3]
    share = stored[..., -1:] / 255 if alpha else 1
    return colour * share + 255 * (1 - share)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SEEN)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99),
       st.sampled_from([("RGB", ".png"), ("L", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("I;16", ".png"),
                        ("RGB", ".webp"), ("RGB", ".tif"), ("I;16", ".tif"), ("L", ".tif")]))
def test_pictures_are_upright_whatever_the_camera_wrote(tmp_path_factory, orientation, height, width, seed, kind):
    mode, suffix = kind
    draw = numpy.random.default_rng(seed)
    stored = draw.integers(0, 65536, (height, width), dtype=numpy.uint16) if mode == "I;16" else \
        draw.integers(0, 256, (height, width, len(mode)), dtype=numpy.uint8)
    place = tmp_path_factory.mktemp("phone") / f"x{suffix}"
    facts = Image.Exif()
    facts[0x0112] = orientation
    Image.fromarray(stored.squeeze(2) if mode == "L" else stored).save(place, exif=facts, lossless=True)
    found, expected = pixels(place), SEEN[orientation](shown(stored))
    assert found.shape == expected.shape and numpy.abs(found - expected).max() <= 1
    if kind == ("RGB", ".png"):
        assert numpy.array_equal(found, expected)
        assert numpy.array_equal(pixels(place, plain=True), stored)  # CoOp's way


@pytest.mark.parametrize("notes", [b"", b"Exif\0\0", b"Exif\0\0XX*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_camera_notes_leave_a_picture_as_it_is_stored(tmp_path, notes, suffix):
    Image.new("RGB", (6, 3), RED).save(tmp_path / f"x{suffix}", exif=notes, quality=100)
    found = pixels(tmp_path / f"x{suffix}")
    assert found.shape == (3, 6, 3) and numpy.abs(found.astype(int) - RED).max() <= 2


def test_a_dark_file_of_sixteen_bits_stays_dark(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5\n2 1\n65535\n" + bytes([0, 0, 0, 200]))  # PIL reads it as mode I
    assert pixels(tmp_path / "x.pgm")[..., 0].tolist() == [[0, 1]]
    assert pixels(Image.fromarray(numpy.array([[0, 200]], numpy.int32)))[..., 0].tolist() == [[0, 200]]


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4020, 20), (0, 3), (3, 0), (0, 0)])
def test_pictures_too_narrow_for_any_tower_are_refused(size, expect_refused):
    with expect_refused(f"it has {size[0]} x {size[1]} pixels, and one side may be at most 200 times", OSError):
        open_image(Image.new("RGB", size))


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1, 1)])
def test_pictures_of_one_row_or_column_come_through_the_tower(size):
    backbone = load_backbone("pocket", device="cpu")
    grey = Image.new("RGB", size, (90, 90, 90))
    for style in STYLES:  # every crop of an even grey is the same even grey
        assert torch.allclose(encode(backbone, [grey], style=style), encode(backbone, [grey.resize((160, 160))]), atol=1e-5)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    ramp = numpy.linspace(0, 65535, 4096).reshape(64, 64).astype(numpy.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x{suffix}")
    found = pixels(tmp_path / f"x{suffix}")
    assert found.shape == (64, 64, 3) and numpy.abs(found[..., 0] - ramp / 257.0).max() <= 0.5


def test_floats_between_black_and_white_are_scaled_and_others_refused(tmp_path, expect_refused):
    grey = numpy.linspace(0, 1, 25, dtype=numpy.float32).reshape(5, 5)
    Image.fromarray(grey).save(tmp_path / "unit.tif")
    assert numpy.abs(pixels(tmp_path / "unit.tif")[..., 2] - 255 * grey).max() <= 0.5
    for wrong in (grey * 300, grey - 0.5, grey * numpy.nan):
        Image.fromarray(wrong.astype(numpy.float32)).save(tmp_path / "wrong.tif")
        with expect_refused("which are black and white is not known", OSError):
            open_image(tmp_path / "wrong.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_shows_white(tmp_path, mode):
    drawn = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    drawn.paste((255, 255, 255, 255) if mode == "LA" else (*RED, 255), (0, 0, 2, 2))
    found = pixels(drawn.quantize(4) if mode == "P" else drawn.convert(mode))
    assert tuple(found[0, 3]) == WHITE
    assert tuple(found[0, 0]) == (WHITE if mode == "LA" else RED)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "I;16", "I;16B"]),
       st.integers(1, 5), st.integers(1, 5))
def test_every_kind_of_picture_is_rgb_of_its_size_or_one_sentence(mode, width, height):
    picture = Image.new(mode, (width, height))
    try:
        found = open_image(picture)
    except OSError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert (found.mode, found.size) == ("RGB", (width, height))


def test_bytes_in_an_array_are_a_picture_and_other_arrays_one_short_sentence(expect_refused):
    values = numpy.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=numpy.uint8)
    assert numpy.array_equal(pixels(values), values)
    assert numpy.array_equal(pixels(values[..., 0])[..., 1], values[..., 0])
    for wrong in (values.astype(float), values[None], numpy.zeros((4, 4, 2), numpy.uint8)):
        with expect_refused("give a list of paths or PIL images", OSError):
            open_image(wrong)
