"""What every method shares: settings that never change, `fit` on an episode, and the fitted
classifier it returns.
"""
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softmax

from ..calibration import Calibration
from ..devices import best_device, method_dtype
from ..episodes import Episode
from ..errors import BankError
from ..splits import Split, share_right
from ..training import seeded
from ..values import as_tensor, plain, shown

KINDS = {bool: (bool, "true or false"), int: (Integral, "a whole number"),
         float: (Real, "a number"), str: (str, "a word"), tuple: (tuple, "a tuple"),
         NoneType: (NoneType, "none")}


def lengths(x: Tensor) -> Tensor:
    """The length [N, 1] of each row, never 0; in training cheaper than `norm`, whose backward makes
    one more [N, D].
    """
    return torch.linalg.vecdot(x, x)[..., None].clamp_min(1e-24).sqrt()


def cosine_logits(features: Tensor, weights: Tensor, logit_scale: float) -> Tensor:
    """logit_scale · cos(f, W): [N, C] logits of un-normalised features [N, D] and classifier
    weights [C, D].

    The lengths of f divide the logits and not f, which is the same cosine and a quarter less work
    in training, as C < D.
    """
    cosines_by_length = features @ normalize(weights, dim=-1).T  # [N, D] @ [D, C]
    return cosines_by_length * (logit_scale / lengths(features))  # [N, C] * [N, 1]


