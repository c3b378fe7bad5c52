"""Measures of the feature space against plain arithmetic, and what moves in t-SNE."""
import math
from statistics import mean

import numpy
import pandas
import pytest
import torch

from clip_adapter_lite import CLIPAdapter, ZeroShot
from clip_adapter_lite.manifold import fitted_features, manifold_measures, tsne
from clip_adapter_lite.transfer import base_and_new, transfer


def points(n: int = 24, width: int = 5, classes: int = 3, seed: int = 0):
    """Features at many lengths, which must not matter, and labels."""
    generator = numpy.random.default_rng(seed)
    labels = numpy.arange(n) % classes
    x = generator.normal(size=(n, width)) + 1.5 * numpy.eye(width)[labels]
    return x * generator.uniform(0.1, 10, size=(n, 1)), labels


def by_hand(x, labels, k: int) -> dict:
    """The three measures with loops over plain numbers."""
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]
    labels, every = labels.tolist(), range(len(unit))

    def distance(i, j):
        return 1 - sum(a * b for a, b in zip(unit[i], unit[j]))

    silhouettes, pure = [], []
    for i in every:
        to = {c: [distance(i, j) for j in every if labels[j] == c and j != i] for c in set(labels)}
        a, b = mean(to[labels[i]]), min(mean(v) for c, v in to.items() if c != labels[i])
        silhouettes.append((b - a) / max(a, b))
        near = sorted((j for j in every if j != i), key=lambda j: distance(i, j))[:k]
        pure.append(mean(labels[j] == labels[i] for j in near))

    def centre(rows):
        return [mean(column) for column in zip(*(unit[i] for i in rows))]

    def squared(p, q):
        return sum((a - b) ** 2 for a, b in zip(p, q))

    whole = centre(every)
    groups = {c: [i for i in every if labels[i] == c] for c in set(labels)}
    between = sum(len(rows) * squared(centre(rows), whole) for rows in groups.values())
    within = sum(squared(unit[i], centre(rows)) for rows in groups.values() for i in rows)
    return {"silhouette": mean(silhouettes), "fisher": between / within, "purity": mean(pure)}


@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_measures_are_those_of_plain_arithmetic(k):
    x, labels = points()
    found = manifold_measures(x, labels, k)
    assert found == pytest.approx(by_hand(x, labels, k), abs=1e-9)
    assert manifold_measures(torch.tensor(x), torch.tensor(labels), k) == pytest.approx(found)


def test_well_separated_classes_score_high_and_shuffled_labels_low():
    x, labels = points(90)
    apart = manifold_measures(x + 20 * numpy.eye(5)[labels] * numpy.linalg.norm(x, axis=1, keepdims=True), labels)
    mixed = manifold_measures(x, numpy.random.default_rng(1).permutation(labels))
    assert apart["silhouette"] > 0.9 and apart["purity"] == 1 and apart["fisher"] > 10
    assert abs(mixed["silhouette"]) < 0.1 and mixed["purity"] < 0.5 and mixed["fisher"] < 0.2


@pytest.mark.parametrize("change, says", [
    (lambda x, y: (x, y[:-1], 3), "N labels of at least two classes"), (lambda x, y: (x, 0 * y, 3), "at least two classes"),
    (lambda x, y: (x, numpy.arange(len(y)), 3), "fewer classes than"), (lambda x, y: (x, y, 24), "k must be from 1 to 23"),
    (lambda x, y: (x[0], y, 3), "shape [N, D]"), (lambda x, y: (numpy.where(x > 0, x, numpy.nan), y, 3), "finite"),
    (lambda x, y: (x * (y > 0)[:, None], y, 3), "none of them all zero"),
    (lambda x, y: (x * 1e200, y, 3), "finite"), (lambda x, y: (x * 1e-200, y, 3), "none of them all zero"),
    (lambda x, y: (x[:, :0], y, 3), "got torch.float64 of shape [24, 0]"), (lambda x, y: (["a"] * 24, y, 3), "got words"),
    (lambda x, y: (x + 0j, y, 3), "got torch.complex128"), (lambda x, y: (x, numpy.where(y, y, numpy.nan), 3), "got gaps"),
    (lambda x, y: (x, [None, *y[1:]], 3), "got gaps"), (lambda x, y: (x, [[1], [1, 2]] * 12, 3), "got gaps"),
    (lambda x, y: (x, pandas.Series(["a", None] * 12), 3), "got gaps"), (lambda x, y: (x, y[:, None], 3), "shape [24, 1]"),
    (lambda x, y: (x, y, 2.5), "k must be a whole number; got 2.5"), (lambda x, y: (x, y, "3"), "k must be a whole number")])
