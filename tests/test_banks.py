"""Splits, episodes, banks and their files."""
import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest
import safetensors.torch
import torch
from conftest import make_bank
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import clip_adapter_lite as cal
from clip_adapter_lite import Episode, FeatureBank, Split, pocket
from clip_adapter_lite.files import BUNDLED
from clip_adapter_lite.splits import SPLITS, rank

TWELVE = ("caltech101", "cifar10", "dtd10", "fashion-mnist", "grocery", "gtsrb", "pacs-art", "pacs-cartoon", "pacs-photo",
          "pacs-sketch", "rsscn7", "sun18")
META = {"protocol": "made up", "weights_tag": "t1", "versions": {"b": "2", "a": "1"}, "preprocessing": {"size": [160, 160]}}


def rows_of(part: Split, whole: Split) -> list[int]:
    """Which rows of `whole` the rows of `part` are, told by their values alone (rows of toy banks are all different)."""
    same = (part.view()[:, None] == whole.view().float()[None]).all(-1)
    assert (same.sum(1) == 1).all(), "a row that is not exactly one of the bank's"
    rows = same.long().argmax(1)
    assert torch.equal(part.labels, whole.labels[rows])
    return rows.tolist()


def drawn(bank: FeatureBank, name: str, **wanted) -> list[list[int]]:
    """The rows of the bank's train or val split that an episode holds, class by class, in its order."""
    episode = bank.episode(**wanted)
    part = {"train": episode.support, "val": episode.val}[name]
    rows = rows_of(part, bank.splits[name])
    return [[r for r, label in zip(rows, part.labels.tolist()) if label == c] for c in range(len(bank.classnames))]


# ── splits ────────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("features, labels, fragment", [
    (torch.zeros(4), [0, 1], "[N, D] or [V, N, D]; got torch.float32 of shape [4]"),
    (torch.zeros(2, 3, 4, 5), [0, 1, 0, 1], "got torch.float32 of shape [2, 3, 4, 5]"),
    (torch.zeros(2, 4, dtype=torch.long), [0, 1], "must be floating point of shape [N, D] or [V, N, D]; got torch.int64"),
    (torch.zeros(2, 4), [0, 1, 2], "labels must be 2 integers, one for each image; got torch.int64 of shape [3]"),
    (torch.zeros(3, 2, 4), [0, 1, 2], "labels must be 2 integers"),  # three views of two images
    (torch.zeros(2, 4), [0.0, 1.0], "labels must be 2 integers, one for each image; got torch.float32"),
    (torch.zeros(2, 4), [[0], [1]], "got torch.int64 of shape [2, 1]"),
])
def test_a_split_of_the_wrong_shape_or_type_is_refused(features, labels, fragment, expect_refused):
    with expect_refused(fragment):
        Split(features, torch.tensor(labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_become_int64(dtype):
    split = Split(torch.ones(3, 2), torch.tensor([2, 0, 1], dtype=dtype))
    assert split.labels.dtype == torch.int64 and split.labels.tolist() == [2, 0, 1] and len(split) == 3


WHOLE = [2, 0, 1, 1]
AS_LABELS = {"list": WHOLE, "tuple": tuple(WHOLE), "array": numpy.array(WHOLE), "unsigned": numpy.array(WHOLE, "uint16"),
             "from another machine": numpy.array(WHOLE, ">i4"), "backwards": numpy.array(WHOLE[::-1])[::-1],
             "objects": numpy.array(WHOLE, object), "column": pandas.Series(WHOLE),
             "filtered column": pandas.Series([2, 9, 0, 1, 9, 1])[lambda column: column < 9],
             "nullable column": pandas.Series(WHOLE, dtype="Int64"),
             "strided": torch.tensor(WHOLE * 2).reshape(2, 4).T[:, 0],
             "list of tensors": [torch.tensor(label) for label in WHOLE]}


@pytest.mark.parametrize("labels", AS_LABELS.values(), ids=AS_LABELS)
def test_labels_are_whole_numbers_in_whatever_holds_them(labels):
    split = Split(torch.ones(4, 2), labels)
    assert split.labels.tolist() == WHOLE and split.labels.dtype == torch.int64


WORDS = ["cat", "dog", "cat", "cow"]
NO_LABELS = {"words": WORDS, "array of words": numpy.array(WORDS), "column of words": pandas.Series(WORDS),
             "categories": pandas.Series(WORDS).astype("category"), "words and gaps": ["cat", None, "cat", "cow"],
             "digits": ["0", "1", "0", "1"], "gaps": pandas.Series([1, None, 0, 2]), "truth": numpy.array([True, False] * 2),
             "true tensor": torch.tensor([True, False] * 2), "whole floats": [0.0, 1.0, 2.0, 0.0], "one": 3, "nothing": None,
             "a dictionary": {"cat": 0}, "pairs": [[0, 1], [1, 0], [0, 1], [1, 0]], "unequal rows": [[0], [1, 2], [0], [1]],
             "complex": numpy.ones(4, complex), "dates": numpy.array(["2020-01-01"] * 4, "M8[D]")}


@pytest.mark.parametrize("labels", NO_LABELS.values(), ids=NO_LABELS)
def test_labels_of_any_other_kind_are_told_to_be_integers(labels, expect_refused):
    with expect_refused("A split's labels must be 4 integers, one for each image; got "):
        Split(torch.ones(4, 2), labels)
    with expect_refused("; give each the place of its class among the class names, as classnames.index(name) has it."):
        Split(torch.ones(4, 2), labels)


def test_words_are_called_words(expect_refused):
    with expect_refused("one for each image; got words; give"):
        Split(torch.ones(4, 2), WORDS)


ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
FEATURES = {"list": ROWS, "array": numpy.array(ROWS), "half": numpy.array(ROWS, "float16"),
            "from another machine": numpy.array(ROWS, ">f4"), "backwards": numpy.array(ROWS[::-1])[::-1],
            "table": pandas.DataFrame(ROWS, index=[7, 3]), "list of rows": list(torch.tensor(ROWS)),
            "turned over": torch.tensor(ROWS).T.contiguous().T, "sparse": torch.tensor(ROWS).to_sparse(),
            "with a graph": torch.tensor(ROWS, requires_grad=True) * 1,
            "rows with graphs": list(torch.tensor(ROWS, requires_grad=True) * 1),
            "parameter": torch.nn.Parameter(torch.tensor(ROWS))}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_features_are_a_plain_tensor_whatever_holds_them(features):
    split = Split(features, [0, 1])
    assert split.features.tolist() == ROWS and not split.features.requires_grad and type(split.features) is torch.Tensor


def test_what_is_read_only_is_taken_without_a_warning(recwarn):
    rows = numpy.array(ROWS)
    rows.flags.writeable = False
    assert Split(rows, [0, 1]).features.tolist() == ROWS and not recwarn.list


@pytest.mark.parametrize("features", [None, "features.npy", [["a"], ["b"]], [[1.0], [1.0, 2.0]], numpy.ones((2, 3), int),
                                      torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 0), torch.ones(0, 2, 3),
                                      [torch.ones(2), torch.ones(3)], object()])
def test_features_that_are_no_rows_of_numbers_are_refused(features, expect_refused):
    with expect_refused("A split's features must be floating point of shape [N, D] or [V, N, D]; got "):
        Split(features, [0, 1])


def test_an_empty_split_may_be_made_of_empty_lists():
    assert len(Split(torch.ones(0, 4), [])) == 0


def test_a_split_without_views_is_its_own_only_view():
    features = torch.arange(6.).reshape(3, 2)
    split = Split(features, torch.tensor([0, 1, 2]))
    assert split.views == 1
    assert all(torch.equal(split.view(step), features) for step in (0, 1, 7))


def test_views_take_turns_step_by_step_and_view_0_is_the_default():
    features = torch.arange(24.).reshape(3, 4, 2)
    split = Split(features, torch.tensor([0, 1, 0, 1]))
    assert (len(split), split.views) == (4, 3)
    for step, view in enumerate([0, 1, 2, 0, 1, 2, 0]):
        assert torch.equal(split.view(step), features[view])
    assert torch.equal(split.view(), features[0])


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 2)])
def test_take_gives_the_rows_in_the_order_asked_for_with_all_views(shape):
    features, labels = torch.randn(shape), torch.tensor([5, 6, 7, 8])
    taken = Split(features, labels).take(torch.tensor([2, 0, 2]))
    assert taken.labels.tolist() == [7, 5, 7]
    for place, row in enumerate([2, 0, 2]):
        assert torch.equal(taken.features[..., place, :], features[..., row, :])


