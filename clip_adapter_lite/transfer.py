"""A fitted classifier on another bank: another domain of its classes, some of its classes, or new
ones by their names.
"""
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .backbones import agree
from .banks import FeatureBank
from .errors import BankError
from .methods import Classifier
from .methods.base import Head
from .naming import as_words
from .splits import Split
from .training import seeded
from .values import plain, shown


def transfer(classifier: Classifier, bank: FeatureBank, *,
             mapping: Mapping[str, str | int] | None = None, new_classes: bool = False) -> Classifier:
    """The classifier over the classes of `bank`, in the bank's order: nothing is fitted again.

    `cal.transfer(clf, sketches).accuracy(sketches.splits["test"])` judges a classifier of photos on
    sketches.

    Logits are the classifier's own columns, its classifier weights included. The bank's classes may
    be all of the classifier's or some of them, in any order; names match whatever their case, and
    with _ for a space.
    mapping: {class of the bank: class of the classifier, by name or by column}, for names that
    differ or that two columns share: from ImageNet to ImageNet-R it is {"missile": 657}, since
    open_clip calls class 744, which ImageNet-R lacks, so too.
    new_classes: the bank's classes need not be known. Its text features take the place of W under
    the same adapters or learned context, as in CoCoOp's base-to-new test (arXiv 2203.05557, section
    4.1); for methods that classify by words.

    What the fit found out (alpha, val_accuracy, seconds …) stays as it was; a calibration, which
    holds for the old pictures and classes alone, is left behind. Raises ValueError if
    the features are another backbone's, weights', width's or preprocessing's, for a class that is
    unknown or ambiguous, and for new classes of a method that knows its classes from images (linear
    probe, Tip-Adapter, CoOp with class-specific context).
    """
    _check_features(classifier.origin | {"feature width": classifier.head.width}, bank)
    if new_classes and mapping:
        raise ValueError("mapping= names known classes and new_classes=True classifies by the "
                         "bank's own names; give one of them.")
    if new_classes:
        head = classifier.head
        while isinstance(head, Columns):
            head = head.head
        with seeded(0), torch.no_grad():
            head = classifier.method.reworded(head, bank.episode(1, allow_fewer=True).to(head.place))
    else:
        columns = _columns(classifier.classnames, bank, mapping or {})
        same = columns == list(range(len(classifier.classnames)))
        head = classifier.head if same else Columns(classifier.head, columns)
    return replace(classifier, head=head, classnames=bank.classnames, calibration=None,
                   origin=classifier.origin | {"transferred_to": bank.dataset})


class Columns(Head):
    """Some columns of a head's logits, in another order: features [N, D] → logits [N, len(columns)]."""

    def __init__(self, head: Head, columns: list[int]):
        super().__init__()
        self.head, self.columns, self.width = head, columns, head.width

    @property
    def options(self) -> dict:
        """None: a file holds a whole head, so saving is refused with ValueError."""
        raise ValueError("A classifier over some or reordered classes of another is not saved; "
                         "save the fitted one, and transfer it again after loading.")

    def features(self, features: Tensor) -> Tensor:
        return self.head.features(features)

    def alphas(self, features: Tensor) -> Tensor | None:
        return self.head.alphas(features)

    def betas(self) -> Tensor | None:
        found = self.head.betas()
        return found if found is None else found[self.columns]

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features)[:, self.columns]


