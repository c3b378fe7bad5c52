"""Tip-Adapter: a cache of the support set beside zero-shot CLIP, no training (Zhang et al., ECCV
2022, arXiv 2111.03930).

    F = normalised support features [K·C, D]        L = their one-hot labels [K·C, C]
    φ(f) = exp(-β (1 - f Fᵀ))                        logits = cos(f, W) / τ + α φ(f) L

α = 0 is zero-shot CLIP; β says how fast a support image's say fades with distance. Tip-Adapter-F
also trains the keys F.

α is in logits, as in the official code, and not rescaled by the backbone's logit_scale 1/τ: a
learned τ already brings cos(f, W) / τ to log-odds, however wide the cosines spread. What does
differ between backbones and datasets is the spread of f Fᵀ, so the official code sets the range of
α and β by hand for each dataset (up to 3 and 7 for ImageNet, 30 and 30 for aircraft). Here one grid
in about equal ratios spans them all, with 99 pairs instead of 4000, and holds α = 0.
"""
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..splits import Split
from ..training import train
from .base import Head, Method, best, cosine_logits, from_0, need_validation

# images at a time: 64 MB of affinities to 16 000 keys (ImageNet, 16 shots); smaller blocks fragment
# the heap
CHUNK = 1024


class TipHead(Head):
    """cos(f, W) / τ + α φ(f) L; W: [C, D], keys F: [K·C, D], labels: [K·C], where the ones of L
    stand.
    """

    def __init__(self, weights: Tensor, keys: Tensor, labels: Tensor, *, logit_scale: float,
                 alpha: float, beta: float):
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("labels", labels)
        self.keys = nn.Parameter(keys)
        self.alpha, self.beta, self.logit_scale = alpha, beta, logit_scale
        self.width = weights.shape[1]

    @property
    def options(self) -> dict:
        """What rebuilds the head beside its tensors."""
        return {"logit_scale": self.logit_scale, "alpha": self.alpha, "beta": self.beta}

    def cosines(self, features: Tensor) -> Tensor:
        """f Fᵀ: [N, K·C] of features [N, D]."""
        return normalize(features, dim=-1) @ self.keys.T  # [N, D] @ [D, K·C]

    def votes(self, cosines: Tensor, beta: float) -> Tensor:
        """φ L: [N, C] of f Fᵀ [N, K·C]; adding columns by label is the product with L without its
        zeros.
        """
        phi = torch.exp(-beta * (1 - cosines))  # [N, K·C]
        return phi.new_zeros(len(phi), len(self.weights)).index_add(1, self.labels, phi)

    def forward(self, features: Tensor) -> Tensor:
        votes = torch.cat([self.votes(self.cosines(rows), self.beta) for rows in features.split(CHUNK)])
        return cosine_logits(features, self.weights, self.logit_scale) + self.alpha * votes


@torch.no_grad()
def validation_scores(head: TipHead, val: Split, alphas,
                      betas) -> dict[tuple[float, float], tuple[float, float]]:
    """(accuracy, -cross-entropy) on the validation images of every pair (α, β) in place of the
    head's own.
    """
    hits, losses = torch.zeros(2, len(alphas), len(betas), dtype=torch.float64)
    zero_shot = cosine_logits(val.view(), head.weights, head.logit_scale)
    ratios = zero_shot.new_tensor(alphas)[:, None, None]
    for rows, logits, labels in zip(val.view().split(CHUNK), zero_shot.split(CHUNK),
                                    val.labels.split(CHUNK)):
        cosines, labels = head.cosines(rows), labels.repeat(len(alphas))
        for j, beta in enumerate(betas):
            # [alphas · images, C]
            adapted = (logits + ratios * head.votes(cosines, beta)).flatten(0, 1)
            loss = cross_entropy(adapted, labels, reduction="none")
            # max: argmax is 5 times slower
            for total, values in ((hits, adapted.max(1).indices == labels), (losses, loss)):
                total[:, j] += values.view(len(alphas), -1).sum(1).cpu()
    accuracy, gain = ((total / len(val)).flatten().tolist() for total in (hits, -losses))
    return dict(zip(product(alphas, betas), zip(accuracy, gain)))


