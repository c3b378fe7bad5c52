# %% [markdown]
# # Assignment 1 · Zero-shot classification
#
# **What you practise:** cosines of pictures and texts, accuracy and recall, the temperature, templates, and an ensemble
# of prompts.
#
# **Prepared by:** notebook [01 zero-shot CLIP](../../notebooks/01_zero_shot_clip.ipynb). You know tensors and softmax.
#
# **Minutes:** about 45. **Points:** 100, of seven exercises.
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
import torch
from torch.nn.functional import normalize, softmax

import clip_adapter_lite as cal

# %% [markdown]
# ### Exercise 1 · Cosines
#
# **Points** 16 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 7
#
# Image features `f` [N, D] and text features `W` [C, D] are arrows of any length. Give the cosine of every picture with
# every text, [N, C]:
#
# $$\cos(f_n, W_c) = \frac{f_n}{\lVert f_n\rVert} \cdot \frac{W_c}{\lVert W_c\rVert}$$
#
# Leave `features` and `weights` as they are: whoever calls your function may need them again.
#
# <details><summary>Hint 1</summary>
#
# Bring every row to length 1 first. Then all cosines together are one matrix product. Which of the two has to be
# transposed so that [N, D] and [C, D] give [N, C]?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `normalize(x, dim=-1)` gives new rows of length 1; which of the two need it? Then look at the shapes alone: [N, D]
# times what gives [N, C]?
#
# </details>


# %% nbgrader={"solution": "cosines"}
def cosines(features, weights):
    """Cosines [N, C] of image features [N, D] with text features [C, D], neither of them of length 1."""
    ### BEGIN SOLUTION
    return normalize(features, dim=-1) @ normalize(weights, dim=-1).T
    ### END SOLUTION


# %% nbgrader={"visible": "cosines", "points": 6}
from clip_adapter_lite.checks import check

features, weights = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 5.0], [4.0, 3.0], [-2.0, 0.0]])
check("cosines(features, weights)", cosines(features, weights), [[0.8, 0.96, -0.6], [1.0, 0.6, 0.0]], {
    "neither side is brought to length 1; divide every row by its length first.": [[20, 24, -6], [10, 6, 0]],
    "the text features are not brought to length 1; the cosine needs both sides.": [[4, 4.8, -1.2], [5, 3, 0]],
    "the image features are not brought to length 1; the cosine needs both sides.": [[4, 4.8, -3], [2, 1.2, 0]],
    "rows and columns are exchanged; a row belongs to a picture, a column to a text.": [[0.8, 1], [0.96, 0.6], [-0.6, 0]],
    "the columns are brought to length 1, not the rows; a feature is a row, so normalise along the last dimension.":
        [[0.766965, 1.354606, -0.447214], [0.383483, 0.23009, 0]]})
assert features.tolist() == [[3, 4], [0, 2]] and weights.tolist() == [[0, 5], [4, 3], [-2, 0]], (
    "cosines(features, weights): the input was changed in place; write x / length into a new tensor, not x /= length.")

# %% nbgrader={"hidden": "cosines", "points": 10}
def _hidden_cosines():
    import math
    import random

    import torch

    from clip_adapter_lite.checks import fresh
    draw = random.Random(fresh(11))
    for n, c, d in ((1, 2, 3), (4, 3, 5), (3, 6, 2)):
        rows = [[[draw.uniform(-3, 3) for _ in range(d)] for _ in range(k)] for k in (n, c)]
        given = [torch.tensor(x, dtype=torch.float64) for x in rows]
        found = cosines(*given).tolist()
        assert [x.tolist() for x in given] == rows
        assert len(found) == n and all(len(row) == c for row in found)
        for i, f in enumerate(rows[0]):
            for j, w in enumerate(rows[1]):
                right = sum(a * b for a, b in zip(f, w)) / math.hypot(*f) / math.hypot(*w)
                assert -1e-9 < found[i][j] - right < 1e-9


