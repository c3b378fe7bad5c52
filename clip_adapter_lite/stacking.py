"""Heads of one shape trained as one: their products become batched ones, which a GPU does in about
the time of a single small head's.

There is no second copy of any equation. `torch.func` runs a head's own loss under vmap over the
stacked tensors, and the losses are summed. Each head's parameters stay leaves of their own, so each
gets its own gradient, and in torch's AdamW its own rate. On a CPU stacking gains nothing (0.9 times,
measured): there runs go to processes.
"""
from collections.abc import Callable, Generator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .splits import Split
from .training import train


class Images(NamedTuple):
    """What a loss asks of a `Split`, as torch.func takes it: features [N, D] and labels [N]."""
    features: Tensor
    labels: Tensor

    def view(self, step: int = 0) -> Tensor:
        return self.features


class Task(NamedTuple):
    """A head to be trained in place on the support images, and its learned ratios on `held_out`."""
    head: nn.Module
    support: Split
    held_out: Split | None = None


class _Loss(nn.Module):
    """`loss(head, support, held_out, step)` as a module, which `functional_call` wants."""

    def __init__(self, head: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.head, self.loss = head, loss

    def forward(self, *given) -> Tensor:
        return self.loss(self.head, *given)


def shape(task: Task, numbers: Sequence[str] = ()) -> tuple:
    """What heads must have in common to be stacked: everything but the values of tensors, and of
    the attributes `numbers` where these are numbers.
    """
    options = {name: "a number" if name in numbers and isinstance(value, (int, float)) else value
               for name, value in task.head.options.items()}
    tensors = [(name, tensor.shape, tensor.dtype, tensor.device)
               for name, tensor in task.head.state_dict().items()]
    images = [split and (split.features.shape, split.features.dtype) for split in task[1:]]
    return repr(options), *tensors, *images


def stacked_loss(tasks: Sequence[Task], loss: Callable[..., Tensor],
                 numbers: Sequence[str] = ()) -> Callable[[int], Tensor]:
    """step → the sum of `loss(head, support, held_out, step)` over tasks of one `shape`.

    numbers: attributes of the heads that may differ, if they are numbers.
    """
    heads = [task.head for task in tasks]
    template = deepcopy(heads[0])
    numbers = [name for name in numbers if isinstance(getattr(template, name), (int, float))]
    place = next(heads[0].parameters())
    fixed = {f"head.{name}": _joined([dict(head.named_buffers())[name] for head in heads])
             for name, _ in template.named_buffers()}
    for name in numbers:
        fixed[f"head.{name}"] = place.new_tensor([getattr(head, name) for head in heads]), 0
        delattr(template, name)
        template.register_buffer(name, place.new_tensor(0.0))
    leaves = {f"head.{name}": [dict(head.named_parameters())[name] for head in heads]
              for name, _ in template.named_parameters()}
    module = _Loss(template, loss)
    supports = _split([task.support for task in tasks])
    held_out = _split([task.held_out for task in tasks])
    tensors, dims = ({name: pair[i] for name, pair in fixed.items()} for i in (0, 1))
    kept: dict[int, tuple] = {}  # of each view, so that a step that is the same computes no copies

    def of_step(step: int) -> Tensor:
        view = step % tasks[0].support.views
        if view not in kept:
            kept[view] = supports(view), held_out(0)
        (images, images_dims), (held, held_dims) = kept[view]
        trained = {name: torch.stack(each) for name, each in leaves.items()}
        each = vmap(lambda trained, tensors, images, held:
                    functional_call(module, {**trained, **tensors}, (images, held, step)),
                    in_dims=(0, dims, images_dims, held_dims))
        return each(trained, tensors, images, held).sum()

    return of_step


def _joined(each: Sequence[Tensor]) -> tuple[Tensor, int | None]:
    """Tensors stacked and vmap's dimension 0, or the one that they all are, and None."""
    if all(tensor is each[0] for tensor in each):
        return each[0], None
    return torch.stack(list(each)), 0


def _split(each: Sequence[Split | None]) -> Callable[[int], tuple]:
    """step → the `Images` of all splits, stacked where they differ, and vmap's dimensions of them."""
    def at(step: int) -> tuple:
        if each[0] is None:
            return None, None
        if all(split is each[0] for split in each):
            return Images(each[0].view(step), each[0].labels), None
        return (Images(torch.stack([split.view(step) for split in each]),
                       torch.stack([split.labels for split in each])), 0)
    return at


def train_stacked(tasks: Sequence[Task], loss: Callable[..., Tensor],
                  groups: Callable[[nn.Module], list[dict]], *, numbers: Sequence[str] = (),
                  **options) -> None:
    """Train heads of one `shape` as one, in place; groups(head): its parameter groups.

    options: those of `training.train`. A stack that the device has too little memory for is halved
    until it fits.
    """
    parameters = [p for task in tasks for p in task.head.parameters()]
    before = [p.detach().clone() for p in parameters]
    try:
        return train(_merged([group for task in tasks for group in groups(task.head)]),
                     stacked_loss(tasks, loss, numbers), still=tasks[0].support.views == 1, **options)
    except torch.cuda.OutOfMemoryError:
        if len(tasks) == 1:
            raise
    # here, where the failed attempt's tensors are no longer held by its traceback
    with torch.no_grad():
        for parameter, start in zip(parameters, before):
            parameter.copy_(start)
            parameter.grad = None
    torch.cuda.empty_cache()
    half = len(tasks) // 2
    for part in (tasks[:half], tasks[half:]):
        train_stacked(part, loss, groups, numbers=numbers, **options)


def _merged(groups: Sequence[dict]) -> list[dict]:
    """Parameter groups, those of equal settings as one: the optimiser launches its work by group."""
    found: dict[tuple, dict] = {}
    for group in groups:
        rest = {key: value for key, value in group.items() if key != "params"}
        found.setdefault(tuple(rest.items()), rest | {"params": []})["params"] += group["params"]
    return list(found.values())


def side_by_side(plans: Sequence[Generator[list[Any], None, Any]],
                 carry_out: Callable[[list[Any]], None]) -> list[Any]:
    """What each generator returns. They yield lists of work; what all of them ask for at one time
    is carried out together before they go on.
    """
    returned, going_on = [None] * len(plans), dict(enumerate(plans))
    while going_on:
        work = []
        for i, plan in list(going_on.items()):
            try:
                work += next(plan)
            except StopIteration as end:
                returned[i] = end.value
                del going_on[i]
        if work:
            carry_out(work)
    return returned
