"""CUDA itself against the CPU; `tests/benchmarks/gpu_check.sh` runs this on a machine that has it."""
import time
import traceback
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

import clip_adapter_lite as cal
from clip_adapter_lite import training
from clip_adapter_lite.backbones import load_backbone

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
BANKS = "pacs-photo", "pacs-cartoon", "cifar10"
METHODS = (cal.ZeroShot, cal.LinearProbe, cal.CoOp, cal.CLIPAdapter, cal.TipAdapter, cal.CLAP, cal.GDA, cal.LinearAdapter)
TEXTS = ["a photo of a dog.", "a sketch of a very old house.", "zebra"]


@pytest.fixture
def captured(monkeypatch):
    """How often a training step was replayed. What keeps one from being captured, which no fit tells, is printed."""
    told, replay, end = [], torch.cuda.CUDAGraph.replay, torch.cuda.graph.__exit__

    def ended(graph, kind, error, trace):
        if error:
            traceback.print_exception(kind, error, trace)
        try:
            return end(graph, kind, error, trace)
        except RuntimeError:
            traceback.print_exc()
            raise
    monkeypatch.setattr(torch.cuda.graph, "__exit__", ended)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: told.append(1) or replay(self))
    return told


@pytest.mark.parametrize("name", ["pocket", "RN50-quickgelu", "ViT-B-16-quickgelu"])
def test_features_are_those_of_the_cpu(name, tmp_path):
    tag = None
    if name != "pocket":
        import open_clip
        torch.manual_seed(0)
        tag = tmp_path / "random.pt"
        torch.save(open_clip.create_model(name, pretrained=None).state_dict(), tag)
    there, here = load_backbone(name, tag, "cuda"), load_backbone(name, tag, "cpu")
    size = here.preprocess.transforms[1].size
    images = torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(0))
    for mine, exact in ((there.encode_images(images), here.encode_images(images)),
                        (there.encode_text(TEXTS), here.encode_text(TEXTS))):
        assert mine.device.type == "cpu" and mine.dtype == torch.float32
        assert cosine_similarity(mine, exact).min() >= 0.999


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_are_as_accurate_as_on_the_cpu(method, bank):
    episode = cal.FeatureBank.load(bank).episode(4, 1)
    there, here = (method(device=device).fit(episode).accuracy(episode.test) for device in ("cuda", "cpu"))
    assert abs(there - here) <= 0.01


@pytest.mark.parametrize("method", [
    cal.CLIPAdapter(device="cuda"), cal.CLIPAdapter(branch="both", device="cuda"),
    cal.CLIPAdapter(alpha="learned", device="cuda"), cal.CLIPAdapter(alpha=0.2, device="cuda"),
    cal.TipAdapter(finetune=True, device="cuda"), cal.CLAP(device="cuda"), cal.LinearAdapter(device="cuda"),
    cal.CoOp(steps=20, device="cuda")], ids=lambda method: method.label)
def test_a_replayed_fit_is_the_eager_one(method, captured, monkeypatch):
    episode = cal.FeatureBank.load("cifar10").episode(4, 1)
    graphed = method.fit(episode)
    assert len(captured) == method.steps - training.WARM  # it was captured, and the rest was replayed
    monkeypatch.setattr(training, "_replayed", lambda update, steps, device: [update(step) for step in range(steps)][-1])
    eager = method.fit(episode)
    test = episode.test.view()
    assert len(captured) == method.steps - training.WARM
    # CoOp's half precision and index_add's order let single bits differ
    torch.testing.assert_close(graphed.logits(test), eager.logits(test), rtol=2e-2, atol=5e-2)
    assert abs(graphed.accuracy(episode.test) - eager.accuracy(episode.test)) <= 0.005


def test_a_fit_in_double_precision_is_the_cpus(captured):
    episode = cal.FeatureBank.load("cifar10").episode(4, 1).to(torch.float64)
    there, here = (cal.CLIPAdapter(alpha=0.3, device=device).fit(episode) for device in ("cuda", "cpu"))
    assert captured
    torch.testing.assert_close(there.logits(episode.test.view()), here.logits(episode.test.view()), rtol=1e-4, atol=1e-4)


def test_random_views_are_trained_eagerly(captured, toy_bank):
    cal.CLIPAdapter(alpha=0.3, device="cuda", steps=9).fit(toy_bank(views=2).episode(2))
    assert not captured


def test_a_search_is_one_stack_and_finds_what_single_fits_find(captured):
    episode = cal.FeatureBank.load("cifar10").episode(16, 1)
    method = cal.CLIPAdapter(alpha="val", device="cuda")
    found = method.fit(episode)
    assert len(captured) == method.steps - training.WARM  # one training for all ratios
    for (alpha, _), (accuracy, _) in zip(map(eval, found.details["scores"]), found.details["scores"].values()):
        assert abs(replace(method, alpha=alpha).fit(episode).val_accuracy - accuracy) <= 0.03


def test_a_sweep_on_the_gpu_is_the_cpus():
    bank = cal.FeatureBank.load("cifar10")
    grid = dict(grid={"alpha": [0.0, 0.2, 0.6], "reduction": [4, 8], "branch": ["visual", "both"]}, shots=[4], seeds=[1, 2])
    there, here = (cal.sweep(bank, cal.CLIPAdapter(device=device, steps=40), **grid) for device in ("cuda", "cpu"))
    assert (there.drop(columns=["seconds", "accuracy", "val_accuracy"])
            .equals(here.drop(columns=["seconds", "accuracy", "val_accuracy"])))
    assert (there.accuracy - here.accuracy).abs().max() <= 0.01


def test_results_come_back_where_the_features_were(toy_bank):
    bank = toy_bank()
    fitted = cal.CLIPAdapter(alpha=0.3, device="cuda", steps=3).fit(bank.episode(2))
    features = bank.splits["test"].features.float()
    for device in ("cpu", "cuda"):
        assert fitted.logits(features.to(device)).device.type == fitted.alphas(features.to(device)).device.type == device
    assert fitted.head.place.device.type == "cuda"


def test_a_method_for_the_cpu_stays_there():
    fitted = cal.CoOp(steps=2, device="cpu").fit(cal.FeatureBank.load("cifar10").episode(1))
    assert fitted.head.place.device.type == "cpu"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_the_second_gpu_is_used_when_it_is_named(captured):
    fitted = cal.CLIPAdapter(device="cuda:1").fit(cal.FeatureBank.load("cifar10").episode(4))
    assert str(fitted.head.place.device) == "cuda:1" and captured


def test_a_bank_built_there_is_the_one_built_here(tmp_path):
    from PIL import Image
    for i in range(12):
        folder = tmp_path / "pictures" / ("ab"[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.numpy()).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    from clip_adapter_lite.datasets import load_dataset
    dataset = load_dataset("folder", tmp_path / "pictures")
    there, here = (cal.build_bank(dataset, load_backbone("pocket", device=device), progress=False)
                   for device in ("cuda", "cpu"))
    assert there.meta["decoder"].startswith("torchvision") and here.meta["decoder"] == "PIL"
    for name, split in here.splits.items():
        assert cosine_similarity(there.splits[name].view().float(), split.view().float()).min() > 0.999


def test_a_second_fit_does_not_start_cuda_again():
    episode = cal.FeatureBank.load("cifar10").episode(1)
    method = cal.CLIPAdapter(device="cuda", steps=10)
    method.fit(episode)
    start = time.perf_counter()
    method.fit(episode)
    assert time.perf_counter() - start < 2
