"""Every method against one set of properties, in the spirit of scikit-learn's `check_estimator`.

Exact claims are made in float64: in float32 AdamW divides rounding noise by its own size and so amplifies it.
"""
import random
import re
from dataclasses import FrozenInstanceError, fields, replace
from functools import cache, partial

import numpy as np
import open_clip
import pandas
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import softmax

from clip_adapter_lite import (
    CLAP,
    GDA,
    BankError,
    CLIPAdapter,
    CoOp,
    Episode,
    FeatureBank,
    LinearAdapter,
    LinearProbe,
    Split,
    ZeroShot,
    backbones,
)
from clip_adapter_lite.experiments.reference import MEASURED as REFERENCE
from clip_adapter_lite.inference import load_classifier, save_classifier
from clip_adapter_lite.manifold import fitted_features
from clip_adapter_lite.methods import METHODS, coop, method_named, with_settings
from clip_adapter_lite.methods.labels import listed, names_listed, setting_value
from clip_adapter_lite.methods.tip_adapter import TipAdapter
from clip_adapter_lite.methods.zero_shot import ZeroShotHead

torch.set_num_threads(1)  # toy sizes: more threads only wait for each other
threadpool_limits(1)  # and thirty times as long in L-BFGS on a busy machine
WIDTH, TEXT_WIDTH, SCALE = 16, 32, 20.0
ADAPTER = dict(device="cpu", steps=12, rate=3e-3)  # divided by the ratio
ALL = {
    "zero-shot": ZeroShot(device="cpu"),
    "linear-probe": LinearProbe(device="cpu", bisections=1, max_iter=30),
    "clip-adapter, visual": CLIPAdapter(alpha=0.3, **ADAPTER),
    "clip-adapter, val": CLIPAdapter(alpha="val", **ADAPTER),
    "clip-adapter, text": CLIPAdapter(branch="text", beta=0.3, **ADAPTER),
    "clip-adapter, both": CLIPAdapter(branch="both", alpha=0.3, beta=0.6, **ADAPTER),
    "clip-adapter, visual learned": CLIPAdapter(alpha="learned", **ADAPTER),
    "clip-adapter, text learned": CLIPAdapter(branch="text", beta="learned", **ADAPTER),
    "clip-adapter, both learned": CLIPAdapter(branch="both", alpha="learned", beta="learned", **ADAPTER),
    "clip-adapter, visual auto": CLIPAdapter(alpha="auto", **ADAPTER),
    "clip-adapter, both auto": CLIPAdapter(branch="both", alpha="auto", beta="auto", **ADAPTER),
    "clip-adapter, before": CLIPAdapter(alpha=0.3, normalize="before", **ADAPTER),
    "clip-adapter, final relu": CLIPAdapter(alpha=0.3, final_relu=True, **ADAPTER),
    "tip-adapter": TipAdapter(device="cpu"),
    "tip-adapter-f": TipAdapter(device="cpu", finetune=True, steps=12, rate=1e-2),
    "tip-adapter-f, fixed": TipAdapter(device="cpu", finetune=True, alpha=2.0, beta=5.0, steps=12, rate=1e-2),
    "clap": CLAP(device="cpu", steps=12),
    "zs-lp": CLAP(device="cpu", steps=12, constraint=False),
    "gda": GDA(device="cpu"),
    "linear-adapter": LinearAdapter(device="cpu", steps=12),
    "coop": CoOp(device="cpu", steps=4),
    "coop, class-specific": CoOp(device="cpu", steps=4, class_specific=True),
    "coop, random start": CoOp(device="cpu", steps=4, words=None, class_specific=True),
    "coop, paper": CoOp(device="cpu", recipe="paper"),
}


def methods(*without):
    """Parametrise over every method but those named, which a test leaves out for a stated reason."""
    assert set(without) <= set(ALL)
    return pytest.mark.parametrize("method", [pytest.param(m, id=name) for name, m in ALL.items() if name not in without])


