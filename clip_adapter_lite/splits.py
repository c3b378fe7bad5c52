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
    names: what each picture is called, by its path under the dataset's folder; empty if not known.
    Raises BankError for other shapes, and for labels that are words, truth values or floating point.
    """
    features: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

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
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        if self.names and len(self.names) != len(self.labels):
            raise BankError(f"A split's names must be one for each of its {len(self.labels)} images; "
                            f"got {len(self.names)}; give all of them, or none.")

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
        names = self.names
        if names:
            chosen = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
            names = tuple(names[row] for row in chosen.tolist())
        return Split(self.features[..., rows, :], self.labels[rows], names)

    @classmethod
    def joined(cls, parts: Sequence["Split"]) -> "Split":
        """The images of several splits in turn; one with fewer views repeats its first."""
        views = max(part.views for part in parts)
        rows = [part.features if part.views == views
                else part.view().expand(views, *part.view().shape) for part in parts]
        names = [name for part in parts for name in part.names]
        labels = torch.cat([part.labels for part in parts])
        return cls(torch.cat(rows, dim=-2), labels, names if len(names) == len(labels) else ())

    def to(self, *args) -> "Split":
        """The split with its features on another device or in another dtype (arguments of
        `Tensor.to`).
        """
        features = self.features.to(*args)
        return Split(features, self.labels.to(features.device), self.names)

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


def halves(labels: Sequence[int], classes: int, seed: int) -> tuple[list[int], list[int]]:
    """Two halves of the rows, class by class in the order of `rank`; of an odd number the first has
    one more.
    """
    own: list[list[int]] = [[] for _ in range(classes)]
    for row, label in enumerate(labels):
        own[label].append(row)
    parts: tuple[list[int], list[int]] = [], []
    for label, rows in enumerate(own):
        order, middle = rank(seed, label, rows), -(-len(rows) // 2)
        parts[0].extend(order[:middle])
        parts[1].extend(order[middle:])
    return sorted(parts[0]), sorted(parts[1])


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
