"""From pictures to features, with a backbone of a few lines in place of a CLIP."""
import json
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torchvision.transforms import RandomResizedCrop

from clip_adapter_lite import FeatureBank, backbones, banks, encoding
from clip_adapter_lite.banks import build_bank
from clip_adapter_lite.datasets import ImageDataset, template_set
from clip_adapter_lite.encoding import STYLES, encode, open_image, random_view
from clip_adapter_lite.splits import SPLITS

WIDTH, SIZE = 6, 4
MAP = torch.randn(3 * SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(0))
PREPROCESSING = {"size": (SIZE, SIZE), "mean": (0.0, 0.0, 0.0), "interpolation": "bicubic"}


class Fake:
    """A backbone whose image feature is a linear map of the pixels, and whose text feature counts the letters a to f."""
    name, tag, logit_scale, width, device = "fake", "v1", 12.5, WIDTH, torch.device("cpu")
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
    "with transparency": (lambda: Image.new("RGBA", (2, 2), (9, 8, 7, 0)), "png", [[(255,) * 3] * 2] * 2),
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


@pytest.mark.parametrize("slip", [0, 1e-7])  # equal texts differ in the last bits where their batches do
def test_classes_that_the_text_tower_cannot_tell_apart_are_named_in_a_warning(dataset, slip):
    class Slipping(Fake):
        def encode_text(self, texts):
            found = super().encode_text(texts)
            return found + slip * torch.arange(found.numel()).view_as(found).cos() * found

    made = replace(dataset[0], classnames=("bad", "face", "dab"))
    with pytest.warns(UserWarning, match="toy: the text tower cannot tell 'bad' and 'dab' apart") as told:
        build_bank(made, Slipping(), templates=["{}"], progress=False)
    said = str(told[0].message)
    assert len(told) == 1 and said.endswith(".") and ". " not in said and "\n" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_bank(replace(made, classnames=("bad", "face", "bade")), Slipping(), templates=["{}"], progress=False)


@pytest.mark.parametrize("first, second", [("Turkey", "turkey"), ("very " * 49 + "small bird", "very " * 49 + "large fish")])
def test_upper_case_and_what_is_cut_off_are_told(dataset, first, second):
    made = replace(dataset[0], classnames=(first, "cat", second))
    with pytest.warns(UserWarning, match=f"cannot tell '{first}' and '{second}' apart"):
        bank = build_bank(made, banks.load_backbone("pocket", device="cpu"), templates=["a {}."], progress=False)
    assert bank.text_features[0] @ bank.text_features[2] > 0.999 > bank.text_features[0] @ bank.text_features[1]


@pytest.mark.parametrize("plain, reading", [(True, "stored pixels, as CoOp"), (False, "as viewers show it")])
def test_a_bank_records_how_its_pictures_were_read(dataset, tmp_path, plain, reading):
    made, pictures, labels = dataset
    facts = Image.Exif()
    facts[0x0112] = 3  # upside down
    path = made.splits["val"][0][0]
    pictures["val"][0].save(path, exif=facts)
    bank = build_bank(replace(made, plain=plain), Fake(), progress=False)
    assert FeatureBank.load(bank.save(tmp_path / "toy.safetensors")).meta["reading"] == reading
    seen = pictures["val"][0] if plain else pictures["val"][0].rotate(180)
    torch.testing.assert_close(bank.splits["val"].features[0].float(), expected([seen])[0], atol=5e-3, rtol=1e-3)


def test_a_backbone_may_be_named(dataset, monkeypatch):
    monkeypatch.setattr(banks, "load_backbone", lambda name, tag: {("fake name", None): Fake()}[name, tag])
    assert build_bank(dataset[0], "fake name", progress=False).backbone == "fake"


def test_a_dataset_may_lack_a_validation_split(dataset):
    made, _, labels = dataset
    made.splits["val"].clear()
    bank = build_bank(made, Fake(), progress=False)
    assert [len(bank.splits[name]) for name in SPLITS] == [7, 0, 4]


def test_a_template_without_a_place_for_the_name_is_refused(dataset, expect_refused):
    with expect_refused("The template 'a photo' has no {} for the class name", ValueError):
        build_bank(dataset[0], Fake(), templates=["a photo"], progress=False)


def test_a_set_of_templates_may_be_named_beside_own_ones(dataset):
    backbone = Fake()
    bank = build_bank(dataset[0], backbone, templates=["seven", "my {}"], progress=False)
    assert bank.templates == (*template_set("seven"), "my {}")
    assert len(backbone.texts) == 8 * 3 and backbone.texts[-1] == "my fed"
    assert build_bank(dataset[0], backbone, templates="the {}", progress=False).templates == ("the {}",)


