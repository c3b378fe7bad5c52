"""One few-shot problem: what a method may see, and what it is judged on."""
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from . import backbones
from .errors import BankError
from .splits import Split
from .values import as_scale, as_tensor, whole_number

TEXT = "give what the text encoder gave, a row for each class name"


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot problem. Nothing but `support` and `val` may be used for fitting; `test` is for
    judging, once.

    text_features [C, D] are the classifier weights W; logit_scale is 1/τ of the backbone;
    `shortfall` counts, per class, how many of the min(shots, 4) validation images the bank did not
    have. Text features are kept without a graph.
    Raises BankError for what holds no numbers; what else cannot be right is found by `check`.
    """
    support: Split
    val: Split
    test: Split
    text_features: Tensor
    classnames: tuple[str, ...]
    logit_scale: float
    templates: tuple[str, ...] = ()
    dataset: str = "arrays"
    backbone_name: str = "unknown"
    backbone_tag: str = ""
    preprocessing: dict = field(default_factory=dict)
    shots: int = 0
    seed: int = 0
    shortfall: tuple[int, ...] = ()

    def __post_init__(self):
        text = as_tensor(self.text_features, f"{self.dataset}: text features must be numbers of "
                                             "shape [C, D]", TEXT)
        object.__setattr__(self, "text_features", text)
        object.__setattr__(self, "logit_scale", as_scale(self.logit_scale, self.dataset))
        for name in ("shots", "seed"):  # numbers of numpy would not go into a file
            object.__setattr__(self, name, whole_number(getattr(self, name), name))

    @cached_property
    def backbone(self):
        """The backbone that made the features, loaded on first use (CoOp needs its text encoder)."""
        return backbones.shared_backbone(self.backbone_name, self.backbone_tag,
                                         self.text_features.device)

    def to(self, *args) -> "Episode":
        """The episode on another device or in another dtype (arguments of `Tensor.to`)."""
        return replace(self, support=self.support.to(*args), val=self.val.to(*args),
                       test=self.test.to(*args), text_features=self.text_features.to(*args))

    def shots_only(self) -> "Episode":
        """The episode without its validation images: a method may look at the shots alone."""
        return replace(self, val=self.val.take(slice(0)))

    def check(self) -> None:
        """Raise BankError if a method could not be fitted to this episode."""
        check_text(self.text_features, len(self.classnames), self.dataset)
        classes, width = self.text_features.shape
        if not len(self.support):
            raise BankError("The support set is empty; a method needs at least one image of each "
                            "class.")
        for name in ("support", "val", "test"):
            getattr(self, name).check(f"{self.dataset}, {name}", width, classes)
        missing = sorted(set(range(classes)) - set(self.support.labels.tolist()))
        if missing:
            raise BankError(f"{self.dataset}: the support set has no image of class "
                            f"{', '.join(self.classnames[c] for c in missing[:5])}; each class "
                            "needs at least one.")


def check_text(text: Tensor, classes: int, dataset: str) -> None:
    """Raise BankError unless text features are floating point [classes, D], finite, and none of
    them all zero.
    """
    if text.ndim != 2 or len(text) != classes or not text.numel() or not text.is_floating_point():
        raise BankError(f"{dataset}: text features must be [C, D] with C = {classes} class names; "
                        f"got {list(text.shape)} of {text.dtype}; {TEXT}.")
    if not torch.isfinite(text).all() or not text.any(1).all():
        half = " in half precision" if text.dtype == torch.float16 else ""
        raise BankError(f"{dataset}: text features hold NaN or infinity{half}, or a row of zeros; "
                        "encode the class names again.")