def test_to_changes_the_dtype_of_features_only():
    split = Split(torch.ones(2, 3), torch.tensor([0, 1])).to(torch.float16)
    assert (split.features.dtype, split.labels.dtype) == (torch.float16, torch.int64)


def test_to_another_device_takes_the_labels_along():
    split = Split(torch.ones(2, 3), torch.tensor([0, 1])).to("meta")
    assert split.features.device.type == split.labels.device.type == "meta"


# ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────────

# What the rule "first by SHA-256 of 'seed/class/index'" gives for images whose classes run 0 1 2 0 1 2 …: 30 for train
# and 18 for val. Written out, so that no machine and no later version may draw otherwise.
DRAWS = [(1, "train", [[15, 0, 12, 6], [19, 4, 22, 25], [26, 14, 11, 20]]),
         (2, "train", [[21, 18, 24, 0], [22, 10, 16, 7], [8, 26, 17, 5]]),
         (1, "val", [[15, 0, 12, 6], [4, 1, 13, 10], [14, 11, 8, 2]]),
         (2, "val", [[0, 9, 3, 6], [10, 16, 7, 1], [8, 17, 5, 14]])]


@pytest.mark.parametrize("seed, name, golden", DRAWS)
def test_the_draw_is_the_one_written_here(seed, name, golden):
    assert drawn(make_bank(classes=3, train=10, val=6), name, shots=4, seed=seed) == golden


@given(st.integers(0, 99), st.integers(0, 99), st.sets(st.integers(0, 999), max_size=20))
@settings(max_examples=30, deadline=None)
def test_rank_sorts_by_the_sha256_of_seed_class_and_index(seed, label, indices):
    digests = {hashlib.sha256(b"%d/%d/%d" % (seed, label, i)).hexdigest(): i for i in indices}
    assert rank(seed, label, list(indices)) == [digests[d] for d in sorted(digests)]


