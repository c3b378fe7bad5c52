"""CLIP-Adapter: a bottleneck on frozen features, blended by a residual ratio (paper, section 3.2).

    A_v(f) = ReLU(f W1_v) W2_v        f* = α A_v(f) + (1 - α) f
    A_t(W) = ReLU(W W1_t) W2_t        W* = β A_t(W) + (1 - β) W
    p = softmax(cos(f*, W*) / τ)

α = 0 is zero-shot CLIP, α = 1 forgets it. Learned ratios are α, β = Q(f, W): see `ratios.py`.
"""
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

from ..splits import Split
from ..training import train
from .base import (
    Head,
    Method,
    best_near,
    class_weights,
    cosine_logits,
    lengths,
    need_validation,
    validation_score,
)
from .ratios import PRIOR, RatioNetwork, SharedRatio, decoupled, held_out_of

LEARNED = ("auto", "learned")  # on held-out images, by a SharedRatio and a RatioNetwork


class Bottleneck(nn.Module):
    """A(x) = ReLU(x W1) W2, with [D, hidden] and [hidden, D] weights and no bias.

    final_relu: a ReLU after W2 too.
    """

    def __init__(self, width: int, hidden: int, final_relu: bool = False):
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(relu(self.down(x)))  # [·, D] → [·, hidden] → [·, D]
        return relu(x) if self.final_relu else x


