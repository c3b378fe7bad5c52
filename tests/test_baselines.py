"""CLAP, GDA-CLIP and the regularised linear adapter against their papers' formulas, written out again in numpy."""
import numpy
import pytest
import torch
from test_methods import SCALE, WIDTH, one_sentence, toy_episode
from torch.nn.functional import normalize

import clip_adapter_lite as cal
from clip_adapter_lite.methods.clap import multipliers


def unit(x):
    return x / numpy.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = numpy.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def arrays(split):
    return split.view().double().numpy(), split.labels.numpy()


# ── CLAP ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_multipliers_are_the_mean_zero_shot_probabilities_of_the_own_class():
    episode = toy_episode(dtype=torch.float64)
    x, y = arrays(episode.support)
    p = softmax(SCALE * unit(x) @ unit(episode.text_features.numpy()).T)
    expected = [p[y == c, c].mean() for c in range(3)]
    assert numpy.allclose(multipliers(episode), expected, rtol=1e-12)


@pytest.mark.parametrize("constraint", [True, False])
def test_clap_is_adamw_on_cross_entropy_and_the_pull_to_the_words(constraint):
    """The gradient in closed form, AdamW written out: bias-corrected moments, a cosine, no decay."""
    episode, steps, rate = toy_episode(dtype=torch.float64), 7, 3e-3
    (x, labels), text = arrays(episode.support), unit(episode.text_features.numpy())
    x, own = unit(x), numpy.eye(3)[labels]
    p = softmax(SCALE * x @ text.T)
    held = (p * own).sum(0) / own.sum(0) * constraint
    w, first, second = text.copy(), 0, 0
    for step in range(steps):
        lengths = numpy.linalg.norm(w, axis=1, keepdims=True)
        wrong = (softmax(SCALE * x @ (w / lengths).T) - own) / len(x)  # ∂ cross-entropy / ∂ logits [N, C]
        by_unit = SCALE * wrong.T @ x  # ∂ / ∂ (w / |w|) [C, D]
        along = (by_unit * w / lengths).sum(1, keepdims=True) * w / lengths
        gradient = (by_unit - along) / lengths + 2 * held[:, None] * (w - text)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient ** 2
        peak = rate * 0.5 * (1 + numpy.cos(numpy.pi * step / steps))
        corrected = numpy.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        w = w - peak * first / (1 - 0.9 ** (step + 1)) / corrected
    fitted = cal.CLAP(constraint=constraint, steps=steps, rate=rate, device="cpu").fit(episode)
    assert numpy.allclose(fitted.head.weights, w, atol=1e-9)
    test, _ = arrays(episode.test)
    assert numpy.allclose(fitted.logits(episode.test.view()), SCALE * unit(test) @ unit(w).T, atol=1e-6)


def test_clap_moves_less_where_zero_shot_is_sure():
    episode = toy_episode(classes=5, shots=8)
    free, held = (cal.CLAP(constraint=c, rate=1e-2, device="cpu").fit(episode).head.weights for c in (False, True))
    text = normalize(episode.text_features, dim=-1)
    assert ((held - text).norm(dim=1) < (free - text).norm(dim=1)).all()


# ── the linear adapter ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_linear_adapter_starts_as_zero_shot_to_the_last_bit():
    episode = toy_episode()
    zero = cal.ZeroShot(device="cpu").fit(episode).logits(episode.test.view())
    assert torch.equal(cal.LinearAdapter(steps=0, device="cpu").fit(episode).logits(episode.test.view()), zero)


def test_an_endless_pull_keeps_the_identity_and_none_lets_it_go():
    episode = toy_episode()
    moved = lambda pull: (cal.LinearAdapter(pull=pull, device="cpu").fit(episode).head.adapter.weight
                          - torch.eye(WIDTH)).norm().item()
    assert moved(1e6) < 0.01 * moved(0.0)
    assert moved(1e6) < moved(1.0) < moved(0.01) < moved(0.0)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_pull_is_one_over_the_shots(shots):
    fitted = cal.LinearAdapter(steps=1, device="cpu").fit(toy_episode(shots=shots))
    assert fitted.details == {"pull": 1 / shots} and fitted.parameters == WIDTH ** 2


def test_the_linear_adapter_comes_to_rest_where_its_loss_has_no_slope():
    """∂/∂M of cross-entropy + λ ‖M - I‖² written out in numpy is near zero at the matrix found."""
    episode = toy_episode(dtype=torch.float64)
    x, y = arrays(episode.support)
    fitted = cal.LinearAdapter(pull=1.0, steps=3000, rate=1e-2, device="cpu").fit(episode)
    matrix, text = fitted.head.adapter.weight.numpy(), unit(episode.text_features.numpy())

    def slope(matrix):
        adapted = x @ matrix.T
        lengths = numpy.linalg.norm(adapted, axis=1, keepdims=True)
        wrong = (softmax(SCALE * adapted / lengths @ text.T) - numpy.eye(3)[y]) / len(x)
        by_unit = SCALE * wrong @ text
        by_adapted = (by_unit - (by_unit * adapted / lengths).sum(1, keepdims=True) * adapted / lengths) / lengths
        return by_adapted.T @ x + 2 * (matrix - numpy.eye(WIDTH))

    assert numpy.abs(slope(matrix)).max() < 1e-4 * numpy.abs(slope(numpy.eye(WIDTH))).max()


