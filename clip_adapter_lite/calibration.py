"""How sure a classifier is: probabilities that mean what they say, sets that hold the true class as
often as promised, and a threshold below which a picture is none of the classes.

All of it is learned on held-out images, which took no part in fitting or selecting
(`FeatureBank.hold_out`). The guarantees hold for pictures drawn as those were, over both draws
together; under a domain shift they do not.
"""
import json
import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .errors import BankError
from .naming import count
from .splits import Split, predicted
from .values import plain, shown

SCALINGS = ("temperature", "sals", "none")
FEW = 100  # images below which a temperature is little more than a guess
NONE = "none of these"


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What `calibrate` learned; a classifier that has one applies it.

    scaling: "temperature" divides the logits by `temperature`; "sals" brings each image's logits to
        the range that zero-shot's have on it; "none" leaves them.
    weights [C, D], logit_scale: zero-shot's, for "sals".
    threshold: the least highest logit (unscaled) that is not rejected as none of the classes, the
        score of Hendrycks et al. 2022 (arXiv 1911.11132); None rejects nothing. false_reject: the
        share of pictures of its classes that it may reject.
    limits: [C], the least probability (of the unscaled logits) with which each class is in a set;
        None gives no sets. -infinity puts a class into every set. coverage: how often the true class
        is in its set, at least. class_wise: whether that holds in each class, not only on average.
    images: how many calibrated; notes: what there were too few images for, in sentences.
    """
    scaling: str = "none"
    temperature: float = 1.0
    weights: Tensor | None = None
    logit_scale: float | None = None
    threshold: float | None = None
    false_reject: float | None = None
    limits: Tensor | None = None
    coverage: float | None = None
    class_wise: bool = False
    images: int = 0
    notes: tuple[str, ...] = ()

    def scaled(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits [N, C] whose softmax is to be believed, of the head's, and of the features [N, D]."""
        if self.scaling == "temperature":
            return logits / self.temperature
        if self.scaling == "sals":
            weights = normalize(self.weights.to(features), dim=-1)
            zero_shot = self.logit_scale * normalize(features, dim=-1) @ weights.T
            return rescaled(logits, zero_shot.to(logits))
        return logits

    def rejected(self, logits: Tensor) -> Tensor:
        """Whether each image, [N], is none of the classes, by its unscaled logits [N, C]."""
        if self.threshold is None:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        return (logits.cpu().double().amax(1) < self.threshold).to(logits.device)

    def sets(self, logits: Tensor) -> Tensor:
        """Whether each class is in each image's set, [N, C] of truth values, by unscaled logits.

        Raises ValueError if no sets were calibrated.
        """
        if self.limits is None:
            raise ValueError("This classifier has no prediction sets; calibrate it with "
                             "cal.calibrate(classifier, held_out, coverage=0.9) (fit --coverage 0.9).")
        return (logits.cpu().double().softmax(1) >= self.limits).to(logits.device)

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        """The tensors, and the rest as JSON has it."""
        facts = {key: value for key, value in asdict(self).items() if key not in ("weights", "limits")}
        tensors = {"weights": self.weights, "limits": self.limits}
        return ({name: tensor.cpu().contiguous() for name, tensor in tensors.items()
                 if tensor is not None}, json.loads(json.dumps(facts)))

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], facts: dict) -> "Calibration":
        """What `to_file` gave. Raises TypeError for other facts."""
        return cls(**facts | {"notes": tuple(facts["notes"])}, **tensors)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T from 0.01 to 100 that minimises the cross-entropy of logits / T (Guo et al.
    2017, arXiv 1706.04599, section 4.2); logits [N, C], labels [N]. Accuracy is not changed.

    Raises ValueError if every image is named right: the likelihood then rises with confidence
    without end, and no temperature is the best.
    """
    from scipy.optimize import minimize_scalar
    if bool((predicted(logits) == labels).all()):
        raise ValueError("Every held-out image is named right, so no temperature can be learned of "
                         "them; hold out more images.")
    logits = logits.double()
    loss = lambda power: cross_entropy(logits * math.exp(-power), labels).item()
    edge = math.log(100)
    return math.exp(minimize_scalar(loss, bounds=(-edge, edge), method="bounded",
                                    options={"xatol": 1e-6}).x)


def rescaled(logits: Tensor, zero_shot: Tensor) -> Tensor:
    """SaLS: each row of logits [N, C] brought to the least and the greatest of zero-shot's row.

    Sample-adaptive logit scaling (Murugesan et al. 2024, arXiv 2407.13588, section 4.3): adapting
    widens the logits' range, and with it confidence, while accuracy does not rise as much. No
    validation images, and the order of the classes stays.
    """
    low, high = logits.aminmax(dim=1, keepdim=True)
    least, most = zero_shot.aminmax(dim=1, keepdim=True)
    return (logits - low) * ((most - least) / (high - low).clamp_min(1e-12)) + least


def lower_limit(scores: Tensor, share: float) -> float:
    """The score [N] below which a new one falls with a chance of at most `share`: split conformal
    prediction's order statistic, the ⌊share (N + 1)⌋-th smallest (Vovk et al. 2005); -infinity if
    that is none, as with N < 1 / share - 1 scores.

    Over draws of the scores and the new one, if they are exchangeable; without ties the chance is
    above share - 1 / (N + 1).
    """
    place = math.floor(share * (len(scores) + 1) + 1e-9)
    return scores.double().sort().values[place - 1].item() if place else -math.inf


def set_limits(probabilities: Tensor, labels: Tensor, coverage: float,
               class_wise: bool = False) -> Tensor:
    """The least probability [C] with which each class is in a set, so that sets hold the true class
    with a chance of at least `coverage`: over all images, or in each class.

    Score and set are Sadinle et al.'s (2019, arXiv 1609.00451): every class whose probability is at
    least the limit, which makes the smallest sets on average; one may be empty. probabilities
    [N, C], labels [N].
    """
    true = probabilities.gather(1, labels[:, None]).squeeze(1)
    classes = probabilities.shape[1]
    if not class_wise:
        return torch.full((classes,), lower_limit(true, 1 - coverage), dtype=torch.float64)
    return torch.tensor([lower_limit(true[labels == c], 1 - coverage) for c in range(classes)],
                        dtype=torch.float64)


def needed(share: float) -> int:
    """How many images a limit at `share` needs at least: 19 for 5 %."""
    return math.ceil(1 / share - 1 - 1e-9)


def spread(share: float, images: int) -> float:
    """The standard deviation of what a limit at `share` really gives, over draws of the images that
    set it: that of a Beta distribution (Vovk 2012, arXiv 1209.2673).
    """
    place = max(1, math.floor(share * (images + 1) + 1e-9))
    return math.sqrt(place * (images + 1 - place) / ((images + 1) ** 2 * (images + 2)))


def calibrate(classifier, held_out: Split | None, *, scaling: str = "temperature",
              false_reject: float | None = None, coverage: float | None = None,
              class_wise: bool = False, zero_shot=None):
    """The classifier, calibrated on held-out images: its logits and accuracy stay as they are.

    held_out: images that took no part in fitting or selecting, as `FeatureBank.hold_out` gives
        them; None for scaling="sals" alone, which needs none.
    scaling: of the logits, for `probabilities`: "temperature", "sals" (give zero_shot=, the
        zero-shot classifier of the same episode) or "none".
    false_reject: turns *none of these* on: a threshold on the highest logit that rejects at
        most this share of pictures of its classes. Off by default.
    coverage: turns prediction sets on: the true class is in its set with at least this chance, on
        average, or with class_wise=True in each class.
    Threshold and sets go by the unscaled logits: a temperature that was learned on the same
    images would cost them their guarantee.
    What there are too few images for is said in `classifier.calibration.notes`. Raises BankError if
    there are no held-out images, and ValueError for shares that are not between 0 and 1, or too few
    images for a threshold.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}; got {shown(scaling)}.")
    false_reject, coverage = plain(false_reject), plain(coverage)
    for name, share in (("false_reject", false_reject), ("coverage", coverage)):
        if share is not None and not (isinstance(share, (int, float)) and 0 < share < 1):
            raise ValueError(f"{name} must be between 0 and 1, such as "
                             f"{0.05 if name == 'false_reject' else 0.9}; got {shown(share)}.")
    asked = scaling == "temperature" or false_reject is not None or coverage is not None
    if asked and not (isinstance(held_out, Split) and len(held_out)):
        raise BankError("There are no held-out images to calibrate on; give those of "
                        "bank.hold_out(), or scaling='sals' alone, which needs none.")
    found = Calibration(scaling=scaling, class_wise=class_wise)
    if scaling == "sals":
        weights = getattr(getattr(zero_shot, "head", None), "weights", None)
        if weights is None or zero_shot.classnames != classifier.classnames:
            raise ValueError("SaLS goes by zero-shot's logits over the same classes; give "
                             "zero_shot=cal.ZeroShot().fit(episode).")
        # on the CPU, as the limits: an export is for any machine
        found = replace(found, weights=weights.cpu(), logit_scale=float(zero_shot.head.logit_scale))
    if asked:
        found = _learned(found, classifier, held_out, false_reject, coverage)
    return replace(classifier, calibration=found)


