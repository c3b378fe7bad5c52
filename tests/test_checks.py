"""The visible checks: what they accept, and which sentence they say."""
import io

import numpy
import pytest
import torch

from clip_adapter_lite.checks import check

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