class Head(nn.Module):
    """What fitting makes: features [N, D] → logits [N, C], on one device. Every method's head is one.

    width: D. options: its constructor's keywords. Its constructor's other arguments are its buffers
    and parameters without a dot in their names, so that options and state_dict rebuild it; it has
    at least one.
    """
    width: int
    options: dict[str, Any]

    @property
    def place(self) -> Tensor:
        """A tensor that has the head's device and dtype, as `Tensor.to` takes it."""
        return next(chain(self.buffers(), self.parameters()))

    def features(self, features: Tensor) -> Tensor:
        """What the head compares with its classifier weights, [N, D]: the features themselves,
        unless it adapts them.
        """
        return features

    def alphas(self, features: Tensor) -> Tensor | None:
        """The residual ratio of each image, [N, 1]; None for a head without a visual adapter."""
        return None

    def betas(self) -> Tensor | None:
        """The residual ratio of each class, [C, 1]; None for a head without a text adapter."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A fitted method: features in, logits out, on whatever device the features are (arrays and
    lists are on the CPU).

    What fitting found out: val_accuracy (None without validation images), alpha and beta (fixed,
    selected, or the mean of the learned ones over the support set; None where there are none),
    steps (of the optimiser, in the run that was kept), seconds (the whole fit, searches included),
    parameters (trained ones), details (anything else worth knowing).
    origin: the dataset, shots, seed, templates, backbone, weights tag and preprocessing of the episode.
    calibration: what `cal.calibrate` learned; None, as `fit` leaves it.
    """
    head: Head
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
    calibration: Calibration | None = None

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, C], on the device of the un-normalised features [N, D], a tensor or an array.

        Raises BankError for another shape than the head was fitted on, and for what holds no numbers.
        """
        brought, home = self.brought(features)
        return self.head(brought).to(home)

    def brought(self, features: Tensor) -> tuple[Tensor, torch.device]:
        """The features [N, D] where the head is, and the device they were on. Raises BankError as
        `logits` does.
        """
        must = (f"A classifier takes features of shape [N, {self.head.width}], the width it was "
                "fitted on")
        do = "so give those of the backbone that it was fitted with"
        features = as_tensor(features, must, do)
        if features.ndim != 2 or features.shape[1] != self.head.width:
            raise BankError(f"{must}; got {list(features.shape)}, {do}.")
        if features.is_complex() or features.dtype == torch.bool:
            raise BankError(f"{must}; got {features.dtype}, {do}.")
        return features.to(self.head.place).contiguous(), features.device

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities [N, C]: the softmax of the logits, scaled if `cal.calibrate` was asked."""
        logits = self.logits(features)
        if self.calibration is not None:
            features = self.brought(features)[0].to(logits)
            logits = self.calibration.scaled(logits, features)
        return softmax(logits, dim=-1)

    def rejected(self, features: Tensor) -> Tensor:
        """Whether each image, [N], is none of the classes: never, unless `cal.calibrate` set a
        threshold.
        """
        return (self.calibration or Calibration()).rejected(self.logits(features))

    def prediction_sets(self, features: Tensor) -> Tensor:
        """Whether each class is in each image's set, [N, C] of truth values.

        Raises ValueError if `cal.calibrate` was not asked for a coverage.
        """
        return (self.calibration or Calibration()).sets(self.logits(features))

    @torch.no_grad()
    def alphas(self, features: Tensor) -> Tensor:
        """The residual ratio [N] that a fitted CLIP-Adapter uses for each image: learned ones differ.

        Raises TypeError for a method, or a branch, that has none, and BankError as `logits` does.
        """
        brought, home = self.brought(features)
        found = self.head.alphas(brought)
        if found is None:
            raise TypeError(f"{self.method.label} has no visual adapter, so no α; fit "
                            "CLIPAdapter(branch='visual').")
        return found.squeeze(1).to(home)

    @torch.no_grad()
    def betas(self) -> Tensor:
        """The residual ratio [C], on the CPU, of each class of a fitted CLIP-Adapter. Raises
        TypeError as `alphas` does.
        """
        found = self.head.betas()
        if found is None:
            raise TypeError(f"{self.method.label} has no text adapter, so no β; fit "
                            "CLIPAdapter(branch='text').")
        return found.squeeze(1).cpu()

    def accuracy(self, split: Split) -> float:
        """The fraction of the split's images (view 0) whose highest logit is their label's, in [0, 1].

        Raises BankError, as `fit` does, for a split that cannot be judged: empty, NaN, other
        widths, labels out of range.
        """
        if not isinstance(split, Split):
            raise BankError("accuracy() takes a Split, such as episode.test; got "
                            f"{type(split).__name__}, so give Split(features, labels).")
        if not len(split):
            raise BankError("accuracy() needs at least one image; this split is empty.")
        split.check("accuracy()", self.head.width, len(self.classnames))
        return share_right(self.logits(split.view()), split.labels)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of a method. Frozen: `fit` cannot change them, so one method can be fitted to many
    episodes.

    Numbers of numpy and torch become Python's own, lists and arrays tuples. Raises ValueError for a
    value of another kind than the setting's, and for one that cannot be (`check_settings`).
    """
    name: ClassVar[str]
    head_class: ClassVar[type[Head]]  # built from its buffers and `options`, filled from its state_dict
    device: str = "auto"

    def __post_init__(self):
        wrong = ""
        for name, kind in ((setting.name, setting.type) for setting in fields(self)):
            value = plain(getattr(self, name))
            value = str(value) if isinstance(value, torch.device) else value
            kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
            allowed = {KINDS.get(get_origin(kind) or kind, (object, "anything")) for kind in kinds}
            right = isinstance(value, tuple(kind for kind, _ in allowed))
            if not right or isinstance(value, bool) and bool not in kinds:
                words = " or ".join(sorted(word for _, word in allowed))
                wrong = wrong or f"{name} of {self.name} must be {words}; got {shown(value)}."
            object.__setattr__(self, name, value)
        try:
            self.check_settings()  # first, as it knows better what may be
        except TypeError:  # of another kind, which cannot be compared
            if not wrong:
                raise
        if wrong:
            raise ValueError(wrong)
        for name in ("steps", "rate", "weight_decay"):
            if not 0 <= getattr(self, name, 0) < math.inf:
                limit = "at least 0" if getattr(self, name) < 0 else "finite"
                raise ValueError(f"{name} must be {limit}; got {getattr(self, name)}.")

    def check_settings(self) -> None:  # noqa: B027 (a method may have nothing to check)
        """Raise ValueError for a setting that cannot be."""

    @property
    def needs_validation(self) -> bool:
        """Whether `fit` raises BankError without validation images."""
        return "val" in (getattr(self, setting.name) for setting in fields(self))

    @property
    def uses_validation(self) -> bool:
        """Whether `fit` looks at validation images if there are any."""
        return self.needs_validation

    def labelled(self, episode: Episode) -> float:
        """How many labelled images a class `fit` looks at, a mean over classes."""
        seen = len(episode.support) + (len(episode.val) if self.uses_validation else 0)
        return seen / len(episode.classnames)

    @property
    def label(self) -> str:
        """The name, followed by the settings that differ from the defaults:
        `clip-adapter(alpha=0.2)`.
        """
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)
                   if f.name != "device" and getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def fit(self, episode: Episode) -> Classifier:
        """Fit to the episode's support set, selecting on its validation images; `test` is not
        looked at.

        Deterministic on CPU: all randomness comes from the episode's seed. Raises BankError if the
        episode cannot be fitted (no support image of a class, NaN, other widths, labels out of
        range).
        """
        start = time.perf_counter()
        episode = self.prepared(episode)
        with seeded(episode.seed):
            head, found = self._fit(episode)
        return replace(self._classifier(episode, head, found), seconds=time.perf_counter() - start)

    def _classifier(self, episode: Episode, head: Head, found: dict[str, Any]) -> Classifier:
        """What `_fit` gave for a prepared episode, as `fit` returns it; only the seconds are missing."""
        head.requires_grad_(False).eval()
        found["val_accuracy"] = validation_score(head, episode.val)[0] if len(episode.val) else None
        origin = {"dataset": episode.dataset, "shots": episode.shots, "seed": episode.seed,
                  "templates": list(episode.templates), "backbone": episode.backbone_name,
                  "weights_tag": episode.backbone_tag, "preprocessing": episode.preprocessing}
        return Classifier(head=head, classnames=episode.classnames, method=self, origin=origin,
                          **found)

    def prepared(self, episode: Episode) -> Episode:
        """The episode, checked, on the method's device in the dtype that methods compute in there."""
        if not isinstance(episode, Episode):
            raise BankError(f"A method is fitted to an Episode; got {type(episode).__name__}, so "
                            "give bank.episode(shots).")
        episode.check()
        device = best_device(self.device)
        return episode.to(device, method_dtype(episode.support.features.dtype, device))

    @abstractmethod
    def _fit(self, episode: Episode) -> tuple[Head, dict[str, Any]]:
        """The fitted head, and what to tell of it (fields of `Classifier`)."""

    def settled(self, fitted: Classifier) -> "Method":
        """The method with what a fit of it chose on held-out images as numbers: nothing is left to
        be chosen.

        A ratio per image (α = Q(f, W)) becomes its mean; numbers are kept to four digits.
        """
        found = {"alpha": fitted.alpha, "beta": fitted.beta, "C": fitted.details.get("C")}
        chosen = {name: float(f"{found[name]:.4g}") for name in found
                  if isinstance(getattr(self, name, None), str) and found[name] is not None}
        return replace(self, **chosen)

    def reworded(self, head: Head, episode: Episode) -> Head:
        """A fitted head over the classes of `episode`, which it never saw, by their names alone:
        see `cal.transfer`.

        Raises ValueError for a method that knows its classes from their images.
        """
        raise ValueError(f"{self.label} knows only the classes it was fitted on, so not those of "
                         f"{episode.dataset}; fit it there, or use zero-shot, clip-adapter or coop "
                         "with unified context, which go by words.")


