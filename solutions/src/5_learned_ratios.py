# %% [markdown]
# # Assignment 5 · Learned ratios
#
# **What you practise:** a hypernetwork Q that gives each picture its own α and each class its own β; how to start it at
# exactly the ratio you want; how the gradient comes back through the blend; training Q together with the adapter, and what
# changes when Q is taught by held-out pictures.
#
# **Prepared by:** notebooks `03_the_adapter` and `07_rq4_learned_ratios`. **Minutes:** about 50. **Points:** 100.
#
# **How to check:** write your answer in the cell of an exercise and press Shift+Enter, which leads on to the folded check
# below; Shift+Enter again runs that. A check says ✓, or which known mistake gives just your values. Every exercise stands
# alone: if one will not come right, go on with the next. What a check shows is part of the points; the rest is graded
# after you hand in, on other numbers.
#
# **Whose design:** the paper learns $\alpha, \beta = Q(f, W)$. The architecture of Q is in no source that we could read, and
# there is no official code. The Q you build is the one of this library (`RatioNetwork`): our design, not the paper's.
#
# **Whose features:** the last cell runs on the pocket CLIP's, whose image tower was trained on ImageNet with labels. The
# numbers in the checks are made up.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import clip_adapter_lite as cal
from clip_adapter_lite.checks import check, recomputed

torch.set_num_threads(1)  # the fastest for such small matrices

# %% [markdown]
# ### Exercise 1 · Where Q starts
# **Points** 10 · **Difficulty** 1/5 · **Importance** 4/5 · **Minutes** 4
#
# A sigmoid $\sigma(z) = 1 / (1 + e^{-z})$ keeps a ratio between 0 and 1. If the weights of Q's last layer are all zero, its
# output is $\sigma(b)$ for any input, with b its bias. Which b gives just the ratio `start`?
#
# <details><summary>Hint 1</summary>Solve σ(b) = start for b: first get e to the power of −b alone on one side.</details>
#
# <details><summary>Hint 2</summary>σ(b) = 1 / (1 + e^(−b)). Turn both sides upside down and take 1 away: what is left?
# Which function frees b, and with which sign?</details>

# %% nbgrader={"solution": "start_bias"}
def start_bias(start: float) -> float:
    """The bias b with sigmoid(b) = start, for 0 < start < 1."""
    ### BEGIN SOLUTION
    return math.log(start / (1 - start))
    ### END SOLUTION

# %% nbgrader={"visible": "start_bias", "points": 4}
check("start_bias(0.2)", start_bias(0.2), -1.38629436, {
    "that is the ratio itself; the sigmoid of it would be 0.55.": 0.2,
    "the logarithm is missing: this is start / (1 − start).": 0.25,
    "the sign is turned: a ratio below one half needs a negative bias.": 1.38629436,
    "this is log(start): one minus the ratio is missing.": -1.60943791,
    "this is the sigmoid of the ratio; its inverse is asked for.": 0.54983400,
    "the logarithm has the base 10 (or 2): the sigmoid is made of e.": -0.60205999})
check("start_bias(0.5)", start_bias(0.5), 0.0)

# %% nbgrader={"hidden": "start_bias", "points": 6}
def _hidden():
    from random import Random

    from clip_adapter_lite.checks import fresh
    e, maker = 2.718281828459045, Random(fresh(50))
    for start in [0.01, 0.5, 0.99, *(maker.uniform(0.05, 0.95) for _ in range(6))]:
        found = 1 / (1 + e ** -start_bias(start))
        assert -1e-6 < found - start < 1e-6, (start, found)


_hidden()

# %% [markdown]
# ### Exercise 2 · What Q is asked with
# **Points** 14 · **Difficulty** 2/5 · **Importance** 3/5 · **Minutes** 7
#
# Q sees an image feature beside a class's weights. Raw features differ in length between backbones, so bring each row of
# both to length 1, put the two side by side (the feature first), and multiply by $\sqrt D$: then the entries are of about
# unit size, as a linear layer likes them.
#
# `features` is [N, D] and `weights` is [M, D]. Either N = M, or one of the two has a single row, which goes beside every row
# of the other. The result has as many rows as the longer one, and 2 D columns.
#
# <details><summary>Hint 1</summary><code>torch.cat</code> wants equal numbers of rows; <code>torch.broadcast_tensors</code>
# repeats a single row for you.</details>
#
# <details><summary>Hint 2</summary>Three steps: each row of both to length 1; equal numbers of rows; one beside the
# other. Then a factor: is its D the width of a feature or of the pair?</details>

