"""CLIP-Adapter: a bottleneck on frozen features, blended with them by a residual ratio (paper, section 3.2).

    A_v(f) = ReLU(f W1_v) W2_v        f* = α A_v(f) + (1 - α) f
    A_t(W) = ReLU(W W1_t) W2_t        W* = β A_t(W) + (1 - β) W
    p = softmax(cos(f*, W*) / τ)

α = 0 is zero-shot CLIP, α = 1 forgets it. Learned ratios are α, β = Q(f, W) in the paper; the architecture of Q is in no
readable source, so `RatioNetwork` is our own design.
"""
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

from ..training import train
from .base import Method, cosine_logits, lengths, need_validation, validation_score


class Bottleneck(nn.Module):
    """A(x) = ReLU(x W1) W2, with [D, hidden] and [hidden, D] weights and no bias; final_relu puts a ReLU after W2."""

    def __init__(self, width: int, hidden: int, final_relu: bool = False):
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(relu(self.down(x)))
        return relu(x) if self.final_relu else x


class RatioNetwork(nn.Module):
    """Q(f, W), our design: two layers on an image feature beside a class's, sigmoid outputs α and β.

    α is asked per image with the mean of W in the class's place, β per class with the mean support feature in the image's
    place, so that no prediction depends on the other images of its batch. Both start at exactly `start`.
    """

    def __init__(self, width: int, hidden: int = 32, start: float = 0.2):
        super().__init__()
        self.first = nn.Linear(2 * width, hidden)
        self.last = nn.Linear(hidden, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, math.log(start / (1 - start)))

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(α, β), each [N, 1], of features [N, D] and weights [N, D]; either may be one row for all."""
        features, weights = torch.broadcast_tensors(normalize(features, dim=-1), normalize(weights, dim=-1))
        pair = torch.cat([features, weights], dim=-1) * features.shape[-1] ** 0.5  # entries of about unit size
        alpha, beta = torch.sigmoid(self.last(relu(self.first(pair)))).split(1, dim=-1)
        return alpha, beta


class CLIPAdapterHead(nn.Module):
    """Adapter(s), ratios and classifier weights: features [N, D] → logits [N, C].

    weights: W [C, D]; pooled: [D], the mean direction of the support features, for Q. branch: "visual", "text", "both".
    alpha, beta: numbers, or None to ask a RatioNetwork. normalize: "after" brings f* and W* to unit length (the logits are
    then logit_scale · cos(f*, W*)); "before" does so to f and W, and not after the blend.
    """

    def __init__(self, weights: Tensor, pooled: Tensor, *, logit_scale: float, branch: str, hidden: int,
                 alpha: float | None, beta: float | None, final_relu: bool = False, normalize: str = "after"):
        super().__init__()
        self.options = {"logit_scale": logit_scale, "branch": branch, "hidden": hidden, "alpha": alpha, "beta": beta,
                        "final_relu": final_relu, "normalize": normalize}
        self.register_buffer("weights", weights)
        self.register_buffer("pooled", pooled)
        self.width = width = weights.shape[1]
        self.alpha, self.beta, self.logit_scale, self.normalize = alpha, beta, logit_scale, normalize
        self.visual = Bottleneck(width, hidden, final_relu).to(weights) if branch != "text" else None
        self.text = Bottleneck(width, hidden, final_relu).to(weights) if branch != "visual" else None
        learned = (self.visual and alpha is None) or (self.text and beta is None)
        self.ratios = RatioNetwork(width).to(weights) if learned else None

    def alphas(self, features: Tensor) -> Tensor:
        """The residual ratio of each image, [N, 1]."""
        if self.alpha is not None:
            return features.new_full((len(features), 1), self.alpha)
        return self.ratios(features, self.weights.mean(0, keepdim=True))[0]

    def betas(self) -> Tensor:
        """The residual ratio of each class, [C, 1]."""
        if self.beta is not None:
            return self.weights.new_full((len(self.weights), 1), self.beta)
        return self.ratios(self.pooled[None], self.weights)[1]

    def groups(self, rate: float) -> list[dict]:
        """AdamW's parameter groups: `rate`, divided by the ratio for an adapter whose ratio is a number (by 0.1 at least).

        Adam ignores how large a gradient is, so a step moves f* by about ratio · rate: with one rate for all, small ratios
        train slowly, and a search would compare how far trained they are. A learned ratio grows by itself.
        """
        found = [{"params": adapter.parameters(), "lr": rate / max(1.0 if ratio is None else ratio, 0.1)}
                 for adapter, ratio in ((self.visual, self.alpha), (self.text, self.beta)) if adapter]
        return found + ([{"params": self.ratios.parameters()}] if self.ratios else [])

    def forward(self, features: Tensor) -> Tensor:
        f, w = features, self.weights
        if self.normalize == "before":
            w = normalize(w, dim=-1)
        if self.visual is not None:
            alpha = self.alphas(features) if self.alpha is None else self.alpha
            f = f.lerp(self.visual(f), alpha)  # α A_v(f) + (1 - α) f
        if self.text is not None:
            beta = self.betas() if self.beta is None else self.beta
            w = w.lerp(self.text(w), beta)
        if self.normalize == "before":  # A(c f) = c A(f), so f* may be divided by the length of f now: the bits of zero-shot
            return f @ w.T * (self.logit_scale / lengths(features))
        return cosine_logits(f, w, self.logit_scale)


@dataclass(frozen=True, kw_only=True)
class CLIPAdapter(Method):
    """CLIP-Adapter with the paper's choices as defaults.

    branch: "visual" (the paper's default), "text" or "both".
    alpha, beta: the residual ratio of the visual and the text branch. A number; "val" trains one adapter for each of
        `grid` and keeps the one with the highest validation accuracy, then the lower validation cross-entropy, then the
        smaller ratio (with both branches on "val": every pair of every third one of `grid`, at about the cost of one
        search); "learned" is Q(f, W).
    reduction: the bottleneck has D / reduction units (paper: 4).
    final_relu: a second ReLU after W2, as in the official code and not in the paper.
    normalize: "after" the blend (official code) or "before" the adapter and not after (LP++, cross-modal adaptation).
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule, in place of 200 epochs of minibatches; chosen on the
        bundled banks' validation parts (README, "Recipes"). The rate is divided by the ratio: see `CLIPAdapterHead.groups`.
    Raises ValueError for a setting that cannot be; `fit` raises BankError if "val" meets an episode without validation.
    """
    name = "clip-adapter"
    head_class = CLIPAdapterHead
    branch: str = "visual"
    alpha: float | str = "val"
    beta: float | str = "val"
    reduction: int = 4
    final_relu: bool = False
    normalize: str = "after"
    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    steps: int = 120
    rate: float = 5e-4
    weight_decay: float = 1e-2

    def __post_init__(self):
        for setting, allowed in (("branch", ("visual", "text", "both")), ("normalize", ("after", "before"))):
            if getattr(self, setting) not in allowed:
                raise ValueError(f"{setting} must be one of {', '.join(allowed)}; got {getattr(self, setting)!r}.")
        for setting in ("alpha", "beta"):
            value = getattr(self, setting)
            if value not in ("val", "learned") and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"{setting} must be a number from 0 to 1, 'val' or 'learned'; got {value!r}.")
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1 (the bottleneck is D / reduction wide); got {self.reduction}.")
        if not self.grid or not all(0 <= ratio <= 1 for ratio in self.grid):
            raise ValueError(f"grid must hold at least one number, each from 0 to 1; got {self.grid!r}.")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0; got {self.steps}.")

    def _fit(self, episode):
        pairs = self._pairs()
        if len(pairs) > 1:
            need_validation(episode, "the residual ratio")
        heads = {pair: self._train(episode, *pair) for pair in pairs}
        details = {}
        if len(heads) > 1:
            scores = {pair: validation_score(head, episode.val) for pair, head in heads.items()}
            best = max(heads, key=lambda pair: (*scores[pair], *(-(ratio or 0.0) for ratio in pair)))
            tied = sum(score[0] == scores[best][0] for score in scores.values())
            details = {"tied": tied, "scores": {str(pair): score for pair, score in scores.items()}}
        else:
            best = next(iter(heads))
        head = heads[best]
        found = {"alpha": head.alpha if head.visual else None, "beta": head.beta if head.text else None}
        with torch.no_grad():
            if head.visual and head.alpha is None:
                found["alpha"] = head.alphas(episode.support.view()).mean().item()
            if head.text and head.beta is None:
                found["beta"] = head.betas().mean().item()
        return head, {**found, "details": details, "steps": self.steps,
                      "parameters": sum(p.numel() for p in head.parameters())}

    def reworded(self, head, episode):
        head = deepcopy(head)  # the same adapters, and the same Q, on the new classes' W
        head.weights = episode.text_features
        return head

    def _pairs(self) -> list[tuple[float | None, float | None]]:
        """The (α, β) to train an adapter for; None stands for a learned ratio and for that of a branch there is not."""
        both = self.branch == "both" and self.alpha == self.beta == "val"
        searched = self.grid[::3] if both else self.grid
        options = [{"val": searched, "learned": (None,)}.get(ratio, (ratio,)) if self.branch in (branch, "both") else (None,)
                   for branch, ratio in (("visual", self.alpha), ("text", self.beta))]
        return list(product(*options))

    def _train(self, episode, alpha: float | None, beta: float | None,
               watch: Callable[[CLIPAdapterHead, int], None] | None = None) -> CLIPAdapterHead:
        """One adapter; watch(head, steps done) is called before training and after each step."""
        torch.manual_seed(episode.seed)  # every ratio starts from the same adapter
        support, weights = episode.support, episode.text_features
        head = CLIPAdapterHead(weights, normalize(support.view(), dim=-1).mean(0), logit_scale=episode.logit_scale,
                               branch=self.branch, hidden=max(1, weights.shape[1] // self.reduction), alpha=alpha, beta=beta,
                               final_relu=self.final_relu, normalize=self.normalize)
        if watch:
            watch(head, 0)
        if alpha or beta or head.ratios:  # at α = β = 0 there is nothing to train
            train(head.groups(self.rate), lambda step: cross_entropy(head(support.view(step)), support.labels),
                  steps=self.steps, rate=self.rate, weight_decay=self.weight_decay,
                  after_step=watch and (lambda step: watch(head, step + 1)))
        return head