@pytest.mark.parametrize("shots", [1, 3, 4, 5, 8])
def test_an_episode_has_exactly_the_shots_and_at_most_four_validation_images_of_each_class(shots, toy_bank):
    episode = toy_bank(train=8, val=6, test=3).episode(shots, seed=7)
    assert torch.bincount(episode.support.labels).tolist() == [shots] * 5
    assert torch.bincount(episode.val.labels).tolist() == [min(shots, 4)] * 5
    assert episode.shortfall == (0,) * 5
    assert (episode.shots, episode.seed) == (shots, 7)


def test_validation_takes_what_exists_and_records_what_is_missing(toy_bank):
    episode = toy_bank(classes=4, val=[0, 1, 3, 9]).episode(8)
    assert torch.bincount(episode.val.labels, minlength=4).tolist() == [0, 1, 3, 4]
    assert episode.shortfall == (4, 3, 1, 0)


def test_one_shot_wants_one_validation_image_only(toy_bank):
    assert toy_bank(classes=3, val=[0, 1, 5]).episode(1).shortfall == (1, 0, 0)


def test_test_is_whole_and_in_the_order_of_the_bank(toy_bank):
    bank = toy_bank(test=[1, 2, 3, 4, 5])
    test = bank.episode(2).test
    assert torch.equal(test.features, bank.splits["test"].features.float())
    assert torch.equal(test.labels, bank.splits["test"].labels)


def test_no_image_is_drawn_twice_and_none_comes_from_another_split(toy_bank):
    bank = toy_bank(train=8, val=4)
    episode = bank.episode(8)
    assert sorted(rows_of(episode.support, bank.splits["train"])) == list(range(40))  # all there are, each once
    assert sorted(rows_of(episode.val, bank.splits["val"])) == list(range(20))


def test_the_images_of_fewer_shots_are_the_first_of_more(toy_bank):
    bank = toy_bank(train=20)
    most = drawn(bank, "train", shots=16, seed=3)
    for shots in (1, 2, 4, 8):
        assert drawn(bank, "train", shots=shots, seed=3) == [rows[:shots] for rows in most]


def test_another_seed_draws_other_images_and_the_same_seed_the_same(toy_bank):
    draws = [drawn(toy_bank(train=20), "train", shots=4, seed=seed) for seed in (1, 2, 3, 1)]
    assert draws[0] == draws[3]
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_the_draws_from_train_and_validation_do_not_depend_on_each_others_sizes(toy_bank):
    bank = toy_bank(classes=3, train=10, val=6)
    assert drawn(toy_bank(classes=3, train=10, val=2), "train", shots=5) == drawn(bank, "train", shots=5)
    assert drawn(toy_bank(classes=3, train=7, val=6), "val", shots=5) == drawn(bank, "val", shots=5)


def test_the_draw_of_a_class_does_not_depend_on_what_the_other_images_show(toy_bank):
    bank = toy_bank(classes=3, train=10)
    train = bank.splits["train"]
    merged = toy_bank(classes=3, splits={**bank.splits, "train": Split(train.features, train.labels.clamp(max=1))})
    assert drawn(merged, "train", shots=5, allow_fewer=True)[0] == drawn(bank, "train", shots=5)[0]


def test_an_episode_holds_float32_features_with_their_lengths_and_what_the_bank_knows(toy_bank):
    bank = toy_bank(templates=("a {}.", "the {}."), logit_scale=12.5, meta=META)
    episode = bank.episode(2)
    for part in (episode.support, episode.val, episode.test):
        assert part.features.dtype == torch.float32
        assert (part.features.norm(dim=-1) > 1.5).all()  # toy features are about 3 long: nothing was normalised
    assert torch.equal(episode.text_features, bank.text_features.float())
    assert (episode.classnames, episode.templates, episode.logit_scale) == (bank.classnames, ("a {}.", "the {}."), 12.5)
    assert (episode.dataset, episode.backbone_name, episode.backbone_tag) == ("toy", "none", "t1")
    assert episode.preprocessing == {"size": [160, 160]}


def test_an_episode_keeps_all_views_of_its_training_images(toy_bank):
    bank = toy_bank(views=3)
    support = bank.episode(2).support
    assert support.features.shape == (3, 10, 16)
    assert torch.equal(support.features, bank.splits["train"].features[:, rows_of(support, bank.splits["train"])].float())


def test_an_episode_goes_to_another_dtype_as_a_whole(toy_bank):
    episode = toy_bank().episode(2).to(torch.float64)
    parts = episode.support.features, episode.val.features, episode.test.features, episode.text_features
    assert {p.dtype for p in parts} == {torch.float64}


def test_too_few_images_are_refused_naming_class_and_count(toy_bank, expect_refused):
    bank = toy_bank(classes=4, train=[9, 5, 3, 7])
    assert bank.max_shots == 3
    bank.episode(3)
    with expect_refused("class 'class 2' has 3 training images, fewer than the 4 shots asked for; use shots up to 3"):
        bank.episode(4)
    with expect_refused("class 'class 2' has 3 training images"):
        bank.check_shots(16)  # what a grid asks before it starts