class CLIPAdapterHead(Head):
    """Adapter(s), ratios and classifier weights: features [N, D] → logits [N, C].

    weights: W [C, D]; pooled: [D], the mean direction of the support features, for Q.
    branch: "visual", "text" or "both".
    alpha, beta: numbers, "auto" to ask a SharedRatio, "learned" a RatioNetwork (one of the two asks
        for both branches), or None where there is no such branch.
    normalize: "after" brings f* and W* to unit length (the logits are then logit_scale · cos(f*,
        W*)); "before" does so to f and W, and not after the blend.
    """

    def __init__(self, weights: Tensor, pooled: Tensor, *, logit_scale: float, branch: str,
                 hidden: int, alpha: float | str | None, beta: float | str | None,
                 final_relu: bool = False, normalize: str = "after"):
        super().__init__()
        self.options = {"logit_scale": logit_scale, "branch": branch, "hidden": hidden,
                        "alpha": alpha, "beta": beta, "final_relu": final_relu, "normalize": normalize}
        self.register_buffer("weights", weights)
        self.register_buffer("pooled", pooled)
        self.width = width = weights.shape[1]
        self.alpha, self.beta = alpha, beta
        self.logit_scale, self.normalize = logit_scale, normalize
        adapter = lambda: Bottleneck(width, hidden, final_relu).to(weights)
        self.visual = adapter() if branch != "text" else None
        self.text = adapter() if branch != "visual" else None
        asked = self.visual and alpha, self.text and beta
        self.ratios = None
        if "learned" in asked:
            self.ratios = RatioNetwork(width).to(weights)
        elif "auto" in asked:
            self.ratios = SharedRatio().to(weights)

    def alphas(self, features: Tensor) -> Tensor | None:
        if self.visual is None:
            return None
        if not isinstance(self.alpha, str):
            return features.new_full((len(features), 1), self.alpha)
        return self.ratios(features, self.weights.mean(0, keepdim=True))[0]  # [N, D], [1, D] → [N, 1]

    def betas(self) -> Tensor | None:
        if self.text is None:
            return None
        if not isinstance(self.beta, str):
            return self.weights.new_full((len(self.weights), 1), self.beta)
        return self.ratios(self.pooled[None], self.weights)[1]  # [1, D], [C, D] → [C, 1]

    def groups(self, rate: float) -> list[dict]:
        """AdamW's parameter groups: `rate`, divided by the adapter's ratio, by 0.1 at least.

        Adam ignores how large a gradient is, so a step moves f* by about ratio · rate: with one
        rate for all, small ratios train slowly, and a search would compare how far trained they
        are. A learned ratio counts as it is at the step.
        """
        found = self.ratios.groups(rate) if self.ratios is not None else []
        for adapter, ratio, place in ((self.visual, self.alpha, 0), (self.text, self.beta, 1)):
            if adapter is not None and isinstance(ratio, str):
                factor = lambda place=place: 1 / max(self.typical(place), 0.1)
                found.append({"params": adapter.parameters(), "factor": factor})
            elif adapter is not None:
                found.append({"params": adapter.parameters(), "lr": rate / max(ratio, 0.1)})
        return found

    @torch.no_grad()
    def typical(self, place: int) -> float:
        """What the learned α (place 0) or β (1) is now at the mean support feature and mean W."""
        return self.ratios(self.pooled[None], self.weights.mean(0, keepdim=True))[place].item()

    def settle(self) -> None:
        """Learned ratios stay what they have come to: shared ones become numbers, Q is frozen."""
        for name, place in (("alpha", 0), ("beta", 1)):
            if self.options[name] == "auto":
                self.options[name] = self.typical(place)
                setattr(self, name, self.options[name])
        if isinstance(self.ratios, SharedRatio):
            self.ratios = None
        else:
            self.ratios.requires_grad_(False)

    def features(self, features: Tensor) -> Tensor:
        """f* [N, D]: the blend.

        It grows with the length of f, as A(c f) = c A(f), so "before" changes its length alone.
        """
        if self.visual is None:
            return features
        # [N, 1] or a number
        alpha = self.alphas(features) if isinstance(self.alpha, str) else self.alpha
        return features.lerp(self.visual(features), alpha)  # α A_v(f) + (1 - α) f

    def adapted_weights(self) -> Tensor:
        """W* [C, D]: the text branch's blend."""
        w = normalize(self.weights, dim=-1) if self.normalize == "before" else self.weights
        if self.text is None:
            return w
        beta = self.betas() if isinstance(self.beta, str) else self.beta  # [C, 1] or a number
        return w.lerp(self.text(w), beta)  # β A_t(W) + (1 - β) W

    def forward(self, features: Tensor) -> Tensor:
        f, w = self.features(features), self.adapted_weights()
        if self.normalize == "before":  # divided by the length of f only now: the bits of zero-shot
            return f @ w.T * (self.logit_scale / lengths(features))  # [N, C]
        return cosine_logits(f, w, self.logit_scale)


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
        pairs, ratios = self._pairs(), 0
        if self.needs_validation:
            need_validation(episode, "the residual ratio")
        if set(LEARNED) & set(pairs[0]):
            head, details = self._fit_held_out(episode, *pairs[0])
            ratios = pairs[0].count("auto")  # parameters that are numbers by now
        else:
            head, details = self._fit_best(episode, pairs)
        alpha, beta = head.alpha, head.beta  # None where there is no such branch
        with torch.no_grad():
            if alpha == "learned":
                alpha = head.alphas(episode.support.view()).mean().item()
            if beta == "learned":
                beta = head.betas().mean().item()
        return head, {"alpha": alpha, "beta": beta, "details": details, "steps": self.steps,
                      "parameters": sum(p.numel() for p in head.parameters()) + ratios}

    def _fit_best(self, episode, pairs) -> tuple[CLIPAdapterHead, dict]:
        """An adapter for each (α, β); the one that the validation images choose."""
        heads = {pair: self.new_head(episode, *pair) for pair in pairs}
        for head in heads.values():
            self.train_head(head, episode)
        if len(heads) == 1:
            return heads[pairs[0]], {}
        scores = {pair: validation_score(head, episode.val) for pair, head in heads.items()}
        chosen, tied = best_near(scores, len(episode.val), PRIOR)
        return heads[chosen], {"tied": tied, "scores": {str(pair): s for pair, s in scores.items()}}

    def _fit_held_out(self, episode, *ratios: float | str | None) -> tuple[CLIPAdapterHead, dict]:
        """An adapter from the support images, its ratios from held-out ones; see the class."""
        rest, held_out, source = held_out_of(episode)
        head = self.new_head(replace(episode, support=rest), *ratios)
        if len(held_out):
            self.train_head(head, replace(episode, support=rest), held_out=held_out)
        if not len(episode.val):  # all shots again, at these ratios
            learned, head = head.ratios, self.new_head(episode, *ratios)
            head.ratios.load_state_dict(learned.state_dict())
            head.settle()
            self.train_head(head, episode)
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
        if not (head.alpha or head.beta):  # at α = β = 0 there is nothing to train
            return
        support, classes = episode.support, len(episode.classnames)
        weights = [class_weights(split, classes) if self.balanced and split is not None else None
                   for split in (support, held_out)]
        if held_out is not None:
            loss = partial(decoupled, head, support, held_out, weights=weights)
        else:
            loss = lambda step: cross_entropy(head(support.view(step)), support.labels, weights[0])
        train(head.groups(self.rate), loss, steps=self.steps, rate=self.rate,
              weight_decay=self.weight_decay, after_step=after_step)