def test_the_linear_adapter_goes_to_new_classes_by_their_names():
    old, new = toy_episode(), toy_episode(classes=4, seed=7)
    method = cal.LinearAdapter(device="cpu")
    fitted = method.fit(old)
    head = method.reworded(fitted.head, new)
    x, _ = arrays(new.test)
    expected = SCALE * unit(x @ fitted.head.adapter.weight.double().numpy().T) @ unit(new.text_features.numpy()).T
    assert numpy.allclose(head(new.test.view()).detach(), expected, atol=1e-4)
    assert len(fitted.head.weights) == 3  # the fitted one keeps its own


@pytest.mark.parametrize("pull", [-1, float("inf"), float("nan")])
def test_a_pull_that_cannot_be_is_refused(pull):
    with pytest.raises(ValueError, match="pull must be") as error:
        cal.LinearAdapter(pull=pull)
    assert one_sentence(error)


# ── GDA-CLIP ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("views", [None, 3])
def test_gda_is_the_log_likelihood_of_gaussians_with_one_covariance(views):
    """log N(f; μ_c, Σ) up to what all classes share, with the ridge on the covariance as the paper has it."""
    episode = toy_episode(views=views, dtype=torch.float64)
    x = unit(episode.support.features.numpy().reshape(-1, WIDTH))
    y = numpy.tile(episode.support.labels.numpy(), views or 1)
    means = numpy.stack([x[y == c].mean(0) for c in range(3)])
    covariance = numpy.cov((x - means[y]).T)  # over N - 1
    inverse = WIDTH * numpy.linalg.inv((len(x) - 1) * covariance + numpy.trace(covariance) * numpy.eye(WIDTH))
    f = arrays(episode.test)[0]
    apart = unit(f)[:, None] - means  # [N, C, D]
    likelihood = -0.5 * numpy.einsum("ncd, de, nce -> nc", apart, inverse, apart) + numpy.log(1 / 3)
    zero_shot = SCALE * unit(f) @ unit(episode.text_features.numpy()).T
    found = cal.GDA(alpha=0.7, device="cpu").fit(episode).logits(episode.test.view()).numpy()
    given = found - zero_shot - 0.7 * likelihood
    assert numpy.allclose(given, given.mean(1, keepdims=True), atol=1e-4)  # the same for all classes


def test_gda_with_alpha_0_is_zero_shot_to_the_last_bit():
    episode = toy_episode()
    zero = cal.ZeroShot(device="cpu").fit(episode).logits(episode.test.view())
    assert torch.equal(cal.GDA(alpha=0, device="cpu").fit(episode).logits(episode.test.view()), zero)


def test_from_one_image_a_class_there_is_no_gaussian_and_details_say_so():
    episode = toy_episode(shots=1)
    fitted = cal.GDA(device="cpu").fit(episode)
    zero = cal.ZeroShot(device="cpu").fit(episode).logits(episode.test.view())
    assert torch.equal(fitted.logits(episode.test.view()), zero)
    assert fitted.details["gaussian"] == "no two images of a class" and fitted.details["tied"] == 7


def test_gda_takes_the_alpha_with_the_best_validation_accuracy():
    episode = toy_episode(val=8)
    fitted = cal.GDA(device="cpu").fit(episode)
    each = {alpha: cal.GDA(alpha=alpha, device="cpu").fit(episode).val_accuracy for alpha in fitted.method.grid}
    assert each[fitted.alpha] == max(each.values()) == fitted.val_accuracy
    assert fitted.details["tied"] == sum(value == max(each.values()) for value in each.values())


def test_gda_in_float32_agrees_with_float64_at_one_alpha():
    episode = toy_episode(test=400)
    one, two = (cal.GDA(alpha=1.0, device="cpu").fit(e).logits(e.test.view()) for e in (episode, episode.to(torch.float64)))
    assert one.dtype == torch.float32 and torch.allclose(one.double(), two, atol=1e-2)


@pytest.mark.parametrize("wrong", [dict(alpha=-1), dict(alpha="auto"), dict(grid=()), dict(grid=(1.0, -2.0))])
def test_settings_of_gda_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="alpha must be|grid must hold") as error:
        cal.GDA(**wrong)
    assert one_sentence(error)
