"""The library's own code for CUDA, on a card that is none (`card.py`): what is captured, and that a replay is a step."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from card import CUDA, Graph, Refused, a_card, capture
from conftest import TINY_TEXT, TINY_VISION, random_backbone
from torch.utils._python_dispatch import _disable_current_modes

import clip_adapter_lite as cal
from clip_adapter_lite import backbones, inference, training
from clip_adapter_lite.encoding import encode
from clip_adapter_lite.methods import coop
from clip_adapter_lite.training import train

STEPS = 5
CAPTURED = [cal.CLIPAdapter(), cal.CLIPAdapter(branch="text"), cal.CLIPAdapter(alpha=0.2),
            cal.CLIPAdapter(branch="both", alpha="learned", beta="learned", normalize="before"),
            cal.CLIPAdapter(alpha="val", grid=(0.0, 0.4, 1.0)), cal.CLIPAdapter(balanced=True),
            cal.TipAdapter(finetune=True), cal.CLAP(), cal.LinearAdapter()]
PROMPTS = [cal.CoOp(), cal.CoOp(class_specific=True, position="middle")]


@pytest.fixture
def card(monkeypatch):
    with a_card(monkeypatch):
        yield


@pytest.fixture
def eagerly(monkeypatch):
    """A function after whose call nothing is captured any more."""
    all_steps = lambda update, steps, device: [update(step) for step in range(steps)][-1]
    return lambda: monkeypatch.setattr(training, "_replayed", all_steps)


@pytest.fixture
def tower(card, monkeypatch):
    """A CLIP of few and narrow layers on the card, in half precision as open_clip builds it, as any episode's backbone."""
    cpu = random_backbone("ViT-B-32", embed_dim=16, text_cfg=TINY_TEXT)
    import open_clip
    model = open_clip.create_model("ViT-B-32", pretrained=None, precision="fp16", embed_dim=16, vision_cfg=TINY_VISION,
                                   text_cfg=TINY_TEXT)
    model.load_state_dict(cpu.model.state_dict())
    model = model.to(CUDA, memory_format=torch.channels_last).eval().requires_grad_(False)
    there = replace(cpu, model=model, device=CUDA, dtype=torch.float16)
    monkeypatch.setattr(backbones, "shared_backbone", lambda name, tag, device: there if device.type == "cuda" else cpu)
    return there, cpu


def numbers(classifier) -> dict[str, torch.Tensor]:
    assert classifier.head.place.device == CUDA
    return {name: tensor.held for name, tensor in classifier.head.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]) and torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("method", CAPTURED, ids=lambda method: method.label)
def test_a_captured_fit_is_the_eager_one_bit_for_bit_and_the_cpus_to_a_rounding(method, card, eagerly, toy_bank):
    episode, method = toy_bank().episode(4), replace(method, steps=STEPS, device="cuda:0")
    graphed = method.fit(episode)
    assert Graph.replays == [STEPS - training.WARM]
    eagerly()
    eager = method.fit(episode)
    same(numbers(graphed), numbers(eager))
    assert (graphed.alpha, graphed.beta, graphed.details) == (eager.alpha, eager.beta, eager.details)
    assert len(Graph.replays) == 1
    here = replace(method, device="cpu").fit(episode)
    for name, tensor in here.head.state_dict().items():
        torch.testing.assert_close(numbers(graphed)[name], tensor, rtol=1e-3, atol=1e-5)
    assert graphed.accuracy(episode.test) == here.accuracy(episode.test)


@pytest.mark.parametrize("method", [CAPTURED[i] for i in (0, 3, 4, 5)], ids=lambda method: method.label)
def test_stacked_fits_are_captured_too(method, card, eagerly, toy_bank):
    method = replace(method, steps=STEPS, device="cuda:0")
    fits = [(method, toy_bank().episode(3, seed)) for seed in (1, 2)]
    graphed = cal.CLIPAdapter.fit_many(fits)
    assert Graph.replays == [STEPS - training.WARM] * (2 if method.balanced else 1)
    eagerly()
    for one, other in zip(graphed, cal.CLIPAdapter.fit_many(fits)):
        same(numbers(one), numbers(other))


@pytest.mark.parametrize("most", [None, 2], ids=["one chunk", "chunks of two classes"])
@pytest.mark.parametrize("method", PROMPTS, ids=lambda method: method.label)
def test_prompts_are_learned_in_a_graph(method, most, tower, eagerly, toy_bank, monkeypatch):
    if most:
        monkeypatch.setattr(coop, "classes_at_once", lambda backbone, tokens: most)
    episode, method = toy_bank().episode(2), replace(method, steps=STEPS, device="cuda:0")
    graphed = method.fit(episode)
    assert Graph.replays == [STEPS - training.WARM]
    eagerly()
    same(numbers(graphed), numbers(method.fit(episode)))


