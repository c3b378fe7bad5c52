"""Linear probe: scikit-learn's numbers at a fixed C, and CoOp's search for C."""
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from clip_adapter_lite import BankError, Episode, LinearProbe, Split

torch.set_num_threads(1)  # toy sizes: more threads only wait for each other
threadpool_limits(1)  # and thirty times as long in L-BFGS on a busy machine
COARSE = [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6]


def toy_episode(classes=4, shots=6, val=8, test=30, *, views=None, dtype=torch.float64, seed=0):
    """Images around one random centre a class, with enough noise that C matters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 16, generator=generator, dtype=torch.float64)

    def split(per_class, views=None):
        labels = torch.arange(classes).repeat_interleave(per_class)
        shape = (len(labels), 16) if views is None else (views, len(labels), 16)
        images = centres[labels] + 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return Split(images.to(dtype), labels)

    return Episode(support=split(shots, views), val=split(val), test=split(test), text_features=centres.to(dtype),
                   classnames=tuple(f"thing {i}" for i in range(classes)), logit_scale=20.0, shots=shots, seed=1)


def sklearn_probabilities(episode, C):
    x, y = episode.support.features, episode.support.labels.numpy()
    if x.ndim == 3:  # the views of an image are images of their own
        x, y = torch.cat(list(x)), np.concatenate([y] * len(x))
    return LogisticRegression(C=C, max_iter=1000).fit(x.double().numpy(), y).predict_proba(episode.test.features.double())


# ── at a fixed C ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("C", [1e-3, 0.316])
@pytest.mark.parametrize("views", [None, 3])
def test_probabilities_are_those_of_scikit_learn(classes, C, views):
    episode = toy_episode(classes, views=views)
    clf = LinearProbe(device="cpu", C=C).fit(episode)
    np.testing.assert_allclose(clf.probabilities(episode.test.features), sklearn_probabilities(episode, C), atol=1e-12)
    assert clf.details["C"] == C and clf.parameters == 17 * classes


def test_float32_features_are_fitted_in_float64():
    episode = toy_episode(dtype=torch.float32)
    probabilities = LinearProbe(device="cpu", C=1.0).fit(episode).probabilities(episode.test.features)
    assert probabilities.dtype == torch.float32
    np.testing.assert_allclose(probabilities.numpy(), sklearn_probabilities(episode, 1.0), atol=1e-5)


def test_two_classes_have_two_opposite_columns():
    clf = LinearProbe(device="cpu", C=1.0).fit(episode := toy_episode(classes=2))
    logits = clf.logits(episode.test.features)
    assert logits.shape == (60, 2)
    torch.testing.assert_close(logits[:, 0], -logits[:, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("C", ["val", 1.0])
def test_one_class_has_nothing_to_learn(C):
    clf = LinearProbe(device="cpu", C=C).fit(episode := toy_episode(classes=1))
    assert clf.probabilities(episode.test.features).tolist() == [[1.0]] * 30 and clf.accuracy(episode.test) == 1


def test_it_minimises_the_regularised_loss_whose_gradient_vanishes():
    """C Σ cross-entropy + |V|² / 2, with a free bias: the definition, without scikit-learn."""
    episode, C = toy_episode(), 0.5
    clf = LinearProbe(device="cpu", C=C).fit(episode)
    weight, bias = (clf.head.weight.clone().requires_grad_(), clf.head.bias.clone().requires_grad_())
    loss = cross_entropy(episode.support.features @ weight + bias, episode.support.labels, reduction="sum")
    (C * loss + weight.square().sum() / 2).backward()
    assert weight.grad.abs().max() < 1e-2 and bias.grad.abs().max() < 1e-2
    assert weight.detach().abs().max() > 0.1


def test_the_class_names_and_the_scale_are_not_used():
    episode = toy_episode()
    other = replace(episode, text_features=-episode.text_features.flip(0), logit_scale=1.0, classnames=("a", "b", "c", "d"))
    one, two = (LinearProbe(device="cpu", C=1.0).fit(e).logits(episode.test.features) for e in (episode, other))
    assert torch.equal(one, two)


def test_neither_a_C_that_does_not_converge_nor_one_shot_of_many_classes_gives_a_warning(recwarn):
    assert LinearProbe(device="cpu", C=1e6, max_iter=2).fit(toy_episode()).steps == 2
    LinearProbe(device="cpu", C=1.0).fit(toy_episode(classes=30, shots=1))  # as many classes as images
    assert not len(recwarn)


# ── the search ────────────────────────────────────────────────────────────────────────────────────────────────────


def reference_search(accuracy, rounds):
    """CoOp's search written again from its description, on exponents: the first best of the coarse ones, then rounds that
    compare the two ends of an interval, keep the better one (the left one if equal) and cut the other half off."""
    values = [accuracy(C) for C in COARSE]
    peak = round(math.log10(COARSE[values.index(max(values))]))
    left, right, chosen = peak - 1.0, peak + 1.0, None
    for _ in range(rounds):
        centre = left + (right - left) / 2
        if accuracy(10 ** right) > accuracy(10 ** left):
            chosen, left = right, centre
        else:
            chosen, right = left, centre
    return 10 ** chosen


def curve(seed, levels):
    """A random piecewise constant accuracy over log10 C; few levels make plateaus and ties everywhere."""
    chance = random.Random(seed)
    edges = sorted(chance.uniform(-8, 8) for _ in range(40))
    heights = [chance.randrange(levels) / levels for _ in range(41)]
    return lambda C: heights[sum(edge < math.log10(C) - 1e-9 for edge in edges)]


@pytest.mark.parametrize("levels", [1, 2, 4, 50])
@pytest.mark.parametrize("bisections", [0, 1, 3, 8])
def test_the_search_is_the_one_of_coop(levels, bisections):
    probe = LinearProbe(bisections=bisections)
    for seed in range(40):
        accuracy = curve(seed, levels)
        # n halvings lie between n + 1 comparisons of the ends
        assert probe._search(accuracy) == pytest.approx(reference_search(accuracy, bisections + 1), rel=1e-9), seed


@pytest.mark.parametrize("peak", [-6.0, -2.0, 0.5, 2.3, 5.7])
def test_the_search_comes_close_to_a_single_peak(peak):
    found = math.log10(LinearProbe()._search(lambda C: -abs(math.log10(C) - peak)))
    assert abs(found - peak) < 2 / 2 ** 8


def test_where_all_are_equal_the_search_ends_at_a_tenth_of_the_largest():
    assert LinearProbe()._search(lambda C: 0.5) == pytest.approx(1e5, rel=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fit_takes_the_C_that_the_search_finds_on_validation_and_not_on_test_images():
    episode, seen = toy_episode(), {}

    def accuracy(C):
        if C not in seen:
            model = LogisticRegression(C=C, max_iter=30).fit(episode.support.features, episode.support.labels)
            seen[C] = model.score(episode.val.features, episode.val.labels)
        return seen[C]

    expected = reference_search(accuracy, rounds=4)
    clf = LinearProbe(device="cpu", bisections=3, max_iter=30).fit(episode)
    assert len(set(seen.values())) > 2  # the choice matters
    assert clf.details["C"] == pytest.approx(expected, rel=1e-9)
    assert clf.val_accuracy == accuracy(expected)


def test_the_search_without_validation_images_is_refused():
    with pytest.raises(BankError, match="C is chosen on validation images and this episode has none"):
        LinearProbe(device="cpu").fit(toy_episode(val=0))
    assert LinearProbe(device="cpu", C=1.0).fit(toy_episode(val=0)).val_accuracy is None