def test_allow_fewer_takes_what_exists(toy_bank):
    episode = toy_bank(classes=4, train=[9, 5, 3, 7]).episode(8, allow_fewer=True)
    assert torch.bincount(episode.support.labels).tolist() == [8, 5, 3, 7]


@pytest.mark.parametrize("shots", [0, -1])
@pytest.mark.parametrize("allow_fewer", [False, True])
def test_less_than_one_shot_is_refused(shots, allow_fewer, toy_bank, expect_refused):
    with expect_refused(f"shots must be at least 1; got {shots}"):
        toy_bank().episode(shots, allow_fewer=allow_fewer)


def test_a_class_without_images_is_noticed_before_fitting(toy_bank, expect_refused):
    bank = toy_bank(classes=3, train=[2, 0, 2])
    assert bank.max_shots == 0
    with expect_refused("the support set has no image of class class 1"):
        bank.episode(1, allow_fewer=True).check()


# ── banks from arrays ─────────────────────────────────────────────────────────────────────────────────────────

def test_a_bank_keeps_half_precision_within_its_rounding():
    features = torch.randn(3, 16)
    one = Split(features, torch.tensor([0, 1, 2]))
    bank = make_bank(classes=3, text_features=features.double(), splits=dict.fromkeys(SPLITS, one))
    assert bank.text_features.dtype == bank.splits["val"].features.dtype == torch.float16
    for kept in (bank.text_features, bank.splits["val"].features):
        torch.testing.assert_close(kept.float(), features, rtol=2 ** -11, atol=2 ** -24)  # half an ulp of 11 bits


def changed(name: str = "train", row: int | None = None, value=None, **of):
    """The splits of a toy bank, one of them with a changed row of features, or other features or labels altogether."""
    splits = dict(make_bank().splits)
    features, labels = splits[name].features.float(), splits[name].labels
    if row is not None:
        features[row] = value
    splits[name] = Split(of.get("features", features), of.get("labels", labels))
    return splits


WRONG = {
    "features too large": (lambda: {"splits": changed(row=2, value=65_520.)},
                           "toy, train in half precision: 1 feature rows hold NaN or infinity, the first at index [2]"),
    "features too small": (lambda: {"splits": changed(row=2, value=1e-9)},
                           "toy, train in half precision: 1 feature rows are all zero"),
    "features of zeros": (lambda: {"splits": changed("test", row=1, value=0.)}, "toy, test: 1 feature rows are all zero"),
    "a NaN": (lambda: {"splits": changed("val", row=3, value=float("nan"))}, "toy, val: 1 feature rows hold NaN"),
    "an infinity": (lambda: {"splits": changed("test", row=0, value=float("-inf"))}, "toy, test: 1 feature rows hold NaN"),
    "another width": (lambda: {"splits": changed("val", features=torch.ones(20, 7))},
                      "toy, val: features have 7 dimensions but the classifier weights have 16"),
    "a label too large": (lambda: {"splits": changed(labels=torch.arange(40) % 5 + 1)},
                          "toy, train: labels run from 1 to 5 but there are 5 classes, so they must lie in 0 … 4"),
    "a negative label": (lambda: {"splits": changed(labels=torch.arange(40) % 5 - 1)}, "labels run from -1 to 3"),
    "a class name too few": (lambda: {"classnames": ("a", "b", "c", "d")}, "C = 4 class names; got [5, 16]"),
    "text of one dimension": (lambda: {"text_features": torch.ones(5)}, "text features must be [C, D]"),
    "a NaN in the text": (lambda: {"text_features": torch.full((5, 16), float("nan"))}, "text features hold NaN"),
    "a class without direction": (lambda: {"text_features": torch.eye(5, 16) - torch.eye(1, 16)}, "or a row of zeros"),
    "no class": (lambda: {"text_features": torch.ones(0, 16), "classnames": ()}, "text features must be [C, D]"),
    "text in words": (lambda: {"text_features": ["a cat"] * 5}, "text features must be numbers of shape [C, D]; got words"),
    "whole numbers": (lambda: {"text_features": torch.ones(5, 16).int()}, "got [5, 16] of torch.int32"),
    "one name": (lambda: {"classnames": "abcde"}, "classnames must be a list of texts; got str"),
    "numbers for names": (lambda: {"classnames": range(5)}, "classnames must be a list of texts; got range"),
    "pairs": (lambda: {"splits": {name: (torch.ones(1, 16), [0]) for name in SPLITS}}, "dictionary of `Split`s"),
    "a list of splits": (lambda: {"splits": list(changed().values())}, "dictionary of `Split`s"),
    "a scale in words": (lambda: {"logit_scale": "100"}, "(CLIP's is 100); got words"),
    "two scales": (lambda: {"logit_scale": torch.ones(2)}, "(CLIP's is 100); got (1.0, 1.0)"),
    "text too large": (lambda: {"text_features": torch.full((5, 16), 65_520.)}, "infinity in half precision"),
    "no validation split": (lambda: {"splits": {k: v for k, v in changed().items() if k != "val"}},
                            "exactly train, val, test (an empty one has shape [0, D]); got test, train"),
    "a split too many": (lambda: {"splits": {**changed(), "extra": changed()["val"]}}, "got extra, test, train, val"),
    "a scale of zero": (lambda: {"logit_scale": 0}, "logit_scale must be positive (CLIP's is 100); got 0"),
    "a negative scale": (lambda: {"logit_scale": -4.6}, "must be positive (CLIP's is 100); got -4.6"),
    "a scale that is no number": (lambda: {"logit_scale": float("nan")}, "logit_scale must be positive"),
    "an infinite scale": (lambda: {"logit_scale": float("inf")}, "logit_scale must be positive"),
    "a reserved key": (lambda: {"meta": {"hash": "0"}}, "meta must not hold hash, which the bank records itself"),
}


