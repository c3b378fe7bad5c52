"""Pictures as cameras, scanners and programs write them are read as viewers show them; the paper's datasets as CoOp does."""
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_adapter_lite.encoding import open_image

RED, WHITE = (255, 0, 0), (255, 255, 255)
# How each EXIF orientation maps the stored picture to the one that is seen (TIFF 6.0, tag 274), on arrays [H, W].
SEEN = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1], 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1]}


def pixels(item, **options):
    return numpy.asarray(open_image(item, **options))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SEEN)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pictures_are_upright_whatever_the_camera_wrote(tmp_path_factory, orientation, height, width, seed):
    stored = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    place = tmp_path_factory.mktemp("phone") / "x.png"
    facts = Image.Exif()
    facts[0x0112] = orientation
    Image.fromarray(stored).save(place, exif=facts)
    assert numpy.array_equal(pixels(place), SEEN[orientation](stored))
    assert numpy.array_equal(pixels(place, plain=True), stored)  # CoOp's way


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