def toy_episode(classes=3, shots=4, val=2, test=10, *, width=WIDTH, views=None, dtype=torch.float32, seed=0):
    """Noisy images around one random centre a class, and text features that know the centres only roughly."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)

    def split(per_class, views=None):
        labels = torch.arange(classes).repeat_interleave(per_class)
        shape = (len(labels), width) if views is None else (views, len(labels), width)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return Split((3 * (centres[labels] + 0.8 * noise)).to(dtype), labels)

    text = centres + torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return Episode(support=split(shots, views), val=split(val), test=split(test), text_features=text.to(dtype),
                   classnames=tuple(f"thing {i}" for i in range(classes)), logit_scale=SCALE, shots=shots, seed=1)


@cache
def tiny_clip(dtype):
    """A random CLIP whose image tower has BatchNorm, its text tower one layer; the same weights in either dtype."""
    usual = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)  # other random numbers are drawn in float64
        model = open_clip.model.CLIP(
            embed_dim=WIDTH, vision_cfg=dict(layers=(1, 1, 1, 1), width=8, image_size=32),
            text_cfg=dict(context_length=32, vocab_size=49408, width=TEXT_WIDTH, heads=2, layers=1))
        model.token_embedding.weight.data.mul_(20)  # so that texts differ; open_clip starts very small
    torch.set_default_dtype(usual)
    return backbones.Backbone("tiny", "random", model.to(dtype).eval().requires_grad_(False), None,
                              open_clip.SimpleTokenizer(context_length=32), torch.device("cpu"))


@pytest.fixture(autouse=True)
def single(monkeypatch):
    """CoOp's backbone is a tiny one, and its paper's schedule has few epochs."""
    monkeypatch.setattr(coop, "PAPER_EPOCHS", {1: 2, 4: 5})
    monkeypatch.setattr(backbones, "shared_backbone", lambda *_: tiny_clip(torch.float32))


@pytest.fixture
def double(monkeypatch, single):
    """Everything in float64, the backbone and CoOp's context vectors (made in the default dtype) too."""
    monkeypatch.setattr(backbones, "shared_backbone", lambda *_: tiny_clip(torch.float64))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensors(episode):
    """Every tensor of an episode, by name."""
    named = {"text_features": episode.text_features}
    for name in ("support", "val", "test"):
        split = getattr(episode, name)
        named |= {f"{name}.features": split.features, f"{name}.labels": split.labels}
    return named


def with_features(episode, split, features):
    return replace(episode, **{split: Split(features, getattr(episode, split).labels)})


def one_sentence(error):
    """Whether the message is one line that ends as a sentence does; a second one may ask a question."""
    message = str(error.value)
    return "\n" not in message and message[-1] in ".?" and message.count(". ") <= message.count("?")


# ── what fit leaves alone ─────────────────────────────────────────────────────────────────────────────────────────


@methods()
@pytest.mark.parametrize("views", [None, 2])
def test_same_seed_gives_the_same_classifier_bit_for_bit(method, views):
    episode = toy_episode(views=views)
    first = method.fit(episode)
    torch.rand(7), random.random(), np.random.rand()  # the global generators have moved on
    second = method.fit(episode)
    assert torch.equal(first.logits(episode.test.features), second.logits(episode.test.features))
    assert (first.alpha, first.beta, first.val_accuracy, first.steps) == \
        (second.alpha, second.beta, second.val_accuracy, second.steps)


@methods()
def test_fit_changes_neither_episode_nor_method_nor_global_state(method):
    episode = toy_episode()
    before = {name: tensor.clone() for name, tensor in tensors(episode).items()}
    settings = {f.name: getattr(method, f.name) for f in fields(method)}
    description = repr(method)

    def state():
        return (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
                torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())

    world = state()
    clf = method.fit(episode)
    clf.logits(episode.test.features)
    assert state() == world
    assert {f.name: getattr(method, f.name) for f in fields(method)} == settings and repr(method) == description
    assert clf.method is method
    for name, tensor in tensors(episode).items():
        assert torch.equal(tensor, before[name]), name


@methods()
def test_fit_works_inside_no_grad(method):
    episode = toy_episode()
    with torch.no_grad():
        inside = method.fit(episode)
    assert torch.equal(inside.logits(episode.test.features), method.fit(episode).logits(episode.test.features))


@methods()
def test_nothing_is_learned_from_the_test_split(method):
    episode = toy_episode()
    elsewhere = replace(episode, test=Split(-7 * episode.test.features, episode.test.labels.flip(0)))
    one, two = method.fit(episode), method.fit(elsewhere)
    assert torch.equal(one.logits(episode.test.features), two.logits(episode.test.features))


