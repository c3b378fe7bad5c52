"""Methods by their labels: names and settings as tables show them and people type them."""
import ast
from collections.abc import Mapping
from dataclasses import fields, replace

from .base import Method
from .clap import CLAP
from .clip_adapter import CLIPAdapter
from .coop import CoOp
from .gda import GDA
from .linear_adapter import LinearAdapter
from .linear_probe import LinearProbe
from .tip_adapter import TipAdapter
from .zero_shot import ZeroShot

METHODS = {method.name: method for method in (
    ZeroShot, LinearProbe, CoOp, CLIPAdapter, TipAdapter, CLAP, GDA, LinearAdapter)}


def method_named(label: str) -> Method:
    """The method of that label: a name for its default settings, or with settings as tables show them.

    "tip-adapter", "clip-adapter(alpha=0.2)", "tip-adapter(finetune=true)": the inverse of
    `Method.label`. Raises ValueError for a name or a setting that there is not, and a value that
    cannot be.
    """
    name, _, given = label.strip().partition("(")
    if name not in METHODS:
        raise ValueError(f"Unknown method '{name}'; the methods are {', '.join(METHODS)}.")
    if given and not given.endswith(")"):
        raise ValueError(f"A method's settings stand in brackets, as in {name}(setting=value); got "
                         f"'{label}'.")
    parts = [part.partition("=") for part in listed(given.removesuffix(")"))]
    return with_settings(METHODS[name](), {key.strip(): setting_value(value.strip()) for key, _,
                                           value in parts})


def with_settings(method: Method, settings: Mapping) -> Method:
    """The method with other settings. Raises ValueError for one that it has not, or a value that
    cannot be.
    """
    known = [field.name for field in fields(method)]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"There is '{unknown[0]}', which is no setting of {method.name}; it has "
                         f"{', '.join(known)}.")
    return replace(method, **settings)


def listed(text: str) -> list[str]:
    """The parts of a list; a comma inside brackets, or inside quotes around a part or a value,
    divides nothing.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        # not the apostrophe of a word
        opens = letter in "\"'" and parts[-1].rstrip()[-1:] in ("", "=", "(")
        if quote:
            quote = "" if letter == quote else quote
        elif opens:
            quote = letter
        depth += (letter == "(") - (letter == ")") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def names_listed(text: str) -> list[str]:
    """The names of a list; one that holds a comma stands in quotes: `dtd10, 'cats, dogs'`."""
    return [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "\"'" else part
            for part in listed(text)]


def setting_value(text: str):
    """A number, true or false, none, a tuple of such, or the word itself."""
    try:
        return ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none")
                                else text)
    except (ValueError, SyntaxError, TypeError):
        return text
