"""Backbones: what ours encodes equals what open_clip itself encodes, at every precision, and errors are one sentence.

No network: `RN50-quickgelu` and `ViT-B-32-quickgelu` have random weights, saved as a checkpoint and loaded by its path.
"""
import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from clip_adapter_lite import backbones, devices, pocket
from clip_adapter_lite.backbones import Backbone, classifier_weights, load_backbone, shared_backbone, weights_of
from clip_adapter_lite.devices import best_device

torch.set_num_threads(1)

TEXTS = ["a photo of a dog.", "", "a blurry photo of an aircraft carrier at sea, seen from above.", "cat"]
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY = {"embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}}
TINY_MODELS = {"tiny": {}, "tiny-quickgelu": {"quick_gelu": True}, "tiny-custom": {"custom_text": True},
               "tiny-resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}},
               "tiny-bidirectional": {"custom_text": True, "text_cfg": TINY["text_cfg"] | {"no_causal_mask": True}}}


@pytest.fixture(scope="module", autouse=True)
def tiny_models():
    """Small architectures that load_backbone finds by name, as it finds open_clip's own."""
    known = open_clip.factory._MODEL_CONFIGS
    known.update({name: copy.deepcopy(TINY | extra) for name, extra in TINY_MODELS.items()})
    yield
    for name in TINY_MODELS:
        del known[name]


def random_checkpoint(name, folder):
    """The path of a checkpoint with random weights, for `load_backbone`, and its state dict (half as large, in fp16)."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    with torch.no_grad():  # open_clip's start is so small that a text tower hardly tells one text from another
        getattr(model, "text", model).token_embedding.weight.mul_(20)
        model.logit_scale.fill_(3.25)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # and a ResNet's blocks at nothing at all
                module.weight.fill_(1)
    path, state = folder / f"{name}.pt", {key: value.half() for key, value in model.state_dict().items()}
    torch.save(state, path)
    return str(path), state


def load_random(name, folder):
    """`load_backbone` of such a checkpoint, and the state dict that was saved."""
    path, state = random_checkpoint(name, folder)
    backbone = load_backbone(name, tag=path, device="cpu")
    Path(path).unlink()
    return backbone, state


@pytest.fixture(scope="module", params=["pocket", "tiny", "tiny-custom", "RN50-quickgelu", "ViT-B-32-quickgelu"])
def loaded(request, tmp_path_factory):
    if request.param == "pocket":
        return load_backbone("pocket", device="cpu"), pocket.load().state_dict()
    return load_random(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def backbone(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def pocket_backbone():
    return load_backbone("pocket", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return {name: load_random(name, tmp_path_factory.mktemp("tiny"))[0] for name in TINY_MODELS}


def pictures(backbone, count=3):
    size = backbone.model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return noise.cumsum(3) / 5  # streaks: plain noise looks the same to a network that averages it


# ── the same features as open_clip's ──────────────────────────────────────────────────────────────────────────────


def test_loading_fills_in_the_weights_of_the_checkpoint(loaded):
    backbone, state = loaded
    mine = backbone.model.state_dict()
    assert mine.keys() == state.keys()
    assert all(torch.equal(mine[key], state[key].to(mine[key].dtype)) for key in state)


def test_text_features_equal_open_clips_on_the_full_context(backbone):
    tokens = backbone.tokenizer(TEXTS)
    assert tokens.shape == (len(TEXTS), backbone.model.context_length)
    mine, theirs = backbone.encode_text(TEXTS), backbone.model.encode_text(tokens)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert torch.pdist(mine).min() > 1e-2, "texts that encode alike would hide a mistake"


def test_the_padding_after_the_longest_text_is_not_computed(backbone):
    lengths = []
    handle = backbone.text_tower.transformer.register_forward_pre_hook(lambda module, x: lengths.append(x[0].shape[1]))
    backbone.encode_text(["a dog", "a cat."])
    handle.remove()
    assert lengths == [5]  # start, a, cat, full stop, end


def test_encode_tokens_of_a_plain_prompts_embeddings_equals_encode_text(backbone):
    tokens = backbone.tokenizer(TEXTS)
    mine = backbone.encode_tokens(backbone.text_tower.token_embedding.weight[tokens], tokens.argmax(1))
    torch.testing.assert_close(mine, backbone.encode_text(TEXTS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.embed(tokens), backbone.text_tower.token_embedding.weight[tokens], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["pocket", "tiny", "tiny-quickgelu", "tiny-custom"])
def test_in_float64_the_cut_is_exact(name, tiny, pocket_backbone):
    model = copy.deepcopy(pocket_backbone if name == "pocket" else tiny[name]).model.double()
    backbone = Backbone(name, "", model, None, pocket_backbone.tokenizer if name == "pocket" else tiny[name].tokenizer,
                        torch.device("cpu"))
    tokens = backbone.tokenizer(TEXTS)
    mine, theirs = backbone.encode_tokens(backbone.embed(tokens), tokens.argmax(1)), model.encode_text(tokens)
    assert mine.dtype == torch.float64
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


def test_gradients_flow_through_encode_tokens(tiny):
    tokens = tiny["tiny"].tokenizer(["a dog."])
    embedded = tiny["tiny"].embed(tokens).requires_grad_()
    tiny["tiny"].encode_tokens(embedded, tokens.argmax(1)).sum().backward()
    reached = embedded.grad[0].abs().sum(1) > 0
    assert reached.tolist() == [position <= int(tokens.argmax()) for position in range(tokens.shape[1])]


def test_image_features_equal_open_clips_and_are_not_normalised(backbone):
    images = pictures(backbone)
    mine = backbone.encode_images(images)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, backbone.model.encode_image(images), atol=1e-4, rtol=1e-4)
    assert ((mine.norm(dim=1) - 1).abs() > 1e-2).all()
    assert ((backbone.encode_text(TEXTS).norm(dim=1) - 1).abs() > 1e-2).all()
    assert torch.pdist(mine).min() > 1e-3


def test_the_batch_does_not_matter(backbone):
    images = pictures(backbone)
    torch.testing.assert_close(torch.cat([backbone.encode_images(image[None]) for image in images]),
                               backbone.encode_images(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.encode_text(TEXTS, batch=3), backbone.encode_text(TEXTS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.encode_text(TEXTS[::-1]).flip(0), backbone.encode_text(TEXTS), atol=1e-5, rtol=1e-5)


def test_everything_is_frozen_and_encoding_moves_nothing(backbone):
    model = backbone.model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}  # BatchNorm statistics among them
    features = [backbone.encode_images(pictures(backbone) * 5 + 3), backbone.encode_text(TEXTS)]
    assert not any(f.requires_grad for f in features)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_fixture_towers_with_batch_norm_have_statistics_that_could_move(backbone):
    has = any(isinstance(module, nn.BatchNorm2d) for module in backbone.model.modules())
    assert has == (backbone.name in ("pocket", "RN50-quickgelu"))


def test_logit_scale_is_the_exponential_of_the_stored_logarithm(loaded):
    backbone, state = loaded
    assert backbone.logit_scale == pytest.approx(np.exp(float(state["logit_scale"])), rel=1e-5)


# ── activations ───────────────────────────────────────────────────────────────────────────────────────────────────


def activations(module):
    return {type(m) for m in module.modules() if isinstance(m, nn.GELU) or "GELU" in type(m).__name__}


def test_the_activation_is_the_one_that_the_name_promises(backbone):
    text, image = activations(backbone.text_tower.transformer), activations(backbone.model.visual)
    wanted = open_clip.transformer.QuickGELU if backbone.name.endswith("quickgelu") else nn.GELU
    assert text == {wanted}
    assert image == (set() if backbone.name in ("pocket", "RN50-quickgelu") else {wanted})  # ResNets have ReLU


def test_quick_gelu_in_both_towers_of_a_small_vit(tiny):
    for name, wanted in (("tiny", nn.GELU), ("tiny-quickgelu", open_clip.transformer.QuickGELU)):
        assert activations(tiny[name].model.visual) == activations(tiny[name].model.transformer) == {wanted}


def test_quick_gelu_computes_x_times_sigmoid_of_1_702_x(tiny):
    activation = next(m for m in tiny["tiny-quickgelu"].text_tower.transformer.modules() if "GELU" in type(m).__name__)
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    np.testing.assert_allclose(activation(torch.tensor(x)).numpy(), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


# ── half precision ────────────────────────────────────────────────────────────────────────────────────────────────


TOWERS = ["pocket", "tiny", "tiny-custom", "tiny-quickgelu", "tiny-resnet"]


def tag_of(name, folder):
    """What `load_backbone` takes as the tag: a checkpoint's path; None for the pocket CLIP."""
    return None if name == "pocket" else random_checkpoint(name, folder)[0]


@pytest.mark.parametrize("name", TOWERS)
def test_towers_built_for_half_precision_have_norms_that_stay_in_single(name, tmp_path, monkeypatch):
    """Half-precision states meet float32 norms there: plain LayerNorm crashes on CUDA, and on a CPU only its type shows."""
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # there is no GPU to move to
    monkeypatch.setattr(devices, "must_work", lambda device: None)
    backbone = load_backbone(name, tag_of(name, tmp_path), "cuda")
    norms = [m for m in backbone.model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))]
    assert {type(m).__name__ for m in norms if isinstance(m, nn.LayerNorm)} == {"LayerNormFp32"}
    assert {m.weight.dtype for m in norms} == {torch.float32}
    products = [m for m in backbone.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert {m.weight.dtype for m in products} == {backbone.dtype} == {torch.float16}
    assert backbone.text_tower.transformer.get_cast_dtype() == torch.float16


@pytest.mark.parametrize("name", TOWERS)
def test_towers_on_the_cpu_are_in_single_precision(name, tmp_path):
    backbone = load_backbone(name, tag_of(name, tmp_path), "cpu")
    assert {p.dtype for p in backbone.model.parameters()} == {backbone.dtype} == {torch.float32}


@pytest.mark.parametrize("name", TOWERS)
def test_a_model_in_half_precision_takes_and_gives_float32(name, tmp_path, monkeypatch):
    """What CUDA does in fp16, in bfloat16, which a CPU has too."""
    tag = tag_of(name, tmp_path)
    full = load_backbone(name, tag, "cpu")
    monkeypatch.setattr(backbones, "tower_precision", lambda device: "bf16")
    half = load_backbone(name, tag, "cpu")
    assert half.dtype == torch.bfloat16 and torch.bfloat16 in {p.dtype for p in half.model.parameters()}
    for mine, exact in ((half.encode_text(TEXTS), full.encode_text(TEXTS)),
                        (half.encode_images(pictures(half)), full.encode_images(pictures(full)))):
        assert mine.dtype == torch.float32
        assert torch.cosine_similarity(mine, exact).min() > 0.99
        assert (mine - exact).norm() < 0.1 * exact.norm()


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def sentence(error):
    """The error's message, which must be one paragraph that ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) > 30
    return text


def no_download(*args, **kwargs):
    raise OSError("Name or service not known")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_download)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-L-14-336"])
@pytest.mark.parametrize("tag", ["openai", None])  # openai is these names' default
def test_openai_weights_on_a_name_without_quickgelu_are_refused(name, tag, offline):
    with pytest.raises(ValueError) as error:
        load_backbone(name, tag)
    assert f"'{name}-quickgelu'" in sentence(error)
    assert f"{name}-quickgelu" in open_clip.list_models()


def test_an_unknown_name_is_refused_before_any_download():
    with pytest.raises(ValueError) as error:
        load_backbone("RN5O-quickgelu")
    assert "RN5O-quickgelu" in sentence(error) and "pocket" in str(error.value)


def test_an_unknown_tag_is_refused_with_the_known_ones(offline):
    with pytest.raises(ValueError) as error:
        load_backbone("RN50-quickgelu", "opennai")
    assert "'opennai'" in sentence(error) and "openai, yfcc15m, cc12m" in str(error.value)


def test_a_name_without_openai_weights_needs_a_tag(offline):
    with pytest.raises(ValueError) as error:
        load_backbone("ViT-H-14")
    assert "laion2b_s32b_b79k" in sentence(error) and "tag=" in str(error.value)


@pytest.mark.parametrize("tag", ["openai", None])
def test_a_dead_network_is_one_sentence_that_names_the_weights_and_the_way_out(tag, offline, caplog):
    with pytest.raises(RuntimeError) as error:
        load_backbone("RN50-quickgelu", tag)
    assert not caplog.records and logging.root.manager.disable == logging.NOTSET
    assert "'openai' of RN50-quickgelu" in sentence(error) and ". " not in sentence(error)
    assert "Name or service not known" in str(error.value) and "'pocket'" in str(error.value)


def test_a_checkpoint_of_another_architecture_is_refused(tiny, tmp_path):
    torch.save({"logit_scale": torch.tensor(1.0)}, tmp_path / "other.pt")
    with pytest.raises(RuntimeError, match="other.pt' of tiny could not be loaded"):
        load_backbone("tiny", str(tmp_path / "other.pt"))


def whole_model(folder, seed=0):
    """A folder as `local-dir:` names it, with its config and random weights, and those weights."""
    torch.manual_seed(seed)
    state = open_clip.CLIP(**copy.deepcopy(TINY)).state_dict()
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3}}))
    save_file(state, folder / "open_clip_model.safetensors")
    return state


def test_a_folder_that_brings_its_own_config_and_weights_is_a_backbone(tmp_path):
    state = whole_model(tmp_path / "mine")
    backbone = load_backbone(f"local-dir:{tmp_path / 'mine'}", device="cpu")
    assert torch.equal(backbone.model.state_dict()["text_projection"], state["text_projection"])
    assert backbone.encode_text(TEXTS).shape == (4, 24) and "mean=[0.5, 0.5, 0.5]" in repr(backbone.preprocess)
    again = load_backbone(backbone.name, backbone.tag, "cpu")
    assert again.tag == backbone.tag and len(weights_of(again.tag)) == 64


def test_a_folder_whose_weights_were_changed_is_told_from_what_a_bank_was_made_by(tmp_path):
    whole_model(tmp_path / "mine")
    backbone = load_backbone(f"local-dir:{tmp_path / 'mine'}", device="cpu")
    whole_model(tmp_path / "mine", seed=1)
    with pytest.raises(ValueError, match="was changed since; put back what it was") as error:
        load_backbone(backbone.name, backbone.tag, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, do", [("local-dir:nowhere", "give a folder that holds open_clip_config.json"),
                                      ("hf-hub:nobody/nothing", "connect to the network")])
def test_a_model_that_is_not_there_is_one_sentence(name, do, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", no_network)
    with pytest.raises(RuntimeError, match=do) as error:
        load_backbone(name, device="cpu")
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_is_known_by_what_it_holds(tiny, tmp_path, monkeypatch):
    state = {name: tensor.clone() for name, tensor in tiny["tiny"].model.state_dict().items()}
    monkeypatch.chdir(tmp_path)
    for place in ("last.pt", "copy.pt"):
        torch.save(state, place)
    tags = [load_backbone("tiny", place).tag for place in ("last.pt", tmp_path / "last.pt", "copy.pt")]
    assert tags[0] == tags[1] and weights_of(tags[0]) == weights_of(tags[2]) != ""
    assert load_backbone("tiny", tags[0]).tag == tags[0]
    state["logit_scale"] += 1
    torch.save(state, "last.pt")  # training went on
    with pytest.raises(ValueError, match="last.pt holds weights of SHA-256 .* was changed since") as error:
        load_backbone("tiny", tags[0])
    assert ". " not in sentence(error) and weights_of(load_backbone("tiny", "last.pt").tag) != weights_of(tags[0])
    (tmp_path / "last.pt").unlink()
    with pytest.raises(ValueError, match="last.pt is not there any more"):
        load_backbone("tiny", tags[0])


def test_the_pocket_clip_refuses_the_tag_of_other_weights():
    assert load_backbone("pocket", tag=pocket.tag()).tag == pocket.tag()
    with pytest.raises(ValueError) as error:
        load_backbone("pocket", tag="other")
    assert "'other'" in sentence(error) and pocket.tag() in str(error.value)


@pytest.mark.parametrize("tower", [
    SimpleNamespace(pool_type="last", attn_mask=torch.zeros(2, 2)),  # SigLIP
    SimpleNamespace(pool_type="argmax", attn_mask=None),  # MobileCLIP
    SimpleNamespace(pool_type="argmax", attn_mask=torch.zeros(2, 2), cls_emb=torch.zeros(2)),  # CoCa
    SimpleNamespace(pooler="mean_pooler")])  # Hugging Face
def test_text_towers_that_are_not_clips_are_refused_where_prompts_are_learned(tower):
    fake = Backbone("fake", "", SimpleNamespace(text=tower), None, None, torch.device("cpu"))
    with pytest.raises(ValueError) as error:
        fake.text_tower  # noqa: B018
    assert "fake has a text tower" in sentence(error)


def test_a_tower_that_looks_ahead_still_encodes_text_on_its_full_context(tiny):
    backbone = tiny["tiny-bidirectional"]
    with pytest.raises(ValueError):
        backbone.text_tower  # noqa: B018
    torch.testing.assert_close(backbone.encode_text(TEXTS, batch=3), backbone.model.encode_text(backbone.tokenizer(TEXTS)),
                               atol=1e-5, rtol=1e-5)


# ── preprocessing ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_constant_colour_is_normalised_by_the_backbones_own_mean_and_deviation(backbone):
    colour, size = (10, 100, 250), {"pocket": 160, "RN50-quickgelu": 224, "ViT-B-32-quickgelu": 224}.get(backbone.name, 32)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if backbone.name == "pocket" else (OPENAI_MEAN, OPENAI_STD)
    tensor = backbone.preprocess(Image.new("RGB", (300, 200), colour))
    assert tensor.shape == (3, size, size)
    wanted = torch.tensor([(value / 255 - m) / s for value, m, s in zip(colour, mean, std)])
    torch.testing.assert_close(tensor, wanted[:, None, None].expand_as(tensor), atol=1e-6, rtol=0)


def test_the_shorter_side_is_fitted_and_the_middle_is_cut_out(pocket_backbone):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 320, 3), dtype=np.uint8)
    wanted = (torch.tensor(pixels[:, 80:240]).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(pocket_backbone.preprocess(Image.fromarray(pixels)), wanted, atol=1e-6, rtol=0)


def test_grey_and_transparent_images_become_three_channels(pocket_backbone):
    for mode in ("L", "RGBA", "P"):
        assert pocket_backbone.preprocess(Image.new(mode, (40, 50))).shape == (3, 160, 160)


# ── classifier weights ────────────────────────────────────────────────────────────────────────────────────────────

NAMES, TEMPLATES = ["dog", "aircraft_carrier", "Egyptian cat"], ["a photo of a {}.", "a drawing of the {}", "{} texture."]
PLAIN_NAMES = ["dog", "aircraft carrier", "Egyptian cat"]


@pytest.mark.parametrize("normalize_each", [True, False])
@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
def test_classifier_weights_are_the_hand_made_average_over_templates(templates, normalize_each, pocket_backbone):
    mine = classifier_weights(pocket_backbone, NAMES, templates, normalize_each=normalize_each).double().numpy()
    for row, name in zip(mine, PLAIN_NAMES, strict=True):
        each = [pocket_backbone.encode_text([template.replace("{}", name)])[0].double().numpy() for template in templates]
        if normalize_each:
            each = [feature / np.sqrt((feature ** 2).sum()) for feature in each]
        total = sum(each)
        np.testing.assert_allclose(row, total / np.sqrt((total ** 2).sum()), atol=1e-5)
        assert (row ** 2).sum() == pytest.approx(1, abs=1e-5)


def test_the_two_averages_differ_with_several_templates_and_only_then(pocket_backbone):
    def gap(templates):
        return (classifier_weights(pocket_backbone, NAMES, templates)
                - classifier_weights(pocket_backbone, NAMES, templates, normalize_each=False)).abs().max()
    assert gap(TEMPLATES) > 1e-4 and gap(TEMPLATES[:1]) < 1e-6


def test_underscores_in_class_names_are_read_as_spaces(pocket_backbone):
    torch.testing.assert_close(classifier_weights(pocket_backbone, NAMES), classifier_weights(pocket_backbone, PLAIN_NAMES),
                               atol=0, rtol=0)


def test_a_template_without_a_place_for_the_name_is_refused(pocket_backbone):
    with pytest.raises(ValueError) as error:
        classifier_weights(pocket_backbone, NAMES, ["a photo of a {}.", "a photo"])
    assert "'a photo'" in sentence(error)


# ── devices and sharing ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cuda, mps, wanted", [(False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")])
def test_auto_takes_cuda_then_mps_then_the_cpu(cuda, mps, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(devices, "must_work", lambda device: None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == best_device("auto") == torch.device(wanted)
    assert best_device("cpu") == best_device(torch.device("cpu")) == torch.device("cpu")


def test_a_shared_backbone_is_loaded_once():
    first = shared_backbone("pocket", "", torch.device("cpu"))
    assert shared_backbone("pocket", "", torch.device("cpu")) is first
    assert first.tag == pocket.tag()


# ── other text towers ─────────────────────────────────────────────────────────────────────────────────────────


# as SigLIP's (whose name would have open_clip ask the hub for a tokenizer) and CoCa's
OTHERS = {
    "tiny-sigmoid": {"custom_text": True, "init_logit_bias": -10.0, "text_cfg": TINY["text_cfg"] | {
        "no_causal_mask": True, "pool_type": "last", "proj_bias": True}},
    "tiny-coca": {"custom_text": True, "vision_cfg": TINY["vision_cfg"] | {"attentional_pool": True, "output_tokens": True,
                                                                             "attn_pooler_heads": 2},
                  "text_cfg": TINY["text_cfg"] | {"embed_cls": True, "output_tokens": True},
                  "multimodal_cfg": TINY["text_cfg"] | {"attn_pooler_heads": 2}}}


@pytest.fixture(params=list(OTHERS))
def another(request, tmp_path, monkeypatch):
    """A checkpoint's backbone with a text tower other than CLIP's."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, request.param, copy.deepcopy(TINY | OTHERS[request.param]))
    path, _ = random_checkpoint(request.param, tmp_path)
    return load_backbone(request.param, path, "cpu")


def test_of_any_tower_a_bank_is_built_and_fitted_on_and_only_coop_refuses(another, tmp_path):
    from clip_adapter_lite import CLIPAdapter, CoOp, build_bank, predict
    from clip_adapter_lite.datasets import load_dataset
    for number in range(12):
        folder = tmp_path / "pictures" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{number}.png")
    bank = build_bank(load_dataset("folder", tmp_path / "pictures"), another, progress=False)
    assert another.width == bank.text_features.shape[1] == 24 and np.isclose(bank.logit_scale, np.exp(3.25), rtol=1e-3)
    said = bank.meta.get("logits", "")
    assert ("a bias of -10; here a softmax" in said) == (another.name == "tiny-sigmoid") == (another.logit_bias is not None)
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(another.encode_images(images), another.model.encode_image(images), atol=1e-5)
    fitted = CLIPAdapter(alpha=0.2, steps=2).fit(bank.episode(1))
    assert len(predict(fitted, another, tmp_path / "pictures/cat/0.png")[0]) == 2
    with pytest.raises(ValueError, match="has a text tower other than CLIP's causal transformer"):
        CoOp(steps=1).fit(bank.episode(1))


def test_a_bias_that_all_classes_share_changes_no_softmax():
    scaled = torch.randn(4, 5, dtype=torch.float64) * 10
    assert torch.allclose(scaled.softmax(1), (scaled - 10).softmax(1))


@pytest.mark.parametrize("error, do", [
    (ImportError("Please install transformers"), "run `pip install transformers sentencepiece`"),
    (OSError("We couldn't connect to the hub.\nTry again."), "connect to the network")])
def test_a_tokenizer_that_cannot_be_had_is_one_sentence(error, do, tiny, tmp_path, monkeypatch):
    path, _ = random_checkpoint("tiny", tmp_path)

    def absent(*_, **__):
        raise error
    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    with pytest.raises(RuntimeError, match="The tokenizer of tiny could not be loaded") as found:
        load_backbone("tiny", path, "cpu")
    assert do in str(found.value) and ". " not in sentence(found)


def test_a_checkpoint_in_the_home_folder_is_recorded_without_its_owners_name(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path, _ = random_checkpoint("tiny", tmp_path)
    tag = load_backbone("tiny", path, "cpu").tag
    assert tag.startswith("~/tiny.pt#sha256=") and load_backbone("tiny", tag, "cpu").tag == tag
