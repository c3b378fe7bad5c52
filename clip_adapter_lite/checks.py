"""The visible checks of the exercises: right or wrong, and if wrong, which known mistake gives just
these values.

A hand-out holds no right values, only their seals (`seal`): what a function gives can be compared
with a seal, but nobody reads the values off it. Where work is graded, checks run in the grader's
own process, which asks the learner's for answers.
"""
import base64
import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import contextmanager

from .naming import showable

SECRET = 0  # the grader draws one in each run
SEALED, TOLERANCE = "sealed:", 1e-5
SHOWN = 12  # of the learner's own values, in a message


def fresh(number: int) -> int:
    """A seed for the inputs of a hidden test: `number` itself, or, in the grader, one for this run."""
    return number ^ SECRET << 8


def check(what: str, found, right, mistakes: Mapping[str, object] | None = None, *,
          tolerance: float = TOLERANCE) -> None:
    """Say that `what` is right, or raise AssertionError with one sentence that names the mistake.

    found, right: numbers, or tensors, arrays or lists of the same shape; they may differ by
    `tolerance` times the greatest right value (at least 1). Or texts and lists of texts, which must
    be equal. mistakes: {sentence: what that mistake gives}; the first that fits is told. Values of
    mistakes may have another shape than the right ones. In the place of any value may stand its
    `seal`, made for this `what` (then `tolerance` was given to it).
    """
    if found is None:
        raise AssertionError(f"{what} gave None; does your function end with a return?")
    if callable(found):
        raise AssertionError(f"{what} gave a function, where values were expected; was it called?")
    texts = right.startswith(f"{SEALED}text") if _is_seal(right) else _holds_text(right)
    found = _texts(what, found) if texts else _array(what, found)
    if _fits(what, found, right, tolerance):
        print(showable(f"✓ {what}"))
        return
    for sentence, value in (mistakes or {}).items():
        if _fits(what, found, value, tolerance):
            raise AssertionError(f"{what}: {sentence}")
    raise AssertionError(_difference(what, found, right))


@contextmanager
def recomputed(what: str, sentence: str):
    """Around a call of an answer that trains: torch's error of a second backward() through one graph
    becomes the AssertionError `what: sentence`. What is differentiated was computed once, not in
    every step."""
    try:
        yield
    except Exception as error:  # in the grader, where it comes from another process, no RuntimeError
        if "backward through the graph a second time" not in str(error):
            raise
        raise AssertionError(f"{what}: {sentence}") from None


def seal(what: str, value, tolerance: float = TOLERANCE) -> str:
    """`value` for `check(what, …)` in a form that can be compared with and not be read.

    It holds the value's shape, the size of a step (a power of 2 above twice the tolerance), where
    between two steps each number lies, and a hash of all of them in whole steps. Numbers fit that
    differ by less than half a step; that is between one and two times what `check` allows. Single
    numbers can be found by trying all; a seal keeps honest eyes off, and is no wall.
    """
    import numpy
    if _holds_text(value):
        return f"{SEALED}text:{_hash(what, json.dumps(value, ensure_ascii=False))}"
    right = numpy.asarray(_plain(value), dtype=float)
    finite = numpy.abs(right[numpy.isfinite(right)])
    power = math.ceil(math.log2(2 * tolerance * max(1.0, finite.max(initial=0.0))))
    steps = numpy.where(numpy.isfinite(right), right, 0) * 2.0 ** -power
    places = numpy.floor((steps - numpy.floor(steps)) * 256).astype(numpy.uint8)
    shape = "x".join(map(str, right.shape))
    head = f"{SEALED}{shape}:{power}:{base64.b64encode(places.tobytes()).decode()}"
    return f"{head}:{_hash(what + head, _in_steps(right, power, places))}"


def _is_seal(value) -> bool:
    return isinstance(value, str) and value.startswith(SEALED)


def _holds_text(value) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str)


def _in_steps(found, power: int, places) -> bytes:
    """Numbers in whole steps of 2 to the `power`, counted from their places between two steps."""
    import numpy
    places = places.reshape(found.shape)
    with numpy.errstate(invalid="ignore", over="ignore"):
        steps = numpy.rint(found * 2.0 ** -power - (places + 0.5) / 256)
    return (steps + 0.0).tobytes()  # + 0.0: there are two zeros, of different bytes


def _hash(what: str, value: str | bytes) -> str:
    value = value if isinstance(value, bytes) else value.encode()
    return base64.b64encode(hashlib.sha256(what.encode() + b"\0" + value).digest()[:12]).decode()


def _fits(what: str, found, wanted, tolerance: float) -> bool:
    """Whether `found`, an array or texts, is `wanted`: a value or the seal of one."""
    import numpy
    if not isinstance(found, numpy.ndarray):
        return seal(what, found) == (wanted if _is_seal(wanted) else seal(what, wanted))
    if not _is_seal(wanted):
        return not _holds_text(wanted) and _close(
            found, numpy.asarray(_plain(wanted), dtype=float), tolerance)
    if wanted.startswith(f"{SEALED}text"):
        return False
    head, _, hashed = wanted.rpartition(":")
    shape, power, places = head.removeprefix(SEALED).split(":")
    if "x".join(map(str, found.shape)) != shape:
        return False
    places = numpy.frombuffer(base64.b64decode(places), dtype=numpy.uint8)
    return _hash(what + head, _in_steps(found, int(power), places)) == hashed


def _difference(what: str, found, right) -> str:
    """What is wrong with values that are those of no known mistake."""
    import numpy
    if not isinstance(found, numpy.ndarray):
        return f"{what} gave {found!r}" + ("; that is not it." if _is_seal(right) else
                                           f", where {right!r} was expected.")
    shape = list(numpy.shape(_plain(right)))
    if _is_seal(right):
        shape = [int(n) for n in right.removeprefix(SEALED).split(":")[0].split("x") if n]
    if list(found.shape) != shape:
        return f"{what} has the shape {list(found.shape)}, where {shape} was expected."
    if not numpy.isfinite(found).all():
        return f"{what} holds NaN or infinity; look for a division by zero or a log of zero."
    if _is_seal(right):
        shown = numpy.array2string(found, separator=", ", threshold=SHOWN, edgeitems=2,
                                   formatter={"float_kind": "{:.6g}".format})
        return (f"{what} gave {' '.join(shown.split())}; that is not right, and none of the mistakes "
                "that are known here. Work one number out by hand and compare.")
    right = numpy.asarray(_plain(right), dtype=float)
    place = tuple(int(i) for i in numpy.unravel_index(numpy.abs(found - right).argmax(), right.shape))
    where = f" at {list(place)}" if place else ""
    return f"{what} is {found[place]:.6g}{where}, where {right[place]:.6g} was expected."


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


def _texts(what: str, value):
    """A text or a list, of lists, of texts."""
    def plain(one):
        if isinstance(one, list | tuple):
            return [plain(each) for each in one]
        if isinstance(one, str):
            return one
        raise AssertionError(f"{what} gave {type(one).__name__}, where texts were expected.")
    return plain(value)


def _close(found, wanted, tolerance: float) -> bool:
    import numpy
    return found.shape == wanted.shape and bool(numpy.all(
        numpy.abs(found - wanted) <= tolerance * max(1.0, float(numpy.abs(wanted).max(initial=0.0)))))
