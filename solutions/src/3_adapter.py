# %% [markdown]
# # Assignment 3 · The adapter
#
# **What you practise:** CLIP-Adapter in parts: bottleneck, residual blend, normalisation and logits, freezing, learning
# rates, training loop, and the choice of α.
#
# **Prepared by:** notebook [03 the adapter](../../notebooks/03_the_adapter.ipynb). Close it before you begin. You have
# written a PyTorch training loop before.
#
# **Minutes:** about 50. **Points:** 100, of seven exercises.
#
# **How to check:** run the cells from the top. Write your code in place of the line `raise NotImplementedError(…)` and
# press Shift+Enter, which leads on to the folded check below; Shift+Enter again runs that. A check prints ✓, or says in
# one sentence what is wrong. When your work is graded, the same functions are tested once more on other numbers. A
# mistake in one exercise costs nothing in the others. Save the notebook under its name: it is what you hand in.
#
# **Whose features:** the exercises use small numbers made by hand. The last cell uses the pocket CLIP's features, with an
# ImageNet-supervised image tower and a distilled text tower; it says nothing about OpenAI's CLIP.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize, relu

import clip_adapter_lite as cal

# %% [markdown]
# ### Exercise 1 · The bottleneck
#
# **Points** 18 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 9
#
# Write the module
#
# $$A(x) = \mathrm{ReLU}(x\,W_1)\,W_2, \qquad W_1 \in \mathbb{R}^{D \times D/r},\; W_2 \in \mathbb{R}^{D/r \times D}$$
#
# as the paper has it: no bias, no second ReLU. $r$ is the argument `reduction`; use whole-number division. Call the two
# linear layers `down` and `up`. Write the rest of `__init__`, and below it, indented as `__init__` is, the method
# `forward(self, x)`, which takes [N, D] and gives [N, D].
#
# <details><summary>Hint 1</summary>
#
# `nn.Linear(a, b)` goes from width a to width b, and has a bias unless you say otherwise. Where does the vector get
# narrow, where wide again? (It keeps its matrix transposed, [b, a], and does the transposing itself.) The blend with
# `x` is not part of the module; it comes in exercise 2.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Write the widths below the formula: D, then D // reduction, then D again. The bias is an argument of `nn.Linear` that
# is true unless you say otherwise. `forward` has three steps: what stands between the two layers?
#
# </details>


