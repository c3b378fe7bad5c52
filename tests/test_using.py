"""Fitted classifiers: what comes back from disk is what went there, and it names pictures as it named features."""
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import expect_refusal, make_bank
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import clip_adapter_lite as cal
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.encoding import encode, preprocessing
from clip_adapter_lite.inference import FACTS, zero_shot

QUICK = dict(device="cpu", steps=5)
METHODS = [
    cal.ZeroShot(device="cpu"), cal.LinearProbe(device="cpu", bisections=1), cal.LinearProbe(device="cpu", C=0.5),
    cal.CLIPAdapter(**QUICK), cal.CLIPAdapter(**QUICK, alpha=0), cal.CLIPAdapter(**QUICK, branch="text", beta=0.3),
    cal.CLIPAdapter(**QUICK, branch="both", grid=(0.0, 0.35, 0.7)), cal.CLIPAdapter(**QUICK, alpha="learned"),
    cal.CLIPAdapter(**QUICK, alpha="auto"), cal.CLIPAdapter(**QUICK, branch="both", alpha="auto", beta="auto"),
    cal.CLIPAdapter(**QUICK, branch="both", alpha="learned", beta="learned"),
    cal.CLIPAdapter(**QUICK, alpha=0.4, normalize="before", reduction=2), cal.CLIPAdapter(**QUICK, alpha=1, final_relu=True),
    cal.TipAdapter(device="cpu"), cal.TipAdapter(**QUICK, finetune=True, beta=5.5, alpha_grid=(0.0, 1.5)),
]


@pytest.fixture(scope="module")
def backbone():
    return cal.load_backbone("pocket", device="cpu")


@pytest.fixture(scope="module")
def pictures():
    return fashion_mnist().splits["test"]


@pytest.fixture(scope="module")
def fashion():
    """A CLIP-Adapter fitted on the bundled Fashion-MNIST features."""
    return cal.CLIPAdapter(alpha=0.6, device="cpu").fit(cal.FeatureBank.load("fashion-mnist").episode(16))


@pytest.fixture
def saved(tmp_path):
    """(classifier, its file) of a small CLIP-Adapter."""
    fitted = cal.CLIPAdapter(**QUICK, alpha=0.2).fit(make_bank().episode(2))
    return fitted, cal.save_classifier(fitted, tmp_path / "fitted.safetensors")


def check_round_trip(fitted, path, features, monkeypatch):
    """Save twice, load without pickle, compare everything."""
    def refuse(*args, **kwargs):
        raise AssertionError("a classifier file must not need pickle")
    with monkeypatch.context() as patch:
        for module, name in ((torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            patch.setattr(module, name, refuse)
        assert cal.save_classifier(fitted, path) == path
        first = path.read_bytes()
        cal.save_classifier(fitted, path)
        back = cal.load_classifier(path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]  # no temporary file is left
    assert torch.equal(back.logits(features), fitted.logits(features))
    assert back.method == fitted.method and type(back.method) is type(fitted.method)
    assert hash(back.method) == hash(fitted.method)  # lists in JSON are tuples again
    assert back.classnames == fitted.classnames
    for fact in FACTS:
        assert getattr(back, fact) == getattr(fitted, fact), fact
    assert not back.head.training and not any(p.requires_grad for p in back.head.parameters())
    again = cal.save_classifier(back, path.with_name("again.safetensors"))
    assert again.read_bytes() == first  # a loaded classifier is saved as it was


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_every_method_comes_back_to_the_last_bit(method, tmp_path, monkeypatch):
    bank = make_bank(noise=1.5, meta={"weights_tag": "abc", "preprocessing": {"size": [8, 8]}})
    fitted = method.fit(bank.episode(3, seed=2))
    assert fitted.origin["weights_tag"] == "abc" and fitted.origin["preprocessing"] == {"size": [8, 8]}
    check_round_trip(fitted, tmp_path / "deep" / "file.safetensors", bank.splits["test"].features.float(), monkeypatch)


def test_coop_and_its_context_come_back(tmp_path, monkeypatch):
    bank = cal.FeatureBank.load("pacs-photo")
    fitted = cal.CoOp(steps=2, device="cpu").fit(bank.episode(1))
    check_round_trip(fitted, tmp_path / "coop.safetensors", bank.splits["test"].features.float(), monkeypatch)
    assert torch.equal(cal.load_classifier(tmp_path / "coop.safetensors").head.context, fitted.head.context)


def test_prompt_ensemble_comes_back(tmp_path, monkeypatch):
    bank = cal.FeatureBank.load("pacs-photo")
    fitted = cal.ZeroShot(templates=("a {}.", "the {}."), device="cpu").fit(bank.episode(1))
    check_round_trip(fitted, tmp_path / "ensemble.safetensors", bank.splits["test"].features.float(), monkeypatch)


# ── files that are none ───────────────────────────────────────────────────────────────────────────────────────────


def contents(path):
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["classifier"])


def rewritten(path, *, drop=None, **changes):
    """The file with another description."""
    tensors, about = contents(path)
    about |= changes
    about.pop(drop, None)
    save_file(tensors, path, metadata={"classifier": json.dumps(about)})
    return path


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no classifier file .*none.safetensors"):
        cal.load_classifier(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        cal.load_classifier(tmp_path)  # a folder


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_file(saved, keep):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:keep])
    with expect_refusal("fitted.safetensors is not a whole classifier", ValueError):
        cal.load_classifier(path)


