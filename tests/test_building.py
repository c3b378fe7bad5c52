"""From pictures to features, with a backbone of a few lines in place of a CLIP."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from clip_adapter_lite import FeatureBank, backbones, building
from clip_adapter_lite.banks import SPLITS
from clip_adapter_lite.building import build_bank, encode, open_image
from clip_adapter_lite.datasets import ImageDataset

WIDTH, SIZE = 6, 4
MAP = torch.randn(3 * SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(0))
PREPROCESSING = {"size": (SIZE, SIZE), "mean": (0.0, 0.0, 0.0), "interpolation": "bicubic"}


class Fake:
    """A backbone whose image feature is a linear map of the pixels, and whose text feature counts the letters a to f."""
    name, tag, logit_scale, width = "fake", "v1", 12.5, WIDTH
    model = SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=PREPROCESSING))

    def __init__(self):
        self.batches, self.texts = [], []

    def preprocess(self, picture):
        assert picture.mode == "RGB"
        pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.NEAREST), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def encode_images(self, batch):
        self.batches.append(len(batch))
        return batch.flatten(1) @ MAP

    def encode_text(self, texts):
        self.texts += texts
        return torch.tensor([[1.0 + text.count(letter) for letter in "abcdef"] for text in texts])


def expected(pictures) -> torch.Tensor:
    """The fake's features, by NumPy and without batches."""
    pixels = [np.asarray(p, dtype=np.float64).transpose(2, 0, 1).ravel() / 255 for p in pictures]
    return torch.from_numpy(np.stack(pixels) @ MAP.double().numpy()).float()


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture
def dataset(tmp_path):
    """Nine pictures as files and four in memory, labels in no order, and the pictures by split."""
    pictures = {"train": [noise(i) for i in range(7)], "val": [noise(i) for i in (20, 21)],
                "test": [noise(i) for i in range(30, 34)]}
    labels = {"train": [1, 0, 2, 2, 1, 0, 1], "val": [2, 0], "test": [0, 2, 1, 1]}
    splits = {}
    for name in SPLITS:
        items = pictures[name]
        if name != "test":
            items = [tmp_path / f"{name}-{9 - i}.png" for i in range(len(items))]  # names in reverse of the items
            for path, picture in zip(items, pictures[name]):
                picture.save(path)
        splits[name] = list(zip(items, labels[name]))
    made = ImageDataset(name="toy", classnames=("ab_e", "c", "fed"), templates=("a {}.", "bad {}!"), splits=splits,
                        protocol="as given", source="here", licence="MIT")
    return made, pictures, labels


# ── reading pictures ──────────────────────────────────────────────────────────────────────────────────────────

GREY = np.array([[0, 85], [170, 255]], dtype=np.uint8)


def palette() -> Image.Image:
    picture = Image.new("P", (2, 2))
    picture.putdata([0, 1, 1, 0])
    picture.putpalette([255, 0, 0, 0, 0, 255])
    return picture