@methods("zero-shot", "linear-probe", "tip-adapter", "gda")  # train nothing by gradient descent here
def test_only_new_parameters_are_trained_and_no_gradient_reaches_features_or_backbone(method, monkeypatch):
    episode, model = toy_episode(views=2), tiny_clip(torch.float32).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {tensor.data_ptr() for tensor in [*tensors(episode).values(), *model.state_dict().values()]}
    trained, plain = [], torch.optim.Optimizer.__init__

    def spy(self, parameters, defaults):
        plain(self, parameters, defaults)
        trained.extend(parameter for group in self.param_groups for parameter in group["params"])

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", spy)
    clf = method.fit(episode)
    assert trained and not given & {parameter.data_ptr() for parameter in trained}
    assert all(parameter.grad is not None for parameter in trained)
    for tensor in [*tensors(episode).values(), *model.parameters(), *clf.head.buffers()]:
        assert tensor.grad is None and not tensor.requires_grad
    assert not any(parameter.requires_grad for parameter in clf.head.parameters())
    assert not clf.head.training and not model.training
    after = model.state_dict()  # with BatchNorm's statistics
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_encoding_images_and_text_moves_no_batchnorm_statistic():
    backbone = tiny_clip(torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    features = backbone.encode_images(5 + torch.randn(4, 3, 32, 32))
    assert not features.requires_grad and not backbone.encode_text(["a cat"]).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


# ── symmetries ────────────────────────────────────────────────────────────────────────────────────────────────────


def symmetry_tolerance(method):
    """Full-batch training only rounds differently. The probe's L-BFGS stops where its gradient is below 1e-4 and so
    carries rounding noise on to about the square root of what it could reach; measured: 1e-5 of the logits' size."""
    return dict(rtol=0, atol=1e-3 if isinstance(method, LinearProbe) else 1e-9)


@methods("coop, paper")  # minibatches: the order of the images decides which ones are together
@pytest.mark.parametrize("views", [None, 3])
def test_the_order_of_the_support_set_does_not_matter(method, views, double):
    if isinstance(method, LinearProbe):
        method = replace(method, C=1.0)  # at C = 1e6 L-BFGS gives up before it converges
    episode = toy_episode(dtype=torch.float64, views=views)
    order = torch.randperm(len(episode.support), generator=torch.Generator().manual_seed(3))
    shuffled = replace(episode, support=episode.support.take(order))
    torch.testing.assert_close(method.fit(shuffled).logits(episode.test.features),
                               method.fit(episode).logits(episode.test.features), **symmetry_tolerance(method))


# Class-specific CoOp with a random start gives each class its own random context, drawn in the order of the classes. The
# paper's recipe draws its minibatches by position, which renaming does not move.
@methods("coop, random start")
def test_renaming_the_classes_permutes_the_columns(method, double):
    if isinstance(method, LinearProbe):
        method = replace(method, C=1.0)
    episode = toy_episode(classes=4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])  # the new class i is the old class order[i]
    new_label = torch.argsort(order)
    renamed = replace(episode, text_features=episode.text_features[order],
                      classnames=tuple(episode.classnames[i] for i in order),
                      **{name: Split(split.features, new_label[split.labels]) for name, split in
                         (("support", episode.support), ("val", episode.val), ("test", episode.test))})
    old, new = method.fit(episode), method.fit(renamed)
    torch.testing.assert_close(new.logits(episode.test.features), old.logits(episode.test.features)[:, order],
                               **symmetry_tolerance(method))
    assert new.classnames == renamed.classnames and new.accuracy(renamed.test) == old.accuracy(episode.test)


# The probe's C weighs the sum over images against the penalty, so twice the images is twice the C. CoOp's paper recipe
# makes twice the steps of them. Tip-Adapter's cache votes with every image, so twice the images is twice its α.
# The linear adapter's pull and GDA's ridge fade with the number of images.
@methods("linear-probe", "coop, paper", "tip-adapter", "tip-adapter-f", "tip-adapter-f, fixed", "gda", "linear-adapter")
def test_every_image_twice_changes_nothing(method, double):
    episode = toy_episode(dtype=torch.float64)
    twice = replace(episode, support=episode.support.take(torch.arange(len(episode.support)).repeat(2)))
    torch.testing.assert_close(method.fit(twice).logits(episode.test.features),
                               method.fit(episode).logits(episode.test.features), rtol=0, atol=1e-9)


def test_every_image_twice_is_twice_the_C_of_the_probe():
    episode = toy_episode(dtype=torch.float64)
    twice = replace(episode, support=episode.support.take(torch.arange(len(episode.support)).repeat(2)))
    torch.testing.assert_close(LinearProbe(C=0.1).fit(twice).logits(episode.test.features),
                               LinearProbe(C=0.2).fit(episode).logits(episode.test.features), rtol=0, atol=1e-3)


# Tip-Adapter and GDA on "val": on these easy images every large α is right on all of them, float32 rounds their
# cross-entropies to the same 0 where float64 still tells them apart, and another α is chosen. That is a tie, not an error.
@methods("tip-adapter", "tip-adapter-f", "gda")
def test_float32_agrees_with_float64(method, monkeypatch):
    if isinstance(method, LinearProbe):
        method = replace(method, C=1.0)
    episode = toy_episode(test=400)
    one = method.fit(episode).logits(episode.test.features)
    monkeypatch.setattr(backbones, "shared_backbone", lambda *_: tiny_clip(torch.float64))
    two = method.fit(episode.to(torch.float64)).logits(episode.test.features)
    assert one.dtype == torch.float32 and two.dtype == torch.float64
    torch.testing.assert_close(one.double(), two, rtol=0, atol=1e-2)
    assert (one.argmax(1) == two.argmax(1)).double().mean() >= 0.999


