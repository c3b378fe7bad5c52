# %% [markdown]
# # Assignment 2 · Episodes and protocol
#
# **What you practise:** a few-shot sampler with a seed, validation pictures that the support set does not hold, a search
# for leaks, the linear probe, and a choice made on validation.
#
# **Prepared by:** notebook [02 feature banks](../../notebooks/02_feature_banks.ipynb). You know PyTorch's gradients and
# `cross_entropy`.
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
import random

import torch
from torch.nn.functional import cross_entropy

import clip_adapter_lite as cal

# %% [markdown]
# ### Exercise 1 · An order that a seed decides
#
# **Points** 14 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 8
#
# `rows` lists the pictures of one class, by their row in the bank. Give the same rows in a shuffled order, which the
# `seed` and the class (`label`) decide and nothing else:
#
# - the same `rows`, `label` and `seed` give the same order, always;
# - another seed, or another class, gives another order. Take care that seed 1 of class 2 and seed 2 of class 1 differ too;
# - the list that was given stays as it was, and random numbers elsewhere in the program are not disturbed.
#
# <details><summary>Hint 1</summary>
#
# Make a random generator for this one call. `random.Random(s)` is one; `s`, its seed, may be a number or a text. Which
# text names one pair of seed and class, and no other?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# An f-string with a sign between its two parts tells 1 and 12 from 11 and 2. Of a generator's methods `shuffle` changes
# the list that it is given and gives nothing back; `sample` makes a new one.
#
# </details>


# %% nbgrader={"solution": "order"}
def order(rows, label, seed):
    """The list rows, shuffled as (seed, label) says; rows itself stays as it is."""
    ### BEGIN SOLUTION
    return random.Random(f"{seed}/{label}").sample(rows, len(rows))
    ### END SOLUTION


# %% nbgrader={"visible": "order", "points": 6}
rows = list(range(100, 130))
random.seed(0), torch.manual_seed(0)
states = random.getstate(), torch.get_rng_state().tolist()
first = order(rows, 1, seed=2)
assert first is not None, "order(…) gave None; does your function end with a return? (shuffle() itself returns None)"
assert rows == list(range(100, 130)), "order(…): the input was changed in place; shuffle a copy of the list."
assert sorted(first) == rows, "order(…) must hold each of the rows exactly once; draw without putting back."
assert (random.getstate(), torch.get_rng_state().tolist()) == states, (
    "order(…): the global generator was used or seeded, so other draws in the program change; make a generator of your own.")
assert order(rows, 1, seed=2) == first, "order(…): the same seed gave another order; seed your generator with it."
assert first != rows, "order(…) left the rows in their order; shuffle them."
assert order(rows, 1, seed=3) != first, "order(…): another seed gave the same order; the seed is not used."
assert order(rows, 2, seed=2) != first, "order(…): another class gave the same order; let the label count too."
assert order(rows, 2, seed=1) != first, (
    "order(…): class 2 with seed 1 got the order of class 1 with seed 2; their sum or product does not tell them apart.")
print("✓ order(…)")

# %% nbgrader={"hidden": "order", "points": 8}
def _hidden_order():
    import random

    import numpy
    import torch
    states = random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()
    seen = set()
    for size in (20, 57):
        rows = [7 * i + 3 for i in range(size)]
        for seed in (0, 1, 2, 17):
            for label in (0, 1, 2, 17):
                found = list(order(list(rows), label, seed))
                assert len(found) == size and sorted(found) == rows
                assert found == list(order(list(rows), label, seed))
                seen.add(tuple(found))
        given = list(rows)
        order(given, 3, 5)
        assert given == rows
    assert len(seen) == 32
    assert list(order([4], 0, 1)) == [4]
    assert states[:2] == (random.getstate(), torch.get_rng_state().tolist())
    assert states[2] == numpy.random.get_state()[1].tolist()


_hidden_order()

# %% [markdown]
# ### Exercise 2 · Draw the shots
#
# **Points** 16 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 7
#
# `labels` lists the class of every picture, 0 … C − 1. Draw `shots` pictures of each class: the first `shots` in the
# order that `order(rows, label, seed)` of exercise 1 gives to the rows of that class. Give one flat list of rows, class
# 0 first. So the pictures of 4 shots are among those of 8 shots with the same seed.
#
# Call `order`; the check puts an order of its own in its place, so that a slip in exercise 1 costs nothing here.
#
# <details><summary>Hint 1</summary>
#
# Go through the classes. For each, list the rows whose label it is, in rising order, and hand these to `order`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For the labels 1, 0, 1: which rows belong to class 0, and which to class 1? Hand over the *rows*, not the places
# within the class, and keep the first of what comes back.
#
# </details>