_hidden_cosines()

# %% [markdown]
# ### Exercise 2 · Accuracy
#
# **Points** 12 · **Difficulty** 1/5 · **Importance** 4/5 · **Minutes** 4
#
# `scores` [N, C] holds a score of every picture for every class (cosines, logits or probabilities), `labels` [N] the
# index of the true class. The predicted class is the one with the highest score. Give the fraction of pictures, between 0
# and 1, whose prediction is right.
#
# <details><summary>Hint 1</summary>
#
# `argmax` finds the place of the highest entry, along the dimension that you name. Along which one are the classes?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Comparing two tensors of whole numbers gives a true or false for each picture. The share of the true ones is a mean,
# for which torch wants numbers.
#
# </details>


# %% nbgrader={"solution": "accuracy"}
def accuracy(scores, labels):
    """The fraction, a float in [0, 1], of rows of scores [N, C] whose highest entry is at their label (labels [N])."""
    ### BEGIN SOLUTION
    return (scores.argmax(1) == labels).double().mean().item()
    ### END SOLUTION


# %% nbgrader={"visible": "accuracy", "points": 5}
from clip_adapter_lite.checks import check

scores = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.3, 0.1, 0.2, 0.4]])
check("accuracy(scores, labels)", accuracy(scores, torch.tensor([0, 1, 2, 3])), 0.75, {
    "argmax runs over the pictures; take the highest of each row, along dimension 1.": 1.0,
    "it is in percent; give a fraction between 0 and 1.": 75,
    "it counts the right pictures; divide by the number of pictures.": 3,
    "it is the share that is wrong; count the predictions that equal their label.": 0.25,
    "it is the mean of the highest scores; compare their place (argmax) with the labels.": 0.525})

# %% nbgrader={"hidden": "accuracy", "points": 7}
def _hidden_accuracy():
    import random

    import torch

    from clip_adapter_lite.checks import fresh
    draw = random.Random(fresh(12))
    for n, c in ((1, 3), (7, 2), (5, 6), (40, 4)):
        scores = [[draw.uniform(-9, 9) for _ in range(c)] for _ in range(n)]
        labels = [draw.randrange(c) for _ in range(n)]
        right = sum(row.index(max(row)) == label for row, label in zip(scores, labels)) / n
        assert -1e-6 < float(accuracy(torch.tensor(scores), torch.tensor(labels))) - right < 1e-6


_hidden_accuracy()

# %% [markdown]
# ### Exercise 3 · From cosines to probabilities
#
# **Points** 16 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 6
#
# Turn cosines [N, C] into probabilities of the classes, [N, C]. CLIP multiplies the cosines with the logit scale 1/τ
# first:
#
# $$p_{nc} = \frac{e^{\cos_{nc}/\tau}}{\sum_k e^{\cos_{nk}/\tau}}$$
#
# It must still work at a scale of 100 or more.
#
# <details><summary>Hint 1</summary>
#
# That is a softmax. The probabilities of one picture add up to 1: which dimension is it then?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Try two classes by hand: do the two numbers of a picture add up to 1? torch has a softmax that takes care of large
# numbers. The scale belongs to what goes in, not to what comes out.
#
# </details>


# %% nbgrader={"solution": "probabilities"}
def probabilities(cosine, logit_scale):
    """Class probabilities [N, C] of cosines [N, C]; logit_scale is 1/τ."""
    ### BEGIN SOLUTION
    return softmax(logit_scale * cosine, dim=1)
    ### END SOLUTION


# %% nbgrader={"visible": "probabilities", "points": 6}
from clip_adapter_lite.checks import check