# ── extremes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@methods()
def test_one_class_is_always_right(method):
    clf = method.fit(episode := toy_episode(classes=1))
    assert clf.logits(episode.test.features).shape == (10, 1)
    assert torch.equal(clf.probabilities(episode.test.features), torch.ones(10, 1))
    assert clf.accuracy(episode.test) == clf.val_accuracy == 1


@methods()
@pytest.mark.parametrize("classes", [2, 3])
def test_one_shot_is_enough(method, classes):
    clf = method.fit(episode := toy_episode(classes=classes, shots=1, val=1, test=50))
    assert clf.logits(episode.test.features).shape == (50 * classes, classes)
    assert clf.logits(episode.test.features).isfinite().all()
    if not isinstance(method, CoOp):  # its text tower is random, and knows nothing of these images
        assert clf.accuracy(episode.test) > 1.5 / classes  # noise is smaller than the distance of the centres


@methods("coop, paper")  # has no setting for its steps
def test_a_thousand_classes_take_one_step(method):
    if isinstance(method, LinearProbe):
        method = replace(method, C=1.0, max_iter=1)
    elif hasattr(method, "steps"):
        method = replace(method, steps=1)
    clf = method.fit(episode := toy_episode(classes=1000, shots=1, val=1, test=1))
    logits = clf.logits(episode.test.features)
    assert logits.shape == (1000, 1000) and logits.isfinite().all()
    assert clf.steps == (1 if clf.parameters else 0)


@methods()
def test_features_in_half_precision_are_computed_with_in_single(method):
    rounded = toy_episode(dtype=torch.float16)
    bank = FeatureBank(dataset="toy", backbone="tiny", classnames=rounded.classnames, logit_scale=SCALE,
                       text_features=rounded.text_features,
                       splits={"train": rounded.support, "val": rounded.val, "test": rounded.test})
    assert bank.splits["train"].features.dtype == torch.float16
    drawn = bank.episode(shots=4, seed=1)
    clf = method.fit(drawn)
    logits = clf.logits(rounded.test.features)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert torch.equal(logits, clf.logits(rounded.test.features.float()))
    by_hand = replace(rounded, support=drawn.support, val=drawn.val).to(torch.float16)  # never passed through a bank
    assert torch.equal(method.fit(by_hand).logits(rounded.test.features), logits)


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────

SPLIT_FAULTS = {
    "NaN": (lambda s: Split(s.features.index_fill(0, torch.tensor(1), torch.nan), s.labels), "NaN or infinity.*index"),
    "infinity": (lambda s: Split(s.features.index_fill(0, torch.tensor(1), torch.inf), s.labels), "NaN or infinity"),
    "wrong D": (lambda s: Split(s.features[:, :-1], s.labels), "15 dimensions.*16"),
    "label too large": (lambda s: Split(s.features, s.labels + 1), "labels run from 1 to 3.*0 … 2"),
    "label negative": (lambda s: Split(s.features, s.labels - 1), "labels run from -1 to 1.*0 … 2"),
}


@methods()
@pytest.mark.parametrize("fault", SPLIT_FAULTS)
@pytest.mark.parametrize("name", ["support", "val", "test"])
def test_a_split_that_cannot_be_right_is_refused(method, fault, name):
    episode = toy_episode()
    damage, message = SPLIT_FAULTS[fault]
    with pytest.raises(BankError, match=f"{name}: .*{message}") as error:
        method.fit(replace(episode, **{name: damage(getattr(episode, name))}))
    assert one_sentence(error)


@methods()
def test_a_support_set_without_images_is_refused(method):
    episode = toy_episode()
    with pytest.raises(BankError, match="support set is empty") as error:
        method.fit(replace(episode, support=episode.support.take(torch.tensor([], dtype=torch.long))))
    assert one_sentence(error)


@methods()
def test_a_class_without_support_image_is_refused_by_name(method):
    episode = toy_episode()
    with pytest.raises(BankError, match="no image of class thing 1") as error:
        method.fit(replace(episode, support=episode.support.take((episode.support.labels != 1).nonzero()[:, 0])))
    assert one_sentence(error)


