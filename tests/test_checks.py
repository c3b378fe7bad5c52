"""The visible checks: what they accept, and which sentence they say."""
import io
from contextlib import redirect_stdout

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_adapter_lite.checks import TOLERANCE, check, recomputed, seal

SWAPPED = "α and 1 − α are swapped."
MISTAKES = {SWAPPED: [[7.0, 1.0]], "the rows are summed.": 9.0}


def sentence(*arguments, **options) -> str:
    with pytest.raises(AssertionError) as caught:
        check("f(x)", *arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("found", [[[5.0, 2.0]], numpy.array([[5.0, 2.0]]), torch.tensor([[5.0, 2.0]]),
                                   torch.tensor([[5, 2]]), torch.tensor([[5.0, 2.0]], requires_grad=True)])
def test_right_values_of_any_kind_pass_and_say_so(found, capsys):
    check("f(x)", found, [[5.0, 2.0]], MISTAKES)
    assert capsys.readouterr().out == "✓ f(x)\n"


@pytest.mark.parametrize("encoding, shown", [("cp1252", "ok f(alpha) ± 1"), ("ascii", "ok f(alpha) +- 1"),
                                             ("utf-8", "✓ f(α) ± 1")])
def test_an_output_that_cannot_show_a_sign_gets_a_stand_in(encoding, shown, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", out)
    check("f(α) ± 1", 2.0, 2.0)
    out.flush()
    assert out.buffer.getvalue().decode(encoding).strip() == shown


def test_a_known_mistake_is_named_before_anything_else():
    assert sentence(torch.tensor([[7.0, 1.0]]), [[5.0, 2.0]], MISTAKES) == f"f(x): {SWAPPED}"


def test_a_mistake_may_have_another_shape():
    assert sentence(9.0, [[5.0, 2.0]], MISTAKES) == "f(x): the rows are summed."


def test_the_first_mistake_that_fits_is_told():
    assert sentence(1.0, 2.0, {"first.": 1.0, "second.": 1.0}) == "f(x): first."


def test_an_unknown_mistake_is_located():
    assert sentence([[5.0, 2.5]], [[5.0, 2.0]], MISTAKES) == "f(x) is 2.5 at [0, 1], where 2 was expected."
    assert sentence(1.5, 2.0) == "f(x) is 1.5, where 2 was expected."


def test_a_wrong_shape_is_said_even_if_numpy_would_broadcast():
    assert sentence([5.0, 5.0], [[5.0], [5.0]]) == "f(x) has the shape [2], where [2, 1] was expected."
    assert "shape" in sentence(torch.ones(1), 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_no_near_misses(value):
    assert "NaN or infinity" in sentence([1.0, value], [1.0, 2.0])


@pytest.mark.parametrize("found, fragment", [(None, "does your function end with a return?"), (abs, "was it called?"),
                                             ("five", "gave str, where numbers"), ([[1.0], [1.0, 2.0]], "gave list")])
def test_what_is_no_numbers_is_said(found, fragment):
    assert fragment in sentence(found, [[5.0, 2.0]])


def test_the_tolerance_goes_with_the_greatest_right_value_and_is_at_least_its_own():
    check("f(x)", [1000.009, 0.0], [1000.0, 0.0])
    assert "1000.02" in sentence([1000.02, 0.0], [1000.0, 0.0])
    check("f(x)", 1e-6, 0.0)
    assert "where 0 was expected" in sentence(1e-4, 0.0)
    check("f(x)", 1.05, 1.0, tolerance=0.1)


def test_a_mistake_close_to_the_right_value_does_not_hide_it():
    check("f(x)", 2.0, 2.0, {"the mistake gives the same here.": 2.0})


def test_what_was_found_is_not_changed():
    found = torch.tensor([[5.0, 2.0]])
    check("f(x)", found, [[5.0, 2.0]])
    assert found.tolist() == [[5.0, 2.0]]


# seals ------------------------------------------------------------------------------------------------

arrays = hnp.arrays(float, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
                    elements=st.floats(-1e4, 1e4, allow_nan=False))


@given(arrays, st.floats(-1, 1))
def test_a_seal_fits_what_check_allows_and_nothing_twice_as_far(right, share):
    sealed = seal("f(x)", right)
    allowed = TOLERANCE * max(1.0, numpy.abs(right).max(initial=0.0))
    with redirect_stdout(io.StringIO()):
        check("f(x)", right + 0.99 * share * allowed, sealed)
        if right.size:
            place = tuple(numpy.argwhere(right == right)[-1])
            wrong = right.copy()
            wrong[place] += 2.02 * allowed
            with pytest.raises(AssertionError):
                check("f(x)", wrong, sealed)


def test_a_seal_shows_no_value_and_belongs_to_its_check():
    sealed = seal("f(x)", [[0.125, 7.0]])
    assert sealed.startswith("sealed:1x2:") and "0.125" not in sealed and "7.0" not in sealed
    assert sealed != seal("g(x)", [[0.125, 7.0]]) and sealed != seal("f(x)", [[7.0, 0.125]])
    assert sealed.rpartition(":")[2] != seal("f(x)", [[0.25, 14.0]]).rpartition(":")[2]  # twice the steps, twice as long
    assert "gave [[0.125, 7]]; that is not right" in sentence([[0.125, 7.0]], seal("g(x)", [[0.125, 7.0]]))


def test_sealed_mistakes_are_named_and_sealed_shapes_told(capsys):
    mistakes = {text: seal("f(x)", value) for text, value in MISTAKES.items()}
    right = seal("f(x)", [[5.0, 2.0]])
    check("f(x)", torch.tensor([[5.0, 2.0]]), right, mistakes)
    assert capsys.readouterr().out == "✓ f(x)\n"
    assert sentence([[7.0, 1.0]], right, mistakes) == f"f(x): {SWAPPED}"
    assert sentence(9.0, right, mistakes) == "f(x): the rows are summed."
    assert sentence([[5.0], [2.0]], right, mistakes) == "f(x) has the shape [2, 1], where [1, 2] was expected."
    assert sentence(1.0, seal("f(x)", [1.0])) == "f(x) has the shape [], where [1] was expected."
    assert "NaN" in sentence([[5.0, float("nan")]], right, mistakes)
    shown = sentence([[5.0, 2.5]], right, mistakes)
    assert "gave [[5, 2.5]]" in shown and "by hand" in shown and "2.0" not in shown
    assert len(sentence(numpy.arange(5000.0), seal("f(x)", numpy.zeros(5000)))) < 250


@pytest.mark.parametrize("hide", [lambda value: value, lambda value: seal("f(x)", value)], ids=["plain", "sealed"])
def test_texts_must_be_equal(hide, capsys):
    check("f(x)", ("a", "b"), hide(["a", "b"]), {"turned.": hide(["b", "a"])})
    check("f(x)", "alpha", hide("alpha"))
    assert capsys.readouterr().out == "✓ f(x)\n" * 2
    assert sentence(["b", "a"], hide(["a", "b"]), {"turned.": hide(["b", "a"])}) == "f(x): turned."
    assert sentence([["a", "b"]], hide(["a", "b"]), {"nested.": hide([["a", "b"]])}) == "f(x): nested."
    assert sentence(["a"], hide(["a", "b"])).startswith("f(x) gave ['a']")
    assert sentence([1.0], hide(["a", "b"])) == "f(x) gave float, where texts were expected."


def test_a_second_backward_is_named_and_other_errors_stay():
    loss = (torch.ones(2, requires_grad=True) ** 2).sum()
    with pytest.raises(AssertionError, match=r"^train\(…\): computed once\.$"), recomputed("train(…)", "computed once."):
        loss.backward()
        loss.backward()
    with pytest.raises(KeyError), recomputed("train(…)", "computed once."):
        {}["key"]
