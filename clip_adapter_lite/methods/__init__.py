"""The methods, one file each; `METHODS` names those that `compare` and the command line know."""
from .base import Classifier, Method
from .clap import CLAP
from .clip_adapter import CLIPAdapter
from .coop import CoOp
from .gda import GDA
from .labels import METHODS, method_named, with_settings
from .linear_adapter import LinearAdapter
from .linear_probe import LinearProbe
from .tip_adapter import TipAdapter
from .zero_shot import ZeroShot

__all__ = ["CLAP", "GDA", "METHODS", "Classifier", "CLIPAdapter", "CoOp", "LinearAdapter",
           "LinearProbe", "Method", "TipAdapter", "ZeroShot", "method_named", "with_settings"]