# %% nbgrader={"solution": "draw"}
def draw(labels, shots, seed):
    """Rows of `shots` pictures of each class, a flat list, class 0 first; labels: a list of N integers."""
    ### BEGIN SOLUTION
    chosen = []
    for c in range(max(labels) + 1):
        rows = [i for i, label in enumerate(labels) if label == c]
        chosen += order(rows, c, seed)[:shots]
    return chosen
    ### END SOLUTION


# %% nbgrader={"visible": "draw", "points": 6}
from unittest.mock import patch

from clip_adapter_lite.checks import check


def backwards(rows, label, seed):  # in the place of order, here: from the last to the first
    assert label in (0, 1) and seed == 5, (
        f"order was asked with the label {label} and the seed {seed}; its arguments are rows, label, seed, in this order.")
    return list(rows)[::-1]


labels = [1, 0, 1, 0, 0, 1, 0, 1, 1]
with patch.dict(globals(), order=backwards):
    check("draw(labels, 2, seed=5)", draw(labels, 2, seed=5), [6, 4, 8, 7], {
        "these are places within the class; give rows of `labels`, so hand those to order.": [3, 2, 4, 3],
        "the order is not used; take the first of what order(rows, label, seed) gives.": [1, 3, 0, 2],
        "the rows are sorted after the draw; keep them as order gives them.": [4, 6, 7, 8],
        "these are the last of the order; take the first.": [3, 1, 2, 0],
        "only one class was drawn; draw `shots` pictures of each class.": [6, 4],
        "there is one of each class too many; [:shots] ends before the place `shots`.": [6, 4, 3, 8, 7, 5],
        "`shots` pictures were drawn in all; draw so many of each class.": [8, 7],
        "these are labels; give the rows of the pictures.": [0, 0, 1, 1],
        "the classes take turns; give all of class 0 first, then all of class 1.": [6, 8, 4, 7],
        "the list is nested; give one flat list.": [[6, 4], [8, 7]]})

# %% nbgrader={"hidden": "draw", "points": 10}
def _hidden_draw():
    from random import Random
    from unittest.mock import patch

    from clip_adapter_lite.checks import fresh

    def reference(rows, label, seed):
        return sorted(rows, key=lambda row: (row * 7919 + label * 104729 + seed * 1299709) % 1009)

    maker = Random(fresh(22))
    with patch.dict(globals(), order=reference):
        for classes, each, shots, seed in ((2, 3, 3, 1), (5, 9, 4, 2), (3, 20, 16, 3)):
            labels = [c for c in range(classes) for _ in range(each + c)]
            maker.shuffle(labels)
            right = []
            for c in range(classes):
                right += reference([i for i in range(len(labels)) if labels[i] == c], c, seed)[:shots]
            assert [int(row) for row in draw(list(labels), shots, seed)] == right


_hidden_draw()

# %% [markdown]
# ### Exercise 3 · Validation pictures from the same pool
#
# **Points** 18 · **Difficulty** 3/5 · **Importance** 5/5 · **Minutes** 9
#
# A bank has a validation split of its own. Your own pictures may come in one pool. Draw from it both parts of an
# episode: of each class the first `shots` of its order for the support set, and the *next* min(shots, 4) for
# validation. No picture may be in both. Give a pair of flat lists, `(support, val)`, class 0 first in each.
#
# Call `order(rows, label, seed)`, or `draw(labels, shots, seed)` if it helps; the check puts its own in their place.
#
# <details><summary>Hint 1</summary>
#
# One order of a class is enough for both parts: cut it in two places. Two separate draws would overlap.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Let a class have the order 7, 3, 9, 1, 5 and `shots` be 2: then 7 and 3 are for support. Where does the part for
# validation begin, and where does it end? And with 5 shots of 20?
#
# </details>


# %% nbgrader={"solution": "pool_episode"}
def pool_episode(labels, shots, seed):
    """(support, val): rows of `shots` and of min(shots, 4) pictures of each class, none in both; labels: N integers."""
    ### BEGIN SOLUTION
    support, val = [], []
    for c in range(max(labels) + 1):
        ordered = order([i for i, label in enumerate(labels) if label == c], c, seed)
        support += ordered[:shots]
        val += ordered[shots:shots + min(shots, 4)]
    return support, val
    ### END SOLUTION