# %% nbgrader={"solution": "bottleneck"}
class Bottleneck(nn.Module):
    """A(x) = ReLU(x W1) W2; layers `down` (D to D // reduction) and `up` (back to D); forward: [N, D] to [N, D]."""

    def __init__(self, D, reduction=4):
        super().__init__()
        ### BEGIN SOLUTION
        self.down = nn.Linear(D, D // reduction, bias=False)
        self.up = nn.Linear(D // reduction, D, bias=False)

    def forward(self, x):
        return self.up(relu(self.down(x)))
        ### END SOLUTION


# %% nbgrader={"visible": "bottleneck", "points": 7}
from clip_adapter_lite.checks import check

adapter = Bottleneck(6, reduction=2)
shapes = {name: list(p.shape) for name, p in adapter.named_parameters()}
assert not [name for name in shapes if "bias" in name], (
    "Bottleneck: the layers have a bias, the paper's have none; say bias=False.")
assert set(shapes) == {"down.weight", "up.weight"}, (
    f"Bottleneck: its parameters are {', '.join(shapes) or 'none'}; two linear layers, down and up, were expected.")
assert shapes["down.weight"] != [2, 6], (
    "Bottleneck: the middle has the width `reduction`; its width is D divided by reduction, D // reduction.")
assert shapes == {"down.weight": [3, 6], "up.weight": [6, 3]}, (
    f"Bottleneck(6, reduction=2) has weights of shape {shapes}; down goes from 6 to 3 and up from 3 to 6, and PyTorch keeps "
    "a weight as [to, from].")
adapter.load_state_dict({
    "down.weight": torch.tensor([[1.0, 0, -1, 0, 2, 0], [0, 1, 0, 1, 0, -2], [-1, 1, 0, 0, 0, 1]]),
    "up.weight": torch.tensor([[1.0, 0, -1], [0, 2, 0], [-1, 0, 1], [0, -1, 0], [2, 0, 0], [0, 0, -2]])})
x = torch.tensor([[1.0, 2, 0, -1, 1, 0], [2, 0, 1, 1, -1, 2]])
check("Bottleneck(6, reduction=2)(x)", adapter(x), [[2, 2, -2, -1, 6, -2], [0, 0, 0, 0, 0, 0]], {
    "the ReLU is missing; it stands between the two layers.": [[2, 2, -2, -1, 6, -2], [-1, -6, 1, 3, -2, 0]],
    "there is a second ReLU, after `up`; the official code has it, the paper has not.":
        [[2, 2, 0, 0, 6, 0], [0, 0, 0, 0, 0, 0]],
    "the ReLU comes after `up`; it stands between the two layers.": [[2, 2, 0, 0, 6, 0], [0, 0, 1, 3, 0, 0]],
    "the ReLU comes before `down`; it stands between the two layers.": [[2, 4, -2, -2, 6, -2], [1, -6, -1, 3, 2, 0]],
    "x is added; that is the blend's business, in exercise 2.": [[3, 4, -2, -2, 7, -2], [2, 0, 1, 1, -1, 2]]})
assert x.tolist() == [[1, 2, 0, -1, 1, 0], [2, 0, 1, 1, -1, 2]], "Bottleneck: forward changed its input in place."
assert adapter(x).requires_grad, (
    "Bottleneck: no gradient reaches its weights, so it could not learn; do without detach, numpy, item and no_grad.")
check("parameters of Bottleneck(512)", sum(p.numel() for p in Bottleneck(512).parameters()), 131072)

# %% nbgrader={"hidden": "bottleneck", "points": 11}
def _hidden_bottleneck():
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(31))
    for n, d, reduction in ((1, 4, 4), (5, 8, 2), (3, 9, 4), (4, 12, 1)):
        middle = d // reduction
        down, up, rows = ([[maker.uniform(-1, 1) for _ in range(k)] for _ in range(m)]
                          for m, k in ((middle, d), (d, middle), (n, d)))
        adapter = Bottleneck(d, reduction).double()
        assert sum(p.numel() for p in adapter.parameters()) == 2 * d * middle
        with torch.no_grad():
            for layer, weight in ((adapter.down, down), (adapter.up, up)):
                assert list(layer.weight.shape) == [len(weight), len(weight[0])]
                layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            given = torch.tensor(rows, dtype=torch.float64)
            found = adapter(given).tolist()
        assert given.tolist() == rows and len(found) == n
        for row, x in zip(found, rows):
            hidden = [max(0.0, sum(a * b for a, b in zip(w, x))) for w in down]
            right = [sum(a * b for a, b in zip(w, hidden)) for w in up]
            assert len(row) == d and all(-1e-9 < a - b < 1e-9 for a, b in zip(row, right))
        # the gradients that train it, of the sum of all outputs
        wanted_up = [0.0] * middle
        adapter(given).sum().backward()
        for x in rows:
            for k in range(middle):
                wanted_up[k] += max(0.0, sum(a * b for a, b in zip(down[k], x)))
        for row in adapter.up.weight.grad.tolist():
            assert all(-1e-9 < a - b < 1e-9 for a, b in zip(row, wanted_up))
        for k, row in enumerate(adapter.down.weight.grad.tolist()):
            behind = sum(weights[k] for weights in up)
            for i in range(d):
                right = behind * sum(x[i] for x in rows if sum(a * b for a, b in zip(down[k], x)) > 0)
                assert -1e-9 < row[i] - right < 1e-9
    assert list(Bottleneck(8).down.weight.shape) == [2, 8]


_hidden_bottleneck()

# %% [markdown]
# ### Exercise 2 · The residual blend
#
# **Points** 14 · **Difficulty** 1/5 · **Importance** 5/5 · **Minutes** 5
#
# The adapter's answer is mixed with what it was made from, by a residual ratio α between 0 and 1:
#
# $$f^\star = \alpha\,A(f) + (1-\alpha)\,f$$
#
# At α = 0 nothing of the adapter is left, at α = 1 nothing of CLIP. Leave both arguments as they are: the next training
# step needs the features again. The function serves image features [N, D] and, on the text side, class weights [C, D].
#
# <details><summary>Hint 1</summary>
#
# Ask at each end: what must come out at α = 0, and what at α = 1?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# At α = 0.25 a quarter comes from the one and three quarters from the other. `+=` and `*=` would change what you were
# given.
#
# </details>


# %% nbgrader={"solution": "blend"}
def blend(adapted, features, alpha):
    """f* [N, D] of the adapter's answer `adapted` [N, D] and the features [N, D] it was made from; alpha in [0, 1]."""
    ### BEGIN SOLUTION
    return alpha * adapted + (1 - alpha) * features
    ### END SOLUTION


# %% nbgrader={"visible": "blend", "points": 6}
from clip_adapter_lite.checks import check

adapted, features = torch.tensor([[4.0, 0], [2, 2]]), torch.tensor([[0.0, 8], [-2, 6]])
check("blend(adapted, features, 0.25)", blend(adapted, features, 0.25), [[1, 6], [-1, 5]], {
    "α and 1 − α are swapped; α belongs to the adapter's answer.": [[3, 2], [1, 3]],
    "the features are not weighted; they get 1 − α.": [[1, 8], [-1.5, 6.5]],
    "the adapter's answer is not weighted; it gets α.": [[4, 6], [0.5, 6.5]],
    "the features are missing: give α A(f) + (1 − α) f.": [[1, 0], [0.5, 0.5]],
    "neither part is weighted: give α A(f) + (1 − α) f.": [[4, 8], [0, 8]],
    "the blend is brought to length 1; that comes in exercise 3.": [[0.164399, 0.986394], [-0.196116, 0.980581]],
    "both parts are brought to length 1 first; blend them as they are.": [[0.25, 0.75], [-0.060394, 0.888289]]})
moving = adapted.clone().requires_grad_(True)
assert blend(moving, features, 0.25).requires_grad, (
    "blend(…): no gradient comes through, so the adapter could not learn; do without detach, numpy, item and no_grad.")
assert features.tolist() == [[0, 8], [-2, 6]] and adapted.tolist() == [[4, 0], [2, 2]], (
    "blend(…): the input was changed in place; make a new tensor, without *= and +=.")

# %% nbgrader={"hidden": "blend", "points": 8}
def _hidden_blend():
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(32))
    for n, d, alpha in ((1, 3, 0.3), (4, 2, 0.85), (2, 5, 0.0), (3, 3, 1.0)):
        adapted, features = ([[maker.uniform(-3, 3) for _ in range(d)] for _ in range(n)] for _ in range(2))
        given = [torch.tensor(x, dtype=torch.float64) for x in (adapted, features)]
        found = blend(*given, alpha).tolist()
        assert [x.tolist() for x in given] == [adapted, features] and len(found) == n
        for row, a, f in zip(found, adapted, features):
            right = [alpha * p + (1 - alpha) * q for p, q in zip(a, f)]
            assert len(row) == d and all(-1e-9 < p - q < 1e-9 for p, q in zip(row, right))
        given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (adapted, features)]
        upstream = [[maker.uniform(-1, 1) for _ in range(d)] for _ in range(n)]
        (blend(*given, alpha) * torch.tensor(upstream, dtype=torch.float64)).sum().backward()
        for x, share in zip(given, (alpha, 1 - alpha)):
            assert share == 0 and x.grad is None or all(-1e-9 < p - share * q < 1e-9 for row, other in zip(
                x.grad.tolist(), upstream) for p, q in zip(row, other))