# %% nbgrader={"solution": "pair"}
def pair(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Q's input [max(N, M), 2 D] of features [N, D] and weights [M, D]; N = M, or one of them is 1."""
    ### BEGIN SOLUTION
    features, weights = torch.broadcast_tensors(normalize(features, dim=-1), normalize(weights, dim=-1))
    return torch.cat([features, weights], dim=-1) * features.shape[-1] ** 0.5
    ### END SOLUTION

# %% nbgrader={"visible": "pair", "points": 5}
def check_pair():
    f, w = torch.tensor([[3.0, 0, 4, 0], [0, 2, 0, 0]]), torch.tensor([[0.0, 0, 0, 5]])
    right = torch.tensor([[1.2, 0, 1.6, 0, 0, 0, 0, 2], [0, 2, 0, 0, 0, 0, 0, 2]])  # the builder's
    check("pair(features, weights)", pair(f, w), right, {
        "the factor √D is missing.": right / 2,
        "the factor is D: take its root.": right * 2,
        "the factor is √(2D): D is the width of a feature, not of the pair.": right * 2 ** 0.5,
        "the rows are not brought to length 1.": [[6, 0, 8, 0, 0, 0, 0, 10], [0, 4, 0, 0, 0, 0, 0, 10]],
        "only the features are brought to length 1: the weights too.": right * torch.tensor([1, 1, 1, 1, 1, 1, 1, 5]),
        "only the weights are brought to length 1: the features too.":
            [[6, 0, 8, 0, 0, 0, 0, 2], [0, 4, 0, 0, 0, 0, 0, 2]],
        "columns are brought to length 1: normalise the rows, dim=-1.": [[2, 0, 2, 0, 0, 0, 0, 2], [0, 2, 0, 0, 0, 0, 0, 2]],
        "the pair is brought to length 1 as a whole: normalise features and weights apart.":
            [[0.84852814, 0, 1.13137085, 0, 0, 0, 0, 1.41421356], [0, 0.74278135, 0, 0, 0, 0, 0, 1.85695338]],
        "the weights come first: the feature does.": right[:, [4, 5, 6, 7, 0, 1, 2, 3]],
        "the weights stand below the features: put them beside, dim=-1.": [[1.2, 0, 1.6, 0], [0, 2, 0, 0], [0, 0, 0, 2]]})
    check("pair() of one feature and two classes", pair(w, f), right[:, [4, 5, 6, 7, 0, 1, 2, 3]], {
        "the weights come first: the feature does.": right})
    assert f.tolist() == [[3, 0, 4, 0], [0, 2, 0, 0]], "pair() changes the features that it is given: make new tensors."


check_pair()

# %% nbgrader={"hidden": "pair", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(51))
    for rows, others, width in [[4, 1, 6], [1, 3, 5], [5, 5, 9], [1, 1, 2], [2, 1, 16]]:
        lists = []
        tensors = []
        for count in [rows, others]:
            tensors.append(_torch.randn(count, width, generator=generator, dtype=_torch.float64) * 7)
            unit = []
            for row in tensors[-1].tolist():
                squares = 0
                for value in row:
                    squares += value * value
                unit.append([value / squares ** 0.5 * width ** 0.5 for value in row])
            lists.append(unit)
        found = pair(tensors[0].clone(), tensors[1].clone())
        longest = rows if rows > others else others
        assert found.shape == (longest, 2 * width), found.shape
        place = 0
        for row in found.tolist():
            right = lists[0][place if rows > 1 else 0] + lists[1][place if others > 1 else 0]
            column = 0
            for value in right:
                assert -1e-5 < row[column] - value < 1e-5, (rows, others, width)
                column += 1
            place += 1


_hidden()

# %% [markdown]
# ### Exercise 3 · The network
# **Points** 18 · **Difficulty** 3/5 · **Importance** 5/5 · **Minutes** 9
#
# Q maps pairs [N, 2 D] to ratios [N, 2], α in the first column and β in the second:
#
# $$Q(x) = \sigma(\mathrm{ReLU}(x A + a)\,B + b), \qquad A \in \mathbb{R}^{2D \times h},\; B \in \mathbb{R}^{h \times 2}.$$
#
# Give it as an `nn.Module` (an `nn.Sequential` will do), with both biases. Leave A and a as torch draws them. Set B to zero
# and both entries of b to `bias`, so that Q starts at exactly σ(bias) for every input.
#
# <details><summary>Hint 1</summary><code>nn.Linear</code>, <code>nn.ReLU</code>, <code>nn.Linear</code>,
# <code>nn.Sigmoid</code>. Then fill the second linear layer before you return.</details>
#
# <details><summary>Hint 2</summary>At the start Q must answer the same whatever it is asked. What must the last layer's
# weight be for that, and what its bias? <code>nn.init</code> has a function for each.</details>

# %% nbgrader={"solution": "ratio_network"}
def ratio_network(width: int, hidden: int, bias: float) -> nn.Module:
    """Q: pairs [N, 2 · width] → ratios [N, 2] in (0, 1), with `hidden` units; it starts at sigmoid(bias) for any input."""
    ### BEGIN SOLUTION
    last = nn.Linear(hidden, 2)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), last, nn.Sigmoid())
    ### END SOLUTION

