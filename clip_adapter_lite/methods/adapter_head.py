"""What CLIP-Adapter trains: the bottleneck, and the head that blends it; the equations are in
`clip_adapter.py`.
"""
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from .base import Head, cosine_logits, lengths
from .ratios import RatioNetwork, SharedRatio


class Bottleneck(nn.Module):
    """A(x) = ReLU(x W1) W2, with [D, hidden] and [hidden, D] weights and no bias.

    final_relu: a ReLU after W2 too.
    """

    def __init__(self, width: int, hidden: int, final_relu: bool = False):
        super().__init__()
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(relu(self.down(x)))  # [·, D] → [·, hidden] → [·, D]
        return relu(x) if self.final_relu else x


class CLIPAdapterHead(Head):
    """Adapter(s), ratios and classifier weights: features [N, D] → logits [N, C].

    weights: W [C, D]; pooled: [D], the mean direction of the support features, for Q.
    branch: "visual", "text" or "both".
    alpha, beta: numbers, "auto" to ask a SharedRatio, "learned" a RatioNetwork (one of the two asks
        for both branches), or None where there is no such branch.
    normalize: "after" brings f* and W* to unit length (the logits are then logit_scale · cos(f*,
        W*)); "before" does so to f and W, and not after the blend.
    """

    def __init__(self, weights: Tensor, pooled: Tensor, *, logit_scale: float, branch: str,
                 hidden: int, alpha: float | str | None, beta: float | str | None,
                 final_relu: bool = False, normalize: str = "after"):
        super().__init__()
        self.options = {"logit_scale": logit_scale, "branch": branch, "hidden": hidden,
                        "alpha": alpha, "beta": beta, "final_relu": final_relu, "normalize": normalize}
        self.register_buffer("weights", weights)
        self.register_buffer("pooled", pooled)
        self.width = width = weights.shape[1]
        self.alpha, self.beta = alpha, beta
        self.logit_scale, self.normalize = logit_scale, normalize
        adapter = lambda: Bottleneck(width, hidden, final_relu).to(weights)
        self.visual = adapter() if branch != "text" else None
        self.text = adapter() if branch != "visual" else None
        asked = self.visual and alpha, self.text and beta
        self.ratios = None
        if "learned" in asked:
            self.ratios = RatioNetwork(width).to(weights)
        elif "auto" in asked:
            self.ratios = SharedRatio().to(weights)

    def alphas(self, features: Tensor) -> Tensor | None:
        if self.visual is None:
            return None
        if not isinstance(self.alpha, str):
            return features.new_full((len(features), 1), self.alpha)
        return self.ratios(features, self.weights.mean(0, keepdim=True))[0]  # [N, D], [1, D] → [N, 1]

    def betas(self) -> Tensor | None:
        if self.text is None:
            return None
        if not isinstance(self.beta, str):
            return self.weights.new_full((len(self.weights), 1), self.beta)
        return self.ratios(self.pooled[None], self.weights)[1]  # [1, D], [C, D] → [C, 1]

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: at α = β = 0 there is not."""
        return bool(self.alpha or self.beta)

    def groups(self, rate: float) -> list[dict]:
        """AdamW's parameter groups: `rate`, divided by the adapter's ratio, by 0.1 at least.

        Adam ignores how large a gradient is, so a step moves f* by about ratio · rate: with one
        rate for all, small ratios train slowly, and a search would compare how far trained they
        are. A learned ratio counts as it is at the step.
        """
        found = self.ratios.groups(rate) if self.ratios is not None else []
        for adapter, ratio, place in ((self.visual, self.alpha, 0), (self.text, self.beta, 1)):
            if adapter is not None and isinstance(ratio, str):
                found.append({"params": adapter.parameters(), "factor": partial(self.factor, place)})
            elif adapter is not None:
                found.append({"params": adapter.parameters(), "lr": rate / max(ratio, 0.1)})
        return found

    @torch.no_grad()
    def typical(self, place: int) -> Tensor:
        """What the learned α (place 0) or β (1) is now at the mean support feature and mean W; a
        tensor without dimensions.
        """
        return self.ratios(self.pooled[None], self.weights.mean(0, keepdim=True))[place].squeeze()

    def factor(self, place: int) -> float | Tensor:
        """What `groups` makes of a rate while that ratio is learned; on CUDA nothing waits for it."""
        ratio = self.typical(place)
        return 1 / ratio.clamp_min(0.1) if ratio.is_cuda else 1 / max(ratio.item(), 0.1)

    def settle(self) -> None:
        """Learned ratios stay what they have come to: shared ones become numbers, Q is frozen."""
        for name, place in (("alpha", 0), ("beta", 1)):
            if self.options[name] == "auto":
                self.options[name] = self.typical(place).item()
                setattr(self, name, self.options[name])
        if isinstance(self.ratios, SharedRatio):
            self.ratios = None
        else:
            self.ratios.requires_grad_(False)

    def features(self, features: Tensor) -> Tensor:
        """f* [N, D]: the blend.

        It grows with the length of f, as A(c f) = c A(f), so "before" changes its length alone.
        """
        if self.visual is None:
            return features
        # [N, 1] or a number
        alpha = self.alphas(features) if isinstance(self.alpha, str) else self.alpha
        return features.lerp(self.visual(features), alpha)  # α A_v(f) + (1 - α) f

    def adapted_weights(self) -> Tensor:
        """W* [C, D]: the text branch's blend."""
        w = normalize(self.weights, dim=-1) if self.normalize == "before" else self.weights
        if self.text is None:
            return w
        beta = self.betas() if isinstance(self.beta, str) else self.beta  # [C, 1] or a number
        return w.lerp(self.text(w), beta)  # β A_t(W) + (1 - β) W

    def forward(self, features: Tensor) -> Tensor:
        f, w = self.features(features), self.adapted_weights()
        if self.normalize == "before":  # divided by the length of f only now: the bits of zero-shot
            return f @ w.T * (self.logit_scale / lengths(features))  # [N, C]
        return cosine_logits(f, w, self.logit_scale)
