"""The visible checks of the exercises: right or wrong, and if wrong, which known mistake gives just
these values.

Where work is graded, checks run in the grader's own process, which asks the learner's for answers.
"""
from collections.abc import Mapping

from .naming import showable

SECRET = 0  # the grader draws one in each run


def fresh(number: int) -> int:
    """A seed for the inputs of a hidden test: `number` itself, or, in the grader, one for this run."""
    return number ^ SECRET << 8


def check(what: str, found, right, mistakes: Mapping[str, object] | None = None, *,
          tolerance: float = 1e-5) -> None:
    """Say that `what` is right, or raise AssertionError with one sentence that names the mistake.

    found, right: numbers, or tensors, arrays or lists of the same shape; they may differ by
    `tolerance` times the greatest right value (at least 1). mistakes: {sentence: what that mistake
    gives}; the first that fits is told. Values of mistakes may have another shape than the right
    ones.
    """
    import numpy
    if found is None:
        raise AssertionError(f"{what} gave None; does your function end with a return?")
    if callable(found):
        raise AssertionError(f"{what} gave a function, where values were expected; was it called?")
    found, right = _array(what, found), numpy.asarray(_plain(right), dtype=float)
    if _close(found, right, tolerance):
        print(showable(f"✓ {what}"))
        return
    for sentence, value in (mistakes or {}).items():
        if _close(found, numpy.asarray(_plain(value), dtype=float), tolerance):
            raise AssertionError(f"{what}: {sentence}")
    if found.shape != right.shape:
        raise AssertionError(f"{what} has the shape {list(found.shape)}, where {list(right.shape)} "
                             "was expected.")
    if not numpy.isfinite(found).all():
        raise AssertionError(f"{what} holds NaN or infinity; look for a division by zero or a log "
                             "of zero.")
    place = tuple(int(i) for i in numpy.unravel_index(numpy.abs(found - right).argmax(), right.shape))
    where = f" at {list(place)}" if place else ""
    raise AssertionError(f"{what} is {found[place]:.6g}{where}, where {right[place]:.6g} was expected.")


def _plain(value):
    """Tensors (with gradients, on any device) as arrays; everything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _array(what: str, value):
    import numpy
    try:
        return numpy.asarray(_plain(value), dtype=float)
    except (TypeError, ValueError):
        raise AssertionError(f"{what} gave {type(value).__name__}, where numbers or a tensor were "
                             "expected.") from None


def _close(found, wanted, tolerance: float) -> bool:
    import numpy
    return found.shape == wanted.shape and bool(numpy.all(
        numpy.abs(found - wanted) <= tolerance * max(1.0, float(numpy.abs(wanted).max(initial=0.0)))))