# %% nbgrader={"visible": "ratio_network", "points": 7}
def check_ratio_network():
    torch.manual_seed(0)
    network = ratio_network(2, 3, -1.38629436)
    assert isinstance(network, nn.Module), "ratio_network() gives the network itself: an nn.Module, not called yet."
    shapes = {tuple(p.shape): p for p in network.parameters()}
    wanted = [(3, 4), (3,), (2, 3), (2,)]
    assert sorted(shapes) == sorted(wanted), (
        f"the parameters have the shapes {sorted(shapes)}; two linear layers with biases, 2 D → hidden → 2, have {wanted} "
        "(torch keeps a weight as [out, in]).")
    pairs = torch.tensor([[1.0, 2, 3, 4], [-1, 0, 1, 5], [2, -3, 0, 0]])
    found = network(pairs)
    assert found.shape != (3, 2) or (found - found[:1]).abs().max() < 1e-6, (
        "Q does not start with one ratio for every input: set the last layer's weight to zero.")
    check("Q before training", found, [[0.2, 0.2]] * 3, {
        "the sigmoid is missing at the end.": [[-1.38629436] * 2] * 3,
        "Q starts at one half: the last bias is still 0, or there is a softmax instead of the sigmoid.": [[0.5, 0.5]] * 3,
        "the bias was put through a sigmoid before: it is a bias, not a ratio.": [[0.54983400] * 2] * 3,
        "the sign of the bias is turned.": [[0.8, 0.8]] * 3})
    assert shapes[3, 4].abs().max() > 0, (
        "the first layer is zero as well: then no gradient ever reaches it, so leave it as torch draws it.")
    assert all(p.requires_grad for p in shapes.values()), "some parameters do not require gradients: Q is to be trained."
    with torch.no_grad():
        shapes[3, 4].copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 1]]))
        shapes[3,].copy_(torch.tensor([0.5, 0, -1]))
        shapes[2, 3].copy_(torch.tensor([[1.0, -1, 0.5], [0, 2, -1]]))
        shapes[2,].copy_(torch.tensor([0.0, 1]))
        check("Q with other weights", network(pairs), [[0.37754067, 0.99330715], [0.81757448, 0.11920292],
                                                       [0.92414182, 0.73105858]], {
            "the ReLU between the layers is missing.": [[0.37754067, 0.99330715], [0.73105858, 0.11920292],
                                                        [0.99330715, 0.01798621]],
            "a softmax makes α and β add up to 1: each has a sigmoid of its own.":
                [[0.00407014, 0.99592986], [0.97068777, 0.02931223], [0.81757448, 0.18242552]],
            "a ReLU stands at the end, before the sigmoid: it allows no ratio below one half.":
                [[0.5, 0.99330715], [0.81757448, 0.5], [0.92414182, 0.73105858]]})


check_ratio_network()

# %% nbgrader={"hidden": "ratio_network", "points": 11}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    e = 2.718281828459045
    generator = _torch.Generator().manual_seed(fresh(52))
    for width, hidden, bias in [[3, 5, -1.3862944], [4, 3, 0.7], [2, 7, 0.0]]:
        _torch.manual_seed(7)
        network, shapes = ratio_network(width, hidden, bias), {}
        for p in network.parameters():
            assert p.requires_grad
            shapes[p.shape] = p
        assert shapes.__len__() == 4
        first, a = shapes[_torch.Size([hidden, 2 * width])], shapes[_torch.Size([hidden])]
        last, b = shapes[_torch.Size([2, hidden])], shapes[_torch.Size([2])]
        greatest = 0
        for value in first.detach().reshape(-1).tolist():
            greatest = value if value > greatest else greatest
        assert greatest > 0, "the first layer is zero"
        pairs = _torch.randn(6, 2 * width, generator=generator)
        found = network(pairs.clone())
        assert found.shape == (6, 2), found.shape
        for value in found.reshape(-1).tolist():
            assert -1e-5 < value - 1 / (1 + e ** -bias) < 1e-5, "the start"
        with _torch.no_grad():
            for p in shapes.values():
                p.copy_(_torch.randn(p.shape, generator=generator))
            kept = {shape: p.tolist() for shape, p in shapes.items()}  # a submission may change what it is given
            found = network(pairs.clone()).tolist()
        first, a = kept[first.shape], kept[a.shape]
        last, b = kept[last.shape], kept[b.shape]
        n = 0
        for x in pairs.tolist():
            units, k = [], 0
            for row in first:
                total, i = a[k], 0
                for value in row:
                    total, i = total + value * x[i], i + 1
                units.append(total if total > 0 else 0.0)
                k += 1
            j = 0
            for row in last:
                total, i = b[j], 0
                for value in row:
                    total, i = total + value * units[i], i + 1
                assert -1e-4 < found[n][j] - 1 / (1 + e ** -total) < 1e-4, "other weights"
                j += 1
            n += 1


