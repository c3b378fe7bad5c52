"""Linear probe: logistic regression on image features, as CLIP and CoOp ran it. The class names are
not used.
"""
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Head, Method, need_validation, validation_score


class LinearHead(Head):
    """f V + b; V: [D, C], b: [C]."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.options: dict = {}
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.width = len(weight)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias  # [N, D] @ [D, C] + [C]


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """scikit-learn's L-BFGS logistic regression on un-normalised features.

    C: the inverse regularisation strength. "val" chooses it as CoOp does (its `lpclip`): the best
    of 1e6, 1e4 … 1e-6 by validation accuracy, then `bisections` halvings of the interval from a
    tenth to ten times the best, in log space.
    """
    name = "linear-probe"
    head_class = LinearHead
    C: float | str = "val"
    bisections: int = 8
    max_iter: int = 1000

    def check_settings(self):
        if self.C != "val" and not (isinstance(self.C, (int, float)) and 0 < self.C < math.inf):
            raise ValueError(f"C must be a positive number or 'val'; got {self.C!r}.")
        for setting, least in (("bisections", 0), ("max_iter", 1)):
            if getattr(self, setting) < least:
                raise ValueError(f"{setting} must be at least {least}; got {getattr(self, setting)}.")

    def _fit(self, episode):
        fits: dict[float, tuple[LinearHead, int]] = {}

        def fit(c: float) -> LinearHead:
            if c not in fits:
                fits[c] = self._regress(episode, c)
            return fits[c][0]

        if self.C == "val":
            need_validation(episode, "C")
            c = self._search(lambda c: validation_score(fit(c), episode.val)[0])
        else:
            c = float(self.C)
        head = fit(c)
        return head, {"steps": fits[c][1], "parameters": head.weight.numel() + head.bias.numel(),
                      "details": {"C": c}}

    def _search(self, accuracy) -> float:
        """CoOp's coarse grid and bisection; `accuracy(C)` is on validation images."""
        # the first, so the largest, of equals
        best = max((10.0 ** power for power in range(6, -7, -2)), key=accuracy)
        low, high = math.log10(best) - 1, math.log10(best) + 1
        for _ in range(self.bisections):
            middle = (low + high) / 2
            if accuracy(10.0 ** low) < accuracy(10.0 ** high):
                low = middle
            else:
                high = middle
        return max((10.0 ** low, 10.0 ** high), key=accuracy)

    def _regress(self, episode, c: float) -> tuple[LinearHead, int]:
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
        x = episode.support.features
        y = episode.support.labels.repeat(episode.support.views)
        x = x.reshape(-1, x.shape[-1])  # the views of an image count as images
        classes = len(episode.classnames)
        if classes == 1:  # nothing to separate, and scikit-learn refuses
            return LinearHead(x.new_zeros(x.shape[1], 1), x.new_zeros(1)), 0
        model = LogisticRegression(C=c, max_iter=self.max_iter)
        # small matrices: threads only wait
        with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
            # a huge C need not converge, validation rejects it; and one shot of many classes "could
            # be regression"
            warnings.simplefilter("ignore", UserWarning)
            model.fit(x.cpu().double().numpy(), y.cpu().numpy())
        weight, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
        if classes == 2:  # scikit-learn gives one column, the second class's
            weight, bias = torch.cat([-weight / 2, weight / 2], dim=1), torch.cat([-bias / 2, bias / 2])
        return LinearHead(weight.to(x), bias.to(x)), int(max(model.n_iter_))
