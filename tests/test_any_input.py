"""Whatever is handed over: a right result, by plain numpy, or one sentence that says what was wrong."""
from functools import cache

import numpy
import pandas
import torch
from conftest import make_bank
from hypothesis import given, settings
from hypothesis import strategies as st

import clip_adapter_lite as cal
from clip_adapter_lite.evaluation import accuracy, calibration_error, per_class_accuracy
from clip_adapter_lite.manifold import manifold_measures
from clip_adapter_lite.splits import SPLITS

WIDTH, CLASSES = 16, 5  # of `make_bank`
quick = settings(max_examples=60, deadline=None)
HOLDERS = {
    "array": lambda x: x, "list": lambda x: x.tolist(), "rows": list, "tensor": lambda x: torch.tensor(x.copy()),
    "with a graph": lambda x: torch.tensor(x.copy()).requires_grad_() * 1 if x.dtype.kind == "f" else torch.tensor(x.copy()),
    "strided": lambda x: torch.tensor(numpy.repeat(x, 2, axis=-1))[..., ::2], "column order": numpy.asfortranarray,
    "backwards": lambda x: x[::-1].copy()[::-1], "other bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": lambda x: numpy.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "part of more": lambda x: torch.tensor(numpy.stack([x, x]))[1],
    "list of tensors": lambda x: [torch.tensor(y) for y in x],
    "table": lambda x: (pandas.DataFrame if x.ndim == 2 else pandas.Series)(x, index=range(7, 7 + len(x)))}
holders = st.sampled_from(list(HOLDERS.values()))
floats = st.sampled_from(["float16", "float32", "float64"])


@st.composite
def features(draw, rows: int, width: int = WIDTH):
    """(what is handed over, the numbers in it as float64 [N, D], or None if nothing can be right)."""
    x = numpy.random.default_rng(draw(st.integers(0, 9))).normal(size=(rows, width)).astype(draw(floats))
    fault = draw(st.sampled_from(["", "", "", "", "nan", "inf", "zero", "flat", "narrow", "words", "none", "ragged"]))
    if fault in ("nan", "inf", "zero"):
        x[draw(st.integers(0, rows - 1))] = {"nan": numpy.nan, "inf": numpy.inf, "zero": 0}[fault]
    whole = {"flat": x[0], "narrow": x[:, :-1]}.get(fault, x)
    other = {"words": [["a"] * width] * rows, "none": None, "ragged": [[1.0]] + [[1.0, 2.0]] * (rows - 1)}
    return (other[fault] if fault in other else draw(holders)(whole)), None if fault else x.astype(float)


@st.composite
def labels(draw, rows: int, classes: int = CLASSES):
    """(what is handed over, the labels in it [N], or None if nothing can be right)."""
    y = draw(st.permutations([row % classes for row in range(rows)]).map(numpy.array))
    fault = draw(st.sampled_from(["", "", "", "", "words", "truth", "floats", "gaps", "over", "under", "short", "pairs",
                                  "none"]))
    y = {"over": y + 1, "under": y - 1, "short": y[:-1], "pairs": numpy.stack([y, y], 1)}.get(fault, y)
    other = {"words": [f"class {c}" for c in y], "truth": y > 0, "floats": y.astype(float),
             "gaps": [None, *y[1:].tolist()], "none": None}
    dtype = "int64" if fault == "under" else draw(st.sampled_from(["uint8", "int16", "int32", "uint32", "int64", object]))
    if fault in other:
        return other[fault], None
    return (y.astype(dtype) if dtype is object else draw(holders)(y.astype(dtype))), None if fault else y


def result(function, *given, **options):
    """What the function returns, or None if it refuses in one sentence."""
    try:
        return function(*given, **options)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.endswith(".") and ". " not in message and "\n" not in message, message
        return None


def must_agree(found, wanted, close=numpy.testing.assert_allclose, **tolerance):
    """A result where there is a right one, and none where there is not."""
    assert (found is None) == (wanted is None), (found, wanted)
    if wanted is not None:
        close(found, wanted, **tolerance)


def cosine_logits(x, w, scale):
    unit = [v / numpy.linalg.norm(v, axis=1, keepdims=True) for v in (x, w)]
    return scale * unit[0] @ unit[1].T


