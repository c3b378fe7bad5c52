"""The whole path on real architectures with random weights (so only the numbers are missing), and on real pictures."""
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import clip_adapter_lite as cal
from clip_adapter_lite import cli
from clip_adapter_lite.backbones import shared_backbone, weights_of
from clip_adapter_lite.datasets import ImageDataset

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SIZES = {"train": 4, "val": 2, "test": 2}
pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(tmp_path):
    """Eight pictures of stripes, lying and standing ones, that are not square."""
    rng, splits = np.random.default_rng(0), {}
    for name, many in SIZES.items():
        splits[name] = [(tmp_path / f"{name}-{i}.jpg", i % 2) for i in range(many)]
        for path, label in splits[name]:
            stripes = Image.fromarray(rng.integers(0, 256, (1, 26, 3) if label else (18, 1, 3), dtype=np.uint8))
            stripes.resize((260, 180), Image.Resampling.NEAREST).save(path, quality=95)
    return ImageDataset(name="stripes", classnames=("lying stripes", "standing_stripes"), templates=("a photo of {}.",),
                        splits=splits, protocol="drawn by the test", source="here")


def checkpoint(name: str, path: Path) -> dict:
    """Save random weights of an architecture, half as large in half precision; returns them."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # a ResNet's blocks start as nothing at all
                module.weight.fill_(1)
    state = {key: value.half() for key, value in model.state_dict().items()}
    torch.save(state, path)
    return state


def activations(module: nn.Module) -> set[type]:
    return {type(m) for m in module.modules() if isinstance(m, nn.GELU) or "GELU" in type(m).__name__}


@pytest.mark.parametrize("name, preprocess", [("RN50-quickgelu", "clip"), ("ViT-B-16-quickgelu", "coop")])
def test_build_fit_and_predict_with_a_checkpoint(name, preprocess, dataset, tmp_path, cache):
    state = checkpoint(name, tmp_path / "weights.pt")
    out = tmp_path / "bank.safetensors"
    cal.build_bank(dataset, name, tag=str(tmp_path / "weights.pt"), out=out, preprocess=preprocess, views=2, batch=4,
                   progress=False)
    bank = cal.FeatureBank.load(out)
    width = {"RN50-quickgelu": 1024, "ViT-B-16-quickgelu": 512}[name]
    assert bank.splits["train"].features.shape == (2, 4, width) and bank.splits["test"].features.shape == (2, width)
    tag = bank.meta["weights_tag"]  # the path, and the hash of what lay there
    assert tag.startswith(f"{tmp_path / 'weights.pt'}#sha256=") and len(weights_of(tag)) == 64
    assert bank.meta["preprocessing"]["resize_mode"] == {"clip": "shortest", "coop": "squash"}[preprocess]
    assert bank.logit_scale == pytest.approx(float(state["logit_scale"].exp()), rel=1e-2)

    episode = bank.episode(2)
    backbone = episode.backbone  # loaded again, by the bank's own record of where its weights are
    assert backbone is shared_backbone(name, tag, torch.device("cpu"))
    assert activations(backbone.text_tower.transformer) == {open_clip.transformer.QuickGELU}
    assert activations(backbone.model.visual) == ({open_clip.transformer.QuickGELU} if name.startswith("ViT") else set())
    assert all(torch.equal(value, state[key].float()) for key, value in backbone.model.state_dict().items()
               if value.is_floating_point())
    torch.testing.assert_close(bank.text_features.float(), cal.classifier_weights(backbone, bank.classnames, bank.templates),
                               atol=1e-3, rtol=0)

    coop = cal.CoOp(steps=2, device="cpu").fit(episode)
    start = backbone.embed(backbone.tokenizer(["a photo of a"]))[0, 1:5]
    moved = (coop.head.context - start).abs()
    assert torch.isfinite(moved).all() and moved.amax(1).min() > 1e-4, "the gradient reaches every word of the prompt"
    pictures = [path for path, _ in dataset.splits["test"]]
    for fitted in (cal.CLIPAdapter(alpha=0.5, steps=3, device="cpu").fit(episode), coop):
        loaded = cal.load_classifier(cal.save_classifier(fitted, tmp_path / "fitted.safetensors"))
        chances = fitted.probabilities(episode.test.features)
        for found, row in zip(cal.predict(loaded, backbone, pictures), chances, strict=True):
            assert dict(found) == pytest.approx(dict(zip(bank.classnames, row.tolist())), abs=5e-3)
    shared_backbone.cache_clear()


@pytest.mark.parametrize("name, images, split, bundled, tests, options, said", [
    ("caltech101", "caltech-101/101_ObjectCategories", "split_zhou_Caltech101.json", "caltech101", 2465, [], ""),
    ("dtd", "dtd/images", "split_zhou_DescribableTextures.json", "dtd10", 360, ["--allow-missing"],
     "10 of 47 classes there")])
def test_the_zero_shot_accuracy_of_a_bank_built_from_coops_files_is_the_bundled_ones(
        name, images, split, bundled, tests, options, said, tmp_path):
    """Real pictures and CoOp's real split file. Only the test split: the bundled bank caps the training pictures."""
    if not ((SHARED / images).is_dir() and (SHARED / "coop-splits" / split).is_file()):
        pytest.skip(f"the folder of real pictures is not there: {SHARED}")
    place = tmp_path / images
    place.parent.mkdir()
    place.symlink_to(SHARED / images)
    (place.parent / split).symlink_to(SHARED / "coop-splits" / split)
    out = tmp_path / f"{name}.safetensors"
    done = CliRunner().invoke(cli.app, ["build", "--dataset", name, "--root", str(tmp_path), "--out", str(out),
                                        "--cap-train", "1", "--cap-val", "1", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    built, bundled = cal.FeatureBank.load(out), cal.FeatureBank.load(bundled)
    assert built.classnames == bundled.classnames and len(built.splits["test"]) == tests
    assert built.meta["preprocessing"] == bundled.meta["preprocessing"]
    assert said in built.meta["protocol"] and "train ≤ 1 a class" in built.meta["protocol"]

    def accuracy(bank):
        episode = bank.episode(1)
        return cal.ZeroShot(device="cpu").fit(episode).accuracy(episode.test)
    assert accuracy(built) == accuracy(bundled)