_hidden_blend()

# %% [markdown]
# ### Exercise 3 · From the blend to logits
#
# **Points** 18 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 7
#
# The blended features $f^\star$ [N, D] are compared with the class weights W [C, D] by cosine, and divided by the
# temperature τ:
#
# $$\text{logits} = \cos(f^\star, W)\,/\,\tau$$
#
# The argument `logit_scale` is 1/τ. Neither `blended` nor `weights` has rows of length 1: even if f had, the blend would
# change its length. Give [N, C], and leave both as they are.
#
# <details><summary>Hint 1</summary>
#
# A cosine is the product of two vectors of length 1, so both sides need a step before the product. Dividing by τ is
# multiplying with 1/τ.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Which of the two sides needs the step, and along which dimension? Then look at the shapes: [N, D] and [C, D] must give
# [N, C]. The scale comes once, for all of it.
#
# </details>


# %% nbgrader={"solution": "cosine_logits"}
def cosine_logits(blended, weights, logit_scale):
    """Logits [N, C]: logit_scale times the cosines of the blended features [N, D] with the class weights [C, D]."""
    ### BEGIN SOLUTION
    return logit_scale * normalize(blended, dim=-1) @ normalize(weights, dim=-1).T
    ### END SOLUTION


# %% nbgrader={"visible": "cosine_logits", "points": 7}
from clip_adapter_lite.checks import check