def test_the_recipe_of_coops_authors_runs_there_step_by_step(tower, toy_bank, monkeypatch):
    monkeypatch.setattr(coop, "PAPER_EPOCHS", {1: 2})
    fitted = cal.CoOp(recipe="paper", device="cuda:0").fit(toy_bank().episode(2))
    assert fitted.head.place.device == CUDA and not Graph.replays


def test_a_fresh_view_each_step_is_not_captured(card, toy_bank):
    cal.CLIPAdapter(alpha=0.3, steps=STEPS, device="cuda:0").fit(toy_bank(views=2).episode(2))
    assert Graph.replays == []


def test_a_step_that_waits_for_the_card_goes_on_eagerly_and_nothing_is_said(card, recwarn, capfd):
    def run(wait):
        p = torch.nn.Parameter(torch.tensor([2.0, -1.0]).to(CUDA))
        loss = lambda step: (p ** 2).sum() * (p.detach().sum().item() if wait else 1.0)
        train([p], loss, steps=STEPS, rate=0.1, still=True)
        return p.tolist()

    def by_hand():
        p = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        train([p], lambda step: (p ** 2).sum() * p.detach().sum().item(), steps=STEPS, rate=0.1)
        return p.tolist()

    assert run(True) == pytest.approx(by_hand(), rel=1e-5)
    assert Graph.replays == [0]
    run(False)
    assert Graph.replays == [0, STEPS - training.WARM]  # the failed one has left nothing behind
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_a_fit_that_fails_is_waited_for_before_its_tensors_are_written_over(card):
    p, caller = torch.nn.Parameter(torch.ones(2).to(CUDA)), torch.cuda.current_stream()

    def loss(step):
        if step == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return p.sum()

    with pytest.raises(torch.cuda.OutOfMemoryError):
        train([p], loss, steps=STEPS, rate=0.1, still=True)
    side, alone = training._aside(CUDA)
    assert caller.waited == [side] and side.waited == [caller] and not alone.locked()


def test_gradients_and_the_loss_do_not_stay_in_the_memory_of_the_graph(card):
    p = torch.nn.Parameter(torch.ones(2).to(CUDA))
    train([p], lambda step: (p ** 2).sum(), steps=STEPS, rate=0.1, still=True)  # which looks at the last loss
    assert p.grad is None and torch.isfinite(p.held).all()


def test_what_a_classifier_is_used_for_comes_home(card, toy_bank, tmp_path):
    method, bank = cal.CLIPAdapter(branch="both", alpha=0.5, beta=0.3, steps=STEPS, device="cuda:0"), toy_bank(noise=2.0)
    episode, there = bank.episode(3), bank.splits["test"].to(CUDA)
    fitted, zero_shot = method.fit(episode), cal.ZeroShot(device="cuda:0").fit(episode)
    x, held_out = there.view().float(), bank.hold_out()[1]
    assert fitted.logits(x).device == fitted.alphas(x).device == CUDA and fitted.betas().device.type == "cpu"
    assert torch.equal(fitted.logits(x.cpu()), fitted.logits(x).cpu())
    assert fitted.accuracy(there) == fitted.accuracy(bank.splits["test"])
    assert fitted.accuracy(there) == cal.evaluation.accuracy(fitted.logits(x), there.labels)
    for found, labels in ((fitted.probabilities(x), there.labels), (fitted.probabilities(x).cpu(), there.labels.cpu())):
        assert cal.per_class_accuracy(found, labels).mean() == pytest.approx(fitted.accuracy(there))
        assert cal.report(fitted, there).accuracy == fitted.accuracy(there)
    ours = cal.calibrate(fitted, held_out, false_reject=0.2, coverage=0.7)
    from clip_adapter_lite.plots.working import set_sizes
    bars = set_sizes(ours.prediction_sets(x), there.labels, 0.7).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(100) and ours.rejected(x).device == CUDA
    sals = cal.calibrate(fitted, None, scaling="sals", zero_shot=zero_shot)
    for name, classifier in (("ours", ours), ("sals", sals)):
        path = cal.save_classifier(classifier, tmp_path / f"{name}.safetensors")
        again = cal.load_classifier(path)
        assert again.head.place.device.type == "cpu"
        torch.testing.assert_close(again.probabilities(x.cpu()), classifier.probabilities(x).cpu())
        with _disable_current_modes():  # torch.export has a mode of its own
            program = cal.export_classifier(classifier, tmp_path / f"{name}.pt2")
        assert program.difference < 1e-5


def test_a_bank_of_tensors_on_the_card_is_kept_on_the_cpu(card, toy_bank):
    bank = toy_bank()
    there = replace(bank, text_features=bank.text_features.to(CUDA),
                    splits={name: split.to(CUDA) for name, split in bank.splits.items()})
    assert there.hash == bank.hash and {s.view().device.type for s in there.splits.values()} == {"cpu"}
    found = cal.open_set(there, cal.CLIPAdapter(alpha=0.5, steps=STEPS, device="cuda:0"), 2, false_reject=0.2)
    assert found.known.device.type == "cpu"
    episode = bank.episode(2).to(CUDA)
    assert {t.device for t in (episode.support.view(), episode.support.labels, episode.text_features)} == {CUDA}


