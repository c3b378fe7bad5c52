"""Where things are computed, how precisely and by how many threads: the one place that decides.

The rule: what you hand over comes back where it was (`Classifier.logits(x)` is on the device of x);
what is made from pictures and words (features, classifier weights) comes back on the CPU in
float32. Only a head and the inside of a text tower (`embed`, `encode_tokens`, `encode_prefix`)
speak the device's own language. A method, its episode and the episode's
backbone are on one device: the method's.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from .errors import one_line

ON_THE_CPU = "to compute on the CPU instead, hide it with CUDA_VISIBLE_DEVICES= (device='cpu')"


def best_device(device: str | torch.device = "auto") -> torch.device:
    """`device` itself, or for "auto" the first there is of CUDA, MPS and the CPU.

    Raises RuntimeError for a GPU of NVIDIA's that cannot be used: no driver, one too old for this
    torch, a busy card, a number that there is not.
    """
    if str(device) != "auto":
        found = torch.device(device)
    elif torch.cuda.is_available():
        found = torch.device("cuda")
    else:
        found = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if found.type == "cuda":
        must_work(found)
    return found


@cache  # what works is not tried again; what raised is
def must_work(device: torch.device) -> None:
    """Raise RuntimeError, one sentence, if nothing can be computed on a CUDA device."""
    try:
        torch.zeros(1, device=device)
    except torch.cuda.OutOfMemoryError as error:
        raise RuntimeError(f"{device} has no free memory ({one_line(error)[:200]}); stop what else "
                           f"uses it, or {ON_THE_CPU}.") from error
    # AssertionError: a torch that was built without CUDA
    except (RuntimeError, AssertionError) as error:
        raise RuntimeError(f"{device} cannot be used ({one_line(error)[:200]}); see what `nvidia-smi` "
                           f"says of the card and its driver, or {ON_THE_CPU}.") from error


def in_parts(work: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, most: int, what: str,
             device: torch.device | None = None) -> tuple[torch.Tensor, int]:
    """`work` on at most so many rows at a time, joined, and how many fitted into the memory: `most`,
    halved until they do. Raises RuntimeError if one of `what` is too many.
    """
    while True:
        try:
            return torch.cat([work(part) for part in rows.split(most)]), most
        except torch.cuda.OutOfMemoryError as error:
            tried = min(most, len(rows))
            if tried == 1:
                raise RuntimeError(f"{device or rows.device} has too little free memory for one {what} "
                                   f"({one_line(error)}); stop what else uses it, or "
                                   f"{ON_THE_CPU}.") from error
        # here, where the failed attempt's tensors are no longer held by its traceback
        most = tried // 2
        torch.cuda.empty_cache()


def tower_precision(device: torch.device) -> str:
    """How open_clip is to build a tower for a device: "fp16" on CUDA, whose norms stay float32,
    else "fp32".
    """
    return "fp16" if device.type == "cuda" else "fp32"


def method_dtype(features: torch.dtype, device: torch.device) -> torch.dtype:
    """What a method computes in: the features' dtype, but float32 at least, and float64 only where
    the device has it.

    AdamW divides by 0 in half precision; Apple's GPU (MPS) has no float64.
    """
    return torch.float32 if device.type == "mps" else torch.promote_types(features, torch.float32)


def as_array(values):
    """Numbers, an array, or a tensor on any device and with any gradient, as a numpy array: for
    plots, tables and files.
    """
    import numpy
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # numpy has none
    return numpy.asarray(values)


@contextmanager
def threads(most: int) -> Iterator[None]:
    """At most so many torch threads inside, the caller's number again after: small matrices get
    slower with more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)