def class_weights(split: Split, classes: int) -> Tensor:
    """A weight [C] for each class in the loss, 1 / (its images); 0 for one without images."""
    counts = torch.bincount(split.labels, minlength=classes).to(split.view())
    return torch.where(counts > 0, 1 / counts.clamp_min(1), 0)


def from_0(value: Any) -> bool:
    """Whether a setting is a finite number from 0."""
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def validation_score(head: Head, val: Split) -> tuple[float, float]:
    """(accuracy, -cross-entropy) on the validation images; the greater pair is the better head."""
    with torch.no_grad():
        logits = head(val.view())  # [N, C]
        return share_right(logits, val.labels), -cross_entropy(logits, val.labels).item()


def best(scores: Mapping[tuple, tuple[float, float]]) -> tuple[tuple, int]:
    """The ratios with the best `validation_score`, of equals the smaller ones, and how many reach
    its accuracy.
    """
    chosen = max(scores, key=lambda ratios: (*scores[ratios], *(-ratio for ratio in ratios)))
    return chosen, sum(score[0] == scores[chosen][0] for score in scores.values())


def best_near(scores: Mapping[tuple, tuple[float, float]], images: int,
              prior: float) -> tuple[tuple, int]:
    """The ratios nearest to `prior` that so many validation images cannot tell from the best, and
    how many they cannot.

    Those are within one standard error √(p (1 - p) / images) of the highest accuracy p; of equally
    near ones the better `validation_score`. A ratio that is None (no such branch) is as near as any.
    """
    highest = max(accuracy for accuracy, _ in scores.values())
    least = highest - math.sqrt(highest * (1 - highest) / images)
    near = [ratios for ratios in scores if scores[ratios][0] >= least]
    away = lambda ratios: round(sum(abs(r - prior) for r in ratios if r is not None), 9)
    return min(near, key=lambda ratios: (away(ratios), *(-s for s in scores[ratios]))), len(near)


def need_validation(episode: Episode, setting: str) -> None:
    """Raise BankError if `setting`, which is chosen on validation images, has none to be chosen on."""
    if not len(episode.val):
        raise BankError(f"{episode.dataset}: {setting} is chosen on validation images and this "
                        "episode has none; give a number, or a bank with a validation split.")
