"""A training curve is the fit, looked at: its last row is the fitted classifier, its first the untrained one."""
import math

import pytest
import torch
from torch.nn.functional import normalize

from clip_adapter_lite import CLIPAdapter, LinearProbe, Split
from clip_adapter_lite.curves import training_curve

ROUGH = dict(classes=5, width=16, noise=2.5)


@pytest.mark.parametrize("settings", [
    dict(alpha=0.6), dict(alpha=1.0, reduction=1), dict(branch="text", beta=0.5), dict(branch="both", alpha=0.3, beta=0.7),
    dict(alpha=0.5, normalize="before", final_relu=True, steps=33, rate=3e-3)], ids=str)
def test_the_last_row_is_the_fitted_classifier(toy_bank, settings):
    episode = toy_bank(**ROUGH, views=2).episode(4, seed=2)
    method = CLIPAdapter(**settings)
    curve, fitted = training_curve(method, episode, every=7), method.fit(episode)
    assert list(curve.columns) == ["step", "loss", "train", "val", "test"]
    assert list(curve.step) == [*range(0, method.steps, 7), *([method.steps] if method.steps % 7 else [])]
    last = curve.iloc[-1]
    splits = episode.support, episode.val, episode.test
    assert (last.train, last.val, last.test) == tuple(map(fitted.accuracy, splits))
    logits, labels = fitted.logits(episode.support.view()).tolist(), episode.support.labels.tolist()
    by_hand = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels)]
    assert last.loss == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert curve.attrs == {"backbone": "none", "dataset": "toy", "shots": 4, "seed": 2}


def test_the_first_row_is_the_random_adapter_and_training_lowers_the_loss(toy_bank):
    episode = toy_bank(**ROUGH).episode(4)
    curve = training_curve(CLIPAdapter(alpha=0.6), episode)
    untrained, first = CLIPAdapter(alpha=0.6, steps=0).fit(episode), curve.iloc[0]
    assert first.test == untrained.accuracy(episode.test) and first.train == untrained.accuracy(episode.support)
    assert curve.iloc[-1].loss < 0.7 * curve.iloc[0].loss and curve.iloc[-1].train > curve.iloc[0].train
    assert len(training_curve(CLIPAdapter(alpha=0.6, steps=0), episode)) == 1


def test_at_alpha_zero_every_row_is_zero_shot(toy_bank):
    episode = toy_bank(**ROUGH).episode(2)
    curve = training_curve(CLIPAdapter(alpha=0.0, steps=10), episode, every=5)
    scores = normalize(episode.test.view(), dim=-1) @ normalize(episode.text_features, dim=-1).T
    assert list(curve.step) == [0, 5, 10]
    assert curve.test.unique().tolist() == [(scores.argmax(1) == episode.test.labels).double().mean().item()]


def test_neither_the_callers_random_numbers_nor_gradients_are_touched_and_a_split_may_be_empty(toy_bank):
    from dataclasses import replace
    episode = replace(toy_bank().episode(2), val=Split(torch.empty(0, 16), torch.empty(0, dtype=torch.long)))
    state = torch.get_rng_state()
    with torch.no_grad():
        curve = training_curve(CLIPAdapter(alpha=0.5, steps=8), episode)
    assert torch.equal(torch.get_rng_state(), state)
    assert curve.val.isna().all() and curve.test.notna().all()


@pytest.mark.parametrize("method, every, says", [
    (CLIPAdapter(), 4, "alpha must be a number"), (CLIPAdapter(branch="text", beta="learned"), 4, "beta must be a number"),
    (LinearProbe(), 4, "training of a CLIPAdapter"), (CLIPAdapter(alpha=0.5), 0, "every must be at least 1")])
def test_what_has_no_single_training_is_refused(toy_bank, expect_refused, method, every, says):
    with expect_refused(says, ValueError):
        training_curve(method, toy_bank().episode(1), every)