KINDS = {
    "greyscale": (lambda: Image.fromarray(GREY), "png", [[(0,) * 3, (85,) * 3], [(170,) * 3, (255,) * 3]]),
    "palette": (palette, "png", [[(255, 0, 0), (0, 0, 255)], [(0, 0, 255), (255, 0, 0)]]),
    "CMYK": (lambda: Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tiff", [[(255, 0, 0)] * 2] * 2),
    "black and white": (lambda: Image.fromarray(GREY > 100), "png", [[(0,) * 3, (0,) * 3], [(255,) * 3, (255,) * 3]]),
    "with transparency": (lambda: Image.new("RGBA", (2, 2), (9, 8, 7, 0)), "png", [[(9, 8, 7)] * 2] * 2),
}


@pytest.mark.parametrize("make, suffix, rgb", KINDS.values(), ids=KINDS)
def test_pictures_of_other_kinds_are_read_as_rgb(make, suffix, rgb, tmp_path):
    make().save(tmp_path / f"x.{suffix}")
    for item in (tmp_path / f"x.{suffix}", str(tmp_path / f"x.{suffix}"), make()):
        picture = open_image(item)
        assert picture.mode == "RGB"
        assert np.asarray(picture).tolist() == [[list(pixel) for pixel in row] for row in rgb]


def damaged(raw: bytes) -> dict[str, bytes]:
    return {"empty": b"", "text": b"<html>not found</html>", "cut": raw[:len(raw) // 2]}


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "missing"])
def test_a_damaged_picture_is_reported_by_its_name_from_any_batch(kind, tmp_path, expect_refused):
    paths = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, path in enumerate(paths):
        noise(i).resize((64, 64)).save(path)
    if kind == "missing":
        paths[3].unlink()
    else:
        paths[3].write_bytes(damaged(paths[3].read_bytes())[kind])
    with expect_refused(f"{paths[3]} is not a readable picture", OSError):
        encode(Fake(), paths, batch=2)


# ── encoding ──────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("batch, batches", [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])])
def test_features_come_in_the_order_of_the_pictures_for_any_batch(batch, batches):
    backbone, pictures = Fake(), [noise(i) for i in range(7)]
    told = []
    features = encode(backbone, pictures, batch=batch, advance=told.append)
    assert backbone.batches == told == batches
    torch.testing.assert_close(features, expected(pictures), rtol=1e-5, atol=1e-5)


def test_no_pictures_give_no_features_of_the_right_width():
    assert encode(Fake(), []).shape == (0, WIDTH)


# ── banks ─────────────────────────────────────────────────────────────────────────────────────────────────────

def test_a_built_bank_holds_every_picture_in_its_split_and_place(dataset):
    made, pictures, labels = dataset
    bank = build_bank(made, Fake(), progress=False)
    for name in SPLITS:
        assert bank.splits[name].labels.tolist() == labels[name]
        torch.testing.assert_close(bank.splits[name].features, expected(pictures[name]).half(), rtol=1e-3, atol=1e-3)


def test_a_built_bank_has_the_templates_average_as_text_features(dataset):
    backbone = Fake()
    bank = build_bank(dataset[0], backbone, progress=False)
    assert backbone.texts == ["a ab e.", "a c.", "a fed.", "bad ab e!", "bad c!", "bad fed!"]  # underscores are spaces
    # 1 + the counts of a to f in "a ab e." and in "bad ab e!", each of length 1, their mean of length 1
    a = torch.tensor([3., 2, 1, 1, 2, 1]) / 20 ** 0.5
    b = torch.tensor([3., 3, 1, 2, 2, 1]) / 28 ** 0.5
    torch.testing.assert_close(bank.text_features[0].float(), normalize(a + b, dim=0), rtol=1e-3, atol=1e-3)
    assert bank.templates == ("a {}.", "bad {}!")


def test_other_templates_replace_the_datasets_own(dataset):
    backbone = Fake()
    bank = build_bank(dataset[0], backbone, templates=["{}"], progress=False)
    assert backbone.texts == ["ab e", "c", "fed"]
    assert bank.templates == ("{}",)


def test_a_built_bank_says_where_it_comes_from_and_survives_a_file(dataset, tmp_path):
    bank = build_bank(dataset[0], Fake(), progress=False)
    assert (bank.dataset, bank.backbone, bank.logit_scale, bank.classnames) == ("toy", "fake", 12.5, ("ab_e", "c", "fed"))
    known = {key: bank.meta[key] for key in ("weights_tag", "protocol", "source", "licence", "preprocessing")}
    assert known == {"weights_tag": "v1", "protocol": "as given", "source": "here", "licence": "MIT",
                     "preprocessing": json.loads(json.dumps(PREPROCESSING))}
    assert torch.__version__.startswith(bank.meta["versions"]["torch"])
    again = FeatureBank.load(bank.save(tmp_path / "toy.safetensors"))
    assert (again.hash, again.meta) == (bank.hash, bank.meta)


def test_a_backbone_may_be_named(dataset, monkeypatch):
    monkeypatch.setattr(building, "load_backbone", {"fake name": Fake()}.__getitem__)
    assert build_bank(dataset[0], "fake name", progress=False).backbone == "fake"


def test_a_dataset_may_lack_a_validation_split(dataset):
    made, _, labels = dataset
    made.splits["val"].clear()
    bank = build_bank(made, Fake(), progress=False)
    assert [len(bank.splits[name]) for name in SPLITS] == [7, 0, 4]


def test_a_template_without_a_place_for_the_name_is_refused(dataset, expect_refused):
    with expect_refused("The template 'a photo' has no {} for the class name", ValueError):
        build_bank(dataset[0], Fake(), templates=["a photo"], progress=False)


def test_the_fake_stands_in_for_all_that_building_asks_of_a_backbone():
    assert all(hasattr(backbones.Backbone, name) for name in ("width", "logit_scale", "encode_images", "encode_text"))
    assert {"name", "tag", "model", "preprocess"} <= set(backbones.Backbone.__dataclass_fields__)
