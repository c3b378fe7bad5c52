"""Pictures of none of the classes: what a threshold rejects of classes that were left out."""
from dataclasses import dataclass

import torch
from torch import Tensor

from .banks import FeatureBank
from .calibration import calibrate
from .errors import BankError
from .methods import Method
from .naming import count
from .splits import rank
from .transfer import subset


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenSet:
    """What `open_set` measured, on test images of the known and of the left-out classes.

    auroc: the chance, in [0, 1], that a known picture scores above a left-out one. promised: the
    share of known pictures that the threshold may reject; false_reject, rejected: the shares of
    known and of left-out pictures that it does. known, unknown: the scores, highest logits.
    """
    left_out: tuple[str, ...]
    auroc: float
    threshold: float
    promised: float
    false_reject: float
    rejected: float
    known: Tensor
    unknown: Tensor
    backbone: str | None = None  # whose features

    def __str__(self):
        left = "1 class" if len(self.left_out) == 1 else f"{len(self.left_out)} classes"
        return (f"With {left} left out of the fit, the threshold rejects {100 * self.rejected:.1f} % "
                f"of {count(len(self.unknown), 'test image')} of theirs and "
                f"{100 * self.false_reject:.1f} % of {len(self.known)} of the others "
                f"(promised: at most {100 * self.promised:g} %); AUROC {self.auroc:.3f}")


def open_set(bank: FeatureBank, method: Method, shots: int | str = 16, seed: int = 1, *,
             false_reject: float = 0.05, share: float = 0.25, allow_fewer: bool = False) -> OpenSet:
    """How well pictures of unknown classes are told by the highest logit (Hendrycks et al. 2022,
    arXiv 1911.11132); of it and the highest probability it did better on the validation parts of
    four bundled banks (mean AUROC 0.783 over two seeds, against 0.747).

    A `share` of the classes is left out, by the hash of (seed, class); the method is fitted to the
    others, the threshold calibrated on their held-out validation images (`FeatureBank.hold_out`)
    for `false_reject`, and both judged on test images. AUROC is scikit-learn's.
    It says what to expect of unknown classes that are like the known ones; others may be easier.
    Raises BankError for a bank of fewer than three classes, or without test images of either kind.
    """
    from sklearn.metrics import roc_auc_score
    classes = len(bank.classnames)
    if classes < 3:
        raise BankError(f"{bank.dataset} has {classes} classes; to leave one out takes three.")
    order = rank(seed, 0, list(range(classes)))
    many = min(max(1, round(share * classes)), classes - 2)
    known = subset(bank, sorted(order[many:]), "known")
    unknown = subset(bank, sorted(order[:many]), "left-out")
    for part in (known, unknown):
        if not len(part.splits["test"]):
            raise BankError(f"{part.dataset} has no test images, so nothing can be measured; add "
                            "some and build the bank again.")
    kept, held_out = known.hold_out(seed)
    fitted = method.fit(kept.episode(shots, seed, allow_fewer=allow_fewer))
    fitted = calibrate(fitted, held_out, scaling="none", false_reject=false_reject)
    features = [part.splits["test"].view().float() for part in (known, unknown)]
    scores = [fitted.logits(f).double().amax(1) for f in features]
    truth = torch.cat([torch.ones(len(scores[0])), torch.zeros(len(scores[1]))])
    rejected = [fitted.rejected(f).double().mean().item() for f in features]
    return OpenSet(left_out=unknown.classnames, threshold=fitted.calibration.threshold,
                   auroc=float(roc_auc_score(truth.numpy(), torch.cat(scores).numpy())),
                   promised=false_reject, false_reject=rejected[0], rejected=rejected[1],
                   known=scores[0], unknown=scores[1], backbone=bank.backbone)
