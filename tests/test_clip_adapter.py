"""CLIP-Adapter against the paper's equations, written out again in plain PyTorch.

Nothing here calls the library's forward pass for an expected value: `plain_logits` and `plain_fit` are the test's own.
"""
import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch.nn.functional import cross_entropy

import clip_adapter_lite as cal
from clip_adapter_lite import BankError, CLIPAdapter, Episode, Split, ZeroShot

torch.set_num_threads(1)  # toy sizes: more threads only wait for each other
SCALE, WIDTH = 20.0, 16
BRANCHES = ("visual", "text", "both")
branches = pytest.mark.parametrize("branch", BRANCHES)
normalizations = pytest.mark.parametrize("normalize", ["after", "before"])
relus = pytest.mark.parametrize("final_relu", [False, True])


def toy_episode(classes=4, shots=3, val=4, test=30, *, views=None, dtype=torch.float64, noise=0.9, seed=0):
    """Noisy images around one random centre a class, and text features that know the centres only roughly."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, WIDTH, generator=generator, dtype=torch.float64)

    def split(per_class, views=None):
        labels = torch.arange(classes).repeat_interleave(per_class)
        shape = (len(labels), WIDTH) if views is None else (views, len(labels), WIDTH)
        images = centres[labels] + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
        return Split((3 * images).to(dtype), labels)

    text = centres + torch.randn(classes, WIDTH, generator=generator, dtype=torch.float64)
    return Episode(support=split(shots, views), val=split(val), test=split(test), text_features=text.to(dtype),
                   classnames=tuple(f"thing {i}" for i in range(classes)), logit_scale=SCALE, shots=shots, seed=1)


def adapter(**settings):
    return CLIPAdapter(**{"device": "cpu", "steps": 10, "rate": 1e-2, **settings})


def unit(x):
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)  # at α = 1 an f* can be all zeros


def plain_bottleneck(x, state, name, final_relu):
    hidden = x @ state[f"{name}.down.weight"].T
    out = (hidden * (hidden > 0)) @ state[f"{name}.up.weight"].T
    return out * (out > 0) if final_relu else out


def plain_ratio(x, w, state, column):
    """Column 0 is α, 1 is β, of Q(f, W): each row of [x̂, ŵ]·√D through two layers and a logistic function."""
    pair = torch.cat([unit(x).expand(max(len(x), len(w)), -1), unit(w).expand(max(len(x), len(w)), -1)], 1)
    hidden = pair * math.sqrt(WIDTH) @ state["ratios.first.weight"].T + state["ratios.first.bias"]
    out = (hidden * (hidden > 0)) @ state["ratios.last.weight"].T + state["ratios.last.bias"]
    return 1 / (1 + torch.exp(-out[:, column:column + 1]))


def plain_logits(f, episode, state, *, alpha=None, beta=None, final_relu=False, normalize="after"):
    """f* = α A_v(f) + (1 - α) f, W* = β A_t(W) + (1 - β) W, cosine or product; the branches are those in `state`."""
    raw, w = f, episode.text_features
    pooled = unit(episode.support.view()).mean(0, keepdim=True)
    a = plain_ratio(raw, w.mean(0, keepdim=True), state, 0) if alpha == "learned" else alpha
    b = plain_ratio(pooled, w, state, 1) if beta == "learned" else beta
    if normalize == "before":
        f, w = unit(f), unit(w)
    if "visual.up.weight" in state:
        f = a * plain_bottleneck(f, state, "visual", final_relu) + (1 - a) * f
    if "text.up.weight" in state:
        w = b * plain_bottleneck(w, state, "text", final_relu) + (1 - b) * w
    if normalize == "after":
        f, w = unit(f), unit(w)
    return SCALE * (f @ w.T)


def plain_fit(episode, start, *, steps, rate, weight_decay, **options):
    """Train the tensors of `start`, adapters on the support set and Q on the validation images; returns the trained ones."""
    state = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    q = {name for name in state if name.startswith("ratios.")}
    optimizer = torch.optim.AdamW([{"params": [tensor], "weight_decay": 0.0 if name == "ratios.last.bias" else weight_decay}
                                   for name, tensor in state.items()])
    x, y, w = episode.support.features, episode.support.labels, episode.text_features
    pooled, mean = unit(episode.support.view()).mean(0, keepdim=True), w.mean(0, keepdim=True)
    columns = [(column, branch) for column, branch in enumerate(("visual", "text"))
               if options.get(("alpha", "beta")[column]) == "learned"]
    logit = lambda ratio: torch.log(ratio / (1 - ratio))

    def loss(features, labels, moving):
        seen = {name: tensor if name in moving else tensor.detach() for name, tensor in state.items()}
        logits = plain_logits(features, episode, seen, **options)
        return (torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]).mean()

    for step in range(steps):
        peaks = {"visual": options.get("alpha"), "text": options.get("beta")}  # an adapter's rate is divided by its ratio
        peaks |= {branch: plain_ratio(pooled, mean, state, column).item() for column, branch in columns}
        for group, name in zip(optimizer.param_groups, state):
            peak = 0.05 if name == "ratios.last.bias" else rate if name in q else rate / max(peaks[name.split(".")[0]], 0.1)
            group["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss(x if x.ndim == 2 else x[step % len(x)], y, state.keys() - q).backward()
        if q:
            f = episode.val.features
            asked = [plain_ratio(*((f, mean) if column == 0 else (pooled, w)), state, column) for column, _ in columns]
            prior = 4 / len(f) * sum((logit(r) - math.log(0.4 / 0.6)).square().mean() for r in asked)
            (loss(f, episode.val.labels, q) + prior).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in state.items()}


def trained(clf):
    """The trained weights of a fitted adapter, by name."""
    return {name: parameter.detach() for name, parameter in clf.head.named_parameters()}


# ── the equations ─────────────────────────────────────────────────────────────────────────────────────────────────


@branches
@normalizations
@relus
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_0_is_zero_shot_bit_for_bit(branch, normalize, final_relu, dtype):
    episode = toy_episode(dtype=dtype)
    clf = adapter(branch=branch, alpha=0.0, beta=0.0, normalize=normalize, final_relu=final_relu).fit(episode)
    assert torch.equal(clf.logits(episode.test.features), ZeroShot(device="cpu").fit(episode).logits(episode.test.features))


@branches
def test_the_ratio_of_a_branch_that_is_not_there_does_nothing(branch):
    episode = toy_episode()
    other = {"visual": dict(beta=0.9), "text": dict(alpha=0.9), "both": {}}[branch]
    one = adapter(branch=branch, **{"alpha": 0.3, "beta": 0.3})
    two = replace(one, **other)
    assert torch.equal(one.fit(episode).logits(episode.test.features), two.fit(episode).logits(episode.test.features))
    clf = two.fit(episode)
    assert (clf.alpha, clf.beta) == {"visual": (0.3, None), "text": (None, 0.3), "both": (0.3, 0.3)}[branch]


@branches
@normalizations
@relus
def test_logits_are_the_equations_of_the_fitted_weights(branch, normalize, final_relu):
    episode = toy_episode()
    clf = adapter(branch=branch, alpha=0.3, beta=0.7, normalize=normalize, final_relu=final_relu).fit(episode)
    state = trained(clf)
    assert {name.split(".")[0] for name in state} == ({"visual", "text"} if branch == "both" else {branch})
    expected = plain_logits(episode.test.features, episode, state, alpha=0.3, beta=0.7, final_relu=final_relu,
                            normalize=normalize)
    torch.testing.assert_close(clf.logits(episode.test.features), expected, rtol=0, atol=1e-12)


@branches
def test_with_normalize_after_the_logits_are_cosines_whatever_the_length_of_the_features(branch):
    episode = toy_episode()
    logits = adapter(branch=branch, alpha=0.3, beta=0.7).fit(episode).logits(episode.test.features)
    assert logits.abs().max() <= SCALE * (1 + 1e-12)
    longer = adapter(branch=branch, alpha=0.3, beta=0.7).fit(episode).logits(1000 * episode.test.features)
    torch.testing.assert_close(longer, logits, rtol=0, atol=1e-10)  # no bias anywhere, so A(c f) = c A(f)


def test_final_relu_and_normalization_change_the_result():
    episode = toy_episode()
    results = [adapter(alpha=0.5, normalize=normalize, final_relu=final_relu).fit(episode).logits(episode.test.features)
               for normalize, final_relu in product(("after", "before"), (False, True))]
    for one, other in combinations(results, 2):
        assert (one - other).abs().max() > 0.01


def test_alpha_1_forgets_the_image_feature_but_for_what_the_adapter_keeps():
    episode = toy_episode()
    clf = adapter(alpha=1.0).fit(episode)
    down = clf.head.visual.down.weight  # [4, 16]: the bottleneck does not see what is orthogonal to its rows
    unseen = torch.linalg.svd(down).Vh[len(down):]
    moved = episode.test.features + 5 * torch.randn(len(episode.test), len(unseen), dtype=torch.float64) @ unseen
    torch.testing.assert_close(clf.logits(moved), clf.logits(episode.test.features), rtol=0, atol=1e-9)
    kept = adapter(alpha=0.5).fit(episode)
    assert (kept.logits(moved) - kept.logits(episode.test.features)).abs().max() > 0.1


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("alpha, rate", [(1.0, 0.01), (0.5, 0.02), (0.1, 0.1), (0.02, 0.1), (0.0, 0.1)])
def test_the_rate_is_divided_by_the_ratio_but_by_no_less_than_a_tenth(alpha, rate):
    (group,) = adapter(alpha=alpha, steps=0).fit(toy_episode()).head.groups(0.01)
    assert group["lr"] == pytest.approx(rate) and len(list(group["params"])) == 2


@pytest.mark.parametrize("options", [
    dict(branch="visual", alpha=0.3), dict(branch="text", beta=0.3), dict(branch="both", alpha=0.3, beta=0.8),
    dict(branch="visual", alpha=1.0), dict(branch="visual", alpha=0.3, final_relu=True),
    dict(branch="both", alpha=0.3, beta=0.8, normalize="before"), dict(branch="visual", alpha="learned"),
    dict(branch="text", beta="learned"), dict(branch="both", alpha="learned", beta="learned"),
    dict(branch="both", alpha="learned", beta=0.4, normalize="before"), dict(branch="both", alpha=0.1, beta="learned"),
], ids=str)
@pytest.mark.parametrize("views", [None, 3])
def test_a_trained_adapter_equals_an_independent_plain_loop(options, views):
    episode = toy_episode(views=views)
    recipe = dict(steps=8, rate=1e-2, weight_decay=0.1)
    start = trained(CLIPAdapter(device="cpu", **options, **(recipe | {"steps": 0})).fit(episode))
    clf = CLIPAdapter(device="cpu", **options, **recipe).fit(episode)
    options = {name: value for name, value in options.items() if name != "branch"}
    expected = plain_fit(episode, start, **recipe, **options)
    found = trained(clf)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        least = 1e-5 if name.startswith("ratios.first") else 1e-3  # moved by Q's last layer alone, which starts at 0
        assert (tensor - start[name]).abs().max() > least, f"{name} was not trained"
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(clf.logits(episode.test.features),
                               plain_logits(episode.test.features, episode, expected, **options), rtol=0, atol=1e-9)


def test_every_ratio_starts_from_the_same_adapter_and_every_seed_from_another():
    episode = toy_episode()
    start = lambda alpha, seed: trained(adapter(alpha=alpha, steps=0).fit(replace(episode, seed=seed)))
    one, two, other = start(0.2, 1), start(0.8, 1), start(0.2, 2)
    assert all(torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss_and_beats_zero_shot_on_new_images():
    episode = toy_episode(shots=8, test=100)
    before, after = ZeroShot(device="cpu").fit(episode), adapter(alpha=0.6, steps=60).fit(episode)
    loss = lambda clf: cross_entropy(clf.logits(episode.support.features), episode.support.labels).item()
    assert loss(after) < loss(before) / 2 and after.accuracy(episode.test) > before.accuracy(episode.test)


def test_a_rate_that_diverges_is_refused_by_name():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        adapter(alpha=0.5, rate=1e200).fit(toy_episode())


# ── α from validation ─────────────────────────────────────────────────────────────────────────────────────────────


def exhaustive(method, episode, settings):
    """Every fixed ratio fitted on its own, and what is nearest to 0.4 within a standard error: (best, how many are)."""
    table = []
    for ratios in settings:
        logits = replace(method, **ratios).fit(episode).logits(episode.val.features)
        right = sum(row.argmax() == label for row, label in zip(logits, episode.val.labels)).item() / len(logits)
        loss = -torch.log_softmax(logits, 1).gather(1, episode.val.labels[:, None]).mean().item()
        table.append((round(sum(abs(ratio - 0.4) for ratio in ratios.values()), 6), -right, loss, ratios))
    top = max(-row[1] for row in table)
    near = [row for row in table if -row[1] >= top - (top * (1 - top) / len(episode.val)) ** 0.5]
    return min(near, key=lambda row: row[:-1])[-1], len(near)


@pytest.mark.parametrize("seed, noise", [(0, 0.9), (1, 1.5), (2, 2.0), (3, 0.1), (4, 3.0)])
@pytest.mark.parametrize("branch, ratio", [("visual", "alpha"), ("text", "beta")])
def test_val_picks_what_an_exhaustive_search_picks(branch, ratio, seed, noise):
    episode, grid = toy_episode(seed=seed, noise=noise), (0.8, 0.0, 0.2, 1.0, 0.6)  # the order must not decide
    method = adapter(branch=branch, alpha="val", beta="val", grid=grid)
    best, near = exhaustive(method, episode, [{ratio: value} for value in grid])
    clf = method.fit(episode)
    assert getattr(clf, ratio) == best[ratio] and clf.details["tied"] == near
    assert torch.equal(clf.logits(episode.test.features),
                       replace(method, **best).fit(episode).logits(episode.test.features))


def test_of_ratios_that_are_equally_near_the_prior_cross_entropy_decides():
    episode, grid = toy_episode(noise=0.6, seed=10), (0.2, 0.6)
    heads = {alpha: adapter(alpha=alpha, steps=30).fit(episode) for alpha in grid}
    losses = {a: cross_entropy(clf.logits(episode.val.features), episode.val.labels).item() for a, clf in heads.items()}
    assert len({clf.accuracy(episode.val) for clf in heads.values()}) == 1 and losses[0.2] != losses[0.6]
    clf = adapter(alpha="val", grid=grid, steps=30).fit(episode)
    assert clf.alpha == min(losses, key=losses.get) and clf.details["tied"] == 2


@pytest.mark.parametrize("grid, nearest", [((0.9, 0.2, 0.5), 0.5), ((0.9, 0.0, 0.5), 0.5), ((0.0, 1.0), 0.0)])
def test_what_validation_cannot_tell_apart_goes_to_the_prior(grid, nearest):
    clf = adapter(alpha="val", grid=grid).fit(toy_episode(classes=1))  # one class: always right, cross-entropy 0
    assert clf.alpha == nearest and clf.details["tied"] == len(grid)


def test_both_branches_on_val_search_the_pairs_of_every_third_ratio():
    episode = toy_episode(noise=1.5)
    method = adapter(branch="both", alpha="val", beta="val", steps=5, grid=(0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0))
    pairs = [{"alpha": a, "beta": b} for a, b in product((0.0, 0.3, 0.8), repeat=2)]
    best, near = exhaustive(method, episode, pairs)
    clf = method.fit(episode)
    assert {"alpha": clf.alpha, "beta": clf.beta} == best and clf.details["tied"] == near
    assert len(clf.details["scores"]) == 9


def test_val_beside_a_number_searches_the_whole_grid_of_its_own_branch():
    clf = adapter(branch="both", alpha="val", beta=0.3, steps=2).fit(toy_episode())
    assert len(clf.details["scores"]) == 11 and clf.beta == 0.3
    assert clf.details["scores"].keys() == {str((k / 10, 0.3)) for k in range(11)}


@branches
def test_val_without_validation_images_is_refused(branch):
    with pytest.raises(BankError, match="chosen on validation images and this episode has none"):
        adapter(branch=branch, alpha="val", beta="val").fit(toy_episode(val=0))


@pytest.mark.parametrize("settings", [dict(alpha=0.3), dict(branch="text", beta=0.3),
                                      dict(branch="text", alpha="val", beta=0.3)], ids=str)
def test_what_is_not_chosen_needs_no_validation_images(settings):
    clf = adapter(**settings).fit(toy_episode(val=0))
    assert clf.val_accuracy is None and clf.details == {}


# ── learned ratios ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def learned():
    episode = toy_episode()
    return episode, adapter(branch="both", alpha="learned", beta="learned", steps=40).fit(episode)


def test_learned_ratios_start_at_the_prior_for_every_image_and_class():
    episode = toy_episode()
    clf = adapter(branch="both", alpha="learned", beta="learned", steps=0).fit(episode)
    for ratios in clf.alphas(episode.test.features), clf.betas():
        torch.testing.assert_close(ratios, torch.full_like(ratios, 0.4), rtol=0, atol=1e-8)  # the bias is made in float32
        assert len(ratios.unique()) == 1
    fixed = adapter(branch="both", alpha=0.4, beta=0.4, steps=0).fit(episode)
    torch.testing.assert_close(clf.logits(episode.test.features), fixed.logits(episode.test.features), rtol=0, atol=1e-6)


def test_learned_ratios_are_one_per_image_and_class_between_0_and_1_and_differ(learned):
    episode, clf = learned
    a, b = clf.alphas(episode.test.features), clf.betas()
    assert a.shape == (len(episode.test),) and b.shape == (len(episode.classnames),)
    for ratios in a, b:
        assert ((0 < ratios) & (ratios < 1)).all() and ratios.std() > 1e-3
    assert clf.alpha == pytest.approx(clf.alphas(episode.support.features).mean().item(), abs=1e-12)
    assert clf.beta == pytest.approx(b.mean().item(), abs=1e-12)


def test_learned_ratios_are_the_equations_of_the_hypernetwork(learned):
    episode, clf = learned
    state, w = trained(clf), episode.text_features
    expected = plain_ratio(episode.test.features, w.mean(0, keepdim=True), state, 0)[:, 0]
    torch.testing.assert_close(clf.alphas(episode.test.features), expected, rtol=0, atol=1e-12)
    pooled = unit(episode.support.features).mean(0, keepdim=True)
    torch.testing.assert_close(clf.betas(), plain_ratio(pooled, w, state, 1)[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(clf.logits(episode.test.features), plain_logits(
        episode.test.features, episode, state, alpha="learned", beta="learned"), rtol=0, atol=1e-12)


def test_an_image_is_judged_alone(learned):
    episode, clf = learned
    x = episode.test.features[:9]
    for judge in (lambda f: clf.alphas(f)), clf.logits:
        alone = torch.cat([judge(x[i:i + 1]) for i in range(len(x))])
        torch.testing.assert_close(judge(x), alone, rtol=0, atol=1e-12)


def test_the_hypernetwork_learns():
    constant = dict(alpha="learned", rate=1e-3, weight_decay=0.0)
    start, one, two = (trained(adapter(steps=steps, **constant).fit(toy_episode())) for steps in range(3))
    last, first = "ratios.last.weight", "ratios.first.weight"
    assert not start[last].any() and one[last].any() and not torch.equal(two[last], one[last])
    assert torch.equal(one[first], start[first])  # no gradient passes a last layer of zeros, so the first one waits a step
    assert not torch.equal(two[first], one[first])


def test_fixed_ratios_are_given_out_as_they_are():
    episode = toy_episode()
    clf = adapter(branch="both", alpha=0.3, beta=0.7).fit(episode)
    assert clf.alphas(episode.test.features).tolist() == [0.3] * len(episode.test) and clf.betas().tolist() == [0.7] * 4


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [
    dict(branch="image"), dict(branch=None), dict(normalize="never"), dict(normalize=True),
    dict(alpha=-0.1), dict(alpha=1.1), dict(alpha=math.nan), dict(alpha="best"), dict(alpha=None), dict(beta=2),
    dict(beta="search"), dict(reduction=0), dict(reduction=-4), dict(grid=()), dict(grid=(0.2, 1.2)), dict(grid=(-0.2,)),
    dict(steps=-1),
], ids=str)
def test_a_setting_that_cannot_be_is_refused_in_one_sentence(settings):
    (name, value), = settings.items()
    with pytest.raises(ValueError, match=f"^{name} must .*; got ") as error:
        CLIPAdapter(**settings)
    message = str(error.value)
    assert message.endswith(f"got {value!r}.") and "\n" not in message and ". " not in message


@pytest.mark.parametrize("settings", [dict(alpha=0), dict(alpha=1), dict(alpha=0.0), dict(beta=1.0), dict(reduction=1),
                                      dict(grid=(0.5,)), dict(steps=0)], ids=str)
def test_the_limits_themselves_are_allowed(settings):
    clf = replace(adapter(branch="both", alpha=0.2, beta=0.2), **settings).fit(episode := toy_episode())
    assert clf.logits(episode.test.features).isfinite().all()


def test_a_reduction_wider_than_the_features_leaves_one_unit():
    clf = adapter(alpha=0.2, reduction=100).fit(toy_episode())
    assert clf.head.visual.down.weight.shape == (1, WIDTH) and clf.parameters == 2 * WIDTH


def test_methods_without_a_ratio_say_so(toy_bank):
    episode = toy_bank().episode(1)
    with pytest.raises(TypeError, match="zero-shot has no visual adapter"):
        cal.ZeroShot().fit(episode).alphas(episode.test.features)
    with pytest.raises(TypeError, match=r"clip-adapter\(alpha=0.2, steps=1\) has no text adapter"):
        cal.CLIPAdapter(alpha=0.2, steps=1).fit(episode).betas()


@pytest.mark.parametrize("normalize_each", [True, False])
def test_a_prompt_ensemble_is_zero_shot_with_the_averaged_weights(normalize_each):
    """Both ways of averaging, against arithmetic on the backbone's own text features."""
    bank = cal.FeatureBank.load("pacs-photo")
    episode, templates = bank.episode(1), ("a photo of a {}.", "art of the {}.")
    clf = cal.ZeroShot(templates=templates, normalize_each=normalize_each, device="cpu").fit(episode)
    raw = torch.stack([episode.backbone.encode_text([t.format(c) for c in bank.classnames]) for t in templates])
    mean = (raw / raw.norm(dim=-1, keepdim=True) if normalize_each else raw).mean(0)
    f = episode.test.features
    cosines = (f / f.norm(dim=1, keepdim=True)) @ (mean / mean.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(clf.logits(f), bank.logit_scale * cosines, rtol=0, atol=1e-4)