blended, weights = torch.tensor([[3.0, 4], [0, 2]]), torch.tensor([[0.0, 5], [4, 3], [-2, 0]])
check("cosine_logits(blended, weights, 10)", cosine_logits(blended, weights, 10), [[8, 9.6, -6], [10, 6, 0]], {
    "your logits are not scaled by logit_scale.": [[0.8, 0.96, -0.6], [1, 0.6, 0]],
    "your logits are divided by logit_scale; it is 1/τ already, so multiply.": [[0.08, 0.096, -0.06], [0.1, 0.06, 0]],
    "the features are not normalised after the blend; bring each row of `blended` to length 1.":
        [[40, 48, -30], [20, 12, 0]],
    "the class weights are not normalised; the cosine needs both sides at length 1.": [[40, 48, -12], [50, 30, 0]],
    "neither side is normalised; the cosine needs both at length 1.": [[200, 240, -60], [100, 60, 0]],
    "the columns are brought to length 1, not the rows; a feature is a row, so normalise along the last dimension.":
        [[7.669651, 13.546062, -4.472136], [3.834825, 2.300895, 0]],
    "rows and columns are exchanged; a row belongs to a picture, a column to a class.": [[8, 10], [9.6, 6], [-6, 0]],
    "these are probabilities: a softmax went over the logits, and cross_entropy does one itself.":
        [[0.167982, 0.832018, 0], [0.98197, 0.017985, 0.000045]],
    "a log_softmax went over the logits; leave it to cross_entropy.":
        [[-1.783901, -0.183901, -15.783901], [-0.018195, -4.018195, -10.018195]],
    "the scale is exp(logit_scale); here logit_scale is 1/τ already.":
        [[17621.172636, 21145.407163, -13215.879477], [22026.465795, 13215.879477, 0]]})
moving = blended.clone().requires_grad_(True)
assert cosine_logits(moving, weights, 10).requires_grad, (
    "cosine_logits(…): no gradient comes through, so the adapter could not learn; do without detach, numpy, item, no_grad.")
assert blended.tolist() == [[3, 4], [0, 2]] and weights.tolist() == [[0, 5], [4, 3], [-2, 0]], (
    "cosine_logits(…): the input was changed in place; write x / length into a new tensor, not x /= length.")

# %% nbgrader={"hidden": "cosine_logits", "points": 11}
def _hidden_cosine_logits():
    import math
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(33))
    for n, c, d, scale in ((1, 2, 3, 1.0), (4, 3, 5, 25.4), (3, 6, 2, 100.0)):
        rows = [[[maker.uniform(-3, 3) for _ in range(d)] for _ in range(k)] for k in (n, c)]
        given = [torch.tensor(x, dtype=torch.float64) for x in rows]
        found = cosine_logits(*given, scale).tolist()
        assert [x.tolist() for x in given] == rows
        assert len(found) == n and all(len(row) == c for row in found)
        for i, f in enumerate(rows[0]):
            for j, w in enumerate(rows[1]):
                right = scale * sum(a * b for a, b in zip(f, w)) / math.hypot(*f) / math.hypot(*w)
                assert -1e-7 < found[i][j] - right < 1e-7
        # the gradient that trains the adapter, of the sum of all logits
        blended = given[0].clone().requires_grad_(True)
        cosine_logits(blended, given[1], scale).sum().backward()
        total = [sum(w[i] / math.hypot(*w) for w in rows[1]) for i in range(d)]
        for f, slope in zip(rows[0], blended.grad.tolist()):
            size = math.hypot(*f)
            along = sum(a * b for a, b in zip(f, total)) / size ** 2
            assert all(-1e-6 < s - scale * (t - along * x) / size < 1e-6 for s, t, x in zip(slope, total, f))


_hidden_cosine_logits()

# %% [markdown]
# ### Exercise 4 · Freeze the backbone
#
# **Points** 14 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 6
#
# With cached features the backbone is out of reach. If it runs inside the model, you have to freeze it. That is two
# things:
#
# - none of its parameters asks for a gradient any more;
# - it is in evaluation mode, or dropout and batch normalisation go on changing what it gives.
#
# Do both to `backbone`, leave `adapter` as it is, and give the list of the parameters that the optimiser should train.
#
# <details><summary>Hint 1</summary>
#
# `nn.Module` has a method for each of the two things. What the optimiser gets is the adapter's alone, as a list that can
# be gone through more than once.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# No gradients: a method whose name ends with an underscore. No drawing in dropout, no learning in batch normalisation:
# the mode that is not for training. And `parameters()` gives a generator, which is empty after one use.
#
# </details>