# %% nbgrader={"visible": "pool_episode", "points": 7}
from unittest.mock import patch

from clip_adapter_lite.checks import check

drawn = {shots: [*range(18, 18 - 2 * shots, -2), *range(19, 19 - 2 * shots, -2)] for shots in range(1, 11)}
with patch.dict(globals(), order=lambda rows, label, seed: list(rows)[::-1], draw=lambda labels, shots, seed: drawn[shots]):
    few, many = pool_episode([0, 1] * 10, 2, seed=1), pool_episode([0, 1] * 10, 5, seed=1)
    assert isinstance(few, tuple) and len(few) == 2, "pool_episode(…) must give a pair: return support, val"
    check("the support set of 2 shots", few[0], drawn[2], {
        "support and val are exchanged; give (support, val).": [14, 12, 15, 13]})
    check("the validation pictures of 2 shots", few[1], [14, 12, 15, 13], {
        "they lie inside the support set: that is a leak; take the pictures that follow the support's.": drawn[2],
        "there are always four of each class; take min(shots, 4).": [14, 12, 10, 8, 15, 13, 11, 9],
        "all that is left was taken; take min(shots, 4) of each class.":
            [14, 12, 10, 8, 6, 4, 2, 0, 15, 13, 11, 9, 7, 5, 3, 1],
        "they are the last of the order; take those that follow the support's.": [2, 0, 3, 1]})
    check("the support set of 5 shots", many[0], drawn[5])
    check("the validation pictures of 5 shots", many[1], [8, 6, 4, 2, 9, 7, 5, 3], {
        "they lie inside the support set: that is a leak; take the pictures that follow the support's.": drawn[4],
        "there are as many as shots; take min(shots, 4) of each class.": [8, 6, 4, 2, 0, 9, 7, 5, 3, 1]})

# %% nbgrader={"hidden": "pool_episode", "points": 11}
def _hidden_pool_episode():
    from random import Random
    from unittest.mock import patch

    from clip_adapter_lite.checks import fresh

    def reference(rows, label, seed):
        return sorted(rows, key=lambda row: (row * 7919 + label * 104729 + seed * 1299709) % 1009)

    def own_rows(labels, c, seed):
        return reference([i for i in range(len(labels)) if labels[i] == c], c, seed)

    def draws(labels, shots, seed):
        return [row for c in range(max(labels) + 1) for row in own_rows(labels, c, seed)[:shots]]

    maker = Random(fresh(23))
    with patch.dict(globals(), order=reference, draw=draws):
        for classes, shots, seed in ((2, 1, 1), (4, 3, 2), (3, 4, 3), (3, 8, 4)):
            labels = [c for c in range(classes) for _ in range(14 + c)]
            maker.shuffle(labels)
            support, val = pool_episode(list(labels), shots, seed)
            few = 4 if shots > 4 else shots
            right = [own_rows(labels, c, seed) for c in range(classes)]
            assert [int(row) for row in support] == [row for rows in right for row in rows[:shots]]
            assert [int(row) for row in val] == [row for rows in right for row in rows[shots:shots + few]]


_hidden_pool_episode()

# %% [markdown]
# ### Exercise 4 · Catch a leak
#
# **Points** 14 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 7
#
# Someone sends you the features of a support set [N, D] and of validation pictures [M, D]. A frozen backbone gives the
# same feature for the same picture. So count the validation pictures whose feature is in the support set, in all its D
# entries. A validation picture counts once, however often the support set holds it.
#
# <details><summary>Hint 1</summary>
#
# Compare every validation row with every support row. Two rows are the same if *all* their entries are; a picture leaks
# if *any* support row is the same.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A dimension of length 1, as in `val[:, None]`, lets every row meet every other: [M, 1, D] against [1, N, D]. Then two
# questions are left, one along D and one along N: which is an *all*, which an *any*? Or use a set of tuples, as
# notebook 02 does.
#
# </details>


# %% nbgrader={"solution": "leaks"}
def leaks(support, val):
    """How many of the validation features [M, D] are among the support features [N, D]: an int in 0 … M."""
    ### BEGIN SOLUTION
    same = (val[:, None] == support[None]).all(dim=2)
    return same.any(dim=1).sum().item()
    ### END SOLUTION


