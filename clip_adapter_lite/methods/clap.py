"""CLAP: a linear probe that starts from the class names and is held to them (Silva-Rodríguez et
al., CVPR 2024, arXiv 2312.12730).

    p = softmax(cos(f, w) / τ)        w: [C, D] starts from the text features t, of unit length
    loss = cross-entropy + Σ_c λ_c ‖w_c - t_c‖²
    λ_c: the mean zero-shot probability of class c over its own support images

What zero-shot CLIP knows well is held fast, what it does not know may move; there is nothing to
choose on validation images. Without the constraint it is the paper's ZS-LP.

The multipliers are those that the authors' code starts from and by default keeps. There they come
from augmented views, and the pull is the mean over classes of un-normalised features: the sum at
unit length is ours.
"""
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from ..episodes import Episode
from ..training import train
from .base import Method, cosine_logits
from .zero_shot import ZeroShotHead


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
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule, in place of the authors' SGD
        at 0.1 for 300 epochs; chosen on the bundled banks' validation parts (README, "Recipes").
    """
    name = "clap"
    head_class = ZeroShotHead  # over the trained weights
    constraint: bool = True
    steps: int = 120
    rate: float = 1e-3
    weight_decay: float = 0.0

    def _fit(self, episode):
        text = normalize(episode.text_features, dim=-1)  # [C, D]
        weights = text.clone().requires_grad_()
        held = multipliers(episode) if self.constraint else text.new_zeros(len(text))  # [C]
        support = episode.support

        def loss(step: int) -> Tensor:
            logits = cosine_logits(support.view(step), weights, episode.logit_scale)  # [N, C]
            moved = (weights - text).square().sum(-1)  # [C]
            return cross_entropy(logits, support.labels) + held @ moved

        train([weights], loss, steps=self.steps, rate=self.rate, weight_decay=self.weight_decay,
              still=support.views == 1)
        details = {}
        if self.constraint:
            details = {"multipliers": {"least": held.min().item(), "most": held.max().item()}}
        head = ZeroShotHead(weights.detach(), logit_scale=episode.logit_scale)
        return head, {"steps": self.steps, "parameters": weights.numel(), "details": details}