def test_damaged_header(saved):
    path = saved[1]
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with expect_refusal("not a whole classifier", ValueError):
        cal.load_classifier(path)


@pytest.mark.parametrize("metadata", [None, {"bank": "{}"}, {"classifier": "{"}, {"classifier": "[]"}, {"classifier": "{}"}])
def test_foreign_file(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"weights": torch.ones(2, 3)}, path, metadata=metadata)
    with expect_refusal("foreign.safetensors is not a whole classifier", ValueError):
        cal.load_classifier(path)


def test_a_bank_is_no_classifier(tmp_path):
    with expect_refusal("is not a whole classifier", ValueError):
        cal.load_classifier(make_bank().save(tmp_path / "bank.safetensors"))


@pytest.mark.parametrize("change", [
    {"method": "other"}, {"method": "zero-shot"}, {"settings": {"colour": "red"}}, {"settings": {"alpha": 7}},
    {"settings": None}, {"options": {}}, {"drop": "classnames"}, {"drop": "origin"}, {"drop": "settings"}],
    ids=lambda change: json.dumps(change))
def test_description_that_does_not_fit(saved, change):
    with expect_refusal("fitted.safetensors is not a whole classifier", ValueError):
        cal.load_classifier(rewritten(saved[1], **change))


@pytest.mark.parametrize("name", ["visual.up.weight", "weights"])
def test_missing_tensor(saved, name):
    path = saved[1]
    tensors, about = contents(path)
    tensors.pop(name)
    save_file(tensors, path, metadata={"classifier": json.dumps(about)})
    with pytest.raises(ValueError, match="fitted.safetensors is not a whole classifier") as caught:
        cal.load_classifier(path)
    assert "\n" not in str(caught.value)


def test_a_failing_write_keeps_the_old_file(saved, monkeypatch):
    fitted, path = saved
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        cal.save_classifier(fitted, path)
    assert path.read_bytes() == before


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probabilities_are_the_softmax_of_the_encoded_features(fashion, backbone, pictures):
    images = [picture for picture, _ in pictures[:6]]
    named = cal.predict(fashion, backbone, images, top=99)  # more than there are classes
    expected = torch.softmax(fashion.logits(encode(backbone, images)), dim=1)
    assert len(named) == 6
    for found, row in zip(named, expected):
        values = [p for _, p in found]
        assert {name for name, _ in found} == set(fashion.classnames) and len(found) == 10
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert dict(found) == pytest.approx(dict(zip(fashion.classnames, row.tolist())), abs=1e-6)
    assert [row[:3] for row in named] == cal.predict(fashion, backbone, images, top=3)
    assert [len(row) for row in cal.predict(fashion, backbone, images)] == [5] * 6
    assert cal.predict(fashion, backbone, []) == []


def test_a_path_and_its_picture_give_the_same(fashion, backbone, pictures, tmp_path):
    picture = pictures[0][0]
    path = tmp_path / "picture.png"
    picture.save(path)
    by_path, by_text, by_image = cal.predict(fashion, backbone, [path, str(path), Image.open(path)], top=10)
    assert by_path == by_text == by_image
    assert by_path[0][0] == cal.predict(fashion, backbone, [picture])[0][0][0]


