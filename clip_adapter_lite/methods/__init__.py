"""The methods, one file each; `METHODS` names those that `compare` and the command line know."""
from .base import Classifier, Method
from .clip_adapter import CLIPAdapter
from .coop import CoOp
from .linear_probe import LinearProbe
from .tip_adapter import TipAdapter
from .zero_shot import ZeroShot

METHODS = {method.name: method for method in (ZeroShot, LinearProbe, CoOp, CLIPAdapter, TipAdapter)}


def method_named(name: str) -> Method:
    """The method of that name with its default settings. Raises ValueError, listing the names, for another one."""
    if name not in METHODS:
        raise ValueError(f"Unknown method '{name}'; the methods are {', '.join(METHODS)}.")
    return METHODS[name]()


__all__ = ["METHODS", "Classifier", "CLIPAdapter", "CoOp", "LinearProbe", "Method", "TipAdapter", "ZeroShot",
           "method_named"]