# %% nbgrader={"solution": "freeze"}
def freeze(backbone, adapter):
    """Freeze the module backbone in place; the list of the parameters to train: those of the module adapter."""
    ### BEGIN SOLUTION
    backbone.requires_grad_(False)
    backbone.eval()
    return list(adapter.parameters())
    ### END SOLUTION


# %% nbgrader={"visible": "freeze", "points": 6}
backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)))
adapter = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))
found = freeze(backbone, adapter)
assert found is not None, "freeze(…) gave None; return the list of the parameters to train."
assert not hasattr(found, "__next__"), "freeze(…) gave a generator, which is empty after one use; make a list of it."
assert not any(p.requires_grad for p in backbone.parameters()), (
    "the backbone is left trainable; every one of its parameters must have requires_grad False.")
assert all(p.requires_grad for p in adapter.parameters()), "the adapter is frozen too; it is what trains."
assert not any(part.training for part in backbone.modules()), (
    "the backbone is left in training mode: its dropout still draws and its batch normalisation still learns; use eval().")
assert not {id(p) for p in found} & {id(p) for p in backbone.parameters()}, (
    "parameters of the backbone are in the list; the optimiser gets the adapter's alone.")
assert [id(p) for p in found] == [id(p) for p in adapter.parameters()], (
    "the list must hold each parameter of the adapter once, the parameters themselves and not copies or names.")
print("✓ freeze(backbone, adapter)")

# %% nbgrader={"hidden": "freeze", "points": 8}
def _hidden_freeze():
    import torch
    from torch import nn

    from clip_adapter_lite.checks import fresh
    torch.manual_seed(fresh(34))
    backbone = nn.Sequential(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5)), nn.BatchNorm1d(6), nn.Linear(6, 3))
    adapter = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False))
    before = {key: value.tolist() for key, value in backbone.state_dict().items()}
    own = [p.tolist() for p in adapter.parameters()]
    found = freeze(backbone, adapter)
    assert [p.tolist() for p in adapter.parameters()] == own
    for _ in range(2):  # a generator is empty the second time
        assert sorted(id(p) for p in found) == sorted(id(p) for p in adapter.parameters())
    assert all(p.requires_grad for p in adapter.parameters()) and not any(p.requires_grad for p in backbone.parameters())
    x = torch.randn(8, 5)
    once = backbone(x).tolist()
    adapter(backbone(x)).square().sum().backward()
    assert all(p.grad is None for p in backbone.parameters()) and all(p.grad is not None for p in adapter.parameters())
    assert backbone(x).tolist() == once
    assert {key: value.tolist() for key, value in backbone.state_dict().items()} == before


_hidden_freeze()

# %% [markdown]
# ### Exercise 5 · Learning rates along half a cosine
#
# **Points** 10 · **Difficulty** 2/5 · **Importance** 2/5 · **Minutes** 5
#
# Training begins with the learning rate `peak`, which then falls along half a cosine. Step k of `steps`, counted from 0,
# has the rate
#
# $$\text{peak} \cdot \tfrac12\left(1 + \cos\frac{\pi k}{\text{steps}}\right), \qquad k = 0, \ldots, \text{steps} - 1$$
#
# Give the list of all of them.
#
# <details><summary>Hint 1</summary>
#
# The first one is `peak` itself. The last is small, yet above 0: zero would come one step after the end.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Half a turn of the cosine goes from 1 to −1. What lifts and squeezes that to go from 1 to 0? At which k is it halfway,
# and does your formula say so?
#
# </details>


# %% nbgrader={"solution": "learning_rates"}
def learning_rates(peak, steps):
    """The learning rate of each step, a list of `steps` floats that falls from peak along half a cosine."""
    ### BEGIN SOLUTION
    return [peak * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]
    ### END SOLUTION


# %% nbgrader={"visible": "learning_rates", "points": 4}
from clip_adapter_lite.checks import check

check("learning_rates(0.1, 4)", learning_rates(0.1, 4), [0.1, 0.085355, 0.05, 0.014645], {
    "this is a whole cosine, which rises again; use π k / steps, not 2 π k / steps.": [0.1, 0.05, 0, 0.05],
    "the steps are counted from 1; count from 0, so that the first rate is `peak`.": [0.085355, 0.05, 0.014645, 0],
    "the fall ends one step too early; divide by steps, not by steps − 1.": [0.1, 0.075, 0.025, 0],
    "there is one rate too many; k goes from 0 to steps − 1.": [0.1, 0.085355, 0.05, 0.014645, 0],
    "`peak` is missing; these are factors on it.": [1, 0.853553, 0.5, 0.146447],
    "this is a straight line; use the cosine.": [0.1, 0.075, 0.05, 0.025],
    "the half is missing.": [0.2, 0.170711, 0.1, 0.029289]})

