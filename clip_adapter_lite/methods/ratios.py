"""The residual ratios α and β as learned ones: α, β = Q(f, W) (paper, section 3.3).

The architecture of Q is in no readable source, so `RatioNetwork` is our own design.
"""
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu


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
        pair = torch.cat([features, weights], dim=-1) * features.shape[-1] ** 0.5  # [N, 2 D], entries of about unit size
        alpha, beta = torch.sigmoid(self.last(relu(self.first(pair)))).split(1, dim=-1)  # [N, 2] → [N, 1] each
        return alpha, beta
