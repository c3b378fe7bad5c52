"""CoOp's shared prefix: the same logits and gradients as running every whole prompt through the text tower, in less work.

The reference below is CoOp's own way: 77 tokens a class, [start] context [name . end padding], open_clip's transformer with
its mask, the state at the end token projected. Text towers have random weights, in float64; no network.
"""
import pytest
import torch
from conftest import random_backbone, tiny_backbone
from torch.nn.functional import cross_entropy, normalize

from clip_adapter_lite.backbones import Backbone, load_backbone
from clip_adapter_lite.methods import coop
from clip_adapter_lite.methods.base import cosine_logits
from clip_adapter_lite.methods.coop import Prompts

NAMES = ["dog", "golden retriever", "Egyptian cat", "7-up bottle", "aircraft carrier", "airliner", "sea", "red panda"]
TOWERS = {"pocket": lambda: load_backbone("pocket", device="cpu"), "tiny": tiny_backbone,
          "custom": lambda: tiny_backbone(force_custom_text=True),
          "RN50-quickgelu": lambda: random_backbone("RN50-quickgelu"),
          "ViT-B-32-quickgelu": lambda: random_backbone("ViT-B-32-quickgelu")}


@pytest.fixture(scope="module", params=TOWERS)
def backbone(request) -> Backbone:
    made = TOWERS[request.param]()
    made.model.double()
    return made


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    made = tiny_backbone()
    made.model.double()
    return made


def double_prompts(backbone, names=NAMES, length=4, position="end", class_specific=False) -> Prompts:
    torch.manual_seed(3)
    learned = Prompts(backbone, names, length=length, position=position, class_specific=class_specific, words=None)
    learned.context.data = torch.randn_like(learned.context, dtype=torch.float64)
    return learned


def plain_weights(backbone, names, context):
    """CoOp's way: every token of every prompt, padding included. context: [M, width]."""
    tower = backbone.text_tower
    tokens = backbone.tokenizer([f"{name}." for name in names])
    embedded = tower.token_embedding(tokens)
    room = tokens.shape[1] - len(context)
    x = torch.cat([embedded[:, :1], context.expand(len(names), -1, -1), embedded[:, 1:room]], dim=1)
    x = tower.transformer(x + tower.positional_embedding, attn_mask=tower.attn_mask)
    x = tower.ln_final(x)[torch.arange(len(names)), tokens.argmax(1) + len(context)]
    projection = tower.text_projection
    return projection(x) if isinstance(projection, torch.nn.Module) else x @ projection


def logits_and_gradient(weights, context, labels=None):
    """Logits [20, C] of fixed random features, and the gradient of their cross-entropy to the context."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, weights.shape[1], generator=generator, dtype=torch.float64)
    labels = torch.randint(len(weights), (20,), generator=generator)
    logits = cosine_logits(features, weights, 100.0)
    context.grad = None
    cross_entropy(logits, labels).backward()
    return logits.detach(), context.grad.clone()


def assert_equal(found, wanted, tolerance=1e-9):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float64 and b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item(), rtol=0)


@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize("chunk", [128, 3])
def test_logits_and_gradients_equal_the_plain_path(backbone, length, chunk, monkeypatch):
    monkeypatch.setattr(coop, "CLASSES", chunk)
    learned = double_prompts(backbone, length=length)
    assert learned.shared
    wanted = logits_and_gradient(plain_weights(backbone, NAMES, learned.context), learned.context)
    assert_equal(logits_and_gradient(learned(), learned.context), wanted)


def test_every_class_gets_its_own_name_and_length(tiny):
    """Swapping two classes swaps their weights and nothing else, whatever their lengths; chunks keep the order."""
    learned = double_prompts(tiny)
    swapped = double_prompts(tiny, [NAMES[1], NAMES[0], *NAMES[2:]])
    with torch.no_grad():
        torch.testing.assert_close(learned()[[1, 0, *range(2, 8)]], swapped(), atol=1e-12, rtol=0)
        assert torch.pdist(normalize(learned(), dim=1)).min() > 1e-2, "classes that encode alike would hide a mistake"


@pytest.mark.parametrize("position, class_specific", [("end", True), ("middle", False), ("front", False)])
def test_other_contexts_fall_back_and_chunks_change_nothing_there_either(tiny, position, class_specific, monkeypatch):
    learned = double_prompts(tiny, position=position, class_specific=class_specific)
    assert not learned.shared
    whole = logits_and_gradient(learned(), learned.context)
    monkeypatch.setattr(coop, "CLASSES", 3)
    assert_equal(logits_and_gradient(learned(), learned.context), whole)


def test_a_class_specific_context_that_is_the_same_for_all_equals_the_unified_one(tiny):
    unified, specific = double_prompts(tiny), double_prompts(tiny, class_specific=True)
    specific.context.data[:] = unified.context.data
    logits, gradient = logits_and_gradient(unified(), unified.context)
    assert_equal(logits_and_gradient(specific(), specific.context)[:1], [logits])
    torch.testing.assert_close(specific.context.grad.sum(0), gradient, atol=1e-9, rtol=0)


def test_layers_that_are_not_open_clips_own_fall_back(tiny, monkeypatch):
    class Other(type(tiny.text_tower.transformer.resblocks[0])):
        pass
    whole = double_prompts(tiny)
    monkeypatch.setattr(tiny.text_tower.transformer.resblocks[1], "__class__", Other)
    learned = double_prompts(tiny)
    assert whole.shared and not learned.shared
    with torch.no_grad():
        torch.testing.assert_close(learned(), whole(), atol=1e-12, rtol=0)


def test_only_the_name_and_end_tokens_run_for_each_class(tiny):
    """The rows that enter the second layer: 1 + M of the prefix, once, and the longest name's tokens a class."""
    seen = []
    handle = tiny.text_tower.transformer.resblocks[1].ln_1.register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape[:2])))
    learned = double_prompts(tiny, length=16)
    with torch.no_grad():
        learned()
    handle.remove()
    longest = max(int(tiny.tokenizer([f"{name}."]).argmax()) for name in NAMES)
    assert seen == [(1, 17), (len(NAMES), longest)]


def test_chunks_keep_no_activations_between_the_passes(tiny, monkeypatch):
    """What a forward pass leaves for the backward pass is the chunks' inputs, not every layer's activations."""
    def kept(chunk):
        monkeypatch.setattr(coop, "CLASSES", chunk)
        sizes = []
        learned = double_prompts(tiny, NAMES * 8)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            learned()
        return sum(sizes)
    assert kept(8) < kept(128) / 10