@methods()
def test_logits_refuses_features_of_another_shape(method):
    clf = method.fit(toy_episode())
    for shape in (5, WIDTH + 1), (WIDTH,), (2, 5, WIDTH):
        with pytest.raises(BankError, match=rf"\[N, {WIDTH}\].*got \[{', '.join(map(str, shape))}\]") as error:
            clf.logits(torch.zeros(shape))
        assert one_sentence(error)


# ── what a classifier says of itself ──────────────────────────────────────────────────────────────────────────────


@methods()
def test_accuracy_is_the_hand_count(method):
    episode = toy_episode(test=20)
    clf = method.fit(episode)
    logits = clf.logits(episode.test.features).tolist()
    right = sum(row.index(max(row)) == label for row, label in zip(logits, episode.test.labels.tolist(), strict=True))
    assert clf.accuracy(episode.test) == pytest.approx(right / 60, abs=1e-12) and 0 <= clf.accuracy(episode.test) <= 1
    torch.testing.assert_close(clf.probabilities(episode.test.features), softmax(torch.tensor(logits), 1))
    views = Split(torch.stack([episode.test.features, -episode.test.features]), episode.test.labels)
    assert clf.accuracy(views) == clf.accuracy(episode.test)  # judged on view 0
    with pytest.raises(BankError, match="empty"):
        clf.accuracy(episode.test.take(torch.tensor([], dtype=torch.long)))


GIVEN = {"array": lambda x: x.numpy(), "list": lambda x: x.tolist(), "rows": list, "double": lambda x: x.double(),
         "with a graph": lambda x: x.clone().requires_grad_() * 1, "parameter": torch.nn.Parameter,
         "strided": lambda x: x.T.contiguous().T, "another byte order": lambda x: x.numpy().astype(">f4"),
         "table": lambda x: pandas.DataFrame(x.numpy(), index=range(9, 9 + len(x)))}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_a_classifier_takes_features_in_whatever_holds_them(given):
    episode = toy_episode()
    clf, features = CLIPAdapter(alpha="learned", **ADAPTER).fit(episode), episode.test.features
    for what in (clf.logits, clf.probabilities, clf.alphas, partial(fitted_features, clf)):
        found = what(given(features))
        assert torch.equal(found, what(features)) and not found.requires_grad, what
        assert torch.equal(what(given(features.round())), what(features.round().int().numpy())), "whole numbers are numbers"


def test_half_precision_loses_only_what_it_cannot_hold():
    episode = toy_episode()
    clf = ZeroShot(device="cpu").fit(episode)
    half = episode.test.features.half()
    for given in (half, half.numpy(), half.tolist()):
        assert torch.equal(clf.logits(given), clf.logits(half.float()))


@pytest.mark.parametrize("given, got", [
    (None, "NoneType that is no array of numbers"), ("x.npy", "words"), ([["a"] * WIDTH], "words"),
    ([[1.0], [1.0, 2.0]], "list that is no array of numbers"),
    (np.ones((2, WIDTH), bool), "torch.bool"), (np.ones((2, WIDTH), complex), "torch.complex128"), (np.ones(WIDTH), "[16]"),
    (toy_episode().test, "Split that is no array of numbers"), (toy_episode(), "Episode that is no array of numbers")])
def test_what_holds_no_features_is_refused_in_a_sentence(given, got, expect_refused):
    clf = CLIPAdapter(alpha=0.3, **ADAPTER).fit(toy_episode())
    for what in (clf.logits, clf.probabilities, clf.alphas, partial(fitted_features, clf)):
        with expect_refused("A classifier takes features of shape [N, 16], the width it was fitted on; got " + got):
            what(given)


NOT_JUDGED = {**SPLIT_FAULTS, "all zero": (lambda s: Split(s.features * 0, s.labels), "all zero"),
              "too large to square": (lambda s: Split(s.features * 1e20, s.labels), "NaN or infinity.*index"),
              "too small to square": (lambda s: Split(s.features * 1e-20, s.labels), "all zero.*index"),
              "NaN in another view": (lambda s: Split(torch.stack([s.features, s.features * torch.nan]), s.labels), "NaN"),
              "pair": (lambda s: (s.features, s.labels), "takes a Split, such as episode.test; got tuple"),
              "episode": (lambda s: toy_episode(), "takes a Split, such as episode.test; got Episode")}


@methods("coop, paper")
@pytest.mark.parametrize("fault", NOT_JUDGED)
def test_accuracy_is_refused_for_what_cannot_be_judged(method, fault):
    damage, message = NOT_JUDGED[fault]
    with pytest.raises(BankError, match=f"accuracy.*{message}") as error:
        fitted(method).accuracy(damage(toy_episode().test))
    assert one_sentence(error)


@cache
def fitted(method):
    return method.fit(toy_episode())