def test_towers_there_give_the_features_of_the_cpu(tower, toy_bank):
    there, here = tower
    texts, images = ["a dog.", "a very old house.", "zebra"], torch.randn(3, 3, 32, 32)
    for mine, exact in ((there.encode_text(texts), here.encode_text(texts)),
                        (there.encode_images(images), here.encode_images(images))):
        assert mine.device.type == "cpu" and mine.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(mine, exact).min() > 0.999


def test_words_are_learned_and_fine_tuned_there_and_new_ones_read(tower, toy_bank):
    bank = toy_bank()
    fitted = cal.CoOp(steps=STEPS, device="cuda:0").fit(bank.episode(2))
    assert cal.transfer(fitted, bank, new_classes=True).accuracy(bank.splits["test"]) == fitted.accuracy(bank.splits["test"])
    from clip_adapter_lite.finetuning import finetune_text
    tables = [finetune_text(bank.episode(2), steps=2, every=1, rates=[1e-3], device=device) for device in ("cuda:0", "cpu")]
    for column in ("loss", "train", "val", "test"):
        assert tables[0][column].tolist() == pytest.approx(tables[1][column].tolist(), rel=0.05, abs=0.07)


def test_pictures_are_read_encoded_and_named_there(card, tmp_path):
    from PIL import Image
    for i in range(3):
        noise = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        picture = Image.fromarray(noise.numpy()).resize((220, 180), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i}.{'jpg' if i % 3 else 'gif'}")
    files = sorted(tmp_path.glob("*.*"))
    there, here = (cal.load_backbone("pocket", device=device) for device in ("cuda:0", "cpu"))
    mine, exact = (encode(backbone, files) for backbone in (there, here))
    assert mine.device.type == "cpu" and torch.nn.functional.cosine_similarity(mine, exact).min() > 0.999
    names = ["a dog", "a house"]
    classifier = inference.zero_shot(cal.classifier_weights(there, names), names, there)
    expected = inference.zero_shot(cal.classifier_weights(here, names), names, here)
    for found, wanted in zip(cal.predict(classifier, there, files), cal.predict(expected, here, files)):
        assert dict(found) == pytest.approx(dict(wanted), abs=0.05)


@pytest.mark.parametrize("what", ["waits", "brings", "reads", "chance", "truth"])
def test_the_card_that_is_none_refuses_what_a_capture_refuses(what, card):
    x = torch.ones(3).to(CUDA)
    do = {"waits": lambda: x.sum().item(), "brings": lambda: x + torch.ones(3).to(CUDA), "reads": lambda: x.cpu(),
          "chance": lambda: torch.randn(3, device=CUDA), "truth": lambda: x[x > 0]}[what]
    do()
    with pytest.raises(Refused), capture(Graph()):
        do()
    with pytest.raises(Refused, match="same device"):
        x + torch.ones(3)
    with pytest.raises(Refused, match="scalar type"):
        torch.nn.LayerNorm(3).to(CUDA)(x.half())


def test_a_replay_repeats_operations_and_nothing_that_python_did(card):
    """So a step whose number changes is caught by comparing it with the eager one."""
    x, python, graph = torch.zeros(2).to(CUDA), [], Graph()
    with capture(graph):
        python.append(1)
        x.add_(len(python))
        double = x * 2
    assert x.tolist() == [0, 0] and not torch.isfinite(double.cpu()).any()
    for _ in range(3):
        graph.replay()
    assert x.tolist() == [3, 3] and double.tolist() == [6, 6] and python == [1]
    del graph
    assert not torch.isfinite(double.held).any()


@pytest.mark.parametrize("name", ["gpu-fit-over-matmul", "gpu-coop-100", "gpu-coop-memory"])
def test_the_benchs_gpu_part_has_no_slip_of_the_pen(name, card, monkeypatch):
    """What only such a machine's lent minutes would show; its numbers mean nothing here."""
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    import conftest
    import figures_gpu
    import figures_training
    small = lambda name, **options: random_backbone(name, embed_dim=16, text_cfg=TINY_TEXT, **options)
    monkeypatch.setattr(conftest, "random_backbone", small)
    monkeypatch.setattr(figures_gpu, "synthetic_episode", lambda *_: figures_training.synthetic_episode(4, 2, 16))
    for constant, value in (("GPU", "cuda:0"), ("STEPS", STEPS), ("LENGTH", 4), ("card", lambda: "no card")):
        monkeypatch.setattr(figures_gpu, constant, value)
    for asked in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, asked, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    found = {figure[0]: figure[3] for figure in figures_gpu.FIGURES}[name](quick=True)
    assert found.value > 0 and "no card" in found.detail and any(Graph.replays)