def test_templates_may_be_averaged_as_they_are(dataset):
    bank = build_bank(dataset[0], Fake(), normalize_each=False, progress=False)
    a, b = torch.tensor([3., 2, 1, 1, 2, 1]), torch.tensor([3., 3, 1, 2, 2, 1])  # as above, now not of length 1
    torch.testing.assert_close(bank.text_features[0].float(), normalize(a + b, dim=0), rtol=1e-3, atol=1e-3)
    assert bank.meta["normalize_each"] is False
    assert build_bank(dataset[0], Fake(), progress=False).meta["normalize_each"] is True


@pytest.mark.parametrize("options, fragment", [
    ({"preprocess": "squash"}, "preprocess must be one of clip, coop; got 'squash'"),
    ({"views": 0}, "views must be at least 1"), ({"batch": 0}, "batch and workers must be at least 1; got 0"),
    ({"workers": 0}, "batch and workers must be at least 1")])
def test_options_that_cannot_be_right_are_refused_before_any_picture(dataset, options, fragment, expect_refused):
    backbone = Fake()
    with expect_refused(fragment, ValueError):
        build_bank(dataset[0], backbone, progress=False, **options)
    assert not backbone.batches


def test_a_dataset_may_be_named_and_then_needs_a_root(dataset, monkeypatch, tmp_path, expect_refused):
    asked = []
    monkeypatch.setattr("clip_adapter_lite.datasets.load_dataset",
                        lambda *names, **options: asked.append((names, options)) or dataset[0])
    assert build_bank("dtd", Fake(), root=tmp_path, download=True, seed=4, progress=False).dataset == "toy"
    assert asked == [(("dtd", tmp_path), {"download": True, "allow_missing": False, "seed": 4})]
    with expect_refused("To build the bank of dtd, root=DIR", ValueError):
        build_bank("dtd", Fake())


# ── preprocessing and views ───────────────────────────────────────────────────────────────────────────────────

OPENAI = {"size": (6, 6), "mode": "RGB", "mean": (0.48145466, 0.4578275, 0.40821073), "interpolation": "bicubic",
          "std": (0.26862954, 0.26130258, 0.27577711), "resize_mode": "shortest", "fill_color": 0}


def torchvisions(**changes):
    """open_clip's own transform of a backbone that preprocesses like OpenAI's, at six pixels."""
    return open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**OPENAI | changes), is_train=False)


class Eye(Fake):
    """A backbone whose features are what arrives at the tower."""
    width, preprocess, model = 108, torchvisions(), SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=OPENAI))

    def encode_images(self, batch):
        assert batch.is_contiguous(memory_format=torch.channels_last)
        self.batches.append(len(batch))
        return batch.flatten(1)

    def encode_text(self, texts):
        return super().encode_text(texts).repeat(1, 18)


def blurred(number: int, size=(20, 14)) -> Image.Image:
    return noise(number).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("style, resize_mode", [("clip", "shortest"), ("coop", "squash")])
@pytest.mark.parametrize("size", [(20, 14), (5, 33), (6, 6), (3, 2), (300, 200)])
def test_the_tower_gets_what_open_clips_own_transform_gives_to_the_last_bit(style, resize_mode, size):
    pictures = [blurred(i, size) for i in range(3)] + [Image.fromarray(GREY).resize(size)]
    expected = torch.stack([torchvisions(resize_mode=resize_mode)(picture.convert("RGB")) for picture in pictures])
    assert torch.equal(encode(Eye(), pictures, style=style, batch=3), expected.flatten(1))


def test_the_two_preprocessings_differ_and_are_recorded(dataset):
    banks = {style: build_bank(dataset[0], Eye(), preprocess=style, progress=False) for style in STYLES}
    assert banks["clip"].meta["preprocessing"] == json.loads(json.dumps(OPENAI))
    assert banks["coop"].meta["preprocessing"] == json.loads(json.dumps(OPENAI | {"resize_mode": "squash"}))
    wide = [blurred(0)]
    assert not torch.equal(encode(Eye(), wide, style="clip"), encode(Eye(), wide, style="coop"))


@pytest.fixture
def wide(dataset):
    """The data set with pictures that are not square, in memory."""
    made, pictures, _ = dataset
    for name in SPLITS:
        made.splits[name] = [(blurred(i + 50), label) for i, (_, label) in enumerate(made.splits[name])]
    return made


@pytest.mark.parametrize("style", STYLES)
def test_view_0_is_the_plain_picture_and_only_train_has_others(wide, style):
    plain = build_bank(wide, Eye(), preprocess=style, progress=False)
    bank = build_bank(wide, Eye(), preprocess=style, views=4, seed=9, progress=False)
    assert bank.splits["train"].features.shape == (4, 7, 108)
    assert torch.equal(bank.splits["train"].view(0), plain.splits["train"].features)
    for name in ("val", "test"):
        assert torch.equal(bank.splits[name].features, plain.splits[name].features)
    assert len({bytes(row) for row in bank.splits["train"].features.flatten(0, 1).numpy()}) == 28, "each view is another"
    assert bank.meta["views"] == {"count": 4, "first": "plain", "area": list(STYLES[style]), "seed": 9,
                                  "others": "random resized crop, mirrored half of the time"}
    assert "views" not in plain.meta


