"""CLIP-Adapter: a bottleneck on frozen features, blended by a residual ratio (paper, section 3.2).

    A_v(f) = ReLU(f W1_v) W2_v        f* = α A_v(f) + (1 - α) f
    A_t(W) = ReLU(W W1_t) W2_t        W* = β A_t(W) + (1 - β) W
    p = softmax(cos(f*, W*) / τ)

α = 0 is zero-shot CLIP, α = 1 forgets it. Learned ratios are α, β = Q(f, W): see `ratios.py`.
"""
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ..episodes import Episode
from ..splits import Split
from ..stacking import Task, shape, side_by_side, train_stacked
from ..training import seeded, train
from .adapter_head import CLIPAdapterHead
from .base import Classifier, Method, best_near, class_weights, need_validation, validation_score
from .ratios import PRIOR, decoupled, held_out_of

LEARNED = ("auto", "learned")  # on held-out images, by a SharedRatio and a RatioNetwork
RATIOS = ("alpha", "beta")


@dataclass(frozen=True, kw_only=True)
class CLIPAdapter(Method):
    """CLIP-Adapter with the paper's choices as defaults.

    branch: "visual" (the paper's default), "text" or "both".
    alpha, beta: the residual ratio of the visual and the text branch. A number; "auto" learns it on
        the validation images while the adapter learns on the support set, with a prior worth four
        images, in one fit; "learned" is Q(f, W), learned in the same way; "val" trains one adapter
        for each of `grid` and keeps, of those within one standard error of the highest validation
        accuracy, the one nearest to the prior, then the lower validation cross-entropy (with both
        branches on "val": every pair of every third one of `grid`, at about the cost of one search).
        Without validation images "auto" and "learned" hold out a shot of each class that has two,
        then fit all shots at that ratio; without those too they take the prior's: `details` says
        which.
    reduction: the bottleneck has D / reduction units (paper: 4).
    final_relu: a second ReLU after W2, as in the official code and not in the paper.
    normalize: "after" the blend (official code) or "before" the adapter and not after (LP++,
        cross-modal adaptation).
    balanced: weigh the classes alike in the loss, each image by 1 / (images of its class), for
        supports that have more of some classes; equal numbers make no difference.
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule, in place of 200 epochs of
        minibatches; chosen on the bundled banks' validation parts (README, "Recipes"). The rate is
        divided by the ratio: see `CLIPAdapterHead.groups`.
    Raises ValueError for a setting that cannot be; `fit` raises BankError if "val" meets an episode
    without validation.
    """
    name = "clip-adapter"
    head_class = CLIPAdapterHead
    branch: str = "visual"
    alpha: float | str = "auto"
    beta: float | str = "auto"
    reduction: int = 4
    final_relu: bool = False
    normalize: str = "after"
    balanced: bool = False
    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    steps: int = 120
    rate: float = 5e-4
    weight_decay: float = 1e-2

    def check_settings(self):
        for setting, allowed in (("branch", ("visual", "text", "both")),
                                 ("normalize", ("after", "before"))):
            if getattr(self, setting) not in allowed:
                raise ValueError(f"{setting} must be one of {', '.join(allowed)}; got "
                                 f"{getattr(self, setting)!r}.")
        for setting in ("alpha", "beta"):
            value = getattr(self, setting)
            number = isinstance(value, (int, float)) and 0 <= value <= 1
            if not number and value not in (*LEARNED, "val"):
                raise ValueError(f"{setting} must be a number from 0 to 1, 'auto', 'val' or "
                                 f"'learned'; got {value!r}.")
        words = {ratio for ratio in (self.alpha, self.beta) if isinstance(ratio, str)}
        if self.branch == "both" and len(words) == 2:
            raise ValueError("alpha and beta come about in one way; got "
                             f"{self.alpha!r} and {self.beta!r}, so give both the same word, or "
                             "one of them as a number.")
        if self.reduction < 1:
            raise ValueError("reduction must be at least 1 (the bottleneck is D / reduction "
                             f"wide); got {self.reduction}.")
        if not self.grid or not all(isinstance(ratio, (int, float)) and 0 <= ratio <= 1
                                    for ratio in self.grid):
            raise ValueError("grid must hold at least one number, each from 0 to 1; got "
                             f"{self.grid!r}.")

    @property
    def needs_validation(self):
        return len(self._pairs()) > 1

    @property
    def uses_validation(self):
        return self.needs_validation or bool(set(LEARNED) & set(self._pairs()[0]))

    def _fit(self, episode):
        return side_by_side([self._fitting(episode)], _train_heads)[0]

    @staticmethod
    def fit_many(fits: Sequence[tuple["CLIPAdapter", Episode]]) -> list[Classifier]:
        """`method.fit(episode)` of every pair, side by side: on CUDA heads of one shape are trained
        as one, and elsewhere one after the other. `seconds` is each one's share.
        """
        start = time.perf_counter()
        fits = [(method, method.prepared(episode)) for method, episode in fits]
        with seeded(0):  # every head draws from its own episode's seed
            found = side_by_side([method._fitting(episode) for method, episode in fits], _train_heads)
        fitted = [method._classifier(episode, *each) for (method, episode), each in zip(fits, found)]
        share = (time.perf_counter() - start) / max(len(fits), 1)
        return [replace(classifier, seconds=share) for classifier in fitted]

    def _fitting(self, episode):
        """A generator that yields lists of (method, `Task`) to be trained, and returns what `_fit`
        does.
        """
        pairs, ratios = self._pairs(), 0
        if self.needs_validation:
            need_validation(episode, "the residual ratio")
        if set(LEARNED) & set(pairs[0]):
            head, details = yield from self._fit_held_out(episode, *pairs[0])
            ratios = pairs[0].count("auto")  # parameters that are numbers by now
        else:
            head, details = yield from self._fit_best(episode, pairs)
        alpha, beta = head.alpha, head.beta  # None where there is no such branch
        with torch.no_grad():
            if alpha == "learned":
                alpha = head.alphas(episode.support.view()).mean().item()
            if beta == "learned":
                beta = head.betas().mean().item()
        return head, {"alpha": alpha, "beta": beta, "details": details, "steps": self.steps,
                      "parameters": sum(p.numel() for p in head.parameters()) + ratios}

    def _fit_best(self, episode, pairs):
        """An adapter for each (α, β); the one that the validation images choose, and its details."""
        heads = {pair: self.new_head(episode, *pair) for pair in pairs}
        yield [(self, Task(head, episode.support)) for head in heads.values()]
        if len(heads) == 1:
            return heads[pairs[0]], {}
        scores = {pair: validation_score(head, episode.val) for pair, head in heads.items()}
        chosen, tied = best_near(scores, len(episode.val), PRIOR)
        return heads[chosen], {"tied": tied, "scores": {str(pair): s for pair, s in scores.items()}}

    def _fit_held_out(self, episode, *ratios: float | str | None):
        """An adapter from the support images, its ratios from held-out ones, and its details; see
        the class.
        """
        rest, held_out, source = held_out_of(episode)
        head = self.new_head(replace(episode, support=rest), *ratios)
        if len(held_out):
            yield [(self, Task(head, rest, held_out))]
        if not len(episode.val):  # all shots again, at these ratios
            learned, head = head.ratios, self.new_head(episode, *ratios)
            head.ratios.load_state_dict(learned.state_dict())
            head.settle()
            yield [(self, Task(head, episode.support))]
        else:
            head.settle()
        return head, {"ratio_from": source, "held_out": len(held_out)}

    def reworded(self, head, episode):
        head = deepcopy(head)  # the same adapters, and the same Q, on the new classes' W
        head.weights = episode.text_features
        return head

    def _pairs(self) -> list[tuple[float | str | None, float | str | None]]:
        """The (α, β) to train an adapter for: numbers, "learned", or None where there is no such
        branch.
        """
        both = self.branch == "both" and self.alpha == self.beta == "val"
        searched = self.grid[::3] if both else self.grid
        options = {"visual": searched if self.alpha == "val" else (self.alpha,),
                   "text": searched if self.beta == "val" else (self.beta,)}
        return list(product(*(ratios if self.branch in (branch, "both") else (None,)
                              for branch, ratios in options.items())))

    def new_head(self, episode, alpha: float | str | None, beta: float | str | None) -> CLIPAdapterHead:
        """An adapter that is not trained yet; with one seed every ratio starts from the same."""
        torch.manual_seed(episode.seed)
        weights = episode.text_features  # [C, D]
        pooled = normalize(episode.support.view(), dim=-1).mean(0)  # [D]
        return CLIPAdapterHead(weights, pooled, logit_scale=episode.logit_scale, branch=self.branch,
                               hidden=max(1, weights.shape[1] // self.reduction), alpha=alpha,
                               beta=beta, final_relu=self.final_relu, normalize=self.normalize)

    def train_head(self, head: CLIPAdapterHead, episode, *, held_out: Split | None = None,
                   after_step: Callable[[int], None] | None = None) -> None:
        """Train a head in place: its adapters on the support set, ratios to be learned on
        `held_out`, and without it on the support set too; after_step(step) as `training.train`
        calls it.
        """
        if not head.trains:
            return
        support, classes = episode.support, len(head.weights)
        weights = [class_weights(split, classes) if self.balanced and split is not None else None
                   for split in (support, held_out)]
        train(head.groups(self.rate), partial(_loss, head, support, held_out, weights=weights),
              steps=self.steps, rate=self.rate, weight_decay=self.weight_decay,
              after_step=after_step, still=support.views == 1)


def _loss(head: CLIPAdapterHead, support: Split, held_out: Split | None, step: int,
          weights: Sequence[Tensor | None] = (None, None)) -> Tensor:
    """What training minimises, of a head alone and of stacked ones; weights: of the classes [C], on
    the support and the held-out images.
    """
    if held_out is not None:
        return decoupled(head, support, held_out, step, weights)
    return cross_entropy(head(support.view(step)), support.labels, weights[0])


def _train_heads(work: Sequence[tuple[CLIPAdapter, Task]], stacked: bool | None = None) -> None:
    """Train heads in place, those of one shape as one if `stacked`; by default on CUDA."""
    work = [(method, task) for method, task in work if task.head.trains]
    if stacked is None:
        stacked = len(work) > 1 and work[0][1].head.place.is_cuda
    alike: dict[tuple, list[tuple[CLIPAdapter, Task]]] = {}
    for i, (method, task) in enumerate(work):
        key = method.steps, method.rate, method.weight_decay, shape(task, RATIOS)
        alike.setdefault(key if stacked and not method.balanced else i, []).append((method, task))
    for group in alike.values():
        method, tasks = group[0][0], [task for _, task in group]
        if len(tasks) == 1:
            method.train_head(tasks[0].head, tasks[0], held_out=tasks[0].held_out)
        else:
            train_stacked(tasks, _loss, lambda head, rate=method.rate: head.groups(rate),
                          numbers=RATIOS, steps=method.steps, rate=method.rate,
                          weight_decay=method.weight_decay)