cosine = torch.tensor([[0.2, 0.1, 0.0], [0.1, 0.3, 0.3]])
check("probabilities(cosine, 10)", probabilities(cosine, 10), [
    [0.665241, 0.244728, 0.090031], [0.063379, 0.468311, 0.468311]], {
    "the cosines are not multiplied with logit_scale.": [[0.367165, 0.332225, 0.30061], [0.290461, 0.35477, 0.35477]],
    "the cosines are divided by logit_scale; it is 1/τ already, so multiply.":
        [[0.336672, 0.333322, 0.330006], [0.328904, 0.335548, 0.335548]],
    "the softmax runs over the pictures; the classes of one picture must add up to 1 (dim=1).":
        [[0.731059, 0.119203, 0.047426], [0.268941, 0.880797, 0.952574]],
    "the scale is multiplied after the softmax; it belongs inside.":
        [[3.671654, 3.32225, 3.006096], [2.904608, 3.547696, 3.547696]],
    "these are logits; the softmax is missing.": [[2, 1, 0], [1, 3, 3]]})
assert cosine.tolist() == torch.tensor([[0.2, 0.1, 0.0], [0.1, 0.3, 0.3]]).tolist(), (
    "probabilities(cosine, 10): the cosines were changed in place; write logit_scale * cosine, not cosine *= logit_scale.")
large = probabilities(torch.tensor([[0.95, 0.0]]), 100)
assert torch.isfinite(large).all(), ("probabilities(cosine, 100) overflows: e to the 95 does not fit into 32 bits; use "
                                     "torch's softmax, or subtract the highest logit of each row first.")

# %% nbgrader={"hidden": "probabilities", "points": 10}
def _hidden_probabilities():
    import math
    import random

    import torch

    from clip_adapter_lite.checks import fresh
    draw = random.Random(fresh(13))
    for n, c, scale in ((1, 2, 1.0), (4, 3, 25.0), (3, 7, 300.0)):
        cosine = [[draw.uniform(-0.4, 0.9) for _ in range(c)] for _ in range(n)]
        found = probabilities(torch.tensor(cosine), scale).tolist()
        assert len(found) == n
        for row, given in zip(found, cosine):
            powers = [math.exp(scale * (x - max(given))) for x in given]
            assert len(row) == c and all(-1e-4 < p - e / sum(powers) < 1e-4 for p, e in zip(row, powers))


_hidden_probabilities()

# %% [markdown]
# ### Exercise 4 · Does it promise too much?
#
# **Points** 14 · **Difficulty** 2/5 · **Importance** 3/5 · **Minutes** 6
#
# The *confidence* of a classifier is the mean of the highest probability of each picture. Give confidence minus accuracy:
# above 0 if the classifier promises too much, below 0 if it is too modest. `p` [N, C] holds probabilities.
#
# <details><summary>Hint 1</summary>
#
# The highest probability counts whether the prediction is right or not: the classifier does not know that. You have
# written the accuracy already.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `max` along a dimension gives two things, the values and their places; here the values count. Take one number over all
# pictures, and look at your exercise 2 for the other.
#
# </details>


# %% nbgrader={"solution": "overconfidence"}
def overconfidence(p, labels):
    """Mean highest probability of p [N, C] minus the accuracy (labels [N]): a float in [-1, 1]."""
    ### BEGIN SOLUTION
    return p.max(1).values.mean().item() - accuracy(p, labels)
    ### END SOLUTION


# %% nbgrader={"visible": "overconfidence", "points": 5}
from unittest.mock import patch

from clip_adapter_lite.checks import check

sure = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
modest = torch.tensor([[0.6, 0.4], [0.45, 0.55]])
with patch.dict(globals(), accuracy=lambda p, labels: {4: 0.5, 2: 1.0}[len(p)]):  # exercise 2 may be wrong
    check("overconfidence(sure, labels)", overconfidence(sure, torch.tensor([0, 1, 0, 1])), 0.1, {
        "the sign is turned round; it is confidence minus accuracy, above 0 if the classifier promises too much.": -0.1,
        "the probability of the true class is taken; confidence is the highest one, right or wrong.": 0.05,
        "the mean runs over all probabilities; take the highest of each picture first.": -0.166667,
        "this is the confidence alone; subtract the accuracy.": 0.6})
    check("overconfidence(modest, labels)", overconfidence(modest, torch.tensor([0, 1])), -0.425, {
        "the sign is lost; a classifier that is too modest has a value below 0.": 0.425})

