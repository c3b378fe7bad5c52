"""clip-adapter-lite: learn, verify and use CLIP-Adapter (arXiv 2110.04544) on frozen features.

Importing this costs torch and little more: open_clip, torchvision, scikit-learn, pandas and seaborn
are imported when used.
"""
from .backbones import Backbone, classifier_weights, load_backbone
from .banks import FeatureBank, build_bank, list_banks
from .course import course_banks
from .episodes import Episode
from .errors import BankError
from .evaluation import calibration_error, paired_bootstrap, per_class_accuracy, reliability_curve
from .experiments.compare import compare, summarise
from .experiments.reference import recompute, reference
from .experiments.sweep import sweep
from .inference import load_classifier, predict, save_classifier
from .methods import (
    CLAP,
    GDA,
    METHODS,
    Classifier,
    CLIPAdapter,
    CoOp,
    LinearAdapter,
    LinearProbe,
    Method,
    TipAdapter,
    ZeroShot,
)
from .sharing import pull, push
from .splits import Split
from .transfer import base_and_new, transfer

__all__ = ["Backbone", "BankError", "CLAP", "CLIPAdapter", "Classifier", "CoOp", "Episode",
           "FeatureBank", "GDA", "LinearAdapter", "LinearProbe", "METHODS", "Method", "Split",
           "TipAdapter", "ZeroShot", "base_and_new", "build_bank", "calibration_error",
           "classifier_weights", "compare", "course_banks", "list_banks", "load_backbone",
           "load_classifier", "paired_bootstrap", "per_class_accuracy", "predict", "pull", "push",
           "recompute", "reference", "reliability_curve", "save_classifier", "summarise", "sweep",
           "transfer"]