def test_a_phones_picture_is_named_as_its_viewer_shows_it(fashion, backbone, pictures, tmp_path):
    """Though the bundled bank, from before it was recorded, was read plainly."""
    picture, facts = pictures[0][0], Image.Exif()
    facts[0x0112] = 6  # a viewer turns what is stored by 90° clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=facts)
    phone, upright, turned = (cal.predict(fashion, backbone, [one], top=10)
                              for one in (tmp_path / "phone.png", picture, picture.rotate(90)))
    assert phone == upright != turned


def test_bank_features_and_picture_features_agree(fashion, backbone, pictures, tmp_path):
    """End to end: fitted on the bundled features, judged on decoded pictures; and loaded again, the same."""
    pictures = pictures[:100]
    images = [picture for picture, _ in pictures]
    named = cal.predict(fashion, backbone, images, top=1)
    right = sum(found[0][0] == fashion.classnames[label] for found, (_, label) in zip(named, pictures))
    assert right > 60
    loaded = cal.load_classifier(cal.save_classifier(fashion, tmp_path / "fashion.safetensors"))
    assert cal.predict(loaded, backbone, images[:10], top=1) == cal.predict(fashion, backbone, images[:10], top=1)


def test_zero_shot_for_pictures_of_no_bank(fashion, backbone, pictures):
    classes = ("shoe", "shirt", "bag")
    fitted = zero_shot(cal.classifier_weights(backbone, classes), classes, backbone)
    assert fitted.head.logit_scale == backbone.logit_scale and fitted.classnames == classes
    (found,) = cal.predict(fitted, backbone, [pictures[0][0]])
    features = torch.nn.functional.normalize(encode(backbone, [pictures[0][0]]), dim=-1)
    cosines = features @ cal.classifier_weights(backbone, classes).T
    assert dict(found) == pytest.approx(dict(zip(classes, (backbone.logit_scale * cosines).softmax(1)[0].tolist())))


def test_pictures_are_squashed_for_a_classifier_of_a_bank_of_squashed_pictures(fashion, backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((240, 80))
    squashed = replace(fashion, origin=fashion.origin | {"preprocessing": preprocessing(backbone, "coop")})
    for fitted, style in ((fashion, "clip"), (squashed, "coop")):
        (found,) = cal.predict(fitted, backbone, [picture], top=99)
        expected = fashion.probabilities(encode(backbone, [picture], style=style))[0]
        assert dict(found) == pytest.approx(dict(zip(fashion.classnames, expected.tolist())), abs=1e-6)
    assert cal.predict(fashion, backbone, [picture]) != cal.predict(squashed, backbone, [picture])


@pytest.mark.parametrize("what, value", [("backbone", "ViT-B-16-quickgelu"), ("weights_tag", "0123456789ab"),
                                         ("preprocessing", {"size": [224, 224]})])
def test_another_backbone_is_refused(fashion, backbone, pictures, what, value):
    other = replace(fashion, origin=fashion.origin | {what: value})
    here = {"backbone": "pocket", "weights_tag": backbone.tag, "preprocessing": fashion.origin["preprocessing"]}
    with expect_refusal(repr(value), ValueError):
        cal.predict(other, backbone, [pictures[0][0]])
    with expect_refusal(repr(here[what]), ValueError):
        cal.predict(other, backbone, [pictures[0][0]])


def test_unreadable_pictures_are_named(fashion, backbone, pictures, tmp_path):
    good, bad, half = (tmp_path / name for name in ("good.png", "bad.png", "half.png"))
    pictures[0][0].save(good)
    bad.write_text("not a picture")
    half.write_bytes(good.read_bytes()[:200])
    for path in (bad, half, tmp_path / "absent.png"):
        with pytest.raises(OSError, match=path.name):
            cal.predict(fashion, backbone, [good, path])


@pytest.mark.parametrize("top", [0, -1])
def test_top_must_be_positive(fashion, backbone, pictures, top):
    with expect_refusal(f"got {top}", ValueError):
        cal.predict(fashion, backbone, [pictures[0][0]], top=top)


def test_changed_weights_are_noticed(tmp_path, toy_bank):
    path = cal.save_classifier(cal.LinearProbe(C=1.0).fit(toy_bank().episode(1)), tmp_path / "c.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="do not match the recorded hash"):
        cal.load_classifier(path)