# %% nbgrader={"visible": "leaks", "points": 6}
from clip_adapter_lite.checks import check

support = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0], [1.0, 2.0]])
val = torch.tensor([[3.0, 4.0], [3.0, 4.0], [1.0, 2.0], [1.0, 9.0], [7.0, 7.0], [9.0, 6.0], [1.0, 7.0]])
check("leaks(support, val)", leaks(support, val), 3, {
    "one equal entry is enough here; two features are the same only if all D entries are.": 6,
    "the pairs are counted; a validation picture counts once, however often the support set holds it.": 5,
    "the support pictures are counted; count those of validation.": 4,
    "equal validation pictures are counted once together; count each of them.": 2,
    "this is a share; give a count.": 3 / 7})
check("leaks(support, other pictures)", leaks(support, val[4:6]), 0, {
    "pictures that only share an entry are no leak; all D entries must be equal.": 1})

# %% nbgrader={"hidden": "leaks", "points": 8}
def _hidden_leaks():
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(24))
    for n, m, d in ((1, 1, 1), (6, 9, 2), (20, 5, 3), (4, 4, 2)):
        support, val = ([[float(maker.randrange(3)) for _ in range(d)] for _ in range(k)] for k in (n, m))
        val += [list(support[0])] * 3 + [[support[0][0], *[9.0] * (d - 1)]] * (d > 1)  # so that each known mistake shows
        support.append(list(support[0]))
        right = sum(any(all(a == b for a, b in zip(row, other)) for other in support) for row in val)
        assert float(leaks(torch.tensor(support), torch.tensor(val))) - right == 0


_hidden_leaks()

# %% [markdown]
# ### Exercise 5 · The loss of the linear probe
#
# **Points** 14 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 6
#
# The linear probe of the figures in notebook 02 does not know the class names. It learns a matrix V [D, C] and a bias
# b [C] from the support set, on features as they are, not of unit length. Its logits are $f\,V + b$. It minimises
#
# $$\text{mean over pictures of cross-entropy}(fV + b,\ \text{labels}) \;+\; \frac{\lambda}{2} \sum_{dc} V_{dc}^2$$
#
# The second part keeps V small; λ is called `decay`. The bias is not kept small.
#
# <details><summary>Hint 1</summary>
#
# PyTorch's `cross_entropy(logits, labels)` does the softmax itself, and takes the mean over the pictures.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Compute the second part by hand for V = [[2]] and a decay of 1: it is 2. Three things go wrong easily: the bias is
# missing in the logits, the bias is in the second part, the half is missing.
#
# </details>


# %% nbgrader={"solution": "probe_loss"}
def probe_loss(V, b, features, labels, decay):
    """The probe's loss, one number: V [D, C], b [C], features [N, D], labels [N]; decay is λ."""
    ### BEGIN SOLUTION
    return cross_entropy(features @ V + b, labels) + decay / 2 * (V ** 2).sum()
    ### END SOLUTION


# %% nbgrader={"visible": "probe_loss", "points": 6}
from clip_adapter_lite.checks import check

V, b = torch.tensor([[0.5, -1.0], [1.0, 0.0]]), torch.tensor([0.0, 2.0])
features, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
check("probe_loss(V, b, features, labels, 0.3)", probe_loss(V, b, features, labels, 0.3), 1.597417, {
    "the decay is missing; add decay / 2 times the sum of V squared.": 1.259917,
    "the half is missing: decay / 2 times the sum of V squared.": 1.934917,
    "the bias is kept small too; only V belongs in the second part.": 2.197417,
    "the cross-entropy is summed; take its mean over the pictures.": 4.117251,
    "the logits went through a softmax before cross_entropy, which does one itself.": 1.016029,
    "the bias is missing from the logits.": 2.28653,
    "the square root of the sum was taken; the second part uses the squares.": 1.484917,
    "V squared is averaged; take the sum.": 1.344292,
    "the second part is subtracted; it must be added.": 0.922417})