@pytest.mark.parametrize("fields, fragment", WRONG.values(), ids=WRONG)
def test_a_bank_that_cannot_be_right_is_refused(fields, fragment, expect_refused):
    with expect_refused(fragment):
        make_bank(**fields())


def test_a_bank_is_frozen_whatever_graph_its_features_came_with(path):
    tower, plain = torch.nn.Linear(16, 16), make_bank()
    encoded = {name: tower(split.features.float()) for name, split in plain.splits.items()}
    text = tower(plain.text_features.float())
    scale = torch.nn.Parameter(torch.tensor(3.0)).exp()
    bank = make_bank(splits={name: Split(encoded[name], plain.splits[name].labels) for name in SPLITS}, text_features=text,
                     logit_scale=scale)
    back = FeatureBank.load(bank.save(path))
    assert torch.equal(back.text_features, text.detach().half()) and back.logit_scale == scale.item()
    for name in SPLITS:
        assert torch.equal(back.splits[name].features, encoded[name].detach().half())
    by_hand = Episode(support=Split(encoded["train"], plain.splits["train"].labels), val=bank.splits["val"],
                      test=bank.splits["test"], text_features=text, classnames=bank.classnames, logit_scale=scale)
    for episode in (bank.episode(2), by_hand):
        method = cal.CLIPAdapter(branch="both", alpha=0.3, beta=0.3, steps=3, device="cpu")
        logits = method.fit(episode).logits(encoded["test"])
        assert torch.equal(logits, method.fit(episode).logits(encoded["test"].detach())) and not logits.requires_grad
    assert tower.weight.grad is None


def test_features_of_inference_mode_can_be_learned_from_and_learned_in():
    plain = make_bank()
    method = cal.CLIPAdapter(alpha=0.3, steps=3, device="cpu")
    wanted = method.fit(plain.episode(2)).logits(plain.splits["test"].features)
    with torch.inference_mode():
        bank = make_bank()
        inside = method.fit(bank.episode(2)).logits(bank.splits["test"].features)
        by_hand = replace(bank.episode(2), text_features=bank.text_features.float())
    assert torch.equal(inside, wanted)
    for episode in (bank.episode(2), by_hand):
        assert torch.equal(method.fit(episode).logits(plain.splits["test"].features), wanted)


def test_one_template_is_a_list_of_one(toy_bank):
    assert toy_bank(templates="a photo of a {}.").templates == ("a photo of a {}.",)


def test_numbers_of_numpy_and_torch_are_written_as_numbers(toy_bank, path):
    meta = {"views": numpy.int64(3), "mean": numpy.array([0.5, 0.25], "float32"), "size": torch.tensor(224),
            "source": Path("a/b"), "device": torch.device("cpu")}
    back = FeatureBank.load(toy_bank(meta=meta, classnames=numpy.array(list("abcde")),
                                     logit_scale=numpy.float32(12.5)).save(path))
    assert back.meta == {"views": 3, "mean": [0.5, 0.25], "size": 224, "source": str(Path("a/b")), "device": "cpu"}
    assert (back.classnames, back.logit_scale) == (tuple("abcde"), 12.5)


@pytest.mark.parametrize("whole", [numpy.int64(2), numpy.uint8(2), torch.tensor(2), numpy.array(2)], ids=repr)
def test_shots_and_seed_may_be_numbers_of_numpy(whole, toy_bank):
    episode, usual = toy_bank().episode(whole, whole), toy_bank().episode(2, 2)
    assert torch.equal(episode.support.features, usual.support.features)
    assert (type(episode.shots), type(episode.seed), episode.shots, episode.seed) == (int, int, 2, 2)


@pytest.mark.parametrize("wrong", [2.0, "2", None, True, [2], 2 ** 63, numpy.float64(2), torch.tensor([1.0, 2.0])], ids=repr)
def test_shots_and_seed_of_any_other_kind_are_refused(wrong, toy_bank, expect_refused):
    with expect_refused("shots must be a whole number"):
        toy_bank().episode(wrong)
    with expect_refused("shots must be a whole number"):
        toy_bank().check_shots(wrong)
    with expect_refused("seed must be a whole number; got "):
        toy_bank().episode(1, wrong)


def test_the_largest_half_precision_value_is_kept():
    assert make_bank(splits=changed(row=2, value=65_504.)).splits["train"].features[2, 0] == 65_504


def test_the_numbers_of_images_may_be_zero_in_validation_and_test(toy_bank):
    bank = toy_bank(val=0, test=0)
    episode = bank.episode(2)
    assert (len(episode.val), len(episode.test), episode.shortfall) == (0, 0, (2,) * 5)


