"""The residual ratios α and β as learned ones: one number for all, or α, β = Q(f, W) (paper,
section 3.3).

A ratio learned on the support set drifts upwards, for a memorised support set asks for more
adapter. Ratios are therefore learned on held-out images, while the adapters learn on the support
set (`decoupled`): the idea of HOSO (arXiv 2603.04341), with a prior that fades as there are more
images to learn from.

The architecture of Q is in no readable source, so `RatioNetwork` is our own design.
"""
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, relu

from ..episodes import Episode
from ..splits import Split

PRIOR, WORTH = 0.4, 4  # the ratio before any image was seen, and how many images that is worth
RATIO_RATE = 0.05  # peak rate of a ratio's logit


def logit(ratio: float) -> float:
    """The number whose sigmoid is `ratio`."""
    return math.log(ratio / (1 - ratio))


class Ratios(nn.Module, ABC):
    """(α, β), each [N, 1], of features [N, D] and weights [N, D]; either may be one row for all."""

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = torch.sigmoid(self.logits(features, weights)).split(1, dim=-1)
        return alpha, beta

    @abstractmethod
    def logits(self, features: Tensor, weights: Tensor) -> Tensor:
        """The numbers [N, 2] whose sigmoids α and β are."""

    def groups(self, rate: float) -> list[dict]:
        """AdamW's parameter groups; a `shared` logit moves at RATIO_RATE, without the decay that
        would pull it to a ratio of 0.5.
        """
        found = [{"params": [self.shared], "lr": RATIO_RATE, "weight_decay": 0.0}]
        others = [p for p in self.parameters() if p is not self.shared]
        return found + ([{"params": others, "lr": rate}] if others else [])


class SharedRatio(Ratios):
    """One α for all images and one β for all classes."""

    def __init__(self, start: float = PRIOR):
        super().__init__()
        self.shared = nn.Parameter(torch.full((2,), logit(start), dtype=torch.float64))

    def logits(self, features, weights):
        return self.shared.expand(max(len(features), len(weights)), 2)


class RatioNetwork(Ratios):
    """Q(f, W), our design: two layers on an image feature beside a class's.

    α is asked per image with the mean of W in the class's place, β per class with the mean support
    feature in the image's place, so that no prediction depends on the other images of its batch.
    Both start at exactly `start`; its last bias is what a `SharedRatio` is, the rest its freedom.
    """

    def __init__(self, width: int, hidden: int = 32, start: float = PRIOR):
        super().__init__()
        self.first = nn.Linear(2 * width, hidden)
        self.last = nn.Linear(hidden, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, logit(start))

    @property
    def shared(self) -> nn.Parameter:
        """The logits that all images and classes have in common, [2]."""
        return self.last.bias

    def logits(self, features, weights):
        features, weights = torch.broadcast_tensors(normalize(features, dim=-1),
                                                    normalize(weights, dim=-1))
        # [N, 2 D], entries of about unit size
        pair = torch.cat([features, weights], dim=-1) * features.shape[-1] ** 0.5
        return self.last(relu(self.first(pair)))


def held_out_of(episode: Episode) -> tuple[Split, Split, str]:
    """What the adapters and what the ratios learn from, and in words where the latter are from.

    The validation images; without any, the last shot of each class that has two; else none.
    """
    support = episode.support
    if len(episode.val):
        return support, episode.val, "validation images"
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(support.labels.tolist()):
        rows.setdefault(label, []).append(row)
    held = torch.zeros(len(support), dtype=torch.bool)
    held[[own[-1] for own in rows.values() if len(own) > 1]] = True
    rest, held_out = (support.take(rows.nonzero().squeeze(1).to(support.labels.device))
                      for rows in (~held, held))
    return rest, held_out, "a shot of each class, held out" if held.any() else "the prior"


def decoupled(head: nn.Module, support: Split, held_out: Split, step: int,
              weights: tuple[Tensor | None, Tensor | None] = (None, None)) -> Tensor:
    """The loss whose gradient moves the adapters by the support images and the ratios by the
    held-out ones. weights: of the classes [C], among the former and among the latter.

    First order: each of the two cross-entropies sees the other's parameters as constants.
    """
    still = {name: tensor.detach() for name, tensor in head.named_parameters()}
    ratios = {name: tensor for name, tensor in still.items() if name.startswith("ratios.")}
    adapters = {name: tensor for name, tensor in still.items() if name not in ratios}
    fitted = functional_call(head, ratios, (support.view(step),))  # [N, C]
    judged = functional_call(head, adapters, (held_out.view(),))
    return (cross_entropy(fitted, support.labels, weights[0])
            + cross_entropy(judged, held_out.labels, weights[1])
            + penalty(head, held_out.view()))


def penalty(head: nn.Module, features: Tensor) -> Tensor:
    """WORTH / N · Σ mean (logit ratio - logit PRIOR)², over α of N held-out images [N, D] and β of
    all classes: what the prior adds to their loss, the less the more they are.
    """
    of_images = head.ratios.logits(features, head.weights.mean(0, keepdim=True))[:, 0]  # [N]
    of_classes = head.ratios.logits(head.pooled[None], head.weights)[:, 1]  # [C]
    asked = [(head.visual, head.alpha, of_images), (head.text, head.beta, of_classes)]
    return WORTH / len(features) * sum((logits - logit(PRIOR)).square().mean()
                                       for adapter, ratio, logits in asked
                                       if adapter is not None and isinstance(ratio, str))
