"""clip-adapter-lite: learn, verify and use CLIP-Adapter (arXiv 2110.04544) on frozen features.

Importing this costs torch and little more: open_clip, torchvision, scikit-learn, pandas and seaborn are imported when used.
"""
from .backbones import Backbone, classifier_weights, load_backbone
from .banks import BankError, Episode, FeatureBank, Split, list_banks
from .building import build_bank
from .compare import compare, summarise
from .methods import METHODS, Classifier, CLIPAdapter, CoOp, LinearProbe, Method, ZeroShot
from .using import load_classifier, predict, save_classifier

__all__ = ["Backbone", "BankError", "CLIPAdapter", "Classifier", "CoOp", "Episode", "FeatureBank", "LinearProbe", "METHODS",
           "Method", "Split", "ZeroShot", "build_bank", "classifier_weights", "compare", "list_banks", "load_backbone",
           "load_classifier", "predict", "save_classifier", "summarise"]
