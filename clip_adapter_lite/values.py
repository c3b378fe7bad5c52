"""What people hand over (tensors, arrays, lists, columns of tables, numbers of numpy) as what is
computed with here.
"""
from collections.abc import Iterable
from operator import index
from pathlib import PurePath

import torch
from torch import Tensor

from .errors import BankError

LABELS = "give each the place of its class among the class names, as classnames.index(name) has it"


def as_tensor(values, must: str, do: str) -> Tensor:
    """Numbers as a tensor without a graph: a tensor where it is, anything else (an array, a list, a
    column) on the CPU.

    Nothing is copied that torch can hold. Raises BankError, "`must`; got …; `do`.", for what holds
    no numbers.
    """
    if not isinstance(values, Tensor):
        import numpy
        got = f"{type(values).__name__} that is no array of numbers"
        try:
            listed = isinstance(values, (list, tuple)) and values
            if listed and all(isinstance(value, Tensor) for value in values):
                values = torch.stack(values)
            else:
                array = numpy.asarray(values)
                if array.dtype == object:  # a column of whole numbers may be one of objects
                    array = numpy.asarray(array.tolist())
                got = "words" if array.dtype.kind in "UST" else got
                # torch takes no other byte order and no negative stride, and warns of what is read-only
                values = torch.from_numpy(numpy.require(array, array.dtype.newbyteorder("="), "CW"))
        except Exception as error:  # numpy, torch and tables have their own
            raise BankError(f"{must}; got {got}; {do}.") from error
    values = values.detach().to_dense()
    if values.is_inference():  # torch refuses these in training
        with torch.inference_mode(False):
            values = values.clone()
    return values


def as_labels(values, count: int, what: str) -> Tensor:
    """Labels as integers [count]. Raises BankError for words, truth values, floating point and
    other shapes.
    """
    must = f"{what} must be {count} integers, one for each image"
    labels = as_tensor(values, must, LABELS)
    # an empty list is one of floating point
    if labels.shape != (count,) or not is_whole(labels) and count:
        raise BankError(f"{must}; got {labels.dtype} of shape {list(labels.shape)}; {LABELS}.")
    return labels.long()


def is_whole(tensor: Tensor) -> bool:
    """Whether it holds integers, and not truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def whole_number(value, what: str) -> int:
    """A whole number of Python, numpy or torch as Python's own. Raises BankError for anything else,
    a truth value too.
    """
    try:
        number = index(None if isinstance(value, bool) else value)
    except TypeError:
        number = None
    if number is None or not -2 ** 63 <= number < 2 ** 63:  # torch takes no larger seed
        raise BankError(f"{what} must be a whole number; got {shown(value)}.")
    return number


def as_texts(values, what: str) -> list[str]:
    """Names or sentences as a list; one alone is a list of one. Raises BankError for none, blank
    ones and what is no text.
    """
    found = [values] if isinstance(values, str) else values
    found = list(found) if isinstance(found, Iterable) else [found]
    wrong = [text for text in found if not isinstance(text, str) or not text.replace("_", " ").strip()]
    if wrong or not found:
        raise BankError(f"{what} must be texts, one at least and none of them blank; got "
                        f"{shown(wrong[0]) if wrong else 'none'}.")
    return found


def names_given(values, what: str) -> list[str]:
    """Names, each once, or none; one alone is a list of one. Raises BankError as `as_texts` does."""
    none = values is None or hasattr(values, "__len__") and not len(values)
    return [] if none else list(dict.fromkeys(as_texts(values, what)))


def as_scale(value, dataset: str) -> float:
    """A logit_scale, a number over 0 or a tensor as a model has it, as a number of Python's. Raises
    BankError for others.
    """
    must = f"{dataset}: logit_scale must be positive (CLIP's is 100)"
    found = as_tensor(value, must, "give a number")
    if found.numel() != 1 or found.is_complex() or not 0 < found.item() < float("inf"):
        raise BankError(f"{must}; got {shown(plain(found))}.")
    return float(found.item())


def shown(value) -> str:
    """A value as part of a sentence, which goes on one line."""
    return " ".join(repr(value).split()).replace(". ", "; ")[:80]


def plain(value):
    """Numbers of numpy and torch as Python's own, lists and arrays as tuples of such; anything else
    as it is. Numbers of single precision are read as the decimals that were meant: 0.2, and not
    0.20000000298.
    """
    single = str(getattr(value, "dtype", "")).endswith("float32")
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float) and single:
        return float(f"{value:.7g}")
    if isinstance(value, list) and single:  # an array: its numbers, too
        return tuple(plain(torch.tensor(one)) for one in value)
    return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value


def as_json(value):
    """Numbers of numpy and torch, devices and paths, for `json.dumps(default=as_json)`. Raises
    TypeError for others.
    """
    if isinstance(value, (torch.device, PurePath)):
        return str(value)
    if not hasattr(value, "tolist"):
        raise TypeError(f"{shown(value)} cannot be written as JSON; give numbers, texts, lists and "
                        "dictionaries.")
    return value.tolist()