def test_repr_says_what_the_bank_is(toy_bank):
    assert repr(toy_bank(classes=3, train=4, val=2, test=5)) == \
        "FeatureBank('toy', 'none': 3 classes, 12 / 6 / 15 train / val / test, D = 16)"


# ── the hash ──────────────────────────────────────────────────────────────────────────────────────────────────

def test_the_hash_is_of_the_tensors_and_of_nothing_else(toy_bank):
    other = toy_bank(meta=META, templates=("{}",), logit_scale=3, dataset="d", backbone="b", classnames=tuple("vwxyz"))
    assert other.hash == toy_bank().hash


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_change_of_any_tensor_changes_the_hash(data):
    bank = make_bank()
    tensors = bank.tensors()
    name = data.draw(st.sampled_from(sorted(tensors)))
    flat = tensors[name] = tensors[name].clone()
    place = data.draw(st.integers(0, flat.numel() - 1))
    flat.view(-1)[place] = (flat.view(-1)[place] + 1) % 5 if name.endswith("labels") else flat.view(-1)[place] + 0.5
    splits = {s: Split(tensors[f"{s}.features"], tensors[f"{s}.labels"]) for s in SPLITS}
    assert make_bank(text_features=tensors["text_features"], splits=splits).hash != bank.hash


def test_a_change_of_shape_changes_the_hash(toy_bank):
    flat, one_view = toy_bank(), toy_bank(views=1)
    assert torch.equal(one_view.splits["train"].features[0], flat.splits["train"].features)
    assert one_view.hash != flat.hash


def test_splits_that_change_places_change_the_hash(toy_bank):
    bank = toy_bank(train=4, val=4)
    swapped = {"train": bank.splits["val"], "val": bank.splits["train"], "test": bank.splits["test"]}
    assert toy_bank(splits=swapped).hash != bank.hash


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

def about(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["bank"])


def rewrite(path: Path, drop: str = "", rename: dict | None = None, tensors: dict | None = None, **metadata) -> None:
    """The bank at `path` again with other tensors or entries of its description, its recorded hash left as it was."""
    kept = {k: v for k, v in safetensors.torch.load_file(path).items() if k != drop} | (tensors or {})
    described = {k: v for k, v in (about(path) | metadata).items() if k != drop}
    safetensors.torch.save_file(kept, path, metadata={"bank": json.dumps(described)})


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "folder" / "toy.safetensors"


@pytest.mark.parametrize("views", [None, 3])
def test_what_is_saved_is_what_is_loaded(views, toy_bank, path):
    bank = toy_bank(views=views, meta=META, templates=("a {}.", "ein {} für „dich“."), logit_scale=20.08553695678711)
    assert bank.save(path) == path
    again = FeatureBank.load(path)
    for name in ("dataset", "backbone", "classnames", "templates", "logit_scale", "meta", "hash", "max_shots"):
        assert getattr(again, name) == getattr(bank, name), name
    assert again.tensors().keys() == bank.tensors().keys()
    for name, tensor in bank.tensors().items():
        assert again.tensors()[name].dtype == tensor.dtype and torch.equal(again.tensors()[name], tensor), name


def test_one_split_in_two_roles_is_saved_in_both(toy_bank, path):
    bank = toy_bank()
    shared = replace(bank, splits=bank.splits | {"val": bank.splits["test"]})  # as Tip-Adapter's code does for ImageNet
    back = FeatureBank.load(shared.save(path))
    assert torch.equal(back.splits["val"].features, bank.splits["test"].features)
    assert torch.equal(back.splits["test"].features, bank.splits["test"].features)


def test_splits_cut_from_one_tensor_are_saved_each_as_it_is(toy_bank, path):
    everything, labels = torch.randn(20, 16).half(), torch.arange(20) % 5
    cuts = {"train": slice(0, 15), "val": slice(10, 20), "test": slice(5, None)}
    bank = toy_bank(splits={name: Split(everything[cut], labels[cut]) for name, cut in cuts.items()},
                    text_features=everything[:5])
    back = FeatureBank.load(bank.save(path))
    assert torch.equal(back.text_features, everything[:5])
    for name, cut in cuts.items():
        assert torch.equal(back.splits[name].features, everything[cut])
        assert torch.equal(back.splits[name].labels, labels[cut])


def test_a_path_may_be_a_string_without_the_usual_suffix(toy_bank, tmp_path):
    toy_bank().save(f"{tmp_path}/bank.v1")
    assert FeatureBank.load(f"{tmp_path}/bank.v1").hash == toy_bank().hash


def test_a_bank_saved_again_and_loaded_and_saved_gives_the_same_bytes(toy_bank, path, tmp_path):
    first = toy_bank(meta=META).save(path).read_bytes()
    turned = {key: META[key] for key in reversed(META)}
    assert toy_bank(meta=turned).save(tmp_path / "b.safetensors").read_bytes() == first
    assert FeatureBank.load(path).save(tmp_path / "c.safetensors").read_bytes() == first


def test_another_process_with_another_hash_seed_writes_the_same_bytes(path):
    script = "import conftest, sys; conftest.make_bank(meta=eval(sys.argv[2])).save(sys.argv[1])"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", script, str(path), repr(META)], check=True, env=environment)
    assert make_bank(meta=META).save(path.with_name("here.safetensors")).read_bytes() == path.read_bytes()


