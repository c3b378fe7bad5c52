"""The regularised linear adapter: one D × D matrix on the features, from the identity and pulled
back to it (Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", arXiv
2410.05270: ProLIP's fine-tuned projection, where only features are at hand).

    f* = M f        p = softmax(cos(f*, W) / τ)
    loss = cross-entropy + λ ‖M - I‖²_F        λ = 1 / shots

The more images, the freer the matrix: nothing is chosen on validation images. It is CLIP-Adapter
without the bottleneck and the ReLU, with a pull in the place of the residual ratio.
"""
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..training import train
from .base import Head, Method, cosine_logits, from_0


class LinearAdapterHead(Head):
    """cos(M f, W) / τ; W: [C, D], M: [D, D], trained."""

    def __init__(self, weights: Tensor, *, logit_scale: float):
        super().__init__()
        self.options = {"logit_scale": logit_scale}
        self.register_buffer("weights", weights)
        self.width = weights.shape[1]
        self.adapter = nn.Linear(self.width, self.width, bias=False).to(weights)
        nn.init.eye_(self.adapter.weight)
        self.logit_scale = logit_scale

    def features(self, features: Tensor) -> Tensor:
        """M f: [N, D]."""
        return self.adapter(features)

    def forward(self, features: Tensor) -> Tensor:
        return cosine_logits(self.features(features), self.weights, self.logit_scale)  # [N, C]


@dataclass(frozen=True, kw_only=True)
class LinearAdapter(Method):
    """A D × D matrix from the identity, pulled back to it by the less the more images there are.

    pull: λ, the weight of ‖M - I‖²_F; None is the paper's 1 / shots, the images a class on average.
    steps, rate, weight_decay: full-batch AdamW with a cosine schedule (the authors' code: Adam);
        chosen on the bundled banks' validation parts (README, "Recipes").
    Raises ValueError for a pull below 0.
    """
    name = "linear-adapter"
    head_class = LinearAdapterHead
    pull: float | None = None
    steps: int = 60
    rate: float = 1e-3
    weight_decay: float = 0.0

    def check_settings(self):
        if self.pull is not None and not from_0(self.pull):
            raise ValueError("pull must be a finite number from 0, or None for 1 / shots; got "
                             f"{self.pull!r}.")

    def _fit(self, episode):
        support = episode.support
        head = LinearAdapterHead(episode.text_features, logit_scale=episode.logit_scale)
        pull = len(episode.classnames) / len(support) if self.pull is None else self.pull
        matrix = head.adapter.weight  # [D, D]
        identity = torch.eye(head.width).to(matrix)

        def loss(step: int) -> Tensor:
            fitted = cross_entropy(head(support.view(step)), support.labels)
            return fitted + pull * (matrix - identity).square().sum()

        train([matrix], loss, steps=self.steps, rate=self.rate, weight_decay=self.weight_decay,
              still=support.views == 1)
        return head, {"steps": self.steps, "parameters": matrix.numel(), "details": {"pull": pull}}

    def reworded(self, head, episode):
        head = deepcopy(head)  # the same matrix, on the new classes' W
        head.weights = episode.text_features
        return head
