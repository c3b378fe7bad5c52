# %% [markdown]
# # Assignment 4 · Ablations
#
# **What you practise:** sweeping the ratio and the width of CLIP-Adapter; mean and deviation over seeds; choosing a setting
# on validation images; telling a difference from noise; reading a heat map.
#
# **Prepared by:** notebooks `05_rq2_residual` and `06_rq3_configuration`. **Minutes:** about 45. **Points:** 100.
#
# **How to check:** write your answer in the cell of an exercise and press Shift+Enter, which leads on to the folded check
# below; Shift+Enter again runs that. A check says ✓, or which known mistake gives just your values. Every exercise stands
# alone: if one will not come right, go on with the next. What a check shows is part of the points; the rest is graded
# after you hand in, on other numbers.
#
# **Whose features:** the sweep in the middle runs on the pocket CLIP's, whose image tower was trained on ImageNet with
# labels. Its numbers show how the method behaves and say nothing about OpenAI's CLIP. The numbers in the checks, and the two
# heat maps at the end, are made up.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
import pandas
import torch

import clip_adapter_lite as cal
from clip_adapter_lite import plots
from clip_adapter_lite.checks import check

torch.set_num_threads(1)  # the fastest for such small matrices

# %% [markdown]
# ### Exercise 1 · What a width costs
# **Points** 10 · **Difficulty** 1/5 · **Importance** 3/5 · **Minutes** 4
#
# The bottleneck $A(x) = \mathrm{ReLU}(x W_1)\,W_2$ has $W_1$ of shape [D, h] and $W_2$ of shape [h, D], no bias, and
# $h = D / \text{reduction}$, rounded down but never below 1. The branch is `"visual"`, `"text"` or `"both"`: both means two
# bottlenecks, one on the features and one on the classifier weights.
#
# Give the number of trained parameters.
#
# <details><summary>Hint 1</summary>How many numbers are in a matrix of shape [a, b]? How many matrices are there?</details>
#
# <details><summary>Hint 2</summary>Take D = 12 and a reduction of 4 on paper: which shapes have W1 and W2? And what is h
# if the reduction is greater than D? It must not be 0.</details>