# %% nbgrader={"hidden": "overconfidence", "points": 9}
def _hidden_overconfidence():
    import random
    from unittest.mock import patch

    import torch

    from clip_adapter_lite.checks import fresh

    def reference(scores, labels):
        pairs = list(zip(scores.tolist(), labels.tolist()))
        return sum(row.index(max(row)) == label for row, label in pairs) / len(pairs)

    draw = random.Random(fresh(14))
    with patch.dict(globals(), accuracy=reference):
        for n, c in ((1, 2), (6, 4), (30, 3)):
            p = [[x / sum(row) for x in row] for row in ([draw.uniform(0.05, 1) for _ in range(c)] for _ in range(n))]
            labels = [draw.randrange(c) for _ in range(n)]
            right = sum(max(row) - (row.index(max(row)) == label) for row, label in zip(p, labels)) / n
            assert -1e-5 < float(overconfidence(torch.tensor(p), torch.tensor(labels))) - right < 1e-5


_hidden_overconfidence()

# %% [markdown]
# ### Exercise 5 · Fill the templates
#
# **Points** 12 · **Difficulty** 1/5 · **Importance** 3/5 · **Minutes** 5
#
# Every template holds `{}` in the place of the class name. Give the texts of all T templates for all C classes in one
# flat list of T · C texts, *template by template*: first all classes in the first template, then all in the second.
#
# <details><summary>Hint 1</summary>
#
# Two loops, one inside the other. The outer one runs over what changes least often.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Write the six texts of two templates and three names down by hand: which of the two changes at every text?
# `str.replace` fills one template.
#
# </details>


# %% nbgrader={"solution": "fill"}
def fill(templates, classnames):
    """The T · C filled-in texts, a flat list: all C classes in the first template, then all in the second, and so on."""
    ### BEGIN SOLUTION
    return [template.replace("{}", name) for template in templates for name in classnames]
    ### END SOLUTION


# %% nbgrader={"visible": "fill", "points": 5}
from clip_adapter_lite.checks import check

texts = ["a photo of a dog.", "a photo of a cat.", "a photo of a house.",
         "art of the dog.", "art of the cat.", "art of the house."]  # the builder's
check("fill(templates, names)", fill(["a photo of a {}.", "art of the {}."], ["dog", "cat", "house"]), texts, {
    "the texts go class by class; go template by template: the outer loop runs over the templates.":
        [texts[i] for i in (0, 3, 1, 4, 2, 5)],
    "only the first template is used.": texts[:3],
    "the list is nested; give one flat list of T · C texts.": [texts[:3], texts[3:]],
    "the class names were not put in; replace {} by the name.": ["a photo of a {}."] * 3 + ["art of the {}."] * 3})

# %% nbgrader={"hidden": "fill", "points": 7}
def _hidden_fill():
    import random

    from clip_adapter_lite.checks import fresh
    letters = random.Random(fresh(15)).sample("abcdefghijklmnopqrstuvwxyz", 20)
    for templates, names in ((["{}"], letters[:2]), (["x {}", "{} y", "{}."], letters[2:3]),
                             ([f"{{}} {letters[3]}", "{} 2"], letters[4:])):
        right = []
        for template in templates:
            before, after = template.split("{}")
            for name in names:
                right.append(before + name + after)
        found = list(fill(templates, names))
        assert len(found) == len(right) and all(a == b for a, b in zip(found, right))


_hidden_fill()

