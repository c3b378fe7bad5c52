"""GDA-CLIP: a Gaussian discriminant beside zero-shot CLIP, no training (Wang et al., "A Hard-to-Beat
Baseline for Training-free CLIP-based Adaptation", ICLR 2024, arXiv 2402.04087).

    f ~ N(μ_c, Σ) in class c, at unit length:        V = Σ⁻¹ μ        b_c = log(1/C) - μ_cᵀ Σ⁻¹ μ_c / 2
    logits = cos(f, W) / τ + α (f V + b)
    Σ⁻¹ = D (S + tr(S) / (N - 1) · I)⁻¹        S: the scatter around the class means

The ridge on the scatter is Kubokawa and Srivastava's, for fewer images than dimensions. From one
image a class there is no scatter, so no Gaussian: zero-shot CLIP is left, and `details` says so
(the official code draws several augmented views of each image; so may a bank).
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..episodes import Episode
from ..splits import Split
from .base import Head, Method, best, cosine_logits, from_0, need_validation, validation_score


class GDAHead(Head):
    """cos(f, W) / τ + α (f V + b); W: [C, D], V: [D, C], b: [C]."""

    def __init__(self, weights: Tensor, discriminant: Tensor, bias: Tensor, *, logit_scale: float,
                 alpha: float):
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("discriminant", discriminant)
        self.register_buffer("bias", bias)
        self.width = weights.shape[1]
        self.logit_scale, self.alpha = logit_scale, alpha

    @property
    def options(self) -> dict:
        """What rebuilds the head beside its tensors."""
        return {"logit_scale": self.logit_scale, "alpha": self.alpha}

    def forward(self, features: Tensor) -> Tensor:
        zero_shot = cosine_logits(features, self.weights, self.logit_scale)
        likelihood = normalize(features, dim=-1) @ self.discriminant + self.bias  # [N, D] @ [D, C]
        return zero_shot + self.alpha * likelihood


def gaussian(support: Split, classes: int) -> tuple[Tensor, Tensor]:
    """V [D, C] and b [C] of a support set whose views count as images; zeros where S is zero."""
    x = normalize(support.features, dim=-1).reshape(-1, support.features.shape[-1])  # [N, D]
    labels = support.labels.repeat(support.views)
    counts = torch.bincount(labels, minlength=classes)[:, None]
    means = x.new_zeros(classes, x.shape[1]).index_add(0, labels, x) / counts  # [C, D]
    centred = x - means[labels]
    scatter = centred.T @ centred  # [D, D]
    ridge = scatter.trace() / max(len(x) - 1, 1)
    if len(x) <= classes or not ridge > 0:
        return x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    ridged = scatter + ridge * torch.eye(len(scatter)).to(scatter)
    discriminant = x.shape[1] * torch.linalg.solve(ridged, means.T)  # Σ⁻¹ μ: [D, C]
    return discriminant, -math.log(classes) - (means.T * discriminant).sum(0) / 2


@dataclass(frozen=True, kw_only=True)
class GDA(Method):
    """Class means and one covariance, in closed form, beside zero-shot CLIP.

    alpha: the discriminant's weight. A number from 0; "val" takes from `grid` (the official code's)
        the one with the highest validation accuracy, then the lower validation cross-entropy, then
        the smaller α; details["tied"] is how many reach that accuracy.
    Raises ValueError for a setting that cannot be; `fit` raises BankError if "val" meets an episode
    without validation.
    """
    name = "gda"
    head_class = GDAHead
    alpha: float | str = "val"
    grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)

    def check_settings(self):
        if self.alpha != "val" and not from_0(self.alpha):
            raise ValueError(f"alpha must be a finite number from 0 or 'val'; got {self.alpha!r}.")
        if not self.grid or not all(map(from_0, self.grid)):
            raise ValueError("grid must hold at least one number, each finite and from 0; got "
                             f"{self.grid!r}.")

    def _fit(self, episode: Episode):
        searched = self.alpha == "val"
        if searched:
            need_validation(episode, "alpha")
        head = GDAHead(episode.text_features, *gaussian(episode.support, len(episode.classnames)),
                       logit_scale=episode.logit_scale, alpha=0.0 if searched else self.alpha)
        details = {} if head.discriminant.any() else {"gaussian": "no two images of a class"}
        if searched:
            scores = {}
            for head.alpha in self.grid:
                scores[head.alpha,] = validation_score(head, episode.val)
            (head.alpha,), details["tied"] = best(scores)
        return head, {"alpha": head.alpha, "details": details}