# %% nbgrader={"solution": "parameters"}
def parameters(width: int, reduction: int, branch: str = "visual") -> int:
    """Trained parameters of a CLIP-Adapter on features of width D = `width`; branch: "visual", "text" or "both"."""
    ### BEGIN SOLUTION
    hidden = max(1, width // reduction)
    branches = 2 if branch == "both" else 1
    return branches * 2 * width * hidden
    ### END SOLUTION

# %% nbgrader={"visible": "parameters", "points": 4}
check("parameters(12, 4)", parameters(12, 4), 72, {
    "only one of the two matrices is counted: there is W1 [D, h] and W2 [h, D].": 36,
    "biases are counted: the bottleneck has none.": 87,
    "h is the reduction itself: the bottleneck is D / reduction wide.": 96,
    "W1 and W2 are counted as [D, D]: both are only h wide on one side.": 288})
check('parameters(12, 4, "text")', parameters(12, 4, "text"), 72, {
    "the text branch has one bottleneck, as the visual one has.": 144})
check('parameters(12, 4, "both")', parameters(12, 4, "both"), 144, {
    "both branches have a bottleneck each.": 72})
check("parameters(12, 100)", parameters(12, 100), 24, {
    "h has become 0: a bottleneck has at least one unit.": 0,
    "h is not a whole number: D / reduction is rounded down, but not below 1.": 2.88})

# %% nbgrader={"hidden": "parameters", "points": 6}
def _hidden():
    # D, reduction, branch, and 2 · D · h for each branch
    for width, reduction, branch, right in [[512, 4, "visual", 131072], [1024, 4, "visual", 524288],
                                            [512, 1, "text", 524288], [512, 32, "both", 32768],
                                            [10, 3, "visual", 60], [10, 3, "both", 120],
                                            [7, 8, "text", 14], [7, 8, "both", 28], [1, 1, "visual", 2]]:
        found = parameters(width, reduction, branch)
        assert -0.01 < found - right < 0.01, (width, reduction, branch, found)
    assert -0.01 < parameters(640, 16) - 51200 < 0.01
    from random import Random

    from clip_adapter_lite.checks import fresh
    maker = Random(fresh(45))
    for _ in range(8):
        width, reduction = maker.randrange(20, 900), maker.randrange(2, 30)
        assert -0.01 < parameters(width, reduction, "both") - 4 * width * max(1, int(width / reduction)) < 0.01


_hidden()

# %% [markdown]
# ### Exercise 2 · Every setting, every seed
# **Points** 16 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 8
#
# A sweep fits **every** ratio α with **every** width and **every** seed. Write it for any function `fit(alpha, reduction,
# seed)` that fits one adapter and gives its validation and its test accuracy, in this order.
#
# Give a list with one dictionary a fit, in any order, with the keys `alpha`, `reduction`, `seed`, `val_accuracy` and
# `accuracy` (that on test).
#
# <details><summary>Hint 1</summary>How many dictionaries are there for 4 ratios, 3 widths and 3 seeds? Three lists ask for
# three loops, one inside the other, or for <code>itertools.product</code>.</details>
#
# <details><summary>Hint 2</summary>fit() takes α, the reduction and the seed, in this order, and gives two numbers.
# Where must the empty list be made, so that in the end it holds every row?</details>

# %% nbgrader={"solution": "sweep"}
def sweep(fit, alphas, reductions, seeds) -> list[dict]:
    """One row for each fit: alpha, reduction, seed, val_accuracy, accuracy.

    fit(alpha, reduction, seed) → (validation accuracy, test accuracy).
    """
    ### BEGIN SOLUTION
    rows = []
    for reduction in reductions:
        for alpha in alphas:
            for seed in seeds:
                val_accuracy, accuracy = fit(alpha, reduction, seed)
                rows.append({"alpha": alpha, "reduction": reduction, "seed": seed,
                             "val_accuracy": val_accuracy, "accuracy": accuracy})
    return rows
    ### END SOLUTION

# %% nbgrader={"visible": "sweep", "points": 6}
def check_sweep():
    numbers = {(0.25, 2, 7): (0.50, 0.61), (0.25, 2, 8): (0.53, 0.62), (0.25, 4, 7): (0.51, 0.63),
               (0.25, 4, 8): (0.54, 0.64), (0.75, 2, 7): (0.40, 0.65), (0.75, 2, 8): (0.43, 0.66),
               (0.75, 4, 7): (0.41, 0.67), (0.75, 4, 8): (0.44, 0.68)}

    def fit(alpha, reduction, seed):
        assert alpha in (0.25, 0.75), f"fit() was given α = {alpha}: its order is α, reduction, seed."
        assert reduction in (2, 4), f"fit() was given the reduction {reduction}: its order is α, reduction, seed."
        assert seed in (7, 8), f"fit() was given the seed {seed}: the seeds are those of the list, here 7 and 8."
        return numbers[alpha, reduction, seed]

    rows = sweep(fit, [0.25, 0.75], [2, 4], [7, 8])
    assert rows is not None, "sweep() gave None; does your function end with a return?"
    keys = ["alpha", "reduction", "seed", "val_accuracy", "accuracy"]
    for row in rows:
        assert set(row) == set(keys), f"each row needs just the keys {', '.join(keys)}; one has {', '.join(row)}."
    found = sorted([row[key] for key in keys] for row in rows)
    right = torch.tensor([[*setting, *scores] for setting, scores in numbers.items()], dtype=torch.float64)  # the builder's
    first = right.clone()  # the builder's
    first[1::2, 3:] = right[::2, 3:]  # the builder's
    check("sweep(fit, [0.25, 0.75], [2, 4], [7, 8])", found, right, {
        "validation and test accuracy have changed places: fit() gives validation first.": right[:, [0, 1, 2, 4, 3]],
        "each setting is fitted with one seed only: it takes all of them.": right[::2],
        "each setting is fitted with the last seed only: append a row for every seed.": right[1::2],
        "the seed is not handed to fit(): every row has the first seed's numbers.": first,
        "zip walks through the lists side by side: every α goes with every width and every seed.": right[[0, 7]],
        "α and the width walk side by side: every α goes with every width.": right[[0, 1, 6, 7]],
        "only the last row is there: the list must be made before the loops, and returned after them.": right[7:]})


check_sweep()

# %% nbgrader={"hidden": "sweep", "points": 10}
def _hidden():
    from random import Random

    from clip_adapter_lite.checks import fresh
    calls, base = [], Random(fresh(40)).uniform(0, 0.1)

    def fit(alpha, reduction, seed):
        calls.append((alpha, reduction, seed))
        return base + 0.03 * alpha + 0.001 * seed, 0.9 - 0.02 * alpha - 0.0001 * reduction + 0.01 * seed

    for alphas, reductions, seeds, runs in [[(0.0, 0.3, 0.5, 1.0), (1, 4, 16), (1, 2, 3, 5), 48], [[0.2], [4], [9], 1],
                                            [(0.4, 0.6), [2], (3, 4, 5), 6]]:
        calls.clear()
        table, count = {}, 0
        for row in sweep(fit, alphas, reductions, seeds):
            table[row["alpha"], row["reduction"], row["seed"]] = row
            count += 1
        assert count == runs and calls.__len__() == runs and table.__len__() == runs, count
        for alpha in alphas:
            for reduction in reductions:
                for seed in seeds:
                    row = table[alpha, reduction, seed]
                    off = row["val_accuracy"] - (base + 0.03 * alpha + 0.001 * seed)
                    assert -1e-9 < off < 1e-9, row
                    off = row["accuracy"] - (0.9 - 0.02 * alpha - 0.0001 * reduction + 0.01 * seed)
                    assert -1e-9 < off < 1e-9, row


_hidden()

# %% [markdown]
# **Not graded: your sweep at work.** Six settings and three seeds on sketches, four shots per class. A small adapter trains
# in a fraction of a second.

# %%
bank = cal.FeatureBank.load("pacs-sketch", "pocket")
alphas, reductions, seeds = [0.0, 0.2, 0.6], [4, 32], [1, 2, 3]


def fit_adapter(alpha, reduction, seed):
    episode = bank.episode(shots=4, seed=seed)
    fitted = cal.CLIPAdapter(alpha=alpha, reduction=reduction).fit(episode)
    return fitted.val_accuracy, fitted.accuracy(episode.test)


rows = pandas.DataFrame(sweep(fit_adapter, alphas, reductions, seeds))
rows = rows.assign(dataset="pacs-sketch", backbone="pocket", method="clip-adapter", shots=4)
rows.groupby(["reduction", "alpha"])[["val_accuracy", "accuracy"]].mean().unstack().round(3)

# %% [markdown]
# ### Exercise 3 · Mean and deviation over seeds
# **Points** 14 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 6
#
# A seed draws another support set, so one accuracy is one draw. Put the accuracies into a tensor `scores` of shape [R, A,
# S]: widths down, ratios across, and S ≥ 2 seeds in the last place. Give, for each setting,
#
# $$m = \frac{1}{S}\sum_s x_s, \qquad d = \sqrt{\frac{1}{S-1}\sum_s (x_s - m)^2},$$
#
# both of shape [R, A]. The S seeds are a sample of all the support sets there could be, hence S − 1.
#
# <details><summary>Hint 1</summary>Both are taken over the last dimension: S goes, R and A stay.</details>
#
# <details><summary>Hint 2</summary>torch divides by S − 1 unless told otherwise; look up <code>correction</code>. Which
# <code>dim</code> turns [R, A, S] into [R, A]?</details>

# %% nbgrader={"solution": "mean_deviation"}
def mean_deviation(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, sample standard deviation) over seeds, each [R, A], of scores [R, A, S]."""
    ### BEGIN SOLUTION
    return scores.mean(dim=-1), scores.std(dim=-1)
    ### END SOLUTION

# %% nbgrader={"visible": "mean_deviation", "points": 5}
def check_mean_deviation():
    scores = torch.tensor([[[0.50, 0.56, 0.62], [0.60, 0.60, 0.90]], [[0.10, 0.40, 0.10], [0.70, 0.72, 0.80]]])
    kept = scores.clone()
    found = mean_deviation(scores)
    assert isinstance(found, (tuple, list)) and len(found) == 2, "mean_deviation() gives two tensors: mean, deviation."
    assert (scores == kept).all(), "mean_deviation() changes the scores that it is given: work on new tensors."
    check("the mean", found[0], [[0.56, 0.70], [0.20, 0.74]], {
        "the mean is over the widths: seeds stand in the last dimension.": [[0.30, 0.48, 0.36], [0.65, 0.66, 0.85]],
        "the mean is over the ratios: seeds stand in the last dimension.": [[0.55, 0.58, 0.76], [0.40, 0.56, 0.45]],
        "the mean is over everything at once: each setting has its own.": 0.55,
        "this is the sum over seeds: divide by S.": [[1.68, 2.10], [0.60, 2.22]],
        "this is the median over seeds, not the mean.": [[0.56, 0.60], [0.10, 0.72]],
        "this is the best seed's score, not the mean.": [[0.62, 0.90], [0.40, 0.80]]})
    check("the deviation", found[1], [[0.06, 0.17320508], [0.17320508, 0.05291503]], {
        "it divides by S: that is the population's deviation; a sample's divides by S − 1.":
            [[0.04898979, 0.14142136], [0.14142136, 0.04320494]],
        "this is the variance: take the square root.": [[0.0036, 0.03], [0.03, 0.0028]],
        "this is the standard error of the mean: do not divide by √S here.":
            [[0.03464102, 0.1], [0.1, 0.03055050]],
        "this is the range between the best and the worst seed.": [[0.12, 0.30], [0.30, 0.10]]})


check_mean_deviation()

# %% nbgrader={"hidden": "mean_deviation", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(41))
    for shape in [(3, 4, 3), (1, 5, 2), (4, 4, 4), (2, 1, 10)]:
        scores = _torch.rand(*shape, generator=generator, dtype=_torch.float64)
        mean, deviation = mean_deviation(scores.clone())
        assert mean.shape == shape[:2] and deviation.shape == shape[:2], (mean.shape, deviation.shape)
        means, deviations, r = mean.tolist(), deviation.tolist(), 0
        for row in scores.tolist():
            a = 0
            for values in row:
                total = count = squares = 0
                for value in values:
                    total, count = total + value, count + 1
                for value in values:
                    squares += (value - total / count) ** 2
                assert -1e-6 < means[r][a] - total / count < 1e-6, (shape, "mean")
                assert -1e-6 < deviations[r][a] - (squares / (count - 1)) ** 0.5 < 1e-6, (shape, "deviation")
                a += 1
            r += 1


_hidden()

# %% [markdown]
# ### Exercise 4 · Choose on validation
# **Points** 20 · **Difficulty** 3/5 · **Importance** 5/5 · **Minutes** 8
#
# Choose one setting for all seeds: that with the highest **mean validation** accuracy; of equals the first, rows from the
# top and in a row from the left. The test images have no say in it. Then look the result up: the **mean test** accuracy of
# that setting.
#
# Both tensors are [R, A, S], widths down, ratios across, seeds last. Give the row, the column and the accuracy.
#
# <details><summary>Hint 1</summary>Take the mean over seeds first. Then find the place of the greatest number of an [R, A]
# table: <code>argmax()</code> counts through the table row by row.</details>
#
# <details><summary>Hint 2</summary>In a table of three columns the place 5 is row 1, column 2: <code>divmod</code> finds
# both. Which of the two tensors says where, and which says how much?</details>

# %% nbgrader={"solution": "choose"}
def choose(validation: torch.Tensor, test: torch.Tensor) -> tuple[int, int, float]:
    """(row, column, mean test accuracy) of the setting chosen on validation; both tensors are [R, A, S]."""
    ### BEGIN SOLUTION
    means = validation.mean(dim=-1)
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row, column, float(test[row, column].mean())
    ### END SOLUTION

# %% nbgrader={"visible": "choose", "points": 8}
def check_choose():
    validation = torch.tensor([[[0.50, 0.50], [0.50, 0.75], [0.75, 0.75]], [[0.25, 0.50], [0.25, 1.00], [0.50, 0.25]]])
    test = torch.tensor([[[0.50, 0.52], [0.70, 0.74], [0.60, 0.64]], [[0.40, 0.44], [0.66, 0.70], [0.30, 0.32]]])
    kept = validation.clone(), test.clone()
    found = choose(validation, test)
    assert found is not None, "choose() gave None; does your function end with a return?"
    assert (validation == kept[0]).all() and (test == kept[1]).all(), "choose() changes the tensors that it is given."
    check("choose(validation, test)", found, [0, 2, 0.62], {
        "the setting is chosen on test: that is what the validation images are for.": [0, 1, 0.72],
        "the setting is right, but the accuracy is validation's: report that on test.": [0, 2, 0.75],
        "it is chosen by the best single seed: take the mean over seeds first.": [1, 1, 0.68],
        "it is chosen by the best single seed, and its validation accuracy is reported.": [1, 1, 1.00],
        "row and column have changed places.": [2, 0, 0.62],
        "the accuracy is that of the best seed: report the mean.": [0, 2, 0.64],
        "the accuracy is that of the first seed: report the mean.": [0, 2, 0.60],
        "it takes the lowest mean: look for the highest.": [1, 0, 0.42]})
    tied = torch.tensor([[[0.25, 0.25], [0.50, 0.75]], [[0.75, 0.50], [0.50, 0.50]]])
    check("choose() with two equal means", choose(tied, test[:, :2]), [0, 1, 0.72], {
        "of equal means the first counts, reading as a page; yours is a later one.": [1, 0, 0.42],
        "equal means were told apart by their best seed or by test.": [1, 1, 0.68]})


check_choose()

# %% nbgrader={"hidden": "choose", "points": 12}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(42))
    for shape in [(3, 4, 3), (4, 3, 2), (1, 6, 5), (5, 1, 3), (2, 2, 1)] * 4:
        validation = _torch.rand(*shape, generator=generator, dtype=_torch.float64)
        test = _torch.rand(*shape, generator=generator, dtype=_torch.float64)
        best, r = [-1.0], 0
        for row in validation.tolist():
            a = 0
            for values in row:
                total = count = 0
                for value in values:
                    total, count = total + value, count + 1
                if total / count > best[0]:
                    best = [total / count, r, a]
                a += 1
            r += 1
        total = count = 0
        for value in test.tolist()[best[1]][best[2]]:
            total, count = total + value, count + 1
        row, column, accuracy = choose(validation.clone(), test.clone())
        assert row == best[1] and column == best[2], (shape, "the setting")
        assert -1e-6 < accuracy - total / count < 1e-6, (shape, "the accuracy")


_hidden()

# %% [markdown]
# **Not graded: the choice in your sweep.** First by your function, then as a figure: the outlined cell is validation's
# choice, the numbers are test accuracies.

# %%
shape = len(reductions), len(alphas), len(seeds)  # the order of your rows does not matter here
grids = [torch.tensor(rows.sort_values(["reduction", "alpha", "seed"])[key].to_numpy()).reshape(shape)
         for key in ("val_accuracy", "accuracy")]
row, column, accuracy = choose(*grids)
deviation = mean_deviation(grids[1])[1][row, column]
print(f"D/{reductions[row]}, α = {alphas[column]}: {100 * accuracy:.1f} ± {100 * deviation:.1f} % of test (3 seeds)")

# %%
plots.heat_map(rows)

# %% [markdown]
# ### Exercise 5 · What choosing on test would claim
# **Points** 12 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 5
#
# Somebody else takes the setting with the highest **mean test** accuracy and reports that number. By how much is it above
# the honest one? You get the test accuracies [R, A, S] and the place `[row, column]` that validation chose: give the highest
# mean over seeds minus the mean at that place.
#
# <details><summary>Hint 1</summary>Both numbers are means over seeds, of the same [R, A] table. Can the result be
# negative?</details>
#
# <details><summary>Hint 2</summary>You know where the chosen setting stands. By how much does the greatest mean of the
# table exceed its mean?</details>

# %% nbgrader={"solution": "flattery"}
def flattery(test: torch.Tensor, row: int, column: int) -> float:
    """How far the best setting's mean test accuracy is above that of the chosen setting; test is [R, A, S]."""
    ### BEGIN SOLUTION
    means = test.mean(dim=-1)
    return float(means.max() - means[row, column])
    ### END SOLUTION

# %% nbgrader={"visible": "flattery", "points": 5}
def check_flattery():
    test = torch.tensor([[[0.50, 0.54], [0.70, 0.74]], [[0.50, 0.86], [0.62, 0.65]], [[0.95, 0.55], [0.30, 0.34]]])
    check("flattery(test, 1, 0)", flattery(test, 1, 0), 0.07, {
        "the highest single seed is taken: compare means over seeds.": 0.27,
        "the best seed of one setting is set against the best seed of the other: compare means.": 0.09,
        "the sign is turned: the best is never below the chosen.": -0.07,
        "the best is looked for in the chosen row only: look in the whole table.": 0.0,
        "row and column have changed places.": 0.03,
        "this is the best mean itself: subtract the chosen one's.": 0.75})
    check("flattery(test, 2, 0), where validation happened to choose the best", flattery(test, 2, 0), 0.0, {
        "the chosen setting is among those to be the best: then nothing is gained by looking.": -0.03})


check_flattery()

# %% nbgrader={"hidden": "flattery", "points": 7}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(43))
    for shape, row, column in [[(3, 4, 3), 2, 1], [(4, 3, 2), 0, 2], [(1, 6, 5), 0, 5], [(5, 1, 3), 4, 0], [(2, 2, 2), 1, 0],
                               [(1, 1, 3), 0, 0], [(3, 3, 4), 1, 1]]:
        test = _torch.rand(*shape, generator=generator, dtype=_torch.float64)
        table, best = [], 0.0
        for values in test.reshape(-1, shape[2]).tolist():
            total = count = 0
            for value in values:
                total, count = total + value, count + 1
            table.append(total / count)
            best = best if best > total / count else total / count
        right = best - table[row * shape[1] + column]
        assert -1e-6 < flattery(test.clone(), row, column) - right < 1e-6, shape


_hidden()

# %% [markdown]
# ### Exercise 6 · A difference with its interval
# **Points** 14 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 8
#
# Is D/4 better than D/32? Two settings that were run with the same S seeds saw the same support sets, so subtract seed by
# seed: $\delta_s = a_s - b_s$. What both share (a lucky support set) is gone. Give the mean $\bar\delta$ and the half width
# of its interval,
#
# $$h = t\,\frac{d_\delta}{\sqrt S}, \qquad d_\delta \text{ the sample deviation (S − 1) of the } \delta_s.$$
#
# `t` is given (4.30 for a 95 % interval of three seeds). If $\bar\delta \pm h$ holds zero, the answer is "cannot tell". This
# is the textbook's interval for one bank; `cal.paired_bootstrap` resamples banks as well.
#
# <details><summary>Hint 1</summary>Make the differences first; then use their mean and their deviation only. The deviations
# of a and of b alone do not occur.</details>
#
# <details><summary>Hint 2</summary>Half the width is t standard errors of the mean difference. How does the standard
# error of a mean over S seeds come from the deviation of single ones?</details>

# %% nbgrader={"solution": "paired"}
def paired(a: torch.Tensor, b: torch.Tensor, t: float) -> tuple[float, float]:
    """(mean difference a − b, half width of its interval) of accuracies a and b, each [S], of the same S ≥ 2 seeds."""
    ### BEGIN SOLUTION
    delta = a - b
    return float(delta.mean()), float(t * delta.std() / len(delta) ** 0.5)
    ### END SOLUTION

# %% nbgrader={"visible": "paired", "points": 5}
def check_paired():
    a, b = torch.tensor([0.60, 0.70, 0.80, 0.90, 0.66]), torch.tensor([0.58, 0.66, 0.74, 0.78, 0.69])
    found = paired(a, b, 3.0)
    assert isinstance(found, (tuple, list)) and len(found) == 2, "paired() gives two numbers: mean difference, half width."
    check("the difference", found[0], 0.042, {
        "the sign is turned: it is a − b.": -0.042,
        "the signs of the differences are lost: with some seeds a may be below b.": 0.054,
        "this is the sum over seeds: take the mean.": 0.21})
    check("the half width", found[1], 0.07372923, {
        "the runs are not paired: take the deviation of the differences, not of a and of b.": 0.18983150,
        "the deviations are subtracted: take the deviation of the differences.": 0.05637058,
        "√S is missing: the mean of S seeds is surer than one seed.": 0.16486358,
        "it divides by S: divide the deviation by √S.": 0.03297272,
        "the deviation is the population's: divide the squares by S − 1.": 0.06594543,
        "t is missing.": 0.02457641,
        "t and √S are missing: this is the deviation itself.": 0.05495453,
        "this is the whole width: half of it was asked for.": 0.14745847,
        "the variance is taken for the deviation: take the square root.": 0.00405176,
        "the signs of the differences are lost: with some seeds a may be below b.": 0.05332917})


check_paired()

# %% nbgrader={"hidden": "paired", "points": 9}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(44))
    for seeds, t in [[3, 4.3027], [2, 12.7062], [10, 2.2622], [5, 1.0], [7, 2.4469]]:
        a = _torch.rand(seeds, generator=generator, dtype=_torch.float64)
        b = 0.5 * a + 0.3 * _torch.rand(seeds, generator=generator, dtype=_torch.float64)
        lists, place, differences = [a.tolist(), b.tolist()], 0, []
        for value in lists[0]:
            differences.append(value - lists[1][place])
            place += 1
        total = squares = 0
        for value in differences:
            total += value
        for value in differences:
            squares += (value - total / seeds) ** 2
        right = t * (squares / (seeds - 1)) ** 0.5 / seeds ** 0.5
        difference, half = paired(a.clone(), b.clone(), t)
        assert -1e-6 < difference - total / seeds < 1e-6, (seeds, "the difference")
        assert -1e-6 * (1 + right) < half - right < 1e-6 * (1 + right), (seeds, "the half width")


_hidden()

# %% [markdown]
# **Not graded: D/4 against D/32 in your sweep**, at α = 0.6, with the three seeds.

# %%
pairs = rows[rows.alpha == 0.6].pivot(index="seed", columns="reduction", values="accuracy")
difference, half = paired(torch.tensor(pairs[4].to_numpy()), torch.tensor(pairs[32].to_numpy()), 4.30)
verdict = "cannot tell" if abs(difference) <= half else "D/4 is better" if difference > 0 else "D/32 is better"
print(f"D/4 minus D/32: {100 * difference:+.1f} ± {100 * half:.1f} points of test accuracy: {verdict}")

# %% [markdown]
# ### Exercise 7 · Reading a heat map
# **Points** 14 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 6
#
# Run the next cell. It draws two heat maps of **made-up** numbers, as `plots.heat_map` draws a sweep: test accuracy in per
# cent, α across, reduction down; the outlined cell is validation's choice. Read from each map, in whole per cent:
#
# - `"zero_shot"`: the accuracy of zero-shot CLIP on this bank;
# - `"honest"`: the accuracy that may be reported for the adapter;
# - `"flattery"`: by how many points choosing on test would beat that;
# - `"knob"`: which setting matters more within the map, `"alpha"` or `"reduction"`: along which does accuracy change most?
#
# The check tells you about bank A. Bank B is read in the same way and graded after you hand in.
#
# <details><summary>Hint 1</summary>At which α is the adapter not there at all? You may not choose by the numbers that you
# see; who chose for you?</details>
#
# <details><summary>Hint 2</summary>At α = 0 the blend leaves CLIP as it is. The outline was drawn by validation: what
# would one who looks at test take instead? For the knob compare the step from cell to cell along a row with that down a
# column.</details>

# %%
test_a = [[60, 66, 61, 40], [60, 68, 64, 43], [60, 67, 66, 41]]  # rows: reduction 2, 4, 32; columns: α = 0, 0.2, 0.6, 1
test_b = [[30, 36, 38, 37], [30, 44, 46, 45], [30, 65, 66, 68]]
val_a = [[62, 70, 63, 41], [62, 69, 65, 44], [62, 68, 65, 40]]
val_b = [[31, 38, 40, 39], [31, 46, 45, 44], [31, 66, 70, 69]]
made_up = pandas.DataFrame([
    {"dataset": bank_name, "backbone": "none, numbers made up", "method": "made up", "shots": 4, "seed": 1,
     "reduction": reduction, "alpha": alpha, "accuracy": test[r][a] / 100, "val_accuracy": val[r][a] / 100}
    for bank_name, test, val in (("bank A", test_a, val_a), ("bank B", test_b, val_b))
    for r, reduction in enumerate((2, 4, 32)) for a, alpha in enumerate((0.0, 0.2, 0.6, 1.0))])
plots.heat_map(made_up)

# %% nbgrader={"solution": "reading"}
def reading() -> dict[str, dict]:
    """{"A": …, "B": …}, each with zero_shot, honest, flattery (numbers in per cent) and knob ("alpha" or "reduction")."""
    ### BEGIN SOLUTION
    return {"A": {"zero_shot": 60, "honest": 66, "flattery": 2, "knob": "alpha"},
            "B": {"zero_shot": 30, "honest": 66, "flattery": 2, "knob": "reduction"}}
    ### END SOLUTION

# %% nbgrader={"visible": "reading", "points": 5}
def check_reading():
    found = reading()
    assert isinstance(found, dict), 'reading() gives a dictionary: {"A": …, "B": …}.'
    for name in ("A", "B"):
        assert name in found, f'reading() has nothing on bank {name}; give {{"A": …, "B": …}}.'
        for key in ("zero_shot", "honest", "flattery", "knob"):
            assert key in found[name], f'the reading of bank {name} lacks "{key}".'
        assert found[name]["knob"] in ("alpha", "reduction"), 'knob is the word "alpha" or the word "reduction".'
        for key in ("zero_shot", "honest", "flattery"):
            assert 0 <= float(found[name][key]) <= 100, f"{key} of bank {name} is a number from 0 to 100."
    a = found["A"]
    check("zero-shot accuracy of bank A", a["zero_shot"], 60, {
        "that is the column α = 1, where nothing of CLIP's feature is left.": 40,
        "in per cent, please: 60 and not 0.6.": 0.6,
        "that is the lowest number of the map; zero-shot CLIP is where the adapter has no say.": 40})
    check("the honest accuracy of bank A", a["honest"], 66, {
        "that is the highest number of the map: it would be chosen on test; look for the outline.": 68,
        "that is the outlined cell's validation accuracy: report the one on test.": 70})
    check("flattery on bank A", a["flattery"], 2, {
        "that is the gain over zero-shot; flattery is the highest number less the outlined one.": 6,
        "that is the highest number less zero-shot's; take the outlined cell's.": 8,
        "nothing? The highest number of the map is not the outlined one.": 0,
        "the sign is turned.": -2})
    check("the knob of bank A", a["knob"], "alpha", {
        "down a column accuracy changes by a few points, along a row by twenty and more; which setting stands along the "
        "row?": "reduction"})
    print("✓ the reading of bank A; bank B is graded after you hand in")


check_reading()

# %% nbgrader={"hidden": "reading", "points": 9}
def _hidden():
    found = reading()["B"]
    assert -0.01 < found["zero_shot"] - 30 < 0.01
    assert -0.01 < found["honest"] - 66 < 0.01
    assert -0.01 < found["flattery"] - 2 < 0.01
    assert found["knob"] == "reduction"


_hidden()

# %% [markdown]
# **Done?** Restart the kernel, run all cells, and hand in this notebook. Next: `07_rq4_learned_ratios`, then assignment 5.