def base_and_new(bank: FeatureBank) -> tuple[FeatureBank, FeatureBank]:
    """CoCoOp's two halves of a bank: the first ⌈C/2⌉ classes in label order (base), and the others
    (new).

    Fit on base, judge on base, then `transfer(classifier, new, new_classes=True)` and judge on new;
    CoCoOp sums up the two accuracies as `statistics.harmonic_mean`. A half's labels start at 0, so
    its few-shot draws are its own.
    Raises BankError for a bank of one class.
    """
    classes = len(bank.classnames)
    if classes < 2:
        raise BankError(f"{bank.dataset} has {classes} class, which cannot be halved; base and new "
                        "need at least two.")
    middle = -(-classes // 2)
    return subset(bank, range(middle), "base"), subset(bank, range(middle, classes), "new")


def subset(bank: FeatureBank, classes: Sequence[int], name: str) -> FeatureBank:
    """The bank of some classes, by their labels, in the order given; labels start at 0 again.

    name: what the bank's name and protocol say of them.
    """
    place = torch.full((len(bank.classnames),), -1)
    place[list(classes)] = torch.arange(len(classes))
    splits = {}
    for which, split in bank.splits.items():
        kept = split.take((place[split.labels] >= 0).nonzero().squeeze(1))
        splits[which] = replace(kept, labels=place[kept.labels])
    called = f"{len(classes)} of {len(bank.classnames)} classes"
    if list(classes) == list(range(classes[0], classes[-1] + 1)):
        called = f"classes {classes[0] + 1} to {classes[-1] + 1} of {len(bank.classnames)}"
    protocol = f"{bank.meta.get('protocol', '')}; {name}: {called}"
    return replace(bank, dataset=f"{bank.dataset}-{name}",
                   classnames=tuple(bank.classnames[c] for c in classes),
                   text_features=bank.text_features[list(classes)], splits=splits,
                   meta=bank.meta | {"protocol": protocol.removeprefix("; ")})


def shifted(bank: FeatureBank, target: FeatureBank) -> FeatureBank:
    """A bank of the one's training and validation images and the other's test images, for `compare`
    under a shift.

    `cal.compare([shifted(photos, sketches)])` gives what `transfer` of each fit to the sketches
    would. Both need the same classes, in any order. Raises ValueError as `transfer` does.
    """
    _check_features(_facts(bank), target)
    columns = torch.tensor(_columns(bank.classnames, target, {}))
    if len(columns) < len(bank.classnames):
        raise ValueError(f"{target.dataset} has {len(columns)} of the {len(bank.classnames)} "
                         f"classes of {bank.dataset}; fit there and use transfer, which answers "
                         "with those classes only.")
    test = target.splits["test"]
    return replace(bank, dataset=f"{bank.dataset}-to-{target.dataset}",
                   splits=bank.splits | {"test": Split(test.features, columns[test.labels])},
                   meta=bank.meta | {"protocol": f"{bank.meta.get('protocol', '')}; test images of "
                                                 f"{target.dataset}: {target.meta.get('protocol', '')}"})


def _facts(bank: FeatureBank) -> dict:
    return {"backbone": bank.backbone, "weights_tag": bank.meta.get("weights_tag"),
            "preprocessing": bank.meta.get("preprocessing"),
            "feature width": bank.text_features.shape[1]}


def _check_features(there: dict, bank: FeatureBank) -> None:
    for what, value in _facts(bank).items():
        if value and there.get(what) and not agree(there[what], value):
            raise ValueError(f"The fit is on features with {what.replace('_', ' ')} "
                             f"{there[what]!r} but {bank.dataset} has {value!r}; build both banks "
                             "with the same backbone and preprocessing.")


def _key(name: str) -> str:
    return " ".join(as_words(str(name)).casefold().split())


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[_key(name)].append(place)
    return places


def _columns(known: tuple[str, ...], bank: FeatureBank, mapping: Mapping[str, str | int]) -> list[int]:
    """The column, among the known classes, of each class of the bank. A name that k classes of both
    have (ImageNet has two called 'missile') is matched in order."""
    there, wanted = _places(known), _places(bank.classnames)
    if not isinstance(mapping, Mapping):
        raise ValueError("mapping must be a dictionary, {class of the bank: class of the "
                         f"classifier}}; got {shown(mapping)}.")
    mapping = {_key(name): plain(target) for name, target in mapping.items()}
    if absent := [name for name in mapping if name not in wanted]:
        raise ValueError(f"mapping names '{absent[0]}', which is not a class of {bank.dataset}; "
                         f"its keys must be classes of the bank ({_some(bank.classnames)}).")
    rows_of: dict[int, int] = {}  # column of the classifier → row of the bank
    for name, rows in wanted.items():
        here, target = bank.classnames[rows[0]], mapping.get(name, name)
        column = isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(known)
        found = [target] if column else there.get(_key(target), [])
        if not found:
            said = f" ('{target}' in mapping)" if name in mapping else ""
            raise ValueError(f"{bank.dataset}'s class '{here}'{said} is not one that this "
                             f"classifier knows ({_some(known)}); give mapping={{'{here}': its "
                             f"name or column in the classifier}}, or new_classes=True to go by "
                             "the bank's own names.")
        if len(found) > len(rows):
            raise ValueError(f"'{target}' is the name of columns {', '.join(map(str, found))} of "
                             f"this classifier; say which with mapping={{'{here}': {found[0]}}}.")
        for row, column in zip(rows, found if len(found) == len(rows) else found * len(rows)):
            if column in rows_of:
                raise ValueError(f"Classes {rows_of[column]} and {row} of {bank.dataset} "
                                 f"('{bank.classnames[rows_of[column]]}' and "
                                 f"'{bank.classnames[row]}') are both '{known[column]}' of this "
                                 "classifier, which cannot tell them apart; give them different "
                                 "targets in mapping=, or leave one out of the bank.")
            rows_of[column] = row
    return sorted(rows_of, key=rows_of.get)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
