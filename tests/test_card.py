"""The library's own code for CUDA, on a card that is none (`card.py`): what is captured, and that a replay is a step."""
from dataclasses import replace

import pytest
import torch
from card import CUDA, Graph, Refused, a_card, capture
from conftest import TINY_TEXT, TINY_VISION, random_backbone

import clip_adapter_lite as cal
from clip_adapter_lite import backbones, training
from clip_adapter_lite.methods import coop

STEPS = 6
CAPTURED = [cal.CLIPAdapter(), cal.CLIPAdapter(branch="text"), cal.CLIPAdapter(branch="both"), cal.CLIPAdapter(alpha=0.2),
            cal.CLIPAdapter(branch="both", alpha="learned", beta="learned", normalize="before"),
            cal.CLIPAdapter(alpha="val", final_relu=True), cal.CLIPAdapter(balanced=True), cal.TipAdapter(finetune=True),
            cal.CLAP(), cal.CLAP(constraint=False), cal.LinearAdapter()]
PROMPTS = [cal.CoOp(), cal.CoOp(class_specific=True), cal.CoOp(position="middle"), cal.CoOp(words=None, context_length=2)]


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


def replays() -> list[int]:
    return [graph.replays for graph in Graph.made]


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]) and torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("method", CAPTURED, ids=lambda method: method.label)
def test_a_captured_fit_is_the_eager_one_bit_for_bit_and_the_cpus_to_a_rounding(method, card, eagerly, toy_bank):
    episode, method = toy_bank().episode(4), replace(method, steps=STEPS, device="cuda:0")
    graphed = method.fit(episode)
    assert replays() == [STEPS - training.WARM]
    eagerly()
    eager = method.fit(episode)
    same(numbers(graphed), numbers(eager))
    assert (graphed.alpha, graphed.beta, graphed.details) == (eager.alpha, eager.beta, eager.details)
    assert len(Graph.made) == 1
    here = replace(method, device="cpu").fit(episode)
    for name, tensor in here.head.state_dict().items():
        torch.testing.assert_close(numbers(graphed)[name], tensor, rtol=1e-3, atol=1e-5)
    assert graphed.accuracy(episode.test) == here.accuracy(episode.test)


@pytest.mark.parametrize("method", [m for m in CAPTURED if isinstance(m, cal.CLIPAdapter)], ids=lambda method: method.label)
def test_stacked_fits_are_captured_too(method, card, eagerly, toy_bank):
    method = replace(method, steps=STEPS, device="cuda:0")
    fits = [(method, toy_bank().episode(3, seed)) for seed in (1, 2)]
    graphed = cal.CLIPAdapter.fit_many(fits)
    assert replays() == [STEPS - training.WARM] * (2 if method.balanced else 1)
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
    assert replays() == [STEPS - training.WARM]
    eagerly()
    same(numbers(graphed), numbers(method.fit(episode)))


def test_the_recipe_of_coops_authors_runs_there_step_by_step(tower, toy_bank, monkeypatch):
    monkeypatch.setattr(coop, "PAPER_EPOCHS", {1: 2})
    fitted = cal.CoOp(recipe="paper", device="cuda:0").fit(toy_bank().episode(2))
    assert fitted.head.place.device == CUDA and replays() == []


def test_a_fresh_view_each_step_is_not_captured(card, toy_bank):
    cal.CLIPAdapter(alpha=0.3, steps=STEPS, device="cuda:0").fit(toy_bank(views=2).episode(2))
    assert replays() == []


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
    Graph.made.clear()
    assert not torch.isfinite(double.held).any()