# %% [markdown]
# ### Exercise 6 · An ensemble of prompts
#
# **Points** 18 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 10
#
# The text tower gave a feature for every text of exercise 5, in that order: `features` [T · C, D], template by template.
# Make one arrow for each class, [C, D], as CLIP does:
#
# 1. bring each text feature to length 1,
# 2. average those of a class over the templates,
# 3. bring the average to length 1.
#
# `templates` is the number T.
#
# <details><summary>Hint 1</summary>
#
# Give the tensor three dimensions, one of them for the templates. The order of the rows says which comes first. Step 1
# keeps a long feature from outvoting the others; step 3 is needed because an average of arrows is shorter than they are.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# With T = 2 and C = 3, the rows 0 and 3 belong to the first class. Which shape puts these two into one dimension of
# their own, so that the mean along it is theirs?
#
# </details>


# %% nbgrader={"solution": "ensemble"}
def ensemble(features, templates):
    """Class weights [C, D] of length 1 from text features [T · C, D], which go template by template; templates = T."""
    ### BEGIN SOLUTION
    each = normalize(features, dim=-1).reshape(templates, -1, features.shape[-1])
    return normalize(each.mean(0), dim=-1)
    ### END SOLUTION


# %% nbgrader={"visible": "ensemble", "points": 7}
from clip_adapter_lite.checks import check

texts = torch.tensor([[3.0, 4.0], [0.0, 1.0], [5.0, 12.0], [10.0, 0.0], [4.0, 3.0], [0.0, 2.0]])  # T = 2, C = 3
check("ensemble(texts, 2)", ensemble(texts, 2), [[0.894427, 0.447214], [0.447214, 0.894427], [0.196116, 0.980581]], {
    "each text feature must be brought to length 1 before the average, or the longest ones decide.":
        [[0.955779, 0.294086], [0.707107, 0.707107], [0.336336, 0.941742]],
    "the average is not brought to length 1 again; it is shorter than the arrows it is made of.":
        [[0.8, 0.4], [0.4, 0.8], [0.192308, 0.961538]],
    "nothing is brought to length 1, neither each text feature nor the average.": [[6.5, 2], [2, 2], [2.5, 7]],
    "the rows go template by template, so they reshape to [T, C, D], not to [C, T, D].":
        [[0.316228, 0.948683], [0.83205, 0.5547], [0.447214, 0.894427]],
    "the average runs over the classes; average over the templates.": [[0.340036, 0.940412], [0.747409, 0.664364]]})
assert texts.tolist() == [[3, 4], [0, 1], [5, 12], [10, 0], [4, 3], [0, 2]], (
    "ensemble(texts, 2): the input was changed in place; write x / length into a new tensor, not x /= length.")

# %% nbgrader={"hidden": "ensemble", "points": 11}
def _hidden_ensemble():
    import math
    import random

    import torch

    from clip_adapter_lite.checks import fresh

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    draw = random.Random(fresh(16))
    for t, c, d in ((1, 2, 3), (3, 2, 4), (2, 5, 3), (7, 3, 6)):
        rows = [[draw.uniform(-4, 4) for _ in range(d)] for _ in range(t * c)]
        given = torch.tensor(rows, dtype=torch.float64)
        found = ensemble(given, t).tolist()
        assert given.tolist() == rows and len(found) == c
        for k in range(c):
            parts = [unit(rows[i * c + k]) for i in range(t)]
            right = unit([sum(part[j] for part in parts) / t for j in range(d)])
            assert len(found[k]) == d and all(-1e-6 < a - b < 1e-6 for a, b in zip(found[k], right))


_hidden_ensemble()

# %% [markdown]
# ### Exercise 7 · How many of each class are found?
#
# **Points** 12 · **Difficulty** 3/5 · **Importance** 3/5 · **Minutes** 7
#
# The *recall* of a class is the share of its pictures that are found, that is, predicted as this class. Give the recall
# of every class, [C]. `scores` is [N, C], `labels` [N]; there is at least one picture of each class.
#
# <details><summary>Hint 1</summary>
#
# Look only at the pictures whose *label* is the class. How many of them have it as prediction? Do this for each class.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A tensor of true and false, used as an index, keeps the rows where it is true. Which rows do you keep for one class,
# and the mean of what do you take? `torch.stack` makes one tensor of a list of them.
#
# </details>


