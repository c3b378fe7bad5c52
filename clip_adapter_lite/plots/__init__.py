"""The figures. Each function takes tables or arrays and returns a matplotlib Figure; nothing is
computed but means and bars.

`style.py` holds the house style, `studies.py` the figures of many runs, `fitting.py` of single
fits, `space.py` of the feature space, `shift.py` of one fit in several places and `pictures.py` of
pictures and prompts, `working.py` of a classifier at work.
"""
from ..naming import NAMES, features_of
from .fitting import (
    alpha_history,
    ratio_distributions,
    ratio_over_steps,
    settings_tried,
    training_curves,
)
from .pictures import episode_grid, prompt_result
from .shift import accuracy_over_alpha, error_over_scale, reliability_shift
from .space import manifold, measures
from .studies import (
    accuracy_bars,
    accuracy_over_shots,
    best_ratio,
    differences,
    gain_scatter,
    heat_map,
    reliability,
)
from .style import COLOURS, Figure, colours_of, describe, may_save, save, theme
from .working import confusion, rejection, set_sizes

__all__ = ["COLOURS", "Figure", "NAMES", "accuracy_bars", "accuracy_over_alpha",
           "accuracy_over_shots", "alpha_history", "best_ratio", "colours_of", "confusion",
           "describe",
           "differences", "episode_grid", "error_over_scale", "features_of", "gain_scatter",
           "heat_map", "manifold", "may_save", "measures", "prompt_result", "ratio_distributions",
           "ratio_over_steps", "rejection", "reliability", "reliability_shift", "save",
           "set_sizes", "settings_tried", "theme",
           "training_curves"]
