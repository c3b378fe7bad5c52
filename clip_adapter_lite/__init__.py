"""clip-adapter-lite: learn, verify and use CLIP-Adapter (arXiv 2110.04544) on frozen features.

Importing this costs torch and little more: open_clip, torchvision, scikit-learn, pandas and seaborn are imported when used.
"""
from .backbones import Backbone, classifier_weights, load_backbone
from .banks import BankError, Episode, FeatureBank, Split, list_banks
from .building import build_bank
from .compare import compare, summarise
from .evaluation import calibration_error, paired_bootstrap, per_class_accuracy, reliability_curve
from .methods import METHODS, Classifier, CLIPAdapter, CoOp, LinearProbe, Method, TipAdapter, ZeroShot
from .reference import recompute, reference
from .sharing import pull, push
from .sweep import sweep
from .transfer import base_and_new, transfer
from .using import load_classifier, predict, save_classifier

__all__ = ["Backbone", "BankError", "CLIPAdapter", "Classifier", "CoOp", "Episode", "FeatureBank", "LinearProbe", "METHODS",
           "Method", "Split", "TipAdapter", "ZeroShot", "base_and_new", "build_bank", "calibration_error",
           "classifier_weights", "compare", "list_banks", "load_backbone", "load_classifier", "paired_bootstrap",
           "per_class_accuracy", "predict", "pull", "push", "recompute", "reference", "reliability_curve",
           "save_classifier", "summarise", "sweep", "transfer"]
