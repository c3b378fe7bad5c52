"""Where a classifier goes wrong: accuracy class by class, and which pictures it takes for what."""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .errors import BankError
from .evaluation import calibration_error
from .files import begins, may_write, whole
from .methods import Classifier
from .naming import count
from .splits import Split, predicted

CORNER = "true class \\ predicted"  # of a confusion matrix as CSV


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What a classifier makes of a split, a count for each pair of classes.

    confusion: an array [C, C] of whole numbers, a row per true class, a column per prediction.
    pictures: {(true class, prediction): the names, or the places in the split, of the pictures so
        confused}.
    rejected: how many of the pictures a calibrated threshold calls none of the classes; they count
        as the class that they would be.
    """
    classnames: tuple[str, ...]
    confusion: object
    pictures: dict[tuple[int, int], list[str]]
    rejected: int | None = None

    @property
    def images(self) -> int:
        """How many pictures were judged."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of pictures named right, in [0, 1]: each picture weighs the same (micro)."""
        return int(self.confusion.trace()) / self.images

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' accuracies, in [0, 1]: each class that has pictures weighs the
        same (macro; scikit-learn's `balanced_accuracy_score`).
        """
        return float(self.classes["accuracy"].mean())

    @cached_property
    def classes(self):
        """A DataFrame with a row per class, in their order: class, images, right, accuracy (its
        recall), predicted (how often it was named), precision, f1; NaN where there are none.
        """
        import numpy
        import pandas
        right, images = self.confusion.diagonal(), self.confusion.sum(1)
        named = self.confusion.sum(0)
        with numpy.errstate(invalid="ignore"):
            return pandas.DataFrame({
                "class": self.classnames, "images": images, "right": right, "accuracy": right / images,
                "predicted": named, "precision": right / named, "f1": 2 * right / (images + named)})

    def worst(self, most: int = 10):
        """A DataFrame of the pairs confused most often, of equals the larger share of the class
        first: true, predicted, count, share (of the true class), pictures (their names).
        """
        from heapq import nsmallest

        import pandas
        images = self.confusion.sum(1).tolist()

        def place(pair):
            number = len(self.pictures[pair])
            return -number, -number / images[pair[0]], pair
        pairs = nsmallest(most, self.pictures, key=place)
        return pandas.DataFrame(
            [(self.classnames[true], self.classnames[named], len(self.pictures[true, named]),
              len(self.pictures[true, named]) / images[true], self.pictures[true, named])
             for true, named in pairs],
            columns=["true", "predicted", "count", "share", "pictures"])

    def table(self):
        """The confusion matrix as a DataFrame, true classes down, predictions across."""
        import pandas
        return pandas.DataFrame(self.confusion, index=self.classnames, columns=self.classnames)

    def save(self, path: str | Path) -> Path:
        """Write the confusion matrix as CSV. Raises OSError, one sentence, if it cannot be, or if a
        CSV that is no confusion matrix lies there.
        """
        may_save_report(path)
        with whole(path) as partial:
            self.table().to_csv(partial, index_label=CORNER, encoding="utf-8")
        return Path(path)

    def __str__(self):
        worst = self.classes.dropna(subset="accuracy").sort_values("accuracy", kind="stable")
        lines = [f"{100 * self.accuracy:.1f} % of {count(self.images, 'image')}, mean of classes "
                 f"{100 * self.balanced_accuracy:.1f} %"]
        lines += [f"  {100 * row.accuracy:5.1f} %  {row.right} of {row.images}  {row[1]}"
                  for row in worst.head(5).itertuples()]
        lines += [f"  {row.count_}  {row.true} taken for {row.predicted}: {few(row.pictures)}"
                  for row in self.worst(3).rename(columns={"count": "count_"}).itertuples()]
        return "\n".join(lines)


def few(names: list[str], most: int = 3) -> str:
    """The first of the names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def may_save_report(path: str | Path) -> None:
    """Raise as `Report.save` would, before any work."""
    may_write(path, lambda there: begins(there, CORNER), "confusion matrix")


def report(classifier: Classifier, split: Split) -> Report:
    """Where a classifier goes wrong on a split, such as episode.test: `print` it, or see `Report`.

    Counted by scikit-learn's `confusion_matrix`. The split's images must have taken no part in
    fitting, selecting or calibrating for the numbers to mean anything.
    Raises BankError, as `Classifier.accuracy` does, for a split that cannot be judged.
    """
    from sklearn.metrics import confusion_matrix
    if not isinstance(split, Split):
        raise BankError("report() takes a Split, such as episode.test; got "
                        f"{type(split).__name__}, so give Split(features, labels).")
    if not len(split):
        raise BankError("report() needs at least one image; this split is empty.")
    classes = len(classifier.classnames)
    split.check("report()", classifier.head.width, classes)
    features = split.view()
    found, labels = predicted(classifier.logits(features)).cpu(), split.labels.cpu()
    matrix = confusion_matrix(labels.numpy(), found.numpy(), labels=range(classes))
    pictures: dict[tuple[int, int], list[str]] = {}
    wrong = torch.nonzero(found != labels).flatten()
    for row, true, named in zip(wrong.tolist(), labels[wrong].tolist(), found[wrong].tolist()):
        name = split.names[row] if split.names else f"image {row}"
        pictures.setdefault((true, named), []).append(name)
    calibration = classifier.calibration
    rejects = calibration is not None and calibration.threshold is not None
    return Report(classnames=classifier.classnames, confusion=matrix, pictures=pictures,
                  rejected=int(classifier.rejected(features).sum()) if rejects else None)


def errors_before_and_after(classifier, split: Split) -> tuple[float, float]:
    """The expected calibration error, in [0, 1], of the plain softmax and of the calibrated
    probabilities, on images that calibrated nothing.
    """
    logits = classifier.logits(split.view())
    return (calibration_error(logits.softmax(1), split.labels),
            calibration_error(classifier.probabilities(split.view()), split.labels))
