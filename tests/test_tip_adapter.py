"""Tip-Adapter against independent implementations, in double precision where numbers are compared."""
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

import clip_adapter_lite as cal
from clip_adapter_lite.methods import tip_adapter
from clip_adapter_lite.methods.tip_adapter import TipAdapter, TipHead


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_episode(shots=4, classes=5, width=12, views=1, noise=1.5, seed=0, dtype=torch.float64, logit_scale=20.0):
    """A few-shot problem that neither the text nor the cache solves: noisy clusters, and a noisier text feature for each."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))

    def split(per_class, *leading):
        labels = random.permutation(np.repeat(np.arange(classes), per_class))
        scale = random.uniform(0.5, 3, size=(*leading, len(labels), 1))  # features are not normalised
        return cal.Split(scale * (centres[labels] + noise * random.normal(size=(*leading, len(labels), width))), labels)

    splits = {"train": split(shots, views) if views > 1 else split(shots), "val": split(6), "test": split(8)}
    bank = cal.FeatureBank(dataset="clusters", backbone="none", classnames=[f"class {c}" for c in range(classes)],
                           text_features=centres + 1.5 * random.normal(size=centres.shape), logit_scale=logit_scale,
                           splits=splits)
    return bank.episode(shots, seed=1).to(dtype)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(episode, features, alpha, beta):
    """Tip-Adapter's logits in plain NumPy, written from the paper's equations with a dense one-hot L."""
    support = episode.support.features.numpy()
    keys = unit(unit(support).mean(0)) if support.ndim == 3 else unit(support)
    values = np.eye(len(episode.classnames))[episode.support.labels.numpy()]
    f, weights = unit(features.numpy()), unit(episode.text_features.numpy())
    return episode.logit_scale * f @ weights.T + alpha * np.exp(-beta * (1 - f @ keys.T)) @ values


def close(a, b):
    return np.allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-9)


def fixed(alpha=2.0, beta=3.0, **settings):
    return TipAdapter(alpha=alpha, beta=beta, device="cpu", **settings)


# ── the closed form ───────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("alpha, beta", [(1.0, 5.5), (0.3, 0.0), (40, 0.7)])
@pytest.mark.parametrize("shots, views", [(1, 1), (4, 1), (3, 4)])
def test_logits_are_the_papers(alpha, beta, shots, views):
    episode = make_episode(shots, views=views)
    fitted = fixed(alpha, beta).fit(episode)
    assert close(fitted.logits(episode.test.features), reference(episode, episode.test.features, alpha, beta))


def test_classes_may_have_different_numbers_of_images():
    episode = make_episode(4)
    rows = (episode.support.labels != 2).nonzero()[:, 0].tolist() + [int((episode.support.labels == 2).nonzero()[1, 0])]
    episode = replace(episode, support=episode.support.take(torch.tensor(rows)))
    assert close(fixed().fit(episode).logits(episode.test.features), reference(episode, episode.test.features, 2.0, 3.0))


def test_the_key_of_several_views_is_their_normalised_mean_direction():
    episode = make_episode(2, views=3)
    keys = fixed().fit(episode).head.keys
    a, b, c = (normalize(view, dim=-1) for view in episode.support.features)
    assert close(keys, normalize(a + b + c, dim=-1))
    longer = episode.support.features * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None]
    longer = replace(episode, support=cal.Split(longer, episode.support.labels))
    assert close(keys, fixed().fit(longer).head.keys)  # the length of a view does not count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("finetune", [False, True])
def test_alpha_zero_is_zero_shot_to_the_last_bit(finetune, dtype):
    episode = make_episode(dtype=dtype)
    zero_shot = cal.ZeroShot(device="cpu").fit(episode)
    fitted = fixed(alpha=0, finetune=finetune).fit(episode)
    assert torch.equal(fitted.logits(episode.test.features), zero_shot.logits(episode.test.features))


@pytest.mark.parametrize("finetune", [False, True])
def test_the_order_of_the_support_set_does_not_matter(finetune):
    episode = make_episode(views=2)
    order = torch.randperm(len(episode.support), generator=torch.Generator().manual_seed(0))
    shuffled = replace(episode, support=episode.support.take(order))
    a, b = (fixed(finetune=finetune).fit(e).logits(episode.test.features) for e in (episode, shuffled))
    assert close(a, b)


@pytest.mark.parametrize("finetune", [False, True])
def test_renaming_the_classes_permutes_the_columns(finetune):
    episode = make_episode(classes=5)
    old = torch.tensor([3, 0, 4, 1, 2])  # new class c was old[c]
    new = old.argsort()
    renamed = replace(episode, text_features=episode.text_features[old],
                      classnames=tuple(episode.classnames[c] for c in old),
                      **{s: cal.Split(getattr(episode, s).features, new[getattr(episode, s).labels])
                         for s in ("support", "val", "test")})
    method = TipAdapter(finetune=finetune, device="cpu")
    a, b = method.fit(episode), method.fit(renamed)
    assert (a.alpha, a.beta) == (b.alpha, b.beta)
    assert close(a.logits(episode.test.features)[:, old], b.logits(episode.test.features))


def test_chunks_do_not_change_anything(monkeypatch):
    episode = make_episode()
    whole = TipAdapter(finetune=True, device="cpu").fit(episode)
    monkeypatch.setattr(tip_adapter, "CHUNK", 7)  # 40 test, 30 validation and 20 support images: uneven last chunks
    chunked = TipAdapter(finetune=True, device="cpu").fit(episode)
    assert (whole.alpha, whole.beta, whole.details) == (chunked.alpha, chunked.beta, chunked.details)
    assert close(whole.logits(episode.test.features), chunked.logits(episode.test.features))
    assert chunked.logits(episode.test.features[:0]).shape == (0, 5)


# ── the search ────────────────────────────────────────────────────────────────────────────────────────────────

def exhaustive(episode, alphas, betas):
    """{(α, β): (validation accuracy, -cross-entropy)} by the NumPy reference, one pair at a time."""
    labels, scores = episode.val.labels.numpy(), {}
    for alpha, beta in product(alphas, betas):
        logits = reference(episode, episode.val.features, alpha, beta)
        top = logits.max(1, keepdims=True)
        loss = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(labels)), labels]
        scores[alpha, beta] = (logits.argmax(1) == labels).mean(), round(-loss.mean(), 12)  # equal losses are equal
    return scores


@pytest.mark.parametrize("noise", [0.8, 1.5])
def test_the_search_finds_the_best_pair(noise):
    cross_entropy_decided = accuracy_overruled = False
    for seed in range(8):
        episode = make_episode(noise=noise, seed=seed)
        method = TipAdapter(device="cpu")
        fitted = method.fit(episode)
        scores = exhaustive(episode, method.alpha_grid, method.beta_grid)
        best = max(scores, key=lambda pair: (*scores[pair], -pair[0], -pair[1]))
        assert (fitted.alpha, fitted.beta) == best
        assert fitted.val_accuracy == pytest.approx(scores[best][0], abs=1e-12)
        assert fitted.details == {"tied": sum(score[0] == scores[best][0] for score in scores.values())}
        assert close(fitted.logits(episode.test.features), reference(episode, episode.test.features, *best))
        cross_entropy_decided |= fitted.details["tied"] > 1
        accuracy_overruled |= max(scores.values(), key=lambda score: score[1])[0] < scores[best][0]
    assert cross_entropy_decided and accuracy_overruled  # or these episodes would not test the rule


def test_a_fixed_ratio_is_kept_and_the_other_searched():
    episode = make_episode(seed=3)
    for setting, value in (("alpha", 0.7), ("beta", 1.3)):
        method = TipAdapter(**{setting: value}, device="cpu")
        fitted = method.fit(episode)
        grids = {"alpha": method.alpha_grid, "beta": method.beta_grid} | {setting: (value,)}
        scores = exhaustive(episode, grids["alpha"], grids["beta"])
        assert (fitted.alpha, fitted.beta) == max(scores, key=lambda pair: (*scores[pair], -pair[0], -pair[1]))
        assert getattr(fitted, setting) == value


def test_of_equals_the_smaller_alpha_then_the_smaller_beta_is_taken():
    one_class = make_episode(classes=1)  # every pair is right and has no loss
    fitted = TipAdapter(alpha_grid=(5.0, 0.5, 1.0), beta_grid=(3.0, 2.0, 4.0), device="cpu").fit(one_class)
    assert (fitted.alpha, fitted.beta, fitted.details["tied"]) == (0.5, 2.0, 9)
    episode = make_episode()
    at_zero = TipAdapter(alpha_grid=(0.0,), beta_grid=(3.0, 2.0, 4.0), device="cpu").fit(episode)
    assert (at_zero.alpha, at_zero.beta, at_zero.details["tied"]) == (0.0, 2.0, 3)


def test_a_harmful_cache_is_switched_off():
    episode = make_episode(noise=0.5, width=200)  # so wide that the clusters are all but orthogonal
    text = torch.stack([episode.val.features[episode.val.labels == c].mean(0) for c in range(5)])
    wrong = cal.Split(episode.support.features, (episode.support.labels + 1) % 5)
    episode = replace(episode, support=wrong, text_features=text)
    fitted, zero_shot = TipAdapter(device="cpu").fit(episode), cal.ZeroShot(device="cpu").fit(episode)
    assert fitted.alpha == 0
    assert torch.equal(fitted.logits(episode.test.features), zero_shot.logits(episode.test.features))


def test_logit_scale_and_alpha_are_in_the_same_unit():
    """α is in logits: multiplying logit_scale and α by ten multiplies the logits by ten."""
    episode = make_episode(logit_scale=10.0)
    a = fixed(alpha=1.5).fit(episode).logits(episode.test.features)
    b = fixed(alpha=15).fit(replace(episode, logit_scale=100.0)).logits(episode.test.features)
    assert close(10 * a, b)


# ── Tip-Adapter-F ─────────────────────────────────────────────────────────────────────────────────────────────

def train_keys(episode, alpha, beta, steps, rate, weight_decay):
    """The official recipe as a plain loop: a bias-free linear layer of keys, a dense L. The keys and each step's loss."""
    views = episode.support.features.reshape(episode.support.views, len(episode.support), -1)
    values = one_hot(episode.support.labels, len(episode.classnames)).to(views)
    adapter = torch.nn.Linear(views.shape[2], views.shape[1], bias=False, dtype=views.dtype)
    adapter.weight = torch.nn.Parameter(normalize(normalize(views, dim=2).mean(0), dim=1))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        f = normalize(views[step % len(views)], dim=1)
        clip_logits = episode.logit_scale * f @ normalize(episode.text_features, dim=1).T
        loss = cross_entropy(clip_logits + alpha * (-beta + beta * adapter(f)).exp() @ values, episode.support.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return adapter.weight.detach(), losses


@pytest.mark.parametrize("views", [1, 3])
def test_finetuning_is_the_official_recipe(views):
    episode = make_episode(views=views)
    settings = dict(steps=40, rate=5e-3, weight_decay=0.05)
    free, tuned = fixed(1.0, 5.5).fit(episode), fixed(1.0, 5.5, finetune=True, **settings).fit(episode)
    keys, losses = train_keys(episode, 1.0, 5.5, **settings)
    assert close(tuned.head.keys, keys)
    before, after = (np.mean([cross_entropy(fitted.logits(episode.support.view(v)), episode.support.labels).item()
                              for v in range(views)]) for fitted in (free, tuned))
    assert after < 0.95 * before and losses[-1] < losses[0]


def test_finetuning_starts_from_the_cache():
    episode = make_episode()
    free, untrained = fixed().fit(episode), fixed(finetune=True, steps=0).fit(episode)
    assert torch.equal(free.logits(episode.test.features), untrained.logits(episode.test.features))
    trained = fixed(finetune=True).fit(episode)
    assert not close(free.head.keys, trained.head.keys)


def test_keys_are_trained_at_start_and_then_searched():
    episode = make_episode()
    fitted = TipAdapter(finetune=True, start=(0.8, 2.5), device="cpu").fit(episode)
    assert torch.equal(fitted.head.keys, fixed(0.8, 2.5, finetune=True).fit(episode).head.keys)
    half = TipAdapter(finetune=True, alpha=0.4, start=(0.8, 2.5), device="cpu").fit(episode)
    assert torch.equal(half.head.keys, fixed(0.4, 2.5, finetune=True).fit(episode).head.keys)
    for pair in product(fitted.method.alpha_grid, fitted.method.beta_grid):  # the search judged the trained keys
        head = TipHead(fitted.head.weights, fitted.head.keys, fitted.head.labels, logit_scale=20.0, alpha=pair[0],
                       beta=pair[1])
        accuracy = (head(episode.val.features).argmax(1) == episode.val.labels).double().mean().item()
        assert accuracy <= fitted.val_accuracy


# ── what fitting reports, keeps and leaves alone ──────────────────────────────────────────────────────────────

def test_report():
    episode = make_episode(shots=3, classes=5, width=12)
    free, tuned = fixed().fit(episode), fixed(finetune=True, steps=7).fit(episode)
    assert (free.alpha, free.beta, free.steps, free.parameters, free.details) == (2.0, 3.0, 0, 0, {})
    assert (tuned.steps, tuned.parameters) == (7, 3 * 5 * 12)
    assert TipAdapter().label == "tip-adapter"
    assert TipAdapter(finetune=True).label == "tip-adapter(finetune=True)"


@pytest.mark.parametrize("finetune", [False, True])
def test_fit_is_repeatable_and_changes_neither_episode_nor_method(finetune):
    episode = make_episode(views=2)
    method = TipAdapter(finetune=finetune, device="cpu")
    given = episode.support.features, episode.support.labels, episode.val.features, episode.text_features
    kept = [tensor.clone() for tensor in given]
    settings = repr(method)
    first = method.fit(episode).logits(episode.test.features)
    assert torch.equal(first, method.fit(episode).logits(episode.test.features))
    assert all(torch.equal(a, b) for a, b in zip(kept, given))
    assert repr(method) == settings


def test_the_test_split_is_not_looked_at():
    episode = make_episode()
    other = replace(episode, test=cal.Split(torch.randn_like(episode.test.features), episode.test.labels))
    method = TipAdapter(finetune=True, device="cpu")
    assert torch.equal(method.fit(episode).logits(episode.val.features), method.fit(other).logits(episode.val.features))


def test_the_state_of_the_head_rebuilds_it():
    episode = make_episode()
    head = TipAdapter(finetune=True, device="cpu").fit(episode).head
    state = head.state_dict()
    assert set(state) == {"weights", "labels", "keys"} and head.width == 12
    again = TipHead(*(torch.zeros_like(state[name]) for name in ("weights", "keys", "labels")), logit_scale=head.logit_scale,
                    alpha=head.alpha, beta=head.beta)
    again.load_state_dict(state)
    assert torch.equal(head(episode.test.features), again(episode.test.features))


def test_one_shot_of_a_half_precision_bank():
    episode = make_episode(shots=1, dtype=torch.float32)
    logits = fixed(1.0, 5.5).fit(episode).logits(episode.test.features.half())
    expected = reference(episode.to(torch.float64), episode.test.features.double(), 1.0, 5.5)
    assert logits.dtype == torch.float32 and np.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("finetune", [False, True])
def test_one_class(finetune):
    episode = make_episode(classes=1, dtype=torch.float32)
    fitted = TipAdapter(finetune=finetune, device="cpu").fit(episode)
    assert fitted.accuracy(episode.test) == fitted.val_accuracy == 1.0
    assert (fitted.alpha, fitted.beta) == (0.0, min(fitted.method.beta_grid))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("settings, sentence", [
    ({"alpha": "learned"}, "alpha must be a finite number from 0 or 'val'; got 'learned'."),
    ({"alpha": -0.1}, "alpha must be a finite number from 0 or 'val'; got -0.1."),
    ({"alpha": math.nan}, "alpha must be a finite number from 0 or 'val'; got nan."),
    ({"beta": math.inf}, "beta must be a finite number from 0 or 'val'; got inf."),
    ({"beta": None}, "beta must be a finite number from 0 or 'val'; got None."),
    ({"alpha_grid": ()}, "alpha_grid must hold at least one number, each finite and from 0; got ()."),
    ({"beta_grid": (1.0, -2.0)}, "beta_grid must hold at least one number, each finite and from 0; got (1.0, -2.0)."),
    ({"start": (1.0,)}, "start must be two finite numbers (alpha, beta) from 0; got (1.0,)."),
    ({"start": (1.0, math.inf)}, "start must be two finite numbers (alpha, beta) from 0; got (1.0, inf)."),
    ({"steps": -1}, "steps must be at least 0; got -1."),
])
def test_a_setting_that_cannot_be_is_refused(settings, sentence):
    with pytest.raises(ValueError) as error:
        TipAdapter(**settings)
    assert str(error.value) == sentence


@pytest.mark.parametrize("settings, setting", [({}, "alpha"), ({"alpha": 1.0}, "beta"), ({"beta": 1.0}, "alpha")])
def test_searching_without_validation_images_is_refused_before_training(settings, setting, monkeypatch):
    episode = make_episode()
    episode = replace(episode, val=episode.val.take(torch.tensor([], dtype=torch.long)))
    monkeypatch.setattr(tip_adapter, "train", lambda *args, **kwargs: pytest.fail("trained before checking"))
    with pytest.raises(cal.BankError, match=f"^clusters: {setting} is chosen on validation images and"):
        TipAdapter(finetune=True, **settings).fit(episode)


def test_fixed_ratios_need_no_validation_images():
    episode = make_episode()
    without = replace(episode, val=episode.val.take(torch.tensor([], dtype=torch.long)))
    fitted = fixed().fit(without)
    assert fitted.val_accuracy is None
    assert close(fitted.logits(episode.test.features), reference(episode, episode.test.features, 2.0, 3.0))


def test_training_that_diverges_says_so():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fixed(1.0, 50.0, finetune=True, rate=100.0).fit(make_episode())
