"""Zero-shot CLIP: the class names are the classifier (paper, section 3.1)."""
from dataclasses import dataclass

from torch import Tensor

from ..backbones import classifier_weights
from .base import Head, Method, cosine_logits


class ZeroShotHead(Head):
    """p = softmax(cos(f, W) / τ); W: [C, D]."""

    def __init__(self, weights: Tensor, *, logit_scale: float):
        super().__init__()
        self.options = {"logit_scale": logit_scale}
        self.register_buffer("weights", weights)
        self.logit_scale = logit_scale
        self.width = weights.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        return cosine_logits(features, self.weights, self.logit_scale)  # [N, D], [C, D] → [N, C]


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """Classify by text features alone; the support set is not used.

    templates: prompts with {} for the class name, averaged into one classifier (a prompt ensemble);
    they are encoded by the episode's backbone. None uses the bank's own text features.
    normalize_each: average unit-length features, as CLIP's own ensembles do, or the raw ones.
    """
    name = "zero-shot"
    head_class = ZeroShotHead
    templates: tuple[str, ...] | None = None
    normalize_each: bool = True

    def _fit(self, episode):
        weights = episode.text_features
        if self.templates:
            weights = classifier_weights(episode.backbone, episode.classnames, self.templates,
                                         normalize_each=self.normalize_each).to(weights)
        return ZeroShotHead(weights, logit_scale=episode.logit_scale), {}

    def labelled(self, episode):
        return 0.0

    def reworded(self, head, episode):
        return self._fit(episode)[0]
