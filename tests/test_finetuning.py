"""Fine-tuning starts at zero-shot CLIP, changes what it should and nothing else, and is chosen on validation images."""
from dataclasses import replace

import pytest
import torch
from conftest import tiny_backbone
from torch.nn.functional import cross_entropy, normalize

import clip_adapter_lite as cal
from clip_adapter_lite import Split
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.encoding import encode
from clip_adapter_lite.finetuning import finetune_text, finetune_visual


@pytest.fixture(scope="module")
def pocket():
    return cal.load_backbone("pocket", device="cpu")


@pytest.fixture
def episode(pocket):
    """One shot of pacs-cartoon, W from the full-precision backbone, few test images."""
    whole = cal.FeatureBank.load("pacs-cartoon").episode(1)
    exact = replace(whole, text_features=cal.classifier_weights(pocket, whole.classnames, whole.templates),
                    test=whole.test.take(torch.arange(0, len(whole.test), 4)))
    exact.__dict__["backbone"] = pocket
    return exact


@pytest.fixture(scope="module")
def clothes():
    return fashion_mnist().cap(train=3, val=2, test=10)


def state(backbone):
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def test_text_starts_at_zero_shot_learns_and_leaves_the_backbone_alone(pocket, episode):
    before = state(pocket)
    table = finetune_text(episode, steps=5, rates=(1e-4,), every=2)
    assert list(table.columns) == ["step", "loss", "train", "val", "test"] and list(table.step) == [0, 2, 4, 5]
    zero_shot = cal.ZeroShot(device="cpu").fit(episode)
    assert tuple(table.iloc[0][["train", "val", "test"]]) == tuple(
        zero_shot.accuracy(split) for split in (episode.support, episode.val, episode.test))
    expected = cross_entropy(zero_shot.logits(episode.support.features), episode.support.labels).item()
    assert table.loss[0] == pytest.approx(expected, abs=1e-4) and table.loss.iloc[-1] < 0.8 * table.loss[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pocket.model.state_dict().items())
    assert not any(p.requires_grad for p in pocket.model.parameters())


def test_text_counts_what_it_trains(pocket, episode):
    """Three blocks (attention 4 w² + 4 w, two norms 4 w, MLP 8 w² + 5 w), a last norm, positions and the projection."""
    w, layers, length, features = 256, 3, 32, 512
    table = finetune_text(episode, steps=1, rates=(1e-5,))
    assert table.attrs["parameters"] == layers * (12 * w * w + 13 * w) + 2 * w + length * w + w * features
    assert table.attrs["seconds"] > 0
    assert {k: table.attrs[k] for k in ("backbone", "dataset", "shots", "seed")} == {
        "backbone": "pocket", "dataset": "pacs-cartoon", "shots": 1, "seed": 1}


def test_the_rate_is_chosen_on_validation_and_not_on_test(episode):
    good, bad = 1e-4, 1.0  # at rate 1 the tower breaks
    chosen = finetune_text(episode, steps=3, rates=(bad, good))
    assert chosen.attrs["rate"] == good and chosen.attrs["tried"].keys() == {bad, good}
    assert chosen.attrs["tried"][good] == chosen.val.iloc[-1] > chosen.attrs["tried"][bad]
    test = episode.test
    swapped = replace(episode, test=Split(test.features, (test.labels + 1) % len(episode.classnames)))
    swapped.__dict__["backbone"] = episode.backbone
    other = finetune_text(swapped, steps=3, rates=(bad, good))  # wrong test labels change no choice and no training
    assert other.attrs["rate"] == good and other.drop(columns="test").equals(chosen.drop(columns="test"))


def test_visual_starts_at_zero_shot_on_the_episodes_pictures_and_learns(pocket, clothes):
    before = state(pocket)
    table = finetune_visual(clothes, shots=2, seed=3, backbone=pocket, steps=6, rates=(3e-4,), every=4, batch=8)
    assert list(table.step) == [0, 4, 6]
    bank = cal.build_bank(clothes, pocket, progress=False)
    drawn = bank.episode(2, seed=3)
    weights = cal.classifier_weights(pocket, clothes.classnames, clothes.templates)
    for name, split in (("train", drawn.support), ("val", drawn.val), ("test", drawn.test)):
        right = (normalize(split.features, dim=-1) @ weights.T).argmax(1) == split.labels
        assert abs(table[name][0] - right.double().mean().item()) <= 1 / len(split)  # features in half precision
    assert table.loss.iloc[-1] < table.loss[0] and table.train.iloc[-1] > table.train[0]
    block = pocket.model.visual.trunk.blocks[-1]
    assert table.attrs["parameters"] == sum(p.numel() for p in block.parameters()) > 500_000
    assert all(torch.equal(tensor, before[name]) for name, tensor in pocket.model.state_dict().items())
    assert table.attrs["shots"] == 2 and table.attrs["encoding_seconds"] > 0


def test_below_and_above_the_last_block_are_the_whole_tower(pocket, clothes):
    from clip_adapter_lite.finetuning import activations_below
    pictures, tower = [picture for picture, _ in clothes.splits["val"][:5]], pocket.model.visual
    with torch.no_grad():
        pixels = [pocket.preprocess(picture) for picture in pictures]
        maps = tower.trunk.blocks[-1](activations_below(tower.trunk, pixels, pocket.device, batch=2))
        features = tower.head(tower.trunk.forward_head(tower.trunk.bn2(tower.trunk.conv_head(maps))))
    torch.testing.assert_close(features, encode(pocket, pictures), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_is_refused(pocket, episode, clothes, expect_refused):
    with expect_refused("at least one rate", ValueError):
        finetune_text(episode, rates=())
    with expect_refused("steps and every of at least 1", ValueError):
        finetune_text(episode, steps=0)
    lonely = replace(episode, val=Split(torch.empty(0, 512), torch.empty(0, dtype=torch.long)))
    lonely.__dict__["backbone"] = pocket
    with expect_refused("the learning rate is chosen on validation images"):
        finetune_text(lonely)
    with expect_refused("the learning rate is chosen on validation images"):
        finetune_visual(clothes.cap(val=0), backbone=pocket)
    with expect_refused("has no test pictures"):
        finetune_visual(clothes.cap(test=0), shots=3, backbone=pocket)
    with expect_refused("shots must be from 1 to 3"):
        finetune_visual(clothes, shots=7, backbone=pocket)
    with expect_refused("knows the image tower of the pocket CLIP", ValueError):
        finetune_visual(clothes, backbone=tiny_backbone())