def test_the_description_is_one_key_of_sorted_json_without_a_time(toy_bank, path):
    bank = toy_bank(meta=META)
    bank.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["bank"]
    assert metadata["bank"] == json.dumps(json.loads(metadata["bank"]), sort_keys=True)
    assert json.loads(metadata["bank"]) == {
        "dataset": "toy", "backbone": "none", "classnames": [f"class {c}" for c in range(5)], "logit_scale": 20.0,
        "templates": ["a photo of a {}."], "hash": bank.hash, **META}  # and so no date, host or user


def test_files_hold_half_precision_features_and_int32_labels(toy_bank, path):
    toy_bank().save(path)
    types = {name: tensor.dtype for name, tensor in safetensors.torch.load_file(path).items()}
    assert types == {"text_features": torch.float16} | {f"{s}.features": torch.float16 for s in SPLITS} | \
        {f"{s}.labels": torch.int32 for s in SPLITS}


@pytest.mark.parametrize("name", sorted(make_bank().tensors()))
def test_one_flipped_bit_in_any_tensor_is_noticed(name, toy_bank, path, expect_refused):
    raw = bytearray(toy_bank().save(path).read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")  # behind the header's length and the header
    first, _ = json.loads(raw[8:start])[name]["data_offsets"]
    raw[start + first] ^= 1
    path.write_bytes(raw)
    with expect_refused("do not match the recorded hash"):
        FeatureBank.load(path)


def test_labels_replaced_by_others_in_range_are_noticed(toy_bank, path, expect_refused):
    toy_bank().save(path)
    labels = safetensors.torch.load_file(path)["test.labels"]
    rewrite(path, tensors={"test.labels": labels.flip(0)})
    with expect_refused("do not match the recorded hash"):
        FeatureBank.load(path)


def test_labels_out_of_range_are_noticed_even_with_a_hash_that_fits(toy_bank, path, expect_refused):
    toy_bank(classes=6).save(path)
    five = safetensors.torch.load_file(path)["text_features"][:5]
    fitting = make_bank(classes=6).tensors() | {"text_features": five}
    rewrite(path, tensors={"text_features": five}, classnames=list("abcde"), hash=cal.banks.tensor_hash(fitting))
    with expect_refused("toy, train: labels run from 0 to 5 but there are 5 classes"):
        FeatureBank.load(path)


def test_a_tensor_too_many_is_noticed(toy_bank, path, expect_refused):
    toy_bank().save(path)
    rewrite(path, tensors={"extra": torch.ones(1)})
    with expect_refused("do not match the recorded hash"):
        FeatureBank.load(path)


@pytest.mark.parametrize("missing", [*make_bank().tensors(), "hash", "dataset", "classnames", "logit_scale", "templates"])
def test_a_missing_tensor_or_entry_is_named(missing, toy_bank, path, expect_refused):
    toy_bank().save(path)
    rewrite(path, drop=missing)
    with expect_refused(f"is not a complete feature bank (KeyError: '{missing}')"):
        FeatureBank.load(path)


@pytest.mark.parametrize("damage", [
    lambda raw: b"",
    lambda raw: raw[:4],
    lambda raw: raw[:100],  # within the header
    lambda raw: raw[:-1],
    lambda raw: raw + b"\0",
    lambda raw: b"no bank at all, but long enough to be one",
    lambda raw: bytes(len(raw)),
    lambda raw: pickle.dumps({"features": list(range(99))}),
], ids=["empty", "tiny", "cut header", "cut data", "longer", "text", "zeros", "pickle"])
def test_a_damaged_file_is_refused_by_name(damage, toy_bank, path, expect_refused):
    path.write_bytes(damage(toy_bank().save(path).read_bytes()))
    with expect_refused(f"{path} is not a complete feature bank (SafetensorError"):
        FeatureBank.load(path)


@pytest.mark.parametrize("metadata", [None, {}, {"other": "1"}, {"bank": "{"}, {"bank": "[]"}, {"bank": "null"}])
def test_a_safetensors_file_that_describes_no_bank_is_refused(metadata, toy_bank, path, expect_refused):
    path.parent.mkdir()
    safetensors.torch.save_file(toy_bank().tensors(), path, metadata=metadata)
    with expect_refused("is not a complete feature bank"):
        FeatureBank.load(path)


def test_a_save_that_fails_leaves_the_old_file_as_it_was(toy_bank, path, monkeypatch):
    before = toy_bank().save(path).read_bytes()

    def breaks_off(tensors, target, metadata):
        Path(target).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        toy_bank(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.glob("*.safetensors")) == [path]  # nothing that would be listed as a bank


def test_a_description_that_is_not_json_leaves_the_old_file_as_it_was(toy_bank, path):
    before = toy_bank().save(path).read_bytes()
    with pytest.raises(TypeError):
        toy_bank(meta={"when": object()}).save(path)
    assert path.read_bytes() == before


def test_loading_never_unpickles(toy_bank, path, monkeypatch):
    toy_bank().save(path)

    def never(*_, **__):
        raise AssertionError("unpickling runs whatever the file says")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, never)
    assert FeatureBank.load(path).hash == toy_bank().hash