_hidden()

# %% [markdown]
# ### Exercise 4 · Whose ratio?
# **Points** 16 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 8
#
# Each picture has its own α: ask Q with the picture's feature and the **mean of W over the classes**, since the right class
# is not known. Each class has its own β: ask Q with the **pooled** feature (the mean of the support set, computed once) and
# the class's row of W. So no answer depends on the other pictures of a batch.
#
# `Q(features, weights)` is given. It takes [N, D] and [N, D], either of which may be a single row, and gives the pair (α,
# β), each [N, 1]. Use its first answer for the pictures and its second for the classes.
#
# <details><summary>Hint 1</summary>Q is asked twice, each time with a single row on one side. Which of its two answers do
# you keep each time?</details>
#
# <details><summary>Hint 2</summary>A picture's ratio must not depend on one class, so something stands for all classes.
# A class's ratio must not depend on the batch, so something stands for all pictures, and you are given it.
# <code>keepdim</code>, or an index <code>None</code>, keeps a row a row.</details>

# %% nbgrader={"solution": "ratios"}
def ratios(Q, features: torch.Tensor, pooled: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(α [N, 1] of the pictures, β [C, 1] of the classes).

    Q(features, weights) → (α, β); features [N, D]; pooled [D], the mean support feature; weights W [C, D].
    """
    ### BEGIN SOLUTION
    alpha, _ = Q(features, weights.mean(dim=0, keepdim=True))
    _, beta = Q(pooled[None], weights)
    return alpha, beta
    ### END SOLUTION

# %% nbgrader={"visible": "ratios", "points": 6}
def check_ratios():
    def Q(features, weights):
        for name, rows in (("features", features), ("weights", weights)):
            assert rows.ndim == 2 and rows.shape[1] == 2, (
                f"Q was asked with {name} of the shape {list(rows.shape)}: it takes rows, [N, D], here D = 2.")
        assert len(features) == len(weights) or 1 in (len(features), len(weights)), (
            f"Q was asked with {len(features)} features and {len(weights)} classes: one of the two must be a single row.")
        return ((features @ torch.tensor([[1.0], [2]]) + weights @ torch.tensor([[10.0], [20]])) / 1000,
                (features @ torch.tensor([[3.0], [1]]) + weights @ torch.tensor([[30.0], [10]])) / 1000)

    f, W = torch.tensor([[1.0, 2], [3, 4], [5, 0], [7, 6]]), torch.tensor([[1.0, 1], [2, 4], [0, 1]])
    found = ratios(Q, f, torch.tensor([2.0, 5]), W)
    assert isinstance(found, (tuple, list)) and len(found) == 2, "ratios() gives two tensors: α, then β."
    check("α of the pictures", found[0], [[0.055], [0.061], [0.055], [0.069]], {
        "this is the second answer of Q: α is its first.": [[0.055], [0.063], [0.065], [0.077]],
        "α was asked with the pooled feature: ask with each picture's own.": [[0.062]],
        "α was asked with the batch's mean: each picture has its own.": [[0.06]],
        "the first class stands in the class's place: take the mean of W over the classes.":
            [[0.035], [0.041], [0.035], [0.049]],
        "the classes are summed: take their mean.": [[0.155], [0.161], [0.155], [0.169]],
        "α and β have changed places.": [[0.051], [0.111], [0.021]]})
    check("β of the classes", found[1], [[0.051], [0.111], [0.021]], {
        "this is the first answer of Q: β is its second.": [[0.042], [0.112], [0.032]],
        "β was asked with the batch's mean feature: it must not depend on the batch, so use pooled.":
            [[0.055], [0.115], [0.025]],
        "β was asked with the first picture: use pooled.": [[0.045], [0.105], [0.015]],
        "β was asked with the mean of W: each class has its own.": [[0.061]]})
    alone = ratios(Q, f[:1], torch.tensor([2.0, 5]), W)
    check("α of one picture alone", alone[0], [[0.055]])
    check("β with another batch", alone[1], [[0.051], [0.111], [0.021]], {
        "β changes with the batch: ask with pooled.": [[0.045], [0.105], [0.015]]})


check_ratios()

# %% nbgrader={"hidden": "ratios", "points": 10}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(53))
    for n, c, width in [[5, 3, 4], [1, 6, 2], [4, 4, 3], [3, 2, 8]]:
        f, pooled, W, u, v = (_torch.randn(*shape, generator=generator, dtype=_torch.float64)
                              for shape in [(n, width), (width,), (c, width), (width, 2), (width, 2)])

        def Q(features, weights, u=u, v=v):
            answer = (features.tanh() @ u + (weights * weights) @ v) / 10
            return answer[:, :1], answer[:, 1:]

        mean = []
        for column in W.T.tolist():
            total = 0
            for value in column:
                total += value / c
            mean.append(total)
        alpha, beta = ratios(Q, f.clone(), pooled.clone(), W.clone())
        assert alpha.shape == (n, 1) and beta.shape == (c, 1), (alpha.shape, beta.shape)
        right, i = Q(f, _torch.tensor([mean], dtype=_torch.float64))[0].reshape(-1).tolist(), 0
        for value in alpha.reshape(-1).tolist():
            assert -1e-6 < value - right[i] < 1e-6, "α"
            i += 1
        right, i = Q(pooled.reshape(1, width), W)[1].reshape(-1).tolist(), 0
        for value in beta.reshape(-1).tolist():
            assert -1e-6 < value - right[i] < 1e-6, "β"
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 5 · A blend that lets gradients through
# **Points** 14 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 6
#
# $$f^\star_n = \alpha_n\,A(f)_n + (1-\alpha_n)\,f_n,$$
#
# with one α for each picture n. The loss must be able to pull at α: its gradient has to pass through your blend, to α and to
# the adapted features. Do not change the tensors that you are given.
#
# <details><summary>Hint 1</summary>α is [N, 1], the features are [N, D]: broadcasting does what the formula says. Anything
# that turns α into a plain number stops the gradient.</details>
#
# <details><summary>Hint 2</summary>It is the blend of assignment 3, with a column of ratios in the place of a number.
# Look for what stops a gradient: <code>detach</code>, <code>item</code>, <code>data</code>, <code>float</code>,
# <code>no_grad</code>.</details>

# %% nbgrader={"solution": "blend"}
def blend(features: torch.Tensor, adapted: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """f* [N, D] of features f [N, D], adapted features A(f) [N, D] and ratios alpha [N, 1]; differentiable."""
    ### BEGIN SOLUTION
    return alpha * adapted + (1 - alpha) * features
    ### END SOLUTION

# %% nbgrader={"visible": "blend", "points": 5}
def check_blend():
    f = torch.tensor([[1.0, 2], [3, 4]])
    adapted, alpha = torch.tensor([[5.0, -2], [1, 0]], requires_grad=True), torch.tensor([[0.25], [0.5]], requires_grad=True)
    found = blend(f, adapted, alpha)
    check("blend(features, adapted, alpha)", found, [[2.0, 1], [2, 2]], {
        "α and 1 − α are swapped: α is the share of the adapted feature.": [[4, -1], [2, 2]],
        "α goes along the columns: each row, a picture, has its own.": [[2, 0], [2.5, 2]],
        "one α serves all pictures: each has its own.": [[2.5, 0.5], [2.25, 2.5]],
        "1 − α is missing before f.": [[2.25, 1.5], [3.5, 4]],
        "α is missing before A(f).": [[5.75, -0.5], [2.5, 2]]})
    assert f.tolist() == [[1, 2], [3, 4]], "blend() changes the features that it is given: make a new tensor."
    detached = ("the gradient does not reach α: it was detached on the way (detach, item, data, float, no_grad, or a new "
                "tensor made of its numbers).")
    assert found.requires_grad, detached
    (found * torch.tensor([[1.0, 10], [100, 1000]])).sum().backward()
    assert alpha.grad is not None, detached
    assert adapted.grad is not None, "the gradient does not reach the adapted features: they were detached on the way."
    check("the gradient at α", alpha.grad, [[-36.0], [-4200]], {
        "α reaches A(f), but is detached before f: (1 − α) counts as well.": [[-15.0], [100]],
        "α reaches f, but is detached before A(f).": [[-21.0], [-4300]]})
    check("the gradient at A(f)", adapted.grad, [[0.25, 2.5], [50, 500]])


check_blend()

# %% nbgrader={"hidden": "blend", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(54))
    for n, width in [[3, 5], [4, 4], [1, 7], [6, 2]]:
        f, adapted, upstream = (_torch.randn(n, width, generator=generator, dtype=_torch.float64)
                                for name in ["f", "A(f)", "upstream"])
        alpha = _torch.rand(n, 1, generator=generator, dtype=_torch.float64)
        found = blend(f.clone(), adapted.clone(), alpha.clone())
        assert found.shape == (n, width), found.shape
        lists = [f.tolist(), adapted.tolist(), alpha.tolist(), upstream.tolist()]
        i = 0
        for row in found.tolist():
            j = 0
            for value in row:
                ratio = lists[2][i][0]
                assert -1e-6 < value - ratio * lists[1][i][j] - (1 - ratio) * lists[0][i][j] < 1e-6, (n, width)
                j += 1
            i += 1
        given = [t.clone().requires_grad_(True) for t in [f, adapted, alpha]]
        (blend(*given) * upstream).sum().backward()
        gradients, i = [t.grad.tolist() for t in given], 0
        for row in lists[3]:
            total, j, ratio = 0, 0, lists[2][i][0]
            for g in row:
                total += g * (lists[1][i][j] - lists[0][i][j])
                assert -1e-6 < gradients[0][i][j] - (1 - ratio) * g < 1e-6, "gradient at f"
                assert -1e-6 < gradients[1][i][j] - ratio * g < 1e-6, "gradient at A(f)"
                j += 1
            assert -1e-6 < gradients[2][i][0] - total < 1e-6, "gradient at α"
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 6 · The gradient by hand
# **Points** 14 · **Difficulty** 4/5 · **Importance** 3/5 · **Minutes** 8
#
# What pulls α up or down? Let g be the gradient of the loss at the blended features, $g = \partial L / \partial f^\star$, of
# shape [N, D], and let $\alpha_n = \sigma(z_n)$. Work out the gradient at z, before the sigmoid, of shape [N, 1]. No
# autograd: write the formula.
#
# Recall $\sigma'(z) = \sigma(z)\,(1 - \sigma(z))$.
#
# <details><summary>Hint 1</summary>The chain rule has two factors: how f* changes with α (differentiate the blend of
# exercise 5), and how α changes with z. A picture's α touches all D entries of its own row, and no other row.</details>
#
# <details><summary>Hint 2</summary>The sigmoid's slope can be written with α alone. For one picture with D = 2 write the
# other factor on paper: what is each entry's pull, and are the pulls added or averaged?</details>

# %% nbgrader={"solution": "ratio_gradient"}
def ratio_gradient(g: torch.Tensor, features: torch.Tensor, adapted: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """∂L/∂z [N, 1], alpha [N, 1] = sigmoid(z), of g = ∂L/∂f* [N, D], features [N, D] and adapted features [N, D]."""
    ### BEGIN SOLUTION
    return alpha * (1 - alpha) * (g * (adapted - features)).sum(dim=1, keepdim=True)
    ### END SOLUTION

# %% nbgrader={"visible": "ratio_gradient", "points": 5}
check("ratio_gradient(g, features, adapted, alpha)", ratio_gradient(
    torch.tensor([[1.0, 2, -1], [3, 0, 2]]), torch.tensor([[1.0, 0, 2], [0, 1, 1]]), torch.tensor([[3.0, 1, 1], [2, 2, 0]]),
    torch.tensor([[0.2], [0.5]])), [[0.8], [1.0]], {
        "the sigmoid's slope α (1 − α) is missing: this is the gradient at α.": [[5.0], [4.0]],
        "the slope is only α: it is α (1 − α).": [[1.0], [2.0]],
        "the slope is only 1 − α: it is α (1 − α).": [[4.0], [2.0]],
        "− f is missing: α takes from f what it gives to A(f).": [[0.64], [1.5]],
        "the sign is turned: a greater α brings A(f) in and f out.": [[-0.8], [-1.0]],
        "this is the mean over D: the entries' pulls add up.": [[0.26666667], [0.33333333]],
        "the rows are not summed: each picture has one α.": [[0.32, 0.32, 0.16], [1.5, 0.0, -0.5]],
        "the pictures are summed: each has its own gradient.": [[1.44], [2.25]],
        "the result is [N]: keep the dimension, [N, 1].": [0.8, 1.0],
        "α is put through a sigmoid, but it is one already.": [[5 * 0.24751657], [4 * 0.23500371]]})

# %% nbgrader={"hidden": "ratio_gradient", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    e = 2.718281828459045
    generator = _torch.Generator().manual_seed(fresh(55))
    for n, width in [[3, 5], [1, 4], [6, 6], [2, 9]]:
        g, f, adapted = (_torch.randn(n, width, generator=generator, dtype=_torch.float64) for name in ["g", "f", "A(f)"])
        z = _torch.randn(n, 1, generator=generator, dtype=_torch.float64).tolist()
        alpha = [[1 / (1 + e ** -row[0])] for row in z]
        found = ratio_gradient(g.clone(), f.clone(), adapted.clone(), _torch.tensor(alpha, dtype=_torch.float64))
        assert found.shape == (n, 1), found.shape
        lists, i, step = [g.tolist(), f.tolist(), adapted.tolist()], 0, 1e-4
        for row in found.tolist():
            ends = []
            for moved in [z[i][0] - step, z[i][0] + step]:  # the loss g · f* with z moved a little to both sides
                ratio, total, j = 1 / (1 + e ** -moved), 0, 0
                for value in lists[0][i]:
                    total += value * (ratio * lists[2][i][j] + (1 - ratio) * lists[1][i][j])
                    j += 1
                ends.append(total)
            assert -1e-5 < row[0] - (ends[1] - ends[0]) / (2 * step) < 1e-5, (n, width)
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 7 · Train both at once
# **Points** 14 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 7
#
# The adapter and Q learn from the same loss at the same time. Write the loop: AdamW over **all** parameters of both modules,
# with learning rate `rate`, `weight_decay=0.01` and torch's other defaults, for so many steps. `loss()` computes the loss
# anew with the modules as they are. Return the list of losses as plain numbers, each from before its step's update.
#
# <details><summary>Hint 1</summary>What an optimiser is not given, it does not train. What must be cleared before each
# <code>backward()</code>?</details>
#
# <details><summary>Hint 2</summary>One optimiser serves both: its first argument may be one list of all their parameters
# (<code>*</code> unpacks a generator into a list). A loss is noted as a plain number, before the step.</details>

# %% nbgrader={"solution": "train"}
def train(adapter: nn.Module, network: nn.Module, loss, steps: int, rate: float) -> list[float]:
    """Train both modules in place with AdamW; the loss before each of the steps. loss() → a tensor with one number."""
    ### BEGIN SOLUTION
    optimizer = torch.optim.AdamW([*adapter.parameters(), *network.parameters()], lr=rate, weight_decay=0.01)
    losses = []
    for _ in range(steps):
        value = loss()
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return losses
    ### END SOLUTION

# %% nbgrader={"visible": "train", "points": 5}
def check_train():
    adapter, network = (nn.Linear(1, 1, bias=False, dtype=torch.float64) for name in ("adapter", "network"))
    with torch.no_grad():
        adapter.weight.fill_(0.5)
        network.weight.fill_(1.0)
    w, q = adapter.weight, network.weight
    with recomputed("train(…)", "the loss was computed once: call loss() anew in every step, since both have changed."):
        losses = train(adapter, network, lambda: ((w * q - 2) ** 2 + (q + 0.5) ** 2 / 4).sum(), steps=3, rate=0.1)
    check("the two weights after three steps", [w.item(), q.item()], [0.79784577, 1.29689046], {
        "Q is not trained: give the optimiser its parameters as well, or its ratios stay as they were.": [0.79730538, 1.0],
        "the adapter is not trained: give the optimiser its parameters as well.": [0.5, 1.29428729],
        "nothing is trained: is there a backward() and a step() for each step?": [0.5, 1.0],
        "gradients add up over the steps: clear them before each backward().": [0.79088582, 1.28833987],
        "the loss was computed once: call loss() anew in every step, since both have changed.": [0.79820160, 1.29670310],
        "only one step was made; is the loop in steps, and the return after it?": [0.5995, 1.099],
        "one step too few was made.": [0.69885095, 1.1980262],
        "one step too many was made.": [0.89603830, 1.39458423],
        "the weight decay of AdamW is missing, or it is Adam.": [0.79964109, 1.30017676],
        "this is plain gradient descent: use AdamW.": [1.22618611, 1.25528518],
        "this is plain gradient descent with weight decay: use AdamW.": [1.22442307, 1.25281443]})
    check("the losses", losses, [2.8125, 2.43788223, 2.07283001], {
        "these are the losses after each update: take each before it.": [2.43788223, 2.07283001, 1.73897209],
        "only the last loss is returned: return the list.": 2.07283001})
    assert all(isinstance(value, float) for value in losses), "the losses are plain numbers: use .item()."


check_train()

# %% nbgrader={"hidden": "train", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(56))
    for sizes, steps, rate in [[(2, 3), 5, 0.05], [(1, 1), 1, 0.2], [(4, 2), 12, 0.01]]:
        modules = [_torch.nn.Linear(*shape, dtype=_torch.float64) for shape in [sizes, (1, sizes[0])]]
        count = sizes[0] * sizes[1] + sizes[1] + 2 * sizes[0]
        start, target, slope = (_torch.randn(count, generator=generator, dtype=_torch.float64).tolist() for k in [1, 2, 3])
        place = 0
        for module in modules:
            for p in module.parameters():
                size = p.numel()
                p.data.copy_(_torch.tensor(start[place:place + size], dtype=_torch.float64).reshape(p.shape))
                place += size

        def flat(modules=modules):
            return _torch.cat([p.reshape(-1) for module in modules for p in module.parameters()])

        def loss(flat=flat, target=target, slope=slope):  # sum of s² (p - t)² / 2
            off = (flat() - _torch.tensor(target, dtype=_torch.float64)) * _torch.tensor(slope, dtype=_torch.float64)
            return (off * off).sum() / 2

        losses = train(modules[0], modules[1], loss, steps, rate)
        right, values, first, second = [], [*start], [0.0] * count, [0.0] * count
        for step in _torch.arange(1, steps + 1).tolist():  # AdamW, number by number
            total, i = 0, 0
            for value in values:
                g = slope[i] ** 2 * (value - target[i])
                total += slope[i] ** 2 * (value - target[i]) ** 2 / 2
                first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g
                root = (second[i] / (1 - 0.999 ** step)) ** 0.5 + 1e-8
                values[i] = value * (1 - rate * 0.01) - rate * first[i] / (1 - 0.9 ** step) / root
                i += 1
            right.append(total)
        i = 0
        for value in flat().tolist():
            assert -1e-6 < value - values[i] < 1e-6, (sizes, "parameters")
            i += 1
        assert losses.__len__() == steps, "the number of losses"
        i = 0
        for value in right:
            assert -1e-5 * (1 + value) < losses[i] - value < 1e-5 * (1 + value), (sizes, "losses")
            i += 1


_hidden()

# %% [markdown]
# **Not graded: all of it together**, on sketches, four shots per class: the adapter of assignment 3, your Q, your blend,
# your loop. Q is taught in two ways: by the support pictures, as the adapter is, and by held-out ones (the validation
# pictures), as the library does. Then each loss must see the other's part as a constant: `detach()`. Test accuracy is
# looked at once for each, and nothing is chosen by it.

# %%
episode = cal.FeatureBank.load("pacs-sketch", "pocket").episode(shots=4, seed=1)
f, labels, held_out, W = episode.support.view(), episode.support.labels, episode.val, episode.text_features
D, pooled = W.shape[1], normalize(f, dim=-1).mean(0)


def Q(features, weights):
    return network(pair(features, weights)).split(1, dim=1)


def adapted_logits(features, still=None):
    alpha, _ = ratios(Q, features, pooled, W)
    moved = adapter(features)
    alpha, moved = (part.detach() if still == name else part for name, part in (("ratio", alpha), ("adapter", moved)))
    return episode.logit_scale * normalize(blend(features, moved, alpha), dim=-1) @ normalize(W, dim=-1).T


def by_support():
    return cross_entropy(adapted_logits(f), labels)


def by_held_out():
    return (cross_entropy(adapted_logits(f, still="ratio"), labels)
            + cross_entropy(adapted_logits(held_out.view(), still="adapter"), held_out.labels))


# %%
zero_shot = cal.ZeroShot().fit(episode).accuracy(episode.test)
print(f"zero-shot {100 * zero_shot:.1f} % (one seed)")
for teacher in by_support, by_held_out:
    torch.manual_seed(1)
    adapter = nn.Sequential(nn.Linear(D, D // 4, bias=False), nn.ReLU(), nn.Linear(D // 4, D, bias=False))
    network = ratio_network(D, 32, start_bias(0.4))
    train(adapter, network, teacher, steps=120, rate=1e-3)
    with torch.no_grad():
        alpha, _ = ratios(Q, episode.test.view(), pooled, W)
        right = adapted_logits(episode.test.view()).argmax(1) == episode.test.labels
        loss = cross_entropy(adapted_logits(f), labels)
    print(f"{teacher.__name__}: α on test from {alpha.min():.2f} to {alpha.max():.2f}, started at 0.40; support loss "
          f"{loss:.2f}, test accuracy {100 * right.double().mean():.1f} %")

# %% [markdown]
# A ratio that learns by the support pictures asks for more adapter, for the adapter has learnt them by heart. (The library
# also holds ratios to a prior: notebook 07.)
#
# **Done?** Restart the kernel, run all cells, and hand in this notebook. Next: `08_rq5_manifold`, and later assignment 6.