def test_what_cannot_be_measured_is_refused(expect_refused, change, says):
    with expect_refused(says, ValueError):
        manifold_measures(*change(*points()))


def test_labels_may_be_words_and_features_any_array():
    x, labels = points()
    found, names = manifold_measures(x, labels), numpy.array(["ant", "bee", "cat"])[labels]
    for given in (names, names.tolist(), pandas.Series(names), pandas.Series(names)[labels >= 0], labels + 0.5, labels == 1):
        assert manifold_measures(x, given) == (found if len(set(given)) == 3 else manifold_measures(x, (labels == 1) * 1))
    for given in (x.tolist(), pandas.DataFrame(x), torch.tensor(x, requires_grad=True), list(torch.tensor(x)), x * 1e-20):
        assert manifold_measures(given, labels) == pytest.approx(found)


def test_tsne_is_the_same_for_a_seed_whatever_the_lengths_and_keeps_groups_together():
    x, labels = points(60)
    x = x / numpy.linalg.norm(x, axis=1, keepdims=True) + 3 * numpy.eye(5)[labels]
    first = tsne(x, perplexity=10)
    assert first.shape == (60, 2) and numpy.isfinite(first).all()
    assert numpy.array_equal(first, tsne(torch.tensor(x), perplexity=10))
    assert numpy.allclose(first, tsne(x * 4, perplexity=10), atol=1e-3)
    assert not numpy.allclose(first, tsne(x, perplexity=20), atol=1e-3)
    near = numpy.linalg.norm(first[:, None] - first[None], axis=-1).argsort(1)[:, 1:6]
    assert (labels[near] == labels[:, None]).mean() > 0.95


@pytest.mark.parametrize("perplexity", [0, 60])
def test_a_perplexity_that_cannot_be_is_refused(expect_refused, perplexity):
    with expect_refused("perplexity must be above 0 and below the number of points, 60", ValueError):
        tsne(points(60)[0], perplexity)


@pytest.mark.parametrize("settings", [dict(alpha=0.7), dict(alpha="learned"), dict(alpha=0.4, normalize="before"),
                                      dict(branch="both", alpha=0.5, beta=0.5)], ids=str)
def test_fitted_features_give_the_classifiers_logits(toy_bank, settings):
    episode = toy_bank(noise=2.0).episode(4)
    fitted = CLIPAdapter(**settings, steps=20).fit(episode)
    f = fitted_features(fitted, episode.test.view())
    assert torch.allclose(f.norm(dim=1), torch.ones(len(f)), atol=1e-6) and not f.requires_grad
    if fitted.head.normalize == "after" and fitted.head.text is None:
        w = torch.nn.functional.normalize(episode.text_features, dim=-1)
        assert torch.allclose(episode.logit_scale * f @ w.T, fitted.logits(episode.test.view()), atol=1e-4)
    plain = torch.nn.functional.normalize(episode.test.view(), dim=-1)
    assert (f - plain).abs().max() > 0.01


def test_f_star_is_the_blend_written_out_in_plain_numbers(toy_bank):
    episode = toy_bank(classes=3, width=8).episode(2)
    fitted = CLIPAdapter(alpha=0.3, steps=5).fit(episode)
    f = episode.test.view()[0].tolist()
    down, up = fitted.head.visual.down.weight.tolist(), fitted.head.visual.up.weight.tolist()
    hidden = [max(0.0, sum(w * v for w, v in zip(row, f))) for row in down]
    blend = [0.3 * sum(w * h for w, h in zip(row, hidden)) + 0.7 * v for row, v in zip(up, f)]
    length = math.sqrt(sum(v * v for v in blend))
    assert fitted_features(fitted, episode.test.view())[0].tolist() == pytest.approx([v / length for v in blend], abs=1e-6)


def test_without_a_visual_adapter_they_are_the_features_themselves(toy_bank, expect_refused):
    bank = toy_bank()
    episode = bank.episode(2)
    plain = torch.nn.functional.normalize(episode.test.view(), dim=-1)
    for method in (ZeroShot(), CLIPAdapter(branch="text", beta=0.5, steps=3)):
        assert torch.equal(fitted_features(method.fit(episode), episode.test.view()), plain)
    with expect_refused("features of shape [N, 16]"):
        fitted_features(ZeroShot().fit(episode), torch.ones(2, 7))


def test_a_transferred_classifier_has_the_features_of_the_fitted_one(toy_bank):
    bank = toy_bank()
    fitted = CLIPAdapter(alpha=0.5, steps=5).fit(bank.episode(2))
    moved = transfer(fitted, base_and_new(bank)[0])
    features = bank.splits["test"].features.float()
    assert moved.logits(features).shape[1] == 3
    assert torch.equal(fitted_features(moved, features), fitted_features(fitted, features))