def _learned(found: Calibration, classifier, held_out: Split, false_reject, coverage) -> Calibration:
    held_out.check("held out", classifier.head.width, len(classifier.classnames))
    logits, labels = classifier.logits(held_out.view()).cpu().double(), held_out.labels.cpu()
    chances, images, notes = logits.softmax(1), len(labels), []
    if found.scaling == "temperature":
        try:
            found = replace(found, temperature=fit_temperature(logits, labels))
        except ValueError:
            notes.append(f"The temperature stays 1: all {count(images, 'held-out image')} are named "
                         "right, so none shows how often confidence is wrong; hold out more.")
        else:
            if images < FEW:
                notes.append(f"The temperature rests on {count(images, 'image')}, which is few: "
                             f"hold out {FEW} or more.")
    if false_reject is not None:
        if images < needed(false_reject):
            raise ValueError(f"To reject at most {100 * false_reject:g} % falsely takes "
                             f"{needed(false_reject)} held-out images at least, and there are "
                             f"{images}; allow more, such as {math.ceil(100 / (images + 1))} %, or "
                             "hold out more images.")
        found = replace(found, false_reject=float(false_reject),
                        threshold=lower_limit(logits.amax(1), false_reject))
    if coverage is not None:
        limits = set_limits(chances, labels, coverage, found.class_wise)
        found = replace(found, coverage=float(coverage), limits=limits)
        empty = int(limits.isinf().sum())
        if empty and found.class_wise:
            notes.append(f"{count(empty, 'class') if empty == 1 else f'{empty} classes'} of "
                         f"{len(limits)} are in every set, for {100 * coverage:g} % in a class takes "
                         f"{needed(1 - coverage)} held-out images of it at least; hold out more, "
                         "promise less, or leave class-wise.")
        elif empty:
            notes.append(f"Every class is in every set, for {100 * coverage:g} % takes "
                         f"{needed(1 - coverage)} held-out images at least and there are {images}; "
                         "hold out more, or promise less.")
    return replace(found, images=images, notes=tuple(notes))
