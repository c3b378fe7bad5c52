"""Fitted classifiers on disk, and on pictures."""
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote

from torch import Tensor

from .backbones import Backbone, agree
from .calibration import Calibration
from .encoding import STYLES, encode, preprocessing
from .errors import one_line
from .files import located, may_write_tensors, tensor_hash, write_tensors
from .methods import METHODS, Classifier, ZeroShot
from .methods.zero_shot import ZeroShotHead
from .values import shown, whole_number

KEY = "classifier"  # of a file's metadata
CALIBRATION = "calibration."  # before the names of its tensors
FACTS = ("val_accuracy", "alpha", "beta", "steps", "seconds", "parameters", "origin")


def save_classifier(classifier: Classifier, path: str | Path) -> Path:
    """Write a fitted classifier as safetensors, its settings, class names and origin as JSON
    inside; no pickle.

    Raises OSError, one sentence, if the disk does not take it, or if a file that is no classifier
    lies there.
    """
    about = {"method": classifier.method.name, "settings": asdict(classifier.method),
             "options": classifier.head.options, "classnames": classifier.classnames,
             **{fact: getattr(classifier, fact) for fact in FACTS}}
    state = {name: tensor.cpu().contiguous() for name, tensor in classifier.head.state_dict().items()}
    if classifier.calibration is not None:
        tensors, about["calibration"] = classifier.calibration.to_file()
        state |= {f"{CALIBRATION}{name}": tensor for name, tensor in tensors.items()}
    about["hash"] = tensor_hash(state)
    return write_tensors(state, path, {KEY: json.dumps(about, sort_keys=True)})


def may_save_classifier(path: str | Path) -> None:
    """Raise as `save_classifier` would, before the work of fitting, for what can be known by then."""
    may_write_tensors(path, [KEY])


def load_classifier(path: str | Path) -> Classifier:
    """A classifier from `save_classifier`; gives the same logits to the last bit.

    Raises FileNotFoundError, or ValueError if the file is not a whole classifier.
    """
    from safetensors import safe_open
    path = located(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no classifier file {path}; make one with "
                                "`clip-adapter-lite fit --bank NAME --out "
                                f"{quote(str(path))}`.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            # at addresses that give the same last bit
            state = {name: file.get_tensor(name).clone() for name in file.keys()}
        if about["hash"] != tensor_hash(state):
            raise ValueError("its tensors do not match the recorded hash")
        calibration = None
        if "calibration" in about:
            tensors = {name.removeprefix(CALIBRATION): state.pop(name) for name in list(state)
                       if name.startswith(CALIBRATION)}
            calibration = Calibration.from_file(tensors, about["calibration"])
        method_class = METHODS[about["method"]]
        method = method_class(**{k: tuple(v) if isinstance(v, list) else v
                                 for k, v in about["settings"].items()})
        head = method_class.head_class(**{k: v for k, v in state.items() if "." not in k},
                                       **about["options"])
        head.load_state_dict(state)
        facts = {fact: about[fact] for fact in FACTS}
        classnames = tuple(about["classnames"])
    except Exception as error:  # a file that is none may hold anything
        raise ValueError(f"{path} is not a whole classifier file of this version "
                         f"({type(error).__name__}: {one_line(error)}); fit and save it "
                         "again.") from error
    return Classifier(head=head.requires_grad_(False).eval(), classnames=classnames, method=method,
                      calibration=calibration, **facts)


def zero_shot(weights: Tensor, classnames: Sequence[str], backbone: Backbone) -> Classifier:
    """A zero-shot classifier from classifier weights [C, D], for pictures of no bank."""
    return Classifier(head=ZeroShotHead(weights, logit_scale=backbone.logit_scale),
                      classnames=tuple(classnames), method=ZeroShot(),
                      origin={"backbone": backbone.name, "weights_tag": backbone.tag})


class Prediction(list):
    """The class names and probabilities of one picture, best first: [(name, probability), …].

    rejected: whether it is none of the classes, by a calibrated threshold. names: the classes of
    its prediction set, best first; None if no coverage was calibrated.
    """

    def __init__(self, best, rejected: bool = False, names: tuple[str, ...] | None = None):
        super().__init__(best)
        self.rejected, self.names = rejected, names


def predictions_of(classifier: Classifier, features: Tensor, top: int) -> list[Prediction]:
    """A `Prediction` for each row of features [N, D]."""
    names, chances = classifier.classnames, classifier.probabilities(features)
    order = chances.argsort(dim=1, descending=True, stable=True)
    rejected, sets = classifier.rejected(features).tolist(), [None] * len(features)
    if classifier.calibration is not None and classifier.calibration.limits is not None:
        inside = classifier.prediction_sets(features).gather(1, order).tolist()
        sets = [tuple(names[c] for c, held in zip(row, rows) if held)
                for row, rows in zip(order.tolist(), inside)]
    order = order[:, :top]
    return [Prediction([(names[c], p) for c, p in zip(row, found)], no, members)
            for row, found, no, members in zip(order.tolist(), chances.gather(1, order).tolist(),
                                               rejected, sets)]


def predict(classifier: Classifier, backbone: Backbone, images, top: int = 5) -> list[Prediction]:
    """The `top` class names and probabilities, best first, of each picture, or of one alone.

    A picture is a path, a PIL image, or bytes [H, W, 3], and is read as viewers show it. It is
    preprocessed as those of the bank were that the classifier was fitted on: cropped, or squashed
    as in CoOp.

    Raises ValueError if the classifier was fitted on features of another backbone, other weights or
    other preprocessing, or if top is below 1; OSError, naming the file, for a picture that cannot
    be read.
    """
    if isinstance(images, (str, os.PathLike)) or hasattr(images,
                                                         "convert") or getattr(images, "ndim", 4) < 4:
        images = [images]
    if not isinstance(images, Iterable):
        raise ValueError(f"images must be a list of pictures (paths, PIL images or arrays), or one; "
                         f"got {shown(images)}.")
    style = style_for(classifier, backbone, top)
    return predictions_of(classifier, encode(backbone, list(images), style=style), top)


def style_for(classifier: Classifier, backbone: Backbone, top: int = 1) -> str:
    """How pictures are preprocessed for a classifier. Raises ValueError as `predict` does."""
    if whole_number(top, "top") < 1:
        raise ValueError(f"top must be at least 1; got {top}.")
    fitted = classifier.origin
    style = next((s for s in STYLES if preprocessing(backbone, s) == fitted.get("preprocessing")),
                 "clip")
    here = {"backbone": backbone.name, "weights_tag": backbone.tag,
            "preprocessing": preprocessing(backbone, style)}
    for what, value in here.items():
        if fitted.get(what) and not agree(fitted[what], value):
            raise ValueError("This classifier was fitted on features with "
                             f"{what.replace('_', ' ')} {fitted[what]!r} but the backbone given "
                             f"has {value!r}; load the one it was fitted on.")
    return style