# ── banks by name ─────────────────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A folder in place of the bundled banks."""
    monkeypatch.setattr(cal.banks, "BUNDLED", tmp_path / "bundled")
    return tmp_path / "bundled" / "banks"


def test_banks_are_found_by_name_and_backbone(toy_bank, bundled, cache):
    here, other = toy_bank(seed=1), toy_bank(seed=2, backbone="RN50-quickgelu")
    here.save(cache / "banks/pocket/mine.safetensors")
    other.save(cache / "banks/RN50-quickgelu/mine.safetensors")
    assert FeatureBank.load("mine").hash == here.hash
    assert FeatureBank.load("mine", backbone="RN50-quickgelu").hash == other.hash


def test_bundled_banks_come_first_and_belong_to_the_pocket_clip_only(toy_bank, bundled, cache):
    toy_bank(seed=1).save(bundled / "b.safetensors")
    toy_bank(seed=2).save(cache / "banks/pocket/b.safetensors")
    toy_bank(seed=2).save(cache / "banks/pocket/a.safetensors")
    toy_bank(seed=2).save(cache / "banks/RN50/c.safetensors")
    assert cal.list_banks() == ["b", "a"]
    assert cal.list_banks("RN50") == ["c"]
    assert cal.list_banks("never built") == []
    assert FeatureBank.load("b").hash == toy_bank(seed=1).hash


def test_an_unknown_name_is_answered_with_what_there_is(toy_bank, bundled, cache, expect_refused):
    with expect_refused("No bank 'cats' for backbone 'pocket' (there: none)", FileNotFoundError):
        FeatureBank.load("cats")
    toy_bank().save(bundled / "dogs.safetensors")
    toy_bank().save(cache / "banks/pocket/birds.safetensors")
    with expect_refused("(there: dogs, birds)", FileNotFoundError):
        FeatureBank.load("cats")
    with expect_refused(str(cache / "banks/pocket/cats.safetensors"), FileNotFoundError):  # where one would go
        FeatureBank.load("cats")
    with expect_refused("for backbone 'RN50' (there: none)", FileNotFoundError):
        FeatureBank.load("dogs", backbone="RN50")


def test_a_path_that_is_not_there_is_not_found(tmp_path, expect_refused):
    with expect_refused(f"No bank '{tmp_path}/cats.safetensors'", FileNotFoundError):
        FeatureBank.load(tmp_path / "cats.safetensors")


# ── the bundled banks ─────────────────────────────────────────────────────────────────────────────────────────

needs_weights = pytest.mark.skipif(not pocket.WEIGHTS.exists(), reason="the pocket CLIP's weights are not there yet")


@pytest.fixture(params=TWELVE)
def bundled_bank(request) -> FeatureBank:
    if not (BUNDLED / "banks" / f"{request.param}.safetensors").exists():
        pytest.skip("this bank is not built yet")
    return FeatureBank.load(request.param)


def test_the_twelve_banks_are_bundled():
    if not cal.list_banks():
        pytest.skip("no bank is built yet")
    assert cal.list_banks() == sorted(TWELVE)


@needs_weights
def test_a_bundled_bank_is_of_these_weights_and_says_where_it_comes_from(bundled_bank, request):
    meta = bundled_bank.meta
    assert bundled_bank.dataset == request.node.callspec.params["bundled_bank"]
    assert (bundled_bank.backbone, meta["weights_tag"]) == ("pocket", pocket.tag())
    assert bundled_bank.text_features.shape == (len(set(bundled_bank.classnames)), 512)
    assert all(meta[key] for key in ("protocol", "source", "licence", "preprocessing", "versions"))
    assert meta["preprocessing"]["mean"] == meta["preprocessing"]["std"] == [0.5] * 3


def test_a_bundled_bank_keeps_to_its_sizes_and_has_every_class_in_train_and_test(bundled_bank):
    counts = {name: torch.bincount(split.labels, minlength=len(bundled_bank.classnames))
              for name, split in bundled_bank.splits.items()}
    assert counts["train"].max() <= 48 and counts["val"].max() <= 16 and counts["test"].sum() <= 2500
    assert counts["train"].min() > 0 and counts["test"].min() > 0


def test_no_image_is_in_two_splits_of_a_bundled_bank(bundled_bank):
    rows = torch.cat([split.features for split in bundled_bank.splits.values()])
    copies = len(rows) - len(set(map(bytes, rows.numpy())))
    assert copies <= 0.01 * len(rows)  # a few pictures are in the data sets twice


@pytest.mark.parametrize("name, classes, images", [("caltech101", 100, 2465), ("dtd10", 10, 360)])
def test_coops_test_splits_are_whole(name, classes, images):
    if not (BUNDLED / "banks" / f"{name}.safetensors").exists():
        pytest.skip("this bank is not built yet")
    bank = FeatureBank.load(name)
    assert (len(bank.classnames), len(bank.splits["test"])) == (classes, images)


def test_weights_and_banks_are_small_enough_to_ship():
    sizes = [path.stat().st_size for path in BUNDLED.parent.rglob("*.safetensors")]
    if not sizes:
        pytest.skip("neither weights nor banks are there yet")
    assert max(sizes) < 20e6 and sum(sizes) < 45e6