@cache
def bank():
    return make_bank()


@cache
def zero_shot():
    return cal.ZeroShot(device="cpu").fit(bank().episode(1))


@given(features(10), labels(10))
@quick
def test_a_split_and_its_bank_hold_the_numbers_given(x, y):
    split = result(cal.Split, x[0], y[0])
    whole = split and result(make_bank, splits={name: split for name in SPLITS})
    right = x[1] is not None and y[1] is not None
    assert (whole is not None) == right
    if right:
        assert split.labels.tolist() == y[1].tolist() and not split.features.requires_grad
        numpy.testing.assert_array_equal(split.features, x[1])
        numpy.testing.assert_array_equal(whole.splits["val"].features, x[1].astype("float16"))


@given(features(CLASSES))
@quick
def test_text_features_are_the_numbers_given(x):
    found = result(make_bank, text_features=x[0])
    must_agree(found and found.text_features, None if x[1] is None else x[1].astype("float16"))


@given(features(7))
@quick
def test_logits_are_those_of_plain_arithmetic(x):
    found = result(zero_shot().logits, x[0])
    if x[1] is not None:
        must_agree(found, cosine_logits(x[1], bank().text_features.numpy().astype(float), 20.0), rtol=1e-3, atol=1e-3)
    if found is not None:  # rows that cannot be right may be given, and are then not taken for numbers by `accuracy`
        assert found.shape == (7, CLASSES) and not found.requires_grad


@given(features(10), labels(10))
@quick
def test_accuracy_of_a_classifier_is_counted(x, y):
    split = result(cal.Split, x[0], y[0])
    found = split and result(zero_shot().accuracy, split)
    wanted = None
    if x[1] is not None and y[1] is not None:
        wanted = numpy.mean(cosine_logits(x[1], bank().text_features.numpy().astype(float), 20.0).argmax(1) == y[1])
    must_agree(found, wanted)


@given(features(12, CLASSES), labels(12))
@quick
def test_accuracies_of_scores_are_counted(x, y):
    found, each = result(accuracy, x[0], y[0]), result(per_class_accuracy, x[0], y[0])
    assert (found is None) == (each is None)
    if y[1] is None:
        assert found is None
    elif x[1] is not None:
        right = x[1].argmax(1) == y[1]
        must_agree(found, right.mean())
        must_agree(each, [right[y[1] == c].mean() for c in range(CLASSES)])
    else:  # a row of zeros ties, and scores of one class fewer are scores all the same
        assert found is None or 0 <= found <= 1


@given(features(12, CLASSES), labels(12), st.sampled_from([1, 4, numpy.int64(15), 0, 2.5, "4"]))
@quick
def test_calibration_error_is_that_of_a_loop(x, y, bins):
    shares = x[0]
    if x[1] is not None:
        shares = numpy.exp(x[1]) / numpy.exp(x[1]).sum(1, keepdims=True)
    found = result(calibration_error, shares, y[0], bins)
    if x[1] is None or y[1] is None or bins in (0, 2.5, "4"):
        assert found is None
    else:
        sure, right = shares.max(1), shares.argmax(1) == y[1]
        groups = [(sure > m / bins) & (sure <= (m + 1) / bins) for m in range(int(bins))]
        must_agree(found, sum(abs(right[g].mean() - sure[g].mean()) * g.sum() for g in groups if g.any()) / 12, atol=1e-9)


@given(features(12), labels(12, 3), st.sampled_from([1, numpy.int64(3), 0, 12, 2.5, None]))
@settings(max_examples=40, deadline=None)
def test_purity_is_that_of_a_loop(x, y, k):
    found = result(manifold_measures, x[0], y[0], k)
    if k in (0, 12, 2.5, None):
        assert found is None
    elif x[1] is not None and y[1] is not None:
        near = numpy.argsort(1 - cosine_logits(x[1], x[1], 1.0) + 9 * numpy.eye(12), axis=1)[:, :k]
        must_agree(found["purity"], (y[1][near] == y[1][:, None]).mean())
    elif found is not None:  # words, truth values and any numbers are groups, and features may have any width
        assert all(numpy.isfinite(value) for value in found.values())