# %% nbgrader={"solution": "recall"}
def recall(scores, labels):
    """The share [C] of each class's pictures that are predicted as it; scores [N, C], labels [N]."""
    ### BEGIN SOLUTION
    right = scores.argmax(1) == labels
    return torch.stack([right[labels == c].double().mean() for c in range(scores.shape[1])])
    ### END SOLUTION


# %% nbgrader={"visible": "recall", "points": 5}
from clip_adapter_lite.checks import check

scores = torch.tensor([[3.0, 1, 0], [2, 1, 0], [0, 4, 1], [5, 2, 1], [1, 3, 2], [3, 1, 2], [1, 0, 2]])
labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])  # predicted: 0 0 1 0 1 0 2
check("recall(scores, labels)", recall(scores, labels), [2 / 3, 1 / 2, 1 / 2], {
    "it divides by how often a class is predicted; divide by how many pictures it has.": [2 / 4, 1 / 2, 1 / 1],
    "it counts the pictures that are found; divide by the number of pictures of the class.": [2, 1, 1],
    "it divides by all pictures; divide by the number of pictures of the class.": [2 / 7, 1 / 7, 1 / 7],
    "it is the share of the predictions that are this class, right or wrong.": [4 / 7, 2 / 7, 1 / 7],
    "it is the accuracy over all pictures; give one number for each class.": 4 / 7,
    "it is the share that is missed; count those that are found.": [1 / 3, 1 / 2, 1 / 2]})

# %% nbgrader={"hidden": "recall", "points": 7}
def _hidden_recall():
    import random

    import torch

    from clip_adapter_lite.checks import fresh
    draw = random.Random(fresh(17))
    for n, c in ((6, 2), (20, 5), (33, 4)):
        scores = [[draw.uniform(-1, 1) for _ in range(c)] for _ in range(n)]
        labels = [i if i < c else draw.randrange(c) for i in range(n)]
        found = recall(torch.tensor(scores), torch.tensor(labels))
        found = [float(x) for x in found]
        assert len(found) == c
        for k in range(c):
            own = [row for row, label in zip(scores, labels) if label == k]
            right = sum(row.index(max(row)) == k for row in own) / len(own)
            assert -1e-6 < found[k] - right < 1e-6


_hidden_recall()

# %% [markdown]
# ## All together, on real features
#
# Nothing to write and no points. Your functions classify the cartoons of PACS, and the library does the same beside them.

# %%
bank = cal.FeatureBank.load("pacs-cartoon")
pictures, labels = bank.splits["test"].view().float(), bank.splits["test"].labels


def judge(prompt, W, templates):
    p = probabilities(cosines(pictures, W), bank.logit_scale)
    library = cal.ZeroShot(templates=templates).fit(bank.episode(1)).accuracy(bank.splits["test"])
    print(f"{prompt}: {100 * accuracy(p, labels):.1f} % right (the library: {100 * library:.1f} %), "
          f"confidence {100 * overconfidence(p, labels):+.1f} points off")
    print("    found:", ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(bank.classnames, recall(p, labels))))


judge("one prompt", bank.text_features.float(), None)

# %% [markdown]
# **Predict:** will seven prompts find more guitars? Set `SEVEN = True` and run the cell. It loads the text tower, which
# takes about ten seconds.

# %%
SEVEN = False

if SEVEN:
    from clip_adapter_lite.datasets import template_set
    templates, backbone = template_set("seven"), bank.episode(1).backbone
    judge("seven prompts", ensemble(backbone.encode_text(fill(templates, bank.classnames)), len(templates)), templates)

# %% [markdown]
# With 210 test pictures an accuracy is uncertain by about three points. You looked at two prompts on test: that is fine
# for seeing what happens, and no way to choose between them. Go on to
# [02 feature banks](../../notebooks/02_feature_banks.ipynb).