# %% nbgrader={"hidden": "learning_rates", "points": 6}
def _hidden_learning_rates():
    import math
    from random import Random

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(35))
    for peak, steps in ((1.0, 1), (maker.uniform(0.001, 0.9), maker.randrange(5, 9)), (maker.uniform(0.1, 0.9), 120)):
        found = [float(rate) for rate in learning_rates(peak, steps)]
        assert len(found) == steps
        for k, rate in enumerate(found):
            assert -1e-6 < rate - peak * math.cos(math.pi * k / steps / 2) ** 2 < 1e-6


_hidden_learning_rates()

# %% [markdown]
# ### Exercise 6 · The training loop
#
# **Points** 16 · **Difficulty** 3/5 · **Importance** 5/5 · **Minutes** 11
#
# Train `adapter`, a module, in place. `logits` is a function without arguments: `logits()` gives the logits [N, C] of all
# support pictures, made with the adapter as it now is. `rates` holds a learning rate for each step. In every step:
#
# 1. take the mean cross-entropy of `logits()` with `labels` [N] as the loss;
# 2. compute its gradients, of this step alone;
# 3. make one step of AdamW with this step's rate. Use one `torch.optim.AdamW` for all steps, over the adapter's parameters,
#    with `weight_decay=1e-2`. You set its rate, before the step, with `optimizer.param_groups[0]["lr"] = rate`.
#
# Give the list of the losses, one float for each step: the loss that you computed before making the step.
#
# <details><summary>Hint 1</summary>
#
# `cross_entropy` does the softmax itself. PyTorch adds new gradients to the old ones until told otherwise. The rate
# must be set before the step that it belongs to.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two mistakes are usual: gradients cleared between `backward()` and the step, so that nothing is learned; and
# `logits()` called once before the loop, so that every step sees the adapter as it was. `item()` makes a plain number
# of a loss.
#
# </details>


# %% nbgrader={"solution": "train"}
def train(adapter, logits, labels, rates):
    """Train the module adapter in place, a step for each of the rates; the list of losses, each before its step.

    logits: a function without arguments that gives [N, C]; labels [N]."""
    ### BEGIN SOLUTION
    optimizer, losses = torch.optim.AdamW(adapter.parameters(), weight_decay=1e-2), []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        loss = cross_entropy(logits(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
    ### END SOLUTION


# %% nbgrader={"visible": "train", "points": 6}
from clip_adapter_lite.checks import check, recomputed

layer = nn.Linear(2, 3, bias=False)
layer.load_state_dict({"weight": torch.tensor([[0.5, -0.2], [0.1, 0.4], [-0.3, 0.6]])})
pictures, labels = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.5, -1.0]]), torch.tensor([0, 1, 2])
with recomputed("train(…)", "the logits were computed once; call logits() anew in every step: the adapter has changed."):
    losses = train(layer, lambda: layer(pictures), labels, [0.1, 0.05, 0.02])
