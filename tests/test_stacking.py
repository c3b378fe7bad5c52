"""Heads trained as one, in float64 on a CPU, against the same heads trained one by one."""
from dataclasses import replace

import pytest
import torch

import clip_adapter_lite as cal
from clip_adapter_lite import CLIPAdapter, stacking
from clip_adapter_lite.methods import clip_adapter


def doubled(bank, seed=1, shots=3, **kept):
    return replace(bank.episode(shots, seed).to(torch.float64), **kept)


def fitted(fits, stacked, monkeypatch):
    train = clip_adapter._train_heads
    monkeypatch.setattr(clip_adapter, "_train_heads", lambda work: train(work, stacked))
    try:
        return CLIPAdapter.fit_many(fits)
    finally:
        monkeypatch.setattr(clip_adapter, "_train_heads", train)


@pytest.fixture
def stacks(monkeypatch):
    """How many heads each stack had."""
    told, train = [], stacking.train_stacked
    monkeypatch.setattr(clip_adapter, "train_stacked",
                        lambda tasks, *args, **options: told.append(len(tasks)) or train(tasks, *args, **options))
    return told


def close(one, other):
    assert one.head.state_dict().keys() == other.head.state_dict().keys()
    for name, tensor in one.head.state_dict().items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(tensor, other.head.state_dict()[name], rtol=1e-9, atol=1e-11)
    assert one.head.options == pytest.approx(other.head.options)
    assert (one.val_accuracy, one.parameters, one.steps) == (other.val_accuracy, other.parameters, other.steps)
    assert one.alpha == pytest.approx(other.alpha) and one.beta == pytest.approx(other.beta)


@pytest.mark.parametrize("settings", [
    dict(), dict(branch="text"), dict(branch="both"), dict(normalize="before"), dict(final_relu=True),
    dict(alpha="learned"), dict(branch="both", alpha=0.3, beta="auto")],
    ids=lambda settings: ", ".join(f"{k}={v}" for k, v in settings.items()) or "default")
def test_stacked_fits_are_the_single_fits(settings, toy_bank, monkeypatch, stacks):
    """Three seeds: other images, other starts, other learned ratios."""
    method = CLIPAdapter(steps=12, rate=1e-2, device="cpu", **settings)
    fits = [(method, doubled(toy_bank(), seed)) for seed in (1, 2, 3)]
    together = fitted(fits, True, monkeypatch)
    assert stacks == [3]
    for (method, episode), one in zip(fits, together):
        close(one, method.fit(episode))
    assert stacks == [3]  # on a CPU a fit trains its heads one by one


def test_a_search_is_one_stack_and_finds_what_single_fits_find(toy_bank, monkeypatch, stacks):
    method, episode = CLIPAdapter(alpha="val", steps=12, rate=1e-2, device="cpu"), doubled(toy_bank(noise=2.0))
    one, = fitted([(method, episode)], True, monkeypatch)
    alone = method.fit(episode)
    assert stacks == [10]  # of eleven ratios; at α = 0 there is nothing to train
    close(one, alone)
    assert one.details["scores"].keys() == alone.details["scores"].keys()
    for pair, score in alone.details["scores"].items():
        assert one.details["scores"][pair] == pytest.approx(score, rel=1e-9)


def test_ratios_are_stacked_and_shapes_are_not(toy_bank, monkeypatch, stacks):
    bank = toy_bank()
    fits = [(CLIPAdapter(alpha=alpha, reduction=reduction, steps=5, device="cpu"), doubled(bank))
            for alpha in (0.2, 0.5, 1) for reduction in (2, 4)]
    for (method, episode), one in zip(fits, fitted(fits, True, monkeypatch)):
        close(one, method.fit(episode))
    assert stacks == [3, 3]


def test_a_fresh_view_each_step_is_seen_by_stacked_heads_too(toy_bank, monkeypatch, stacks):
    bank, method = toy_bank(views=3), CLIPAdapter(alpha=0.4, steps=7, rate=1e-2, device="cpu")
    fits = [(method, doubled(bank, seed)) for seed in (1, 2)]
    for (method, episode), one in zip(fits, fitted(fits, True, monkeypatch)):
        close(one, method.fit(episode))
    assert stacks == [2]


def test_without_validation_images_both_trainings_of_a_fit_are_stacked(toy_bank, monkeypatch, stacks):
    method = CLIPAdapter(steps=8, rate=1e-2, device="cpu")
    fits = [(method, doubled(toy_bank(), seed).shots_only()) for seed in (1, 2)]
    for (method, episode), one in zip(fits, fitted(fits, True, monkeypatch)):
        close(one, method.fit(episode))
    assert stacks == [2, 2]


def test_a_stack_too_large_for_the_device_is_halved_and_starts_again(toy_bank, monkeypatch):
    method = CLIPAdapter(alpha=0.5, steps=6, rate=1e-2, device="cpu")
    fits = [(method, doubled(toy_bank(), seed)) for seed in (1, 2, 3)]
    tried, train = [], stacking.train

    def small(groups, loss, **options):
        tried.append(sum(p.numel() for group in groups for p in group["params"]) // (2 * 16 * 4))
        train(groups, loss, **options)
        if tried[-1] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")  # when it was all but done
    monkeypatch.setattr(stacking, "train", small)
    together = fitted(fits, True, monkeypatch)
    assert tried == [3, 1, 2, 1, 1]
    for (method, episode), one in zip(fits, together):
        close(one, method.fit(episode))


def test_what_fails_in_one_stays_an_error(toy_bank, expect_refused):
    bank = toy_bank()
    empty = replace(bank.episode(2), val=bank.splits["val"].take(slice(0)))
    with expect_refused("is chosen on validation images"):
        CLIPAdapter.fit_many([(CLIPAdapter(alpha="val"), bank.episode(2)), (CLIPAdapter(alpha="val"), empty)])


def test_generators_go_on_together():
    asked = []

    def plan(name, times):
        for i in range(times):
            yield [f"{name}{i}"]
        return name.upper()

    assert stacking.side_by_side([plan("a", 2), plan("b", 0), plan("c", 1)], asked.append) == ["A", "B", "C"]
    assert asked == [["a0", "c0"], ["a1"]]


def test_fits_side_by_side_on_a_cpu_are_bit_for_bit_the_single_ones(toy_bank):
    bank = toy_bank()
    fits = [(CLIPAdapter(steps=5), bank.episode(2, seed)) for seed in (1, 2)]
    test = bank.splits["test"].view()
    for (method, episode), one in zip(fits, CLIPAdapter.fit_many(fits)):
        assert torch.equal(one.logits(test), method.fit(episode).logits(test)) and one.seconds > 0
    assert cal.CLIPAdapter.fit_many([]) == []