# %% nbgrader={"hidden": "probe_loss", "points": 8}
def _hidden_probe_loss():
    import math
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(25))
    for n, d, c, decay in ((1, 2, 2, 0.0), (5, 3, 4, 0.7), (8, 6, 3, 2.5)):
        V, features = ([[maker.uniform(-1, 1) for _ in range(k)] for _ in range(m)] for m, k in ((d, c), (n, d)))
        b, labels = [maker.uniform(-1, 1) for _ in range(c)], [maker.randrange(c) for _ in range(n)]
        right = decay / 2 * sum(v * v for row in V for v in row)
        for f, label in zip(features, labels):
            logits = [sum(f[i] * V[i][k] for i in range(d)) + b[k] for k in range(c)]
            right += (math.log(sum(math.exp(z) for z in logits)) - logits[label]) / n
        given = [torch.tensor(x, dtype=torch.float64) for x in (V, b, features)]
        assert -1e-9 < float(probe_loss(*given, torch.tensor(labels), decay)) - right < 1e-9


_hidden_probe_loss()

# %% [markdown]
# ### Exercise 6 · Walk downhill
#
# **Points** 12 · **Difficulty** 3/5 · **Importance** 3/5 · **Minutes** 8
#
# Train the probe by plain gradient descent. `loss(V, b)` is a function that gives one number. Start with V and b at
# zero, and repeat `steps` times: compute the loss, its gradients, and move both by minus `rate` times its gradient.
# Give `(V, b)`, which need no gradients any more.
#
# <details><summary>Hint 1</summary>
#
# `torch.zeros(D, C, requires_grad=True)` is a start. `torch.optim.SGD` does the moving, or you do it yourself. What
# happens to the gradients of the step before?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two tensors move, so both need gradients, and both need them cleared before the next `backward()`. What is given back
# must no longer ask for gradients.
#
# </details>


# %% nbgrader={"solution": "descend"}
def descend(loss, D, C, steps, rate):
    """(V [D, C], b [C]) after `steps` steps of gradient descent on loss(V, b) from zero, without gradients."""
    ### BEGIN SOLUTION
    V, b = torch.zeros(D, C, requires_grad=True), torch.zeros(C, requires_grad=True)
    optimizer = torch.optim.SGD([V, b], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(V, b).backward()
        optimizer.step()
    return V.detach(), b.detach()
    ### END SOLUTION


# %% nbgrader={"visible": "descend", "points": 5}
from clip_adapter_lite.checks import check, recomputed

goal = torch.tensor([[8.0], [-16.0]])
with recomputed("descend(…)", "the loss was computed once; call loss(V, b) anew in every step, since V and b have moved."):
    found = descend(lambda V, b: ((V - goal) ** 2).sum() + ((b - 24) ** 2).sum(), 2, 1, steps=3, rate=0.25)
assert isinstance(found, tuple) and len(found) == 2, "descend(…) must give a pair: return V, b"
check("V of descend(loss, 2, 1, steps=3, rate=0.25)", found[0], [[7], [-14]], {
    "the gradients of earlier steps add up; set them to zero before each backward().": [[15], [-30]],
    "the rate is not used; move by minus rate times the gradient.": [[16], [-32]],
    "it walks uphill; move by minus rate times the gradient.": [[-19], [38]],
    "one step is missing.": [[6], [-12]],
    "the loss was computed once; call loss(V, b) anew in every step, since V and b have moved.": [[12], [-24]],
    "there is one step too many.": [[7.5], [-15]],
    "V has not moved from zero.": [[0], [0]]})
check("b of descend(loss, 2, 1, steps=3, rate=0.25)", found[1], [21], {
    "b has not moved; train it as well as V.": [0],
    "the gradients of earlier steps add up; set those of b to zero too.": [45]})
assert not found[0].requires_grad and not found[1].requires_grad, "V and b still ask for gradients; return them detached."

# %% nbgrader={"hidden": "descend", "points": 7}
def _hidden_descend():
    from random import Random

    import torch

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(26))
    for d, c, steps, rate in ((1, 2, 1, 0.3), (3, 2, 4, 0.2), (2, 5, 7, 0.05)):
        goal, stretch = ([[maker.uniform(low, 2) for _ in range(c)] for _ in range(d + 1)] for low in (-2, 0.5))
        goals, factors = torch.tensor(goal), torch.tensor(stretch)

        def loss(V, b, goals=goals, factors=factors):
            return (factors[:-1] * (V - goals[:-1]) ** 2).sum() + (factors[-1] * (b - goals[-1]) ** 2).sum()

        V, b = descend(loss, d, c, steps, rate)
        assert not V.requires_grad and not b.requires_grad
        found = [*V.tolist(), b.tolist()]
        assert len(found) == d + 1 and all(len(row) == c for row in found)
        for i in range(d + 1):
            for k in range(c):
                x = 0.0
                for _ in range(steps):
                    x -= rate * 2 * stretch[i][k] * (x - goal[i][k])
                assert -1e-4 < found[i][k] - x < 1e-4


