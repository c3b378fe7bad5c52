"""clip-adapter-lite: learn, verify and use CLIP-Adapter (arXiv 2110.04544) on frozen features.

Importing this costs torch and little more: open_clip, torchvision, scikit-learn, pandas and seaborn
are imported when used.
"""
from .backbones import Backbone, classifier_weights, load_backbone
from .banks import FeatureBank, build_bank, list_banks
from .calibration import Calibration, calibrate
from .course import course_banks
from .episodes import Episode
from .errors import BankError
from .evaluation import calibration_error, paired_bootstrap, per_class_accuracy, reliability_curve
from .experiments.compare import compare, summarise
from .experiments.reference import recompute, reference
from .experiments.sweep import sweep
from .exporting import export_classifier
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
from .opensets import OpenSet, open_set
from .predictions import predict_files
from .reports import Report, report
from .sharing import pull, pull_shared, push
from .splits import Split
from .transfer import base_and_new, transfer

__all__ = ["Backbone", "BankError", "CLAP", "CLIPAdapter", "Calibration", "Classifier", "CoOp",
           "Episode", "FeatureBank", "GDA", "LinearAdapter", "LinearProbe", "METHODS", "Method",
           "OpenSet", "Report", "Split", "TipAdapter", "ZeroShot", "base_and_new", "build_bank",
           "calibrate", "calibration_error", "classifier_weights", "compare", "course_banks",
           "export_classifier", "list_banks", "load_backbone", "load_classifier", "open_set",
           "paired_bootstrap", "per_class_accuracy", "predict", "predict_files", "pull",
           "pull_shared", "push", "recompute", "reference", "reliability_curve", "report",
           "save_classifier", "summarise", "sweep", "transfer"]
