"""The one training loop that all gradient methods share: full batch on features, one optimiser, a
cosine schedule.

On CUDA a step of these small problems is bound by the launch of its kernels. There rates live in
tensors, so that no step waits for the device, and a step that is the same every time is captured
once in a CUDA graph and replayed.
"""
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

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
    # all, as by default, where several bring a warning; a fit on the CPU starts no CUDA for it
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        yield


def train(parameters: Iterable[Tensor] | list[dict], loss: Callable[[int], Tensor], *, steps: int,
          rate: float, optimizer: str = "adamw", weight_decay: float = 0.0,
          schedule: Callable[[int], float] | None = None,
          after_step: Callable[[int], None] | None = None, still: bool = False) -> None:
    """Minimise `loss(step)` over `parameters`, in place.

    parameters: tensors, or torch's parameter groups, of which one with its own "lr" peaks there
    instead of at `rate`, and one with a "factor" multiplies its rate by what that function returns
    at each step: a number, or on CUDA a tensor without dimensions.
    optimizer: "adamw", or "sgd" (momentum 0.9, CoOp's). rate: the peak learning rate;
    schedule(step): the factor on it, half a cosine over all steps by default. after_step(step) is
    called after each update, for training curves.
    still: loss(step) computes the same at every step, from the same tensors, so a GPU may replay it.
    Raises FloatingPointError, naming the rate, if the last loss is not finite.
    """
    parameters, schedule = list(parameters), schedule or (lambda step: cosine(step / steps))
    if optimizer == "sgd":
        stepper = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=weight_decay)
    elif optimizer == "adamw":
        stepper = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    else:
        raise ValueError(f"optimizer must be 'adamw' or 'sgd'; got {optimizer!r}.")
    place = stepper.param_groups[0]["params"][0].device
    replayable = optimizer == "adamw" and place.type == "cuda"
    set_rates = (_rates_on_device if replayable else _rates)(stepper.param_groups, schedule, steps)

    def update(step: int) -> Tensor:
        set_rates(step)
        stepper.zero_grad()
        value = loss(step)
        value.backward()
        stepper.step()
        return value.detach()

    if replayable and still and not after_step:
        value = _replayed(update, steps, place)
        stepper.zero_grad()  # gradients lie in the graph's memory
    else:
        for step in range(steps):
            value = update(step)
            if after_step:
                after_step(step)
    if steps and not math.isfinite(value.item()):
        raise FloatingPointError(f"The training loss is {value.item()} after {steps} steps; lower "
                                 f"the learning rate (it is {rate}).")


def _rates(groups: list[dict], schedule: Callable[[int], float], steps: int) -> Callable[[int], None]:
    """A function that gives every group its rate at a step."""
    peaks = [group["lr"] for group in groups]

    def set_rates(step: int) -> None:
        for group, peak in zip(groups, peaks):
            group["lr"] = peak * schedule(step) * group.get("factor", lambda: 1.0)()

    return set_rates


def _rates_on_device(groups: list[dict], schedule: Callable[[int], float],
                     steps: int) -> Callable[[int], None]:
    """The same with rates in tensors; it counts the steps there itself, so it can be replayed."""
    device = groups[0]["params"][0].device
    # single precision, whatever the parameters': CUDA's fused AdamW takes no other rate
    table, peaks = (torch.tensor(numbers, dtype=torch.float32, device=device) for numbers in (
        [schedule(step) for step in range(steps)], [group["lr"] for group in groups]))
    rates, now = peaks.clone(), torch.zeros(1, dtype=torch.int64, device=device)
    for i, group in enumerate(groups):
        group.update(lr=rates[i], capturable=device.type == "cuda")

    @torch.no_grad()
    def set_rates(step: int) -> None:
        torch.mul(peaks, table[now], out=rates)
        for group in groups:
            if "factor" in group:
                group["lr"].mul_(group["factor"]())
        now.add_(1)

    return set_rates


WARM = 3  # steps before the capture: there libraries start up and the optimiser makes its state


@cache
def _aside(device: torch.device) -> tuple[torch.cuda.Stream, Lock]:
    """The stream beside the caller's on which steps are captured, and who has it: one fit at a time.

    One for all fits, for cuBLAS keeps its 32 MB of workspace for every stream that it ever saw.
    """
    return torch.cuda.Stream(device), Lock()


def _replayed(update: Callable[[int], Tensor], steps: int, device: torch.device) -> Tensor | None:
    """`update(step)` for every step, from the fourth on as one replayed CUDA graph; the last loss.

    What cannot be captured, as it waits for the device, goes on step by step. Capturing computes
    nothing, so a failed one has changed nothing. Other threads may use the device meanwhile.
    """
    caller, (side, alone) = torch.cuda.current_stream(device), _aside(device)
    with alone:
        side.wait_stream(caller)
        try:
            with torch.cuda.stream(side):  # on its device
                return _steps(update, steps, side)
        finally:  # of a failed fit too: what is tried next writes over the same tensors
            caller.wait_stream(side)


def _steps(update: Callable[[int], Tensor], steps: int, stream: torch.cuda.Stream) -> Tensor | None:
    """What `_replayed` does, on the current `stream`."""
    value, graph = None, None
    for step in range(min(WARM, steps)):
        value = update(step)
    if steps > WARM:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                captured = update(WARM)
        except RuntimeError:
            graph = None
    for step in range(WARM, steps):
        if graph is None:
            value = update(step)
        else:
            graph.replay()
    return value if graph is None else captured.clone()  # which lies in the graph's memory
