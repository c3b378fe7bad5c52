"""What every method shares: settings that never change, `fit` on an episode, and the fitted classifier it returns."""
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softmax

from ..backbones import best_device
from ..banks import BankError, Episode, Split


def lengths(x: Tensor) -> Tensor:
    """The length [N, 1] of each row, never 0; in training cheaper than `norm`, whose backward makes one more [N, D]."""
    return torch.linalg.vecdot(x, x)[..., None].clamp_min(1e-24).sqrt()


def cosine_logits(features: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """logit_scale · cos(f, W): [N, C] logits of un-normalised features [N, D] and classifier weights [C, D].

    The lengths of f divide the logits and not f, which is the same cosine and a quarter less work in training, as C < D.
    """
    return features @ normalize(weights, dim=-1).T * (logit_scale / lengths(features))


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A fitted method: features in, logits out.

    head: module that maps features [N, D] to logits [N, C]; its `width` is D, its `options` and state_dict rebuild it.
    What fitting found out: val_accuracy (None without validation images), alpha and beta (fixed, selected, or the mean of
    the learned ones over the support set; None where there are none), steps (of the optimiser, in the run that was kept),
    seconds (the whole fit, searches included), parameters (trained ones), details (anything else worth knowing).
    origin: the dataset, shots, seed, templates, backbone, weights tag and preprocessing of the episode.
    """
    head: nn.Module
    classnames: tuple[str, ...]
    method: "Method"
    val_accuracy: float | None = None
    alpha: float | None = None
    beta: float | None = None
    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, C], on the classifier's device, of un-normalised features [N, D]."""
        weight = next(self.head.buffers())
        if features.ndim != 2 or features.shape[1] != self.head.width:
            raise BankError(f"logits() takes features of shape [N, {self.head.width}], the width this classifier was "
                            f"fitted on; got {list(features.shape)}. Were they made by another backbone?")
        return self.head(features.to(weight.device, weight.dtype))

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities [N, C]: the softmax of the logits."""
        return softmax(self.logits(features), dim=-1)

    @torch.no_grad()
    def alphas(self, features: Tensor) -> Tensor:
        """The residual ratio [N] that a fitted CLIP-Adapter uses for each image: learned ones differ.

        Raises TypeError for a method, or a branch, that has none.
        """
        if getattr(self.head, "visual", None) is None:
            raise TypeError(f"{self.method.label} has no visual adapter, so no α; fit CLIPAdapter(branch='visual').")
        return self.head.alphas(features.to(self.head.weights)).squeeze(1)

    @torch.no_grad()
    def betas(self) -> Tensor:
        """The residual ratio [C] that a fitted CLIP-Adapter uses for each class. Raises TypeError as `alphas` does."""
        if getattr(self.head, "text", None) is None:
            raise TypeError(f"{self.method.label} has no text adapter, so no β; fit CLIPAdapter(branch='text').")
        return self.head.betas().squeeze(1)

    def accuracy(self, split: Split) -> float:
        """The fraction of the split's images (view 0) whose highest logit is their label's, in [0, 1]."""
        if not len(split):
            raise BankError("accuracy() needs at least one image; this split is empty.")
        predicted = self.logits(split.view()).argmax(1)
        return (predicted == split.labels.to(predicted.device)).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of a method. Frozen: `fit` cannot change them, so one method can be fitted to many episodes."""
    name: ClassVar[str]
    head_class: ClassVar[type[nn.Module]]  # built from its buffers and `options`, filled from its state_dict
    device: str = "auto"

    @property
    def label(self) -> str:
        """The name, followed by the settings that differ from the defaults: `clip-adapter(alpha=0.2)`."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)
                   if f.name != "device" and getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def fit(self, episode: Episode) -> Classifier:
        """Fit to the episode's support set, selecting on its validation images; `test` is not looked at.

        Deterministic on CPU: all randomness comes from the episode's seed. Raises BankError if the episode cannot be
        fitted (no support image of a class, NaN, other widths, labels out of range).
        """
        episode.check()
        start = time.perf_counter()
        precision = torch.promote_types(episode.support.features.dtype, torch.float32)  # AdamW divides by 0 in half
        episode = episode.to(best_device(self.device), precision)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(episode.seed)
            head, found = self._fit(episode)
        head.requires_grad_(False).eval()
        found["val_accuracy"] = validation_score(head, episode.val)[0] if len(episode.val) else None
        origin = {"dataset": episode.dataset, "shots": episode.shots, "seed": episode.seed,
                  "templates": list(episode.templates), "backbone": episode.backbone_name,
                  "weights_tag": episode.backbone_tag, "preprocessing": episode.preprocessing}
        return Classifier(head=head, classnames=episode.classnames, method=self, origin=origin,
                          seconds=time.perf_counter() - start, **found)

    @abstractmethod
    def _fit(self, episode: Episode) -> tuple[nn.Module, dict[str, Any]]:
        """The fitted head, and what to tell of it (fields of `Classifier`)."""

    def reworded(self, head: nn.Module, episode: Episode) -> nn.Module:
        """A fitted head over the classes of `episode`, which it never saw, by their names alone: see `cal.transfer`.

        Raises ValueError for a method that knows its classes from their images.
        """
        raise ValueError(f"{self.label} knows only the classes it was fitted on, so not those of {episode.dataset}; fit it "
                         "there, or use zero-shot, clip-adapter or coop with unified context, which go by words.")


def validation_score(head: nn.Module, val: Split) -> tuple[float, float]:
    """(accuracy, -cross-entropy) on the validation images; the greater pair is the better head."""
    with torch.no_grad():
        logits = head(val.view())
        return ((logits.argmax(1) == val.labels).double().mean().item(),
                -cross_entropy(logits, val.labels).item())


def need_validation(episode: Episode, setting: str) -> None:
    """Raise BankError if `setting`, which is chosen on validation images, has none to be chosen on."""
    if not len(episode.val):
        raise BankError(f"{episode.dataset}: {setting} is chosen on validation images and this episode has none; give "
                        "a number, or a bank with a validation split.")
