"""The residual ratios α and β as learned ones: one number for all, or α, β = Q(f, W) (paper,
section 3.3).

A ratio learned on the support set drifts upwards, for a memorised support set asks for more
adapter. `SharedRatio` is therefore learned on held-out images, while the adapter learns on the
support set (`decoupled`): the idea of HOSO (arXiv 2603.04341), with a prior that fades as there are
more images to learn from.

The architecture of Q is in no readable source, so `RatioNetwork` is our own design.
"""
import math

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


class SharedRatio(nn.Module):
    """One α for all images and one β for all classes, sigmoids of two numbers; called as
    `RatioNetwork` is.
    """

    def __init__(self, start: float = PRIOR):
        super().__init__()
        self.logits = nn.Parameter(torch.full((2,), logit(start), dtype=torch.float64))

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(α, β), each [N, 1] for the N rows of whichever has more."""
        rows = max(len(features), len(weights))
        alpha, beta = torch.sigmoid(self.logits).expand(rows, 2).split(1, dim=-1)
        return alpha, beta

    def penalty(self, images: int) -> Tensor:
        """WORTH / images · Σ (logit ratio - logit PRIOR)²: what the prior adds to the loss of so
        many held-out images.

        The logit of a branch that there is not has no other gradient, so it stays at the prior and
        adds nothing.
        """
        return WORTH / images * (self.logits - logit(PRIOR)).square().sum()


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


def decoupled(head: nn.Module, support: Split, held_out: Split, step: int) -> Tensor:
    """The loss whose gradient moves the adapters by the support images and the ratios by the
    held-out ones.

    First order: each of the two cross-entropies sees the other's parameters as constants.
    """
    still = {name: tensor.detach() for name, tensor in head.named_parameters()}
    ratios = {name: tensor for name, tensor in still.items() if name.startswith("ratios.")}
    adapters = {name: tensor for name, tensor in still.items() if name not in ratios}
    fitted = functional_call(head, ratios, (support.view(step),))  # [N, C]
    judged = functional_call(head, adapters, (held_out.view(),))
    return (cross_entropy(fitted, support.labels) + cross_entropy(judged, held_out.labels)
            + head.ratios.penalty(len(held_out)))


class RatioNetwork(nn.Module):
    """Q(f, W), our design: two layers on an image feature beside a class's, sigmoid outputs α and β.

    α is asked per image with the mean of W in the class's place, β per class with the mean support
    feature in the image's place, so that no prediction depends on the other images of its batch.
    Both start at exactly `start`.
    """

    def __init__(self, width: int, hidden: int = 32, start: float = 0.2):
        super().__init__()
        self.first = nn.Linear(2 * width, hidden)
        self.last = nn.Linear(hidden, 2)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, math.log(start / (1 - start)))

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(α, β), each [N, 1], of features [N, D] and weights [N, D]; either may be one row for all."""
        features, weights = torch.broadcast_tensors(normalize(features, dim=-1),
                                                    normalize(weights, dim=-1))
        # [N, 2 D], entries of about unit size
        pair = torch.cat([features, weights], dim=-1) * features.shape[-1] ** 0.5
        # [N, 2] → [N, 1] each
        alpha, beta = torch.sigmoid(self.last(relu(self.first(pair)))).split(1, dim=-1)
        return alpha, beta