check("the weights after train(…)", layer.weight, [[0.668715, -0.030103], [-0.069759, 0.242557], [-0.129871, 0.429155]], {
    "they have not changed; is there an optimizer.step(), and zero_grad() before backward(), not after it?":
        [[0.5, -0.2], [0.1, 0.4], [-0.3, 0.6]],
    "the logits went through a softmax before cross_entropy, which does one itself.":
        [[0.668878, -0.029644], [-0.070187, 0.230148], [-0.13028, 0.428976]],
    "the gradients of earlier steps add up; call zero_grad() before each backward().":
        [[0.666888, -0.031914], [-0.067892, 0.229488], [-0.131788, 0.431508]],
    "every step has the first rate; set the optimiser's rate anew in each.":
        [[0.796483, 0.098627], [-0.198571, 0.164021], [-0.000505, 0.298994]],
    "each step has the rate of the step before; set it before optimizer.step().":
        [[0.747499, 0.049263], [-0.149148, 0.188418], [-0.050183, 0.348995]],
    "this is Adam without weight decay; use AdamW.":
        [[0.669644, -0.030361], [-0.069669, 0.243116], [-0.1303, 0.430094]],
    "this is Adam, whose weight decay goes into the gradient; use AdamW.":
        [[0.669609, -0.030367], [-0.069658, 0.242117], [-0.13032, 0.430098]],
    "this is SGD; use AdamW.": [[0.537465, -0.082015], [0.03145, 0.387311], [-0.269424, 0.493344]],
    "this is SGD without weight decay; use AdamW.": [[0.538329, -0.082283], [0.031586, 0.38798], [-0.269915, 0.494303]],
    "every step has a new optimiser, which knows nothing of the steps before; make one for all of them.":
        [[0.66907, -0.02974], [-0.07009, 0.2694], [-0.12957, 0.42906]],
    "the logits were computed once; call logits() anew in every step, since the adapter has changed.":
        [[0.66907, -0.02974], [-0.07009, 0.2294], [-0.12957, 0.42906]],
    "the gradients are zero at each step, and only the weight decay works; zero_grad() comes before backward().":
        [[0.49915, -0.19966], [0.09983, 0.39932], [-0.29949, 0.598981]],
    "one step is missing; make one for each rate.": [[0.649007, -0.049951], [-0.049912, 0.256207], [-0.149781, 0.449198]]})
assert not (isinstance(losses, list) and any(isinstance(loss, torch.Tensor) for loss in losses)), (
    "the losses are tensors, each of which keeps its whole computation; note loss.item().")
check("the losses", losses, [1.53388, 1.320914, 1.223262], {
    "the cross-entropy is summed; take its mean over the pictures.": [4.60164, 3.962742, 3.669787],
    "they are one number; give a list with the loss of each step.": 1.223262,
    "they are those after each step; note the loss before the step.": [1.320914, 1.223262, 1.185892]})

# %% nbgrader={"hidden": "train", "points": 10}
def _hidden_train():
    import math
    from random import Random

    import torch
    from torch import nn

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(36))
    for n, d, c, rates in ((1, 2, 2, [0.3]), (5, 3, 4, [0.2, 0.05, 0.1, 0.01]), (6, 4, 3, [0.01] * 5 + [0.4, 0.02])):
        w, x = ([[maker.uniform(-1, 1) for _ in range(d)] for _ in range(m)] for m in (c, n))
        labels = [maker.randrange(c) for _ in range(n)]
        layer = nn.Linear(d, c, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(w, dtype=torch.float64))
        pictures, outside = torch.tensor(x, dtype=torch.float64), torch.ones(c, dtype=torch.float64, requires_grad=True)
        found = train(layer, lambda layer=layer, x=pictures, one=outside: layer(x) * one, torch.tensor(labels), list(rates))
        assert outside.tolist() == [1.0] * c  # not the adapter's, so not trained
        first, second, losses = [[0.0] * d for _ in w], [[0.0] * d for _ in w], []
        for t, rate in enumerate(rates, 1):
            slope, loss = [[0.0] * d for _ in w], 0.0
            for row, label in zip(x, labels):
                powers = [math.exp(sum(a * b for a, b in zip(weights, row))) for weights in w]
                loss -= math.log(powers[label] / sum(powers)) / n
                for k in range(c):
                    for i in range(d):
                        slope[k][i] += (powers[k] / sum(powers) - (k == label)) * row[i] / n
            losses.append(loss)
            for k in range(c):
                for i in range(d):
                    first[k][i] = 0.9 * first[k][i] + 0.1 * slope[k][i]
                    second[k][i] = 0.999 * second[k][i] + 0.001 * slope[k][i] ** 2
                    size = math.sqrt(second[k][i] / (1 - 0.999 ** t)) + 1e-8
                    w[k][i] -= rate * (0.01 * w[k][i] + first[k][i] / (1 - 0.9 ** t) / size)
        assert len(found) == len(rates) and all(-1e-6 < float(a) - b < 1e-6 for a, b in zip(found, losses))
        for row, right in zip(layer.weight.tolist(), w):
            assert all(-1e-6 < a - b < 1e-6 for a, b in zip(row, right))


_hidden_train()

# %% [markdown]
# ### Exercise 7 · Which α?
#
# **Points** 10 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 5
#
# An adapter was trained for each of several α. `scores` is a dictionary, in any order: `scores[alpha]` is the pair
# (accuracy, cross-entropy) on the *validation* pictures. Give the α with the highest accuracy; of equal ones the one
# with the lowest cross-entropy; of those still equal the smallest α.
#
# <details><summary>Hint 1</summary>
#
# Python compares tuples entry by entry. Which tuple is smallest for the best α?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `min` takes a `key`, a function. What has to be done to an accuracy, of which the highest is wanted, for the smallest
# tuple to have it?
#
# </details>


