"""Features and their labels: who is drawn among them, and how many are named right."""
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BankError
from .values import as_labels, as_tensor

SPLITS = ("train", "val", "test")
# of a row's largest entry: `methods.base.lengths` squares in float32, which ends at 3e38
LEAST, MOST = 1e-12, 1e17


@dataclass(frozen=True, eq=False)
class Split:
    """Image features and their labels, as tensors, arrays, lists or columns of a table; kept as
    tensors without a graph.

    features: [N, D] float, un-normalised; or [V, N, D] with V augmented views of each image.
    labels: [N] integers, the index of each image's class.
    Raises BankError for other shapes, and for labels that are words, truth values or floating point.
    """
    features: Tensor
    labels: Tensor

    def __post_init__(self):
        must = "A split's features must be floating point of shape [N, D] or [V, N, D]"
        do = "give what the image encoder gave, a row for each image"
        features = as_tensor(self.features, must, do)
        sizes = *features.shape[:-2], *features.shape[-1:]  # V, where there are views, and D
        if features.ndim not in (2, 3) or not features.is_floating_point() or 0 in sizes:
            raise BankError(f"{must}; got {features.dtype} of shape {list(features.shape)}; {do}.")
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "labels", as_labels(self.labels, features.shape[-2],
                                                     "A split's labels"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """How many views there are of each image."""
        return 1 if self.features.ndim == 2 else len(self.features)

    def view(self, step: int = 0) -> Tensor:
        """The features [N, D] of view `step` modulo V: a fresh view each training step, view 0 for
        judging.
        """
        return self.features if self.features.ndim == 2 else self.features[step % len(self.features)]

    def take(self, rows: Tensor) -> "Split":
        """The images at `rows`, in that order, with all their views."""
        return Split(self.features[..., rows, :], self.labels[rows])

    def to(self, *args) -> "Split":
        """The split with its features on another device or in another dtype (arguments of
        `Tensor.to`).
        """
        features = self.features.to(*args)
        return Split(features, self.labels.to(features.device))

    def check(self, name: str, width: int, classes: int) -> None:
        """Raise BankError unless features are [.., width], finite and non-zero, and labels are in 0
        … classes - 1.

        Rows whose squared length is infinite or zero in float32 count as such.
        """
        if self.features.shape[-1] != width:
            raise BankError(f"{name}: features have {self.features.shape[-1]} dimensions but the "
                            f"classifier weights have {width}; both must come from the same backbone.")
        largest = torch.linalg.vector_norm(self.features, float("inf"), dim=-1).float()  # NaN for NaN
        wrong = ~(largest < MOST)
        if wrong.any():
            raise BankError(f"{name}: {int(wrong.sum())} feature rows hold NaN or infinity, the "
                            f"first at index {wrong.nonzero()[0].tolist()}; build the bank again "
                            "or drop those images.")
        empty = largest < LEAST
        if empty.any():
            raise BankError(f"{name}: {int(empty.sum())} feature rows are all zero and so have no "
                            f"direction, the first at index {empty.nonzero()[0].tolist()}; build "
                            "the bank again or drop those images.")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            raise BankError(f"{name}: labels run from {int(self.labels.min())} to "
                            f"{int(self.labels.max())} but there are {classes} classes, so they "
                            f"must lie in 0 … {classes - 1}.")


def rank(seed: int, label: int, indices: list[int]) -> list[int]:
    """`indices` in the order of a SHA-256 of (seed, class, index): the same on every machine and
    version.
    """
    return sorted(indices, key=lambda i: hashlib.sha256(f"{seed}/{label}/{i}".encode()).digest())


def drawn(labels: Sequence[int], classes: int, per_class: int, seed: int) -> list[int]:
    """The rows of a few-shot draw: of each class, in label order, the first `per_class` by `rank`
    (fewer if it has fewer).

    It depends on (seed, class, row) alone, and the rows of fewer shots are among those of more.
    """
    rows: list[list[int]] = [[] for _ in range(classes)]
    for row, label in enumerate(labels):
        rows[label].append(row)
    return [row for label, own in enumerate(rows) for row in rank(seed, label, own)[:per_class]]


def share_right(logits: Tensor, labels: Tensor) -> float:
    """The fraction, in [0, 1], of rows of logits [N, C] whose highest entry is their label's
    (labels [N]); NaN for no rows.

    Raises ValueError for NaN or infinity; shapes and labels are checked in `evaluation.accuracy`.
    Counted in whole numbers, since Apple's GPU has no float64.
    """
    right = (predicted(logits) == labels.to(logits.device)).sum().item()
    return right / len(labels) if len(labels) else float("nan")


def predicted(scores: Tensor) -> Tensor:
    """The column [N] of each row's highest entry, of equals the first; scores [N, C].

    Raises ValueError for rows that have no finite highest entry: those with NaN or infinity, or
    -infinity alone.
    """
    highest, columns = scores.max(1)
    wrong = ~torch.isfinite(highest)
    if wrong.any():
        raise ValueError(f"{int(wrong.sum())} rows of the scores hold NaN or no finite highest "
                         "entry; look for NaN in the features or a learning rate that is too high.")
    return columns