_hidden_descend()

# %% [markdown]
# ### Exercise 7 · Choose and report
#
# **Points** 12 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 5
#
# You trained a probe for each of several decays. `val` and `test` list the accuracies of each. Choose the decay with the
# highest *validation* accuracy, of equal ones the first. Give three numbers, `(decay, accuracy, flattery)`: the decay
# chosen, the accuracy to report for it, and by how much a choice made on test would have flattered, that is, the highest
# test accuracy minus the one you report.
#
# <details><summary>Hint 1</summary>
#
# Which of the two lists may decide, and which of the two tells what the chosen probe is worth on new pictures?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A list's `index` gives the first place of a value. The third number compares two accuracies of the same list: of
# which?
#
# </details>


# %% nbgrader={"solution": "report"}
def report(decays, val, test):
    """(decay, accuracy, flattery), three floats; decays, val, test: lists of equal length, accuracies in [0, 1]."""
    ### BEGIN SOLUTION
    best = val.index(max(val))
    return decays[best], test[best], max(test) - test[best]
    ### END SOLUTION


# %% nbgrader={"visible": "report", "points": 5}
from clip_adapter_lite.checks import check

check("report(decays, val, test)", report([1.0, 0.1, 0.01, 0.001], [0.6, 0.8, 0.8, 0.7], [0.7, 0.65, 0.75, 0.9]),
      [0.1, 0.65, 0.25], {
    "the choice was made on test: choose by validation, and look at test only to report.": [0.001, 0.9, 0],
    "of equal validation accuracies the last was taken; take the first.": [0.01, 0.75, 0.15],
    "the accuracy reported is that of validation, which was used to choose; report that of test.": [0.1, 0.8, 0.1],
    "flattery has the wrong sign: highest test accuracy minus the one reported.": [0.1, 0.65, -0.25],
    "flattery compares with validation; it is the highest test accuracy minus the one reported.": [0.1, 0.65, 0.15],
    "the decay with the lowest validation accuracy was taken.": [1.0, 0.7, 0.2]})

# %% nbgrader={"hidden": "report", "points": 7}
def _hidden_report():
    from random import Random

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(27))
    for size in (1, 3, 9, 9):
        decays = [10.0 ** -k for k in range(size)]
        val, test = ([maker.randrange(6) / 8 for _ in range(size)] for _ in range(2))
        best = 0
        for k in range(size):
            if val[k] > val[best]:
                best = k
        right = decays[best], test[best], sorted(test)[-1] - test[best]
        found = [float(x) for x in report(list(decays), list(val), list(test))]
        assert len(found) == 3 and all(-1e-9 < a - b < 1e-9 for a, b in zip(found, right))


_hidden_report()

# %% [markdown]
# ## All together, on real features
#
# Nothing to write and no points. Your sampler draws episodes from the cartoons of PACS, your probe is trained for four
# decays, and validation chooses. **Predict:** by how many points would a choice on test flatter here?

# %%
bank = cal.FeatureBank.load("pacs-cartoon")
pool, test = bank.splits["train"], bank.splits["test"].to(torch.float32)
decays = [10.0, 1.0, 0.1, 0.01]
for shots in (1, 8):
    for seed in (1, 2):
        support, val = (pool.take(torch.tensor(rows)).to(torch.float32)
                        for rows in pool_episode(pool.labels.tolist(), shots, seed))
        accuracies = {"val": [], "test": []}
        for decay in decays:
            V, b = descend(lambda V, b: probe_loss(V, b, support.features, support.labels, decay),  # noqa: B023
                           pool.features.shape[1], len(bank.classnames), steps=100, rate=0.05)
            for name, split in {"val": val, "test": test}.items():
                right = (split.features @ V + b).argmax(1) == split.labels
                accuracies[name].append(right.double().mean().item())
        decay, accuracy, flattery = report(decays, **accuracies)
        print(f"{shots} shots, seed {seed}: decay {decay}, {100 * accuracy:.1f} % on test; choosing on test would add "
              f"{100 * flattery:.1f} points; {leaks(support.features, val.features)} leaks")

# %% [markdown]
# Two seeds are for a look. A result needs three or more, with mean and deviation. Go on to
# [03 the adapter](../../notebooks/03_the_adapter.ipynb).