@pytest.mark.parametrize("given", [None, toy_episode().support, "caltech101"])
def test_a_method_is_fitted_to_an_episode(given, expect_refused):
    with expect_refused("A method is fitted to an Episode; got "):
        ZeroShot(device="cpu").fit(given)


def test_logits_that_overflow_have_no_accuracy(expect_refused):
    episode = toy_episode()
    with expect_refused("30 rows of the scores hold NaN or no finite highest entry", ValueError):
        replace(ZeroShot(device="cpu").fit(episode), head=ZeroShotHead(episode.text_features * torch.nan,
                                                                       logit_scale=1.0)).accuracy(episode.test)
    with expect_refused("rows of the scores hold NaN", ValueError):  # on validation, before anybody sees it
        TipAdapter(alpha=1e300, beta=1.0, device="cpu").fit(episode)


@pytest.mark.parametrize("fields, says", [
    (dict(text_features=torch.full((3, WIDTH), torch.nan)), "text features hold NaN"),
    (dict(text_features=torch.zeros(3, WIDTH)), "or a row of zeros"), (dict(text_features=torch.ones(2, WIDTH)), "C = 3"),
    (dict(text_features=torch.ones(WIDTH)), "got [16] of"), (dict(classnames=("a", "b")), "C = 2 class names; got [3, 16]")])
def test_text_features_that_cannot_be_right_are_refused(fields, says, expect_refused):
    with expect_refused(says):
        ZeroShot(device="cpu").fit(replace(toy_episode(), **fields))


@methods()
def test_val_accuracy_is_that_of_the_classifier_on_the_validation_split(method):
    episode = toy_episode(val=5)
    assert method.fit(episode).val_accuracy == method.fit(episode).accuracy(episode.val)


@methods("linear-probe", "clip-adapter, val", "tip-adapter", "tip-adapter-f", "gda")  # choose on validation
def test_val_accuracy_is_none_without_validation_images(method):
    assert method.fit(toy_episode(val=0)).val_accuracy is None


@pytest.mark.parametrize("method", [
    LinearProbe(), CLIPAdapter(alpha="val"), CLIPAdapter(branch="text", beta="val"),
    CLIPAdapter(branch="both", alpha="val", beta="val"), CLIPAdapter(branch="both", alpha=0.2, beta="val"),
    TipAdapter(finetune=True), GDA()])
