"""Where things are computed, how precisely and by how many threads: the one place that decides.

The rule: what you hand over comes back where it was (`Classifier.logits(x)` is on the device of x);
what is made from pictures and words (features, classifier weights) comes back on the CPU in
float32. Only a head and the inside of a text tower (`embed`, `encode_tokens`, `encode_prefix`)
speak the device's own language. A method, its episode and the episode's
backbone are on one device: the method's.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def best_device(device: str | torch.device = "auto") -> torch.device:
    """`device` itself, or for "auto" the first there is of CUDA, MPS and the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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
