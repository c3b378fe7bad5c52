"""Where `inference` was once: notebooks that somebody kept import `zero_shot` from here."""
from .inference import load_classifier, predict, save_classifier, zero_shot

__all__ = ["load_classifier", "predict", "save_classifier", "zero_shot"]