# %% nbgrader={"solution": "best_ratio"}
def best_ratio(scores):
    """The chosen α of scores, a dictionary {α: (validation accuracy, validation cross-entropy)}."""
    ### BEGIN SOLUTION
    return min(scores, key=lambda alpha: (-scores[alpha][0], scores[alpha][1], alpha))
    ### END SOLUTION


# %% nbgrader={"visible": "best_ratio", "points": 4}
from clip_adapter_lite.checks import check

scores = {0.0: (0.7, 0.9), 0.2: (0.85, 0.6), 0.4: (0.85, 0.8), 0.8: (0.85, 0.5), 0.6: (0.85, 0.5), 1.0: (0.8, 0.4)}
check("best_ratio(scores)", best_ratio(scores), 0.6, {
    "the cross-entropy decides alone; accuracy comes first.": 1.0,
    "the cross-entropy of equal accuracies is not used; the lowest wins.": 0.2,
    "the highest cross-entropy wins; it is a loss, so the lowest must.": 0.4,
    "of two ratios that are equal in both, the larger was taken, or the first in the dictionary; take the smaller.": 0.8,
    "the lowest accuracy wins; the highest must.": 0.0,
    "this is the pair of the best α; give the α itself.": [0.85, 0.5]})

# %% nbgrader={"hidden": "best_ratio", "points": 6}
def _hidden_best_ratio():
    from random import Random

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(37))
    for size in (1, 4, 11, 11, 11, 30):
        ratios = [k / 30 for k in range(size)]
        maker.shuffle(ratios)
        scores = {alpha: (maker.randrange(3) / 4, maker.randrange(1, 4) / 2) for alpha in ratios}
        best = None
        for alpha, (accuracy, loss) in scores.items():
            if best is None or accuracy > scores[best][0] or accuracy == scores[best][0] and (
                    loss < scores[best][1] or loss == scores[best][1] and alpha < best):
                best = alpha
        assert -1e-9 < float(best_ratio(dict(scores))) - best < 1e-9


_hidden_best_ratio()

# %% [markdown]
# ## All together, on real features
#
# Nothing to write and no points. Your parts are the whole method. Here they are trained on the cartoons of PACS, with
# 16 shots, and compared with the library. The first weights are random, from the same seed: made in the order `down`,
# `up`, they are the library's, and the difference is rounding; made in the other order, it is not. A step of AdamW moves
# the blend by about α times the rate, so the peak rate here is 5e-4 / α: then both α train equally far. **Predict:** which
# of the two α will validation choose?

# %%
episode = cal.FeatureBank.load("pacs-cartoon").episode(shots=16, seed=1).to(torch.float64)
W, scale = episode.text_features, episode.logit_scale
scores, trained = {}, {}
for alpha in (0.2, 0.6):
    torch.manual_seed(episode.seed)
    adapter = Bottleneck(W.shape[1]).double()
    freeze(nn.Identity(), adapter)  # the features are cached: there is no backbone here


    def logits(split=episode.support, adapter=adapter, alpha=alpha):
        return cosine_logits(blend(adapter(split.features), split.features, alpha), W, scale)


    train(adapter, logits, episode.support.labels, learning_rates(5e-4 / alpha, 120))
    with torch.no_grad():
        val, trained[alpha] = logits(episode.val), logits(episode.test)
    right = (val.argmax(1) == episode.val.labels).double().mean().item()
    scores[alpha] = right, cross_entropy(val, episode.val.labels).item()

# %%
library = cal.CLIPAdapter(alpha=0.2, device="cpu").fit(episode).logits(episode.test.features)
print(f"α = 0.2: your logits and the library's differ by at most {(trained[0.2] - library).abs().max().item():.0e}")
best = best_ratio(scores)
zero_shot = cosine_logits(episode.test.features, W, scale)
for name, found in {"zero-shot": zero_shot, f"chosen on validation, α = {best}": trained[best]}.items():
    right = (found.argmax(1) == episode.test.labels).double().mean().item()
    print(f"{name}: {100 * right:.1f} % of the test pictures right")

# %% [markdown]
# One seed is no result: notebook [04](../../notebooks/04_rq1_prompt_tuning.ipynb) compares methods over seeds and
# datasets.