@dataclass(frozen=True, kw_only=True)
class TipAdapter(Method):
    """Tip-Adapter, or with `finetune` Tip-Adapter-F.

    finetune: train the keys by cross-entropy on the support set, then search. As in the official
        code an image's own key takes part.
    start: (α, β) while the keys are trained, for those on "val" (official code: 1.17, 1 for
        ImageNet, 2, 1 for DTD).
    alpha, beta: the cache's weight, in logits, and its sharpness. A number from 0; "val" takes from
        `alpha_grid` and `beta_grid` the pair with the highest validation accuracy, then the lower
        validation cross-entropy, then the smaller α, then the smaller β; details["tied"] is how
        many pairs reach that accuracy (α = 0 once for each β).
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule, in place of 20 epochs of
        minibatches of 256; chosen on the bundled banks' validation parts (README, "Recipes").
        Training holds all (K·C)² affinities: with 1000 classes and 16 shots 1 GB, and about 2 GB at
        the peak.
    With V views of an image, its key is the mean of its normalised views, normalised again (the
    official code takes the mean of the un-normalised views); training takes a fresh view each step.
    Raises ValueError for a setting that cannot be; `fit` raises BankError if "val" meets an episode
    without validation.
    """
    name = "tip-adapter"
    head_class = TipHead
    finetune: bool = False
    alpha: float | str = "val"
    beta: float | str = "val"
    alpha_grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    beta_grid: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    start: tuple[float, float] = (1.17, 1.0)
    steps: int = 60
    rate: float = 3e-3
    weight_decay: float = 1e-2

    def check_settings(self):
        for setting in ("alpha", "beta"):
            value, grid = getattr(self, setting), getattr(self, f"{setting}_grid")
            if value != "val" and not from_0(value):
                raise ValueError(f"{setting} must be a finite number from 0 or 'val'; got {value!r}.")
            if not grid or not all(map(from_0, grid)):
                raise ValueError(f"{setting}_grid must hold at least one number, each finite and "
                                 f"from 0; got {grid!r}.")
        if len(self.start) != 2 or not all(map(from_0, self.start)):
            raise ValueError("start must be two finite numbers (alpha, beta) from 0; got "
                             f"{self.start!r}.")

    def _fit(self, episode):
        searched = [setting for setting in ("alpha", "beta") if getattr(self, setting) == "val"]
        for setting in searched:
            need_validation(episode, setting)
        head = self._cache(episode)
        if self.finetune:
            train([head.keys], lambda step: cross_entropy(head(episode.support.view(step)),
                                                          episode.support.labels),
                  steps=self.steps, rate=self.rate, weight_decay=self.weight_decay,
                  still=episode.support.views == 1)
        details = {}
        if searched:
            scores = validation_scores(head, episode.val,
                                       self.alpha_grid if self.alpha == "val" else (self.alpha,),
                                       self.beta_grid if self.beta == "val" else (self.beta,))
            (head.alpha, head.beta), tied = best(scores)
            details = {"tied": tied}
        return head, {"alpha": head.alpha, "beta": head.beta, "details": details,
                      "steps": self.steps if self.finetune else 0,
                      "parameters": head.keys.numel() if self.finetune else 0}

    def _cache(self, episode) -> TipHead:
        support = episode.support
        views = normalize(support.features, dim=-1).reshape(support.views, len(support), -1)
        alpha, beta = (first if ratio == "val" else ratio
                       for first, ratio in zip(self.start, (self.alpha, self.beta)))
        return TipHead(episode.text_features, normalize(views.mean(0), dim=-1), support.labels,
                       logit_scale=episode.logit_scale, alpha=alpha, beta=beta)