def test_choosing_without_validation_images_is_refused_before_any_training(method, monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", lambda *_: pytest.fail("trained in vain"))
    with pytest.raises(BankError, match="chosen on validation images") as error:
        method.fit(toy_episode(val=0))
    assert one_sentence(error)


BOTTLENECK = 2 * WIDTH * (WIDTH // 4)
HYPERNETWORK = (2 * WIDTH + 1) * 32 + (32 + 1) * 2
RECORDS = {  # parameters, steps
    "zero-shot": (0, 0),
    "linear-probe": (3 * WIDTH + 3, None),
    "clip-adapter, visual": (BOTTLENECK, 12),
    "clip-adapter, val": (BOTTLENECK, 12),
    "clip-adapter, text": (BOTTLENECK, 12),
    "clip-adapter, both": (2 * BOTTLENECK, 12),
    "clip-adapter, visual auto": (BOTTLENECK + 1, 12),
    "clip-adapter, both auto": (2 * BOTTLENECK + 2, 12),
    "clip-adapter, visual learned": (BOTTLENECK + HYPERNETWORK, 12),
    "clip-adapter, text learned": (BOTTLENECK + HYPERNETWORK, 12),
    "clip-adapter, both learned": (2 * BOTTLENECK + HYPERNETWORK, 12),
    "clip-adapter, before": (BOTTLENECK, 12),
    "clip-adapter, final relu": (BOTTLENECK, 12),
    "tip-adapter": (0, 0),
    "tip-adapter-f": (12 * WIDTH, 12),
    "tip-adapter-f, fixed": (12 * WIDTH, 12),
    "clap": (3 * WIDTH, 12),
    "zs-lp": (3 * WIDTH, 12),
    "gda": (0, 0),
    "linear-adapter": (WIDTH * WIDTH, 12),
    "coop": (4 * TEXT_WIDTH, 4),
    "coop, class-specific": (3 * 4 * TEXT_WIDTH, 4),
    "coop, random start": (3 * 4 * TEXT_WIDTH, 4),
    "coop, paper": (4 * TEXT_WIDTH, 5),  # 5 epochs of one minibatch of 12
}


@pytest.mark.parametrize("name", ALL)
def test_parameters_steps_and_seconds_are_recorded(name):
    clf = ALL[name].fit(episode := toy_episode())
    parameters, steps = RECORDS[name]
    assert clf.parameters == parameters and clf.seconds > 0
    assert clf.steps == steps if steps is not None else clf.steps > 0
    assert clf.classnames == episode.classnames and clf.head.width == WIDTH


@pytest.mark.parametrize("width, reduction", [(16, 1), (16, 4), (16, 16), (24, 5)])
@pytest.mark.parametrize("branch, branches", [("visual", 1), ("text", 1), ("both", 2)])
def test_an_adapter_has_twice_D_times_bottleneck_parameters_a_branch(width, reduction, branch, branches):
    method = CLIPAdapter(branch=branch, alpha=0.2, beta=0.2, reduction=reduction, steps=1)
    assert method.fit(toy_episode(width=width)).parameters == branches * 2 * width * (width // reduction)


def test_the_paper_width_gives_the_paper_count():
    # D = 1024 with D / 4 units: 524 288 (paper.md)
    assert CLIPAdapter(alpha=0.2, steps=0).fit(toy_episode(width=1024, shots=1, test=1)).parameters == 524_288


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method, label", [
    (ZeroShot(), "zero-shot"), (ZeroShot(device="cpu"), "zero-shot"),
    (LinearProbe(), "linear-probe"), (LinearProbe(C=1.0), "linear-probe(C=1.0)"),
    (CLIPAdapter(alpha="auto", reduction=4), "clip-adapter"),
    (CLIPAdapter(alpha="val"), "clip-adapter(alpha=val)"), (CLIPAdapter(alpha=np.float32(0.2)), "clip-adapter(alpha=0.2)"),
    (CLIPAdapter(alpha=0.2), "clip-adapter(alpha=0.2)"),
    (CLIPAdapter(reduction=8, branch="text"), "clip-adapter(branch=text, reduction=8)"),
    (CoOp(), "coop"), (CoOp(context_length=16, words=None), "coop(context_length=16, words=None)"),
])
def test_the_label_shows_only_what_differs_from_the_defaults(method, label):
    assert method.label == label


@methods()
def test_settings_are_frozen_and_keyword_only(method):
    for setting in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, setting.name, getattr(method, setting.name))
    with pytest.raises(TypeError):
        type(method)("cpu")
    with pytest.raises(TypeError):
        type(method)(no_such_setting=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_by_its_name(name):
    assert method_named(name) == METHODS[name]() and method_named(name).label == name


@pytest.mark.parametrize("method", [
    *REFERENCE.values(), CLIPAdapter(alpha=0.5, grid=(0.0, 0.5), branch="both", final_relu=True), CoOp(words="a b", steps=7),
    TipAdapter(start=(2.0, 1.0), alpha=3.5), LinearProbe(C=1e-05), ZeroShot(templates=("a {}.", "the {}, here."))],
    ids=lambda method: method.label)
def test_a_label_leads_back_to_its_method(method):
    assert method_named(method.label) == method
    assert listed(f"coop, {method.label},coop") == ["coop", method.label, "coop"]


def test_a_label_may_be_typed_as_people_do():
    assert method_named(" tip-adapter( finetune=true )") == TipAdapter(finetune=True)
    assert method_named("clip-adapter(alpha=learned,reduction=8)") == CLIPAdapter(alpha="learned", reduction=8)
    assert method_named("clip-adapter(alpha=1)") == CLIPAdapter(alpha=1)
    assert [setting_value(text) for text in ("1", "0.5", "1e-3", "True", "none", "val", "")] == [1, 0.5, 1e-3, True, None,
                                                                                               "val", ""]


@pytest.mark.parametrize("label, says", [
    ("clip-adapter(alfa=1)", "There is 'alfa', which is no setting of clip-adapter; it has device, branch, alpha"),
    ("clip-adapter(reduction={[]: 1})", "reduction of clip-adapter must be a whole number"),
    ("clip-adapter(reduction=a)", "reduction of clip-adapter must be a whole number; got 'a'"),
    ("clip-adapter(steps=1.5)", "steps of clip-adapter must be a whole number; got 1.5"),
    ("clip-adapter(alpha=true)", "alpha of clip-adapter must be a number or a word; got True"),
    ("tip-adapter(finetune=1)", "finetune of tip-adapter must be true or false; got 1"),
    ("coop(words=3)", "words of coop must be a word or none; got 3"), ("coop()x", "settings stand in brackets"),
    ("clip-adapter(alpha=0.2", "settings stand in brackets"),
    ("clip-adapter(alpha=2)", "alpha must be a number from 0 to 1"),
    ("coop(__import__('os'))", "which is no setting of coop")])
def test_settings_that_cannot_be_are_one_sentence(label, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        method_named(label)
    assert one_sentence(error)


def test_numbers_of_numpy_are_numbers():
    point = {"alpha": np.float64(0.5), "reduction": np.int64(2)}
    assert with_settings(CLIPAdapter(), point) == CLIPAdapter(alpha=0.5, reduction=2)


NUMPY = [
    (CLIPAdapter(alpha=np.float32(0.25), reduction=np.int64(2), steps=np.int32(3)),
     CLIPAdapter(alpha=0.25, reduction=2, steps=3)),
    (CLIPAdapter(alpha=torch.tensor(0.5), final_relu=np.bool_(True), steps=3),
     CLIPAdapter(alpha=0.5, final_relu=True, steps=3)),
    (CLIPAdapter(grid=np.array([0.0, 0.5]), branch=np.str_("text"), steps=3),
     CLIPAdapter(grid=(0.0, 0.5), branch="text", steps=3)),
    (CLIPAdapter(grid=[0.0, np.float64(0.5)], device=torch.device("cpu"), steps=3),
     CLIPAdapter(grid=(0.0, 0.5), device="cpu", steps=3)),
    (LinearProbe(C=np.float32(0.5), max_iter=np.int64(9)), LinearProbe(C=0.5, max_iter=9)),
    (TipAdapter(alpha=np.int64(2), beta_grid=np.array([1.0, 2.0])), TipAdapter(alpha=2, beta_grid=(1.0, 2.0))),
    (CoOp(context_length=np.uint8(2), words=None, steps=np.int64(1)), CoOp(context_length=2, words=None, steps=1))]


@pytest.mark.parametrize("given, usual", NUMPY, ids=lambda method: method.label)
def test_settings_of_numpy_and_torch_are_those_of_python_in_labels_fits_and_files(given, usual, tmp_path):
    assert given == usual and given.label == usual.label and repr(given) == repr(usual) and hash(given) == hash(usual)
    episode = replace(toy_episode(), shots=np.int64(4), seed=np.int64(1), logit_scale=np.float32(SCALE))
    clf = given.fit(episode)
    back = load_classifier(save_classifier(clf, tmp_path / "c.safetensors"))
    assert back.method == usual and back.origin == usual.fit(toy_episode()).origin
    assert torch.equal(back.logits(episode.test.features), usual.fit(toy_episode()).logits(episode.test.features))


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="Unknown method 'clip-adaptor'") as error:
        method_named("clip-adaptor")
    assert one_sentence(error) and all(name in str(error.value) for name in METHODS)


@pytest.mark.parametrize("method, settings", [
    (CoOp, dict(position="start")), (CoOp, dict(recipe="heavy")), (CoOp, dict(context_length=0)),
    (LinearProbe, dict(C="best")), (LinearProbe, dict(C=0.0)), (LinearProbe, dict(C=-1)), (LinearProbe, dict(bisections=-1)),
    (LinearProbe, dict(max_iter=0)), (CLIPAdapter, dict(steps="10")), (CLIPAdapter, dict(steps=2.5)),
    (CLIPAdapter, dict(rate=np.nan)), (CLIPAdapter, dict(weight_decay=-1.0)), (TipAdapter, dict(rate=np.inf)),
    (CoOp, dict(steps=-1)), (CLIPAdapter, dict(grid=0.5)), (CLIPAdapter, dict(grid=("a",))), (CLIPAdapter, dict(alpha=True)),
    (TipAdapter, dict(alpha_grid=())), (TipAdapter, dict(start=(1.0, None))), (TipAdapter, dict(finetune=None)),
    (CLIPAdapter, dict(alpha=np.float32(2))), (ZeroShot, dict(templates="{}")), (LinearProbe, dict(C=None)),
])
def test_a_setting_that_cannot_be_is_refused(method, settings):
    (setting, value), = settings.items()
    with pytest.raises(ValueError, match=setting) as error:
        method(**settings)
    assert one_sentence(error) and str(value) in str(error.value)


@pytest.mark.parametrize("text, parts", [
    ("a, b", ["a", "b"]), ("'cats, dogs', x", ["cats, dogs", "x"]), ('"cats, dogs"', ["cats, dogs"]),
    ("child's toy, dog's bowl", ["child's toy", "dog's bowl"]), ("f(x, y), z", ["f(x, y)", "z"]), (" , ", []), ("'", ["'"])])
def test_names_in_a_list_may_hold_commas_in_quotes(text, parts):
    assert names_listed(text) == parts


def test_a_setting_in_quotes_may_hold_commas():
    assert method_named("coop(words='a photo, of', context_length=8)") == CoOp(words="a photo, of", context_length=8)