def test_a_view_depends_on_the_seed_the_row_and_its_number_alone(wide):
    def views(dataset=wide, **options):
        return build_bank(dataset, Eye(), progress=False, **options).splits["train"].features
    first = views(views=5)
    assert torch.equal(first[:3], views(views=3, batch=4, workers=1))
    assert not torch.equal(first[1:], views(views=5, seed=2)[1:])
    wide.splits["train"][2] = (blurred(99), 0)
    again = views(views=5)
    changed = [row for row in range(7) if not torch.equal(again[:, row], first[:, row])]
    assert changed == [2]
    wide.splits["train"][4] = wide.splits["train"][3]
    again = views(views=5)
    assert torch.equal(again[0, 3], again[0, 4]) and not torch.equal(again[1, 3], again[1, 4])


def test_batches_hold_at_most_so_many_views(wide):
    backbone = Eye()
    build_bank(wide, backbone, views=3, batch=8, progress=False)
    assert backbone.batches == [6, 6, 6, 3, 2, 4]  # two pictures with three views each; val and test have one


@pytest.mark.parametrize("style", STYLES)
def test_views_are_cut_as_torchvision_cuts_them_and_half_are_mirrored(style):
    """Red tells the column, green the row that a pixel comes from, so the crop can be read off the view."""
    width, height, cells, many = 300, 200, 24, 400
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ramp = Image.fromarray(np.stack([x * 255 / width, y * 255 / height, 0 * x], -1).astype(np.uint8))
    boxes, mirrored = [], 0
    for i in range(many):
        view = np.asarray(random_view(ramp, random.Random(i), STYLES[style], (cells, cells), Image.Resampling.BILINEAR))
        red, green = view[cells // 2, :, 0] / 255 * width, view[:, cells // 2, 1] / 255 * height
        mirrored += red[-1] < red[0]
        w, h = (abs(line[-2] - line[1]) * cells / (cells - 3) for line in (red, green))
        boxes.append((red.mean() - w / 2, green.mean() - h / 2, w, h))
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(ramp, list(STYLES[style]), [3 / 4, 4 / 3]) for _ in range(many)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs])
    for mine, reference in zip(np.array(boxes).T, theirs.T):
        assert mine.mean() == pytest.approx(reference.mean(), abs=4 * reference.std() * (2 / many) ** 0.5 + 1)
        assert np.quantile(mine, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(reference, [0.1, 0.5, 0.9]), abs=22)
    assert 0.4 * many < mirrored < 0.6 * many


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (40, 7)])
def test_a_picture_of_any_shape_has_views(size):
    picture = Image.new("RGB", size, (9, 99, 199))
    for i in range(20):
        view = random_view(picture, random.Random(i), (0.08, 1.0), (5, 4), Image.Resampling.BICUBIC)
        assert view.size == (5, 4) and view.getcolors() == [(20, (9, 99, 199))]


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────


class Small(Eye):
    """A device that holds `holds` pictures."""
    holds = 3

    def encode_images(self, batch):
        if len(batch) > self.holds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().encode_images(batch)


def test_the_batch_is_halved_until_it_fits_and_stays_so():
    backbone, pictures = Small(), [blurred(i) for i in range(20)]
    told = []
    features = encode(backbone, pictures, batch=8, advance=told.append)
    assert torch.equal(features, encode(Eye(), pictures))
    assert backbone.batches == [2] * 10 and told == [8, 8, 4]


def test_for_a_gpu_a_batch_is_pinned_whole_and_goes_over_as_bytes(monkeypatch):
    """There is no GPU here, so what a batch goes through is written down instead."""
    steps, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: steps.append(("pinned", self.dtype, len(self))) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **options: steps.append(("sent", self.dtype, args, options))
                        or self if torch.device("cuda") in args else to(self, *args, **options))
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda values, device=None, **options: tensor(values, **options))
    encoder = encoding.Encoder(Eye(), views=2)
    pixels = [encoder.pixels(blurred(i), i) for i in range(3)]
    wanted = encoder.features(pixels)
    assert not steps
    monkeypatch.setattr(Eye, "device", torch.device("cuda"))
    assert torch.equal(encoder.features(pixels), wanted)
    assert steps == [("pinned", torch.uint8, 6), ("sent", torch.uint8, (torch.device("cuda"),), {"non_blocking": True})]


def test_a_device_that_holds_no_picture_is_said_to_be_too_small(expect_refused):
    backbone = Small()
    backbone.holds = 0
    with expect_refused("cpu has too little free memory for one picture (CUDA out of memory; Tried", RuntimeError):
        encode(backbone, [blurred(0), blurred(1)])


def test_the_fake_stands_in_for_all_that_building_asks_of_a_backbone():
    assert all(hasattr(backbones.Backbone, name) for name in ("width", "logit_scale", "encode_images", "encode_text"))
    assert {"name", "tag", "model", "preprocess", "device"} <= set(backbones.Backbone.__dataclass_fields__)
