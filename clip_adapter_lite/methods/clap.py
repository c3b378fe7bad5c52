"""CLAP: a linear probe that starts from the class names and is held to them (Silva-Rodríguez et
al., CVPR 2024, arXiv 2312.12730).

    p = softmax(cos(f, w) / τ)        w starts from the text features t, of unit length
    loss = cross-entropy + Σ_c λ_c ‖w_c - t_c‖²
    λ_c: the mean zero-shot probability of class c over its own support images

What zero-shot CLIP knows well is held fast, what it does not know may move; there is nothing to
choose on validation images. Without the constraint it is the paper's ZS-LP.

The paper's multipliers are the first step of an augmented Lagrangian, which it then keeps, as we
do. Its code takes the mean over classes of un-normalised features where the paper has the sum of
normalised ones; we follow the paper.
"""
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from ..episodes import Episode
from ..training import train
from .base import Head, Method, cosine_logits


class PrototypeHead(Head):
    """cos(f, w) / τ; w: [C, D], trained."""

    def __init__(self, prototypes: Tensor, *, logit_scale: float):
        super().__init__()
        self.options = {"logit_scale": logit_scale}
        self.prototypes = nn.Parameter(prototypes)
        self.logit_scale = logit_scale
        self.width = prototypes.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        return cosine_logits(features, self.prototypes, self.logit_scale)  # [N, D], [C, D] → [N, C]


def multipliers(episode: Episode) -> Tensor:
    """λ [C]: what zero-shot CLIP gives the right class, on average over the class's images."""
    support, classes = episode.support, len(episode.classnames)
    logits = cosine_logits(support.view(), episode.text_features, episode.logit_scale)  # [N, C]
    own = one_hot(support.labels, classes).to(logits)  # [N, C]
    return (logits.softmax(-1) * own).sum(0) / own.sum(0)


@dataclass(frozen=True, kw_only=True)
class CLAP(Method):
    """A linear probe from the text features, held to them class by class; no validation images.

    constraint: False is ZS-LP, the probe that only starts there.
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule, in place of the paper's SGD
        at 0.1 for 300 epochs; chosen on the bundled banks' validation parts (README, "Recipes").
    """
    name = "clap"
    head_class = PrototypeHead
    constraint: bool = True
    steps: int = 120
    rate: float = 1e-3
    weight_decay: float = 0.0

    def _fit(self, episode):
        text = normalize(episode.text_features, dim=-1)  # [C, D]
        head = PrototypeHead(text.clone(), logit_scale=episode.logit_scale)
        held = multipliers(episode) if self.constraint else text.new_zeros(len(text))
        support = episode.support

        def loss(step: int) -> Tensor:
            moved = (head.prototypes - text).square().sum(-1)  # [C]
            return cross_entropy(head(support.view(step)), support.labels) + held @ moved

        train([head.prototypes], loss, steps=self.steps, rate=self.rate,
              weight_decay=self.weight_decay)
        details = {}
        if self.constraint:
            details = {"multipliers": {"least": held.min().item(), "most": held.max().item()}}
        return head, {"steps": self.steps, "parameters": head.prototypes.numel(), "details": details}
