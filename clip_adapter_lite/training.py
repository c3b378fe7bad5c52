"""The one training loop that all gradient methods share: full batch on features, one optimiser, a
cosine schedule.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def cosine(done: float) -> float:
    """Half a cosine: the factor on the learning rate when the fraction `done` of the training is
    over.
    """
    return 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, gradients flow and all randomness comes from `seed`; after it the caller's generators
    are as they were.
    """
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def train(parameters: Iterable[Tensor] | list[dict], loss: Callable[[int], Tensor], *, steps: int,
          rate: float, optimizer: str = "adamw", weight_decay: float = 0.0,
          schedule: Callable[[int], float] | None = None,
          after_step: Callable[[int], None] | None = None) -> None:
    """Minimise `loss(step)` over `parameters`, in place.

    parameters: tensors, or torch's parameter groups, of which one with its own "lr" peaks there
    instead of at `rate`, and one with a "factor" multiplies its rate by what that function returns
    at each step.
    optimizer: "adamw", or "sgd" (momentum 0.9, CoOp's). rate: the peak learning rate;
    schedule(step): the factor on it, half a cosine over all steps by default. after_step(step) is
    called after each update, for training curves.
    Raises FloatingPointError, naming the rate, if the last loss is not finite.
    """
    parameters, schedule = list(parameters), schedule or (lambda step: cosine(step / steps))
    if optimizer == "sgd":
        stepper = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=weight_decay)
    elif optimizer == "adamw":
        stepper = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    else:
        raise ValueError(f"optimizer must be 'adamw' or 'sgd'; got {optimizer!r}.")
    peaks = [group["lr"] for group in stepper.param_groups]
    for step in range(steps):
        for group, peak in zip(stepper.param_groups, peaks):
            group["lr"] = peak * schedule(step) * group.get("factor", lambda: 1.0)()
        stepper.zero_grad()
        value = loss(step)
        value.backward()
        stepper.step()
        if after_step:
            after_step(step)
    if steps and not math.isfinite(value.item()):
        raise FloatingPointError(f"The training loss is {value.item()} after {steps} steps; lower "
                                 f"the learning rate (it is {rate}).")
