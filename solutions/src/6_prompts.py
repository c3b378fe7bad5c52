# %% [markdown]
# # Assignment 6 · Prompts and beyond
#
# **What you practise:** CoOp: context vectors in front of a class's name, learned through a frozen text encoder.
# Tip-Adapter: a cache of the support set that needs no training. Then a short answer in words, which is graded by hand.
#
# **Prepared by:** notebooks `01_zero_shot_clip` and `04_rq1_prompt_tuning`. **Minutes:** about 50. **Points:** 100, of which
# 12 are for the written answer.
#
# **How to check:** write your answer in the cell of an exercise and press Shift+Enter, which leads on to the folded check
# below; Shift+Enter again runs that. A check says ✓, or which known mistake gives just your values. Every exercise stands
# alone: if one will not come right, go on with the next. What a check shows is part of the points; the rest is graded
# after you hand in, on other numbers.
#
# **Whose features:** exercises 1 to 3 use a tiny text encoder with random weights, so that everything runs at once; what it
# learns means nothing. The last runs are on the pocket CLIP's features, whose image tower was trained on ImageNet with
# labels, and say nothing about OpenAI's CLIP. The numbers in the checks are made up.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

import clip_adapter_lite as cal
from clip_adapter_lite.checks import check, recomputed

torch.set_num_threads(1)  # the fastest for such small matrices

# %% [markdown]
# ## CoOp
# A text encoder first turns each token into a vector (its *embedding*) and then works on these vectors only. CoOp puts M
# vectors of its own, the **context**, where "a photo of a" used to stand, and learns them by gradient descent:
#
# [start] $v_1 \dots v_M$ [name] . [end]
#
# Here is the tiny encoder: a table of embeddings, one causal attention layer, and a projection. As in CLIP, the text's
# feature is read at the place of the end token, and what stands after it is not seen. It is frozen: its numbers never
# change.

# %%
TEXT_WIDTH, LONGEST, D, END = 16, 12, 8, 29  # tokens: 0 padding, 1 start, 4 full stop, 29 end, others words
draw = torch.Generator().manual_seed(6)
table, positions = (torch.randn(n, TEXT_WIDTH, generator=draw) for n in (END + 1, LONGEST))
query, key, value = (torch.randn(TEXT_WIDTH, TEXT_WIDTH, generator=draw) / 4 for _ in range(3))
projection = torch.randn(TEXT_WIDTH, D, generator=draw) / 4


def encode(embedded, end):
    """Text features [C, D] of embedded prompts [C, L, 16], read at the places `end` [C]."""
    x = embedded + positions[:embedded.shape[1]]
    scores = (x @ query) @ (x @ key).transpose(1, 2) / TEXT_WIDTH ** 0.5
    later = torch.ones_like(scores[0]).triu(1).bool()
    x = x + scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ (x @ value)
    return x[torch.arange(len(x)), end] @ projection


tokens = torch.tensor([[1, 7, 4, END, 0, 0], [1, 12, 13, 4, END, 0], [1, 20, 4, END, 0, 0]])  # three names, one of two words
static = table[tokens]
print("tokens", list(tokens.shape), "embedded", list(static.shape), "features", list(encode(static, tokens.argmax(1)).shape))

# %% [markdown]
# ### Exercise 1 · The context in its place
# **Points** 16 · **Difficulty** 2/5 · **Importance** 5/5 · **Minutes** 7
#
# `static` [C, K, d] holds the embedded tokens "[start] name . [end] padding" of C classes. Put the M context vectors right
# **behind the start token** and in front of the name, in their order. `context` is either [M, d], *unified*: the same
# vectors in every class; or [C, M, d], *class-specific*: each class has its own. The result is [C, M + K, d], and gradients
# must reach `context`.
#
# <details><summary>Hint 1</summary>Cut <code>static</code> in two along dimension 1, and put three pieces together along the
# same dimension. A unified context must be repeated for every class first.</details>
#
# <details><summary>Hint 2</summary><code>expand</code> to the number of classes repeats a unified context and leaves a
# class-specific one as it is. How many tokens stand before the context, and how many behind it?</details>

# %% nbgrader={"solution": "insert"}
def insert(context: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
    """Embedded prompts [C, M + K, d] of context [M, d] or [C, M, d] and static tokens [C, K, d]; differentiable."""
    ### BEGIN SOLUTION
    context = context.expand(len(static), -1, -1)
    return torch.cat([static[:, :1], context, static[:, 1:]], dim=1)
    ### END SOLUTION

# %% nbgrader={"visible": "insert", "points": 6}
def check_insert():
    rows = torch.tensor([[1.0, 2, 8, 9], [1, 3, 9, 0]])[:, :, None]  # [C, K, d] with d = 1: one number a token
    context = torch.tensor([[5.0], [6]], requires_grad=True)
    found = insert(context, rows)
    right = torch.tensor([[1.0, 5, 6, 2, 8, 9], [1, 5, 6, 3, 9, 0]])[:, :, None]  # the builder's
    check("insert(context, static), unified", found, right, {
        "the context stands before the start token: it belongs behind it.": right[:, [1, 2, 0, 3, 4, 5]],
        "the context stands at the end, behind the end token, where the encoder never looks.": right[:, [0, 3, 4, 5, 1, 2]],
        "the context stands behind the name's first word: it belongs in front of the name.": right[:, [0, 3, 1, 2, 4, 5]],
        "the context vectors are in the reverse order.": right[:, [0, 2, 1, 3, 4, 5]],
        "the start token is lost.": right[:, 1:],
        "the context has taken the place of tokens: it is put between them.": right[:, [0, 1, 2, 5]],
        "only the first context vector is there.": right[:, [0, 1, 3, 4, 5]]})
    assert found.requires_grad, "the gradient does not reach the context: it was detached, or copied by torch.tensor."
    found.sum().backward()
    check("the gradient of the prompts' sum at the context", context.grad, [[2.0], [2]], {
        "only one class passes its gradient on: the same vectors stand in all of them.": [[1.0], [1]]})
    own = torch.tensor([[[5.0], [6]], [[7], [4]]])
    right = torch.tensor([[1.0, 5, 6, 2, 8, 9], [1, 7, 4, 3, 9, 0]])[:, :, None]  # the builder's
    check("insert(context, static), class-specific", insert(own, rows), right, {
        "the first class's context is shared by all: here each class has its own.":
            torch.tensor([[1.0, 5, 6, 2, 8, 9], [1, 5, 6, 3, 9, 0]])[:, :, None],
        "the contexts are averaged over the classes: here each class has its own.":
            torch.tensor([[1.0, 6, 5, 2, 8, 9], [1, 6, 5, 3, 9, 0]])[:, :, None],
        "the contexts of all classes stand in every prompt: here each class has its own.":
            torch.tensor([[1.0, 5, 6, 7, 4, 2, 8, 9], [1, 5, 6, 7, 4, 3, 9, 0]])[:, :, None]})


check_insert()

# %% nbgrader={"hidden": "insert", "points": 10}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(61))
    for shape, length, unified in [[(3, 5, 4), 4, True], [(3, 5, 4), 2, False], [(1, 3, 2), 1, True], [(4, 4, 3), 4, False],
                                   [(2, 6, 5), 2, True], [(2, 3, 2), 2, False]]:
        rows = _torch.randn(*shape, generator=generator)
        context = _torch.randn(*([] if unified else [shape[0]]), length, shape[2], generator=generator)
        context.requires_grad_(True)
        upstream = _torch.randn(shape[0], length + shape[1], shape[2], generator=generator)
        lists, c = [rows.tolist(), context.tolist()], 0  # before: a submission may change what it is given
        found = insert(context, rows.clone())
        assert found.shape == (shape[0], length + shape[1], shape[2]), found.shape
        for prompt in found.tolist():
            right = lists[0][c][:1] + (lists[1] if unified else lists[1][c]) + lists[0][c][1:]
            place = 0
            for vector in right:
                i = 0
                for number in vector:
                    assert -1e-6 < prompt[place][i] - number < 1e-6, (shape, length, unified)
                    i += 1
                place += 1
            c += 1
        (found * upstream).sum().backward()
        middle = upstream[:, 1:1 + length]
        wanted, i = (middle.sum(0) if unified else middle).reshape(-1).tolist(), 0
        for number in context.grad.reshape(-1).tolist():
            assert -1e-5 < number - wanted[i] < 1e-5, "gradient"
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 2 · Where the text ends
# **Points** 10 · **Difficulty** 1/5 · **Importance** 4/5 · **Minutes** 4
#
# The feature is read at the end token. Names differ in length, so its place differs from class to class; and M context
# vectors have moved it. `tokens` [C, K] are those **without** the context. As in CLIP, the end token has the highest number
# of all tokens (there may be padding of zeros behind it). Give its place in each lengthened prompt, counted from 0.
#
# <details><summary>Hint 1</summary>The place of the highest number of a row is what <code>argmax</code> gives.</details>
#
# <details><summary>Hint 2</summary>The context stands before everything but the start token. By how many places does it
# move the end?</details>

# %% nbgrader={"solution": "ends"}
def ends(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Places [C] of the end tokens of tokens [C, K], after `length` context vectors were put behind the start token."""
    ### BEGIN SOLUTION
    return tokens.argmax(dim=1) + length
    ### END SOLUTION

# %% nbgrader={"visible": "ends", "points": 4}
three_names = torch.tensor([[1, 9, 4, 29, 0, 0], [1, 2, 3, 4, 29, 0], [1, 28, 29, 0, 0, 0]])
check("ends(tokens, 4)", ends(three_names, 4), [7, 8, 6], {
    "the context vectors are not counted: they move the end by M.": [3, 4, 2],
    "that is the last place, where padding stands: read at the end token.": [9, 9, 9],
    "that is the last place of the tokens, where padding stands: read at the end token.": [5, 5, 5],
    "that is one too far: the first padding, or places counted from 1.": [8, 9, 7],
    "that is one too few: the token in front of the end token.": [6, 7, 5],
    "argmax went down the columns: look along each row, dim=1.": [4, 6, 6, 4, 5, 4],
    "this is the highest token itself, not its place.": [33, 33, 33]})

# %% nbgrader={"hidden": "ends", "points": 6}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(62))
    for classes, longest, length in [[5, 8, 4], [1, 3, 1], [7, 20, 16], [3, 5, 2]]:
        rows, right = [], []
        for name in _torch.randint(1, longest - 1, (classes,), generator=generator).tolist():  # words of the name
            words = _torch.randint(2, 49000, (name,), generator=generator).tolist()
            rows.append([1] + words + [49407] + [0] * (longest - name - 2))
            right.append(1 + name + length)
        found, i = ends(_torch.tensor(rows), length), 0
        assert found.shape == (classes,), found.shape
        for place in found.tolist():
            assert -0.01 < place - right[i] < 0.01, (classes, longest, length)
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 3 · Learn the context
# **Points** 20 · **Difficulty** 4/5 · **Importance** 5/5 · **Minutes** 12
#
# `weights(v)` sends a context v through the text encoder and gives the classifier weights W(v) [C, D]. With support features
# f [N, D] and their labels [N], the loss is CLIP's:
#
# $$\text{logits} = \text{logit\_scale} \cdot \cos(f, W(v)), \qquad
# L = -\frac1N \sum_n \log \mathrm{softmax}(\text{logits}_n)_{y_n}.$$
#
# Start from `start` [M, d] and make `steps` steps of plain gradient descent, $v \leftarrow v - \text{rate} \cdot \partial L
# / \partial v$. Give the learned context. `start` itself must stay as it is, and only the context is learned.
#
# <details><summary>Hint 1</summary>Make a copy of <code>start</code> that requires gradients. Each step computes W(v) anew,
# since v has changed; <code>torch.autograd.grad(loss, v)</code> gives the gradient without leaving it anywhere.</details>
#
# <details><summary>Hint 2</summary>After a step v is the result of a computation and no longer a leaf: detach it and let
# it require gradients again, or leave the step to <code>torch.optim.SGD</code>. The step goes against the gradient.
# Which of features and weights need length 1?</details>

# %% nbgrader={"solution": "learn"}
def learn(start: torch.Tensor, weights, features: torch.Tensor, labels: torch.Tensor, logit_scale: float, steps: int,
          rate: float) -> torch.Tensor:
    """The learned context [M, d] after gradient descent on CLIP's loss.

    start [M, d]; weights(context) → W [C, D]; features [N, D], not normalised; labels [N].
    """
    ### BEGIN SOLUTION
    v = start.detach().clone().requires_grad_(True)
    for _ in range(steps):
        logits = logit_scale * normalize(features, dim=-1) @ normalize(weights(v), dim=-1).T
        gradient, = torch.autograd.grad(cross_entropy(logits, labels), v)
        v = (v - rate * gradient).detach().requires_grad_(True)
    return v.detach()
    ### END SOLUTION

# %% nbgrader={"visible": "learn", "points": 8}
def check_learn():
    base = torch.tensor([[1.0, 0], [0, 2], [-1, 1]], dtype=torch.float64)
    f = torch.tensor([[2.0, 0], [0, 1], [3, -4]], dtype=torch.float64)
    start, labels = torch.tensor([[0.5, 0], [0, -0.25]], dtype=torch.float64), torch.tensor([0, 2, 1])
    with recomputed("learn(…)", "the weights W(v) were computed once: call weights(v) in every step, since v has moved."):
        found = learn(start, lambda v: base @ (v + torch.eye(2, dtype=torch.float64)), f, labels, 3.0, 2, 0.1)
    assert start.tolist() == [[0.5, 0], [0, -0.25]] and not start.requires_grad, (
        "learn() changes the start that it is given: work on a copy, start.detach().clone().")
    check("learn(…) after two steps", found, [[0.45715493, 0.01918032], [0.20275293, -0.18022654]], {
        "your logits are not scaled by logit_scale.": [[0.48828734, -0.00724886], [0.03534464, -0.22722687]],
        "the features are not brought to length 1.": [[0.40934942, 0.45726577], [0.91927235, -0.40906459]],
        "the weights W(v) are not brought to length 1.": [[0.38480441, -0.01863881], [0.23098222, -0.73104345]],
        "features and weights are not brought to length 1: the logits are cosines times logit_scale.":
            [[0.29972460, 0.13857195], [0.40055756, -1.07445230]],
        "the softmax is over the pictures: each picture's is over the classes, dim=1.":
            [[0.49831188, 0.01545117], [0.16733880, -0.25590184]],
        "the sign is turned: this climbs the loss.": [[0.53817085, -0.01640921], [-0.15908227, -0.33766320]],
        "gradients add up over the steps: clear them before each backward().":
            [[0.43687342, 0.02790812], [0.29556251, -0.13966353]],
        "the weights W(v) were computed once: call weights(v) in every step, since v has moved.":
            [[0.45943699, 0.01745560], [0.18561914, -0.16887398]],
        "only one step was made; is the loop in steps, and the return after it?":
            [[0.47971849, 0.00872780], [0.09280957, -0.20943699]],
        "one step too many was made.": [[0.43221639, 0.03165238], [0.32429783, -0.16625132]],
        "the loss is summed over the pictures: take its mean.": [[0.36079833, 0.07538761], [0.63642247, -0.11476938]],
        "nothing is learned: is the context the tensor that the steps change?": [[0.5, 0], [0, -0.25]]})


check_learn()

# %% nbgrader={"hidden": "learn", "points": 12}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    e, log = 2.718281828459045, _torch.log
    generator = _torch.Generator().manual_seed(fresh(63))
    for n, classes, width, length, scale, steps, rate in [[5, 3, 4, 2, 4.0, 1, 0.5], [4, 4, 3, 1, 10.0, 3, 0.05],
                                                          [6, 2, 5, 3, 1.5, 2, 0.3]]:
        f, mix, bias, start = (_torch.randn(*shape, generator=generator, dtype=_torch.float64)
                               for shape in [(n, width), (classes * width, length * 2), (classes, width), (length, 2)])
        labels = _torch.randint(0, classes, (n,), generator=generator)

        def weights(v, mix=mix, bias=bias, classes=classes, width=width):
            return bias + (mix @ v.reshape(-1)).tanh().reshape(classes, width)

        def loss(numbers, f=f, labels=labels, weights=weights, scale=scale):
            W = weights(_torch.tensor(numbers, dtype=_torch.float64)).tolist()
            total, place, count = 0.0, labels.tolist(), 0
            for x in f.tolist():
                logits = []
                for w in W:
                    dot = xx = ww = i = 0
                    for value in x:
                        dot, xx, ww, i = dot + value * w[i], xx + value * value, ww + w[i] * w[i], i + 1
                    logits.append(scale * dot / (xx * ww) ** 0.5)
                below = 0
                for logit in logits:
                    below += e ** logit
                total += log(_torch.tensor(below, dtype=_torch.float64)).item() - logits[place[count]]
                count += 1
            return total / count

        before, numbers, h = start.tolist(), start.reshape(-1).tolist(), 1e-5
        found = learn(start, weights, f.clone(), labels.clone(), scale, steps, rate)
        assert found.shape == start.shape, found.shape
        for _ in _torch.arange(steps).tolist():  # gradients from the loss a little to both sides
            slopes, i = [], 0
            for value in numbers:
                sides = [loss(numbers[:i] + [moved] + numbers[i + 1:]) for moved in [value + h, value - h]]
                slopes.append((sides[0] - sides[1]) / (2 * h))
                i += 1
            numbers = [value - rate * slopes[i] for i, value in [(k, numbers[k]) for k in _torch.arange(i).tolist()]]
        i = 0
        for value in found.detach().reshape(-1).tolist():
            assert -1e-5 < value - numbers[i] < 1e-5, (n, classes, "context")
            i += 1
        assert start.tolist() == before, "start has changed"


_hidden()

# %% [markdown]
# **Not graded: your CoOp on the tiny encoder.** The "pictures" are made from a secret context, with noise; CoOp starts from
# another and looks for words that fit them. The encoder is random: only that the loss falls is worth seeing.

# %%
secret, start = torch.randn(2, 3, TEXT_WIDTH, generator=draw)
places = ends(tokens, 3)
pictures = encode(insert(secret, static), places).repeat(8, 1)
pictures = pictures + 0.5 * torch.randn(pictures.shape, generator=draw)
names = torch.arange(3).repeat(8)


def prompt_weights(v):
    return encode(insert(v, static), places)


for label, v in (("before", start), ("after", learn(start, prompt_weights, pictures, names, 10.0, steps=100, rate=0.1))):
    logits = 10 * normalize(pictures, dim=-1) @ normalize(prompt_weights(v), dim=-1).T
    right = (logits.argmax(1) == names).float().mean()
    print(f"{label}: loss {cross_entropy(logits, names):.2f}, {100 * right:.0f} % right")

# %% [markdown]
# ## Tip-Adapter
# Tip-Adapter learns nothing. It keeps the support set as a *cache* and lets its pictures vote, beside zero-shot CLIP:
#
# $$\text{logits} = \cos(f, W)/\tau + \alpha\,\varphi(f)\,L, \qquad \varphi(f) = \exp(-\beta\,(1 - f F^\top)),$$
#
# with F [K, D] the support features at length 1 (the *keys*), L [K, C] their labels as rows of zeros and a one (the
# *values*), and f at length 1 as well.
#
# ### Exercise 4 · The cache
# **Points** 10 · **Difficulty** 1/5 · **Importance** 3/5 · **Minutes** 4
#
# Make keys and values of the support features [K, D] and their labels [K]. The values are floating-point numbers, and there
# are `classes` columns even if the last class has no picture.
#
# <details><summary>Hint 1</summary>Each row of the keys has length 1. Each row of the values has a single 1, in the column
# of its label.</details>
#
# <details><summary>Hint 2</summary>torch has a function for rows with a single 1 (it is imported above). Its answers are
# whole numbers, and the number of columns is an argument of it.</details>

# %% nbgrader={"solution": "cache"}
def cache(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(keys [K, D], values [K, C]) of support features [K, D], not normalised, and labels [K]."""
    ### BEGIN SOLUTION
    return normalize(features, dim=-1), one_hot(labels, classes).to(features.dtype)
    ### END SOLUTION

# %% nbgrader={"visible": "cache", "points": 4}
def check_cache():
    found = cache(torch.tensor([[3.0, 4], [0, 2], [-5, 0]]), torch.tensor([1, 0, 1]), 4)
    assert isinstance(found, (tuple, list)) and len(found) == 2, "cache() gives two tensors: keys, values."
    check("the keys", found[0], [[0.6, 0.8], [0, 1], [-1, 0]], {
        "the keys are not brought to length 1.": [[3, 4], [0, 2], [-5, 0]],
        "the columns are brought to length 1: normalise the rows, dim=-1.":
            [[0.51449576, 0.89442719], [0, 0.44721360], [-0.85749293, 0]],
        "each row is divided by its sum: divide it by its length.": [[0.42857143, 0.57142857], [0, 1], [1, 0]]})
    check("the values", found[1], [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], {
        "the columns stop at the highest label: there are as many as classes.": [[0, 1], [1, 0], [0, 1]],
        "rows and columns have changed places: a row for each picture.": [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]],
        "these are the labels themselves: make a row of zeros and a one of each.": [1, 0, 1]})
    assert found[1].is_floating_point(), "the values are whole numbers: turn them to the type of the features."


check_cache()

# %% nbgrader={"hidden": "cache", "points": 6}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(64))
    for count, width, classes in [[6, 4, 3], [1, 5, 2], [5, 5, 5], [4, 2, 9]]:
        features = _torch.randn(count, width, generator=generator) * 9
        labels = _torch.randint(0, classes, (count,), generator=generator)
        keys, values = cache(features.clone(), labels.clone(), classes)
        assert keys.shape == (count, width) and values.shape == (count, classes), (keys.shape, values.shape)
        lists, i = [keys.tolist(), values.tolist(), labels.tolist()], 0
        for row in features.tolist():
            squares = j = 0
            for number in row:
                squares += number * number
            for number in row:
                assert -1e-5 < lists[0][i][j] - number / squares ** 0.5 < 1e-5, "keys"
                j += 1
            j = 0
            for number in lists[1][i]:
                assert -1e-6 < number - (1 if j == lists[2][i] else 0) < 1e-6, "values"
                j += 1
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 5 · Who has a say
# **Points** 12 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 6
#
# The *affinity* of each picture to each key is $\varphi = \exp(-\beta\,(1 - \hat f F^\top))$, [N, K], with $\hat f$ the
# picture's feature at length 1. A key in the same direction has 1; β says how fast a key's say fades with distance. The
# features come as the backbone gave them; the keys already have length 1.
#
# <details><summary>Hint 1</summary>First the cosines, [N, K]: one matrix product. All else is done number by
# number.</details>
#
# <details><summary>Hint 2</summary>At a cosine of 1 the answer is 1, whatever β; at a smaller one it is less. What must
# stand in the exponent for that, and with which sign?</details>

# %% nbgrader={"solution": "affinity"}
def affinity(features: torch.Tensor, keys: torch.Tensor, beta: float) -> torch.Tensor:
    """φ [N, K] of features [N, D], not normalised, and keys [K, D] of length 1."""
    ### BEGIN SOLUTION
    return torch.exp(-beta * (1 - normalize(features, dim=-1) @ keys.T))
    ### END SOLUTION

# %% nbgrader={"visible": "affinity", "points": 5}
def check_affinity():
    features, keys = torch.tensor([[3.0, 4], [0, 2]]), torch.tensor([[1.0, 0], [0, 1], [0, -1]])
    check("affinity(features, keys, 2.0)", affinity(features, keys, 2.0),
          [[0.44932896, 0.67032005, 0.02732372], [0.13533528, 1, 0.01831564]], {
              "exp is missing: these are distances times β.": [[0.8, 0.4, 3.6], [2, 0, 4]],
              "exp is missing: the nearest key should have the greatest say, 1.": [[-0.8, -0.4, -3.6], [-2, -0, -4]],
              "these are the cosines: exp and β are missing.": [[0.6, 0.8, -0.8], [0, 1, -1]],
              "the features are not brought to length 1.":
                  [[54.59815003, 403.42879349, 0.00004540], [0.13533528, 7.38905610, 0.00247875]],
              "the sign is turned: the farthest key has the greatest say.":
                  [[2.22554093, 1.49182470, 36.59823444], [7.38905610, 1, 54.59815003]],
              "1 − is missing: this is exp(β cos), which is above 1.":
                  [[3.32011692, 4.95303242, 0.20189652], [1, 7.38905610, 0.13533528]],
              "1 − is missing: this is exp(−β cos), so the farthest key has the greatest say.":
                  [[0.30119421, 0.20189652, 4.95303242], [1, 0.13533528, 7.38905610]],
              "β is missing.": [[0.67032005, 0.81873075, 0.16529889], [0.36787944, 1, 0.13533528]],
              "this is a softmax over the keys: each has a say of its own.":
                  [[0.39175209, 0.58442544, 0.02382247], [0.11731043, 0.86681333, 0.01587624]],
              "rows and columns have changed places: a row for each picture.":
                  [[0.44932896, 0.13533528], [0.67032005, 1], [0.02732372, 0.01831564]]})
    assert features.tolist() == [[3, 4], [0, 2]], "affinity() changes the features that it is given: make new tensors."


check_affinity()

# %% nbgrader={"hidden": "affinity", "points": 7}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    e = 2.718281828459045
    generator = _torch.Generator().manual_seed(fresh(65))
    for n, count, width, beta in [[4, 6, 5, 1.0], [3, 3, 3, 5.5], [1, 7, 2, 0.3], [5, 1, 8, 20.0]]:
        f, raw = (_torch.randn(rows, width, generator=generator, dtype=_torch.float64) for rows in [n, count])
        keys = []
        for row in raw.tolist():
            squares = 0
            for number in row:
                squares += number * number
            keys.append([number / squares ** 0.5 for number in row])
        found = affinity(5 * f, _torch.tensor(keys, dtype=_torch.float64), beta)
        assert found.shape == (n, count), found.shape
        lists, i = found.tolist(), 0
        for row in f.tolist():
            j = 0
            for k in keys:
                dot = squares = d = 0
                for number in row:
                    dot, squares, d = dot + number * k[d], squares + number * number, d + 1
                assert -1e-6 < lists[i][j] - e ** (-beta * (1 - dot / squares ** 0.5)) < 1e-6, (n, count, width)
                j += 1
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 6 · The vote
# **Points** 10 · **Difficulty** 1/5 · **Importance** 4/5 · **Minutes** 4
#
# Add α times the votes $\varphi L$ to the zero-shot logits, which you are given. At α = 0 that is zero-shot CLIP. It is a
# sum, not a blend as in CLIP-Adapter.
#
# <details><summary>Hint 1</summary>φ is [N, K] and L is [K, C]: their product is [N, C], like the logits.</details>
#
# <details><summary>Hint 2</summary>Nothing is taken away from the zero-shot logits. The votes of all keys for a class
# are added up: which product does just that?</details>

# %% nbgrader={"solution": "vote"}
def vote(zero_shot: torch.Tensor, phi: torch.Tensor, values: torch.Tensor, alpha: float) -> torch.Tensor:
    """Tip-Adapter's logits [N, C] of zero-shot logits [N, C], affinities phi [N, K] and values [K, C]."""
    ### BEGIN SOLUTION
    return zero_shot + alpha * phi @ values
    ### END SOLUTION

# %% nbgrader={"visible": "vote", "points": 4}
def check_vote():
    zero_shot, phi = torch.tensor([[4.0, 2], [1, 3]]), torch.tensor([[0.5, 0.25, 1.0], [0.75, 0.5, 0.25]])
    values = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    found = vote(zero_shot, phi, values, 0.4)
    check("vote(zero_shot, phi, values, 0.4)", found, [[4.6, 2.1], [1.4, 3.2]], {
        "it is blended: the zero-shot logits keep their full weight.": [[3.0, 1.3], [1.0, 2.0]],
        "α is missing.": [[5.5, 2.25], [2.0, 3.5]],
        "α stands before the zero-shot logits: it is the weight of the votes.": [[3.1, 1.05], [1.4, 1.7]],
        "the zero-shot logits are missing.": [[0.6, 0.1], [0.4, 0.2]],
        "the votes are averaged over the keys: their sum counts.": [[4.2, 2.03333333], [1.13333333, 3.06666667]]})
    assert zero_shot.tolist() == [[4, 2], [1, 3]], "vote() changes the logits that it is given: make a new tensor."


check_vote()

# %% nbgrader={"hidden": "vote", "points": 6}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(66))
    for n, count, classes, alpha in [[4, 6, 3, 1.17], [2, 2, 2, 0.0], [1, 9, 4, 20.0], [5, 3, 5, 0.5]]:
        zero_shot, phi = (_torch.rand(n, size, generator=generator, dtype=_torch.float64) * 3 for size in [classes, count])
        labels = _torch.randint(0, classes, (count,), generator=generator).tolist()
        values = _torch.zeros(count, classes, dtype=_torch.float64)
        k = 0
        for label in labels:
            values[k, label], k = 1, k + 1
        found = vote(zero_shot.clone(), phi.clone(), values, alpha)
        assert found.shape == (n, classes), found.shape
        lists, i = [found.tolist(), zero_shot.tolist()], 0
        for row in phi.tolist():
            right, k = [number for number in lists[1][i]], 0
            for number in row:
                right[labels[k]], k = right[labels[k]] + alpha * number, k + 1
            c = 0
            for number in right:
                assert -1e-6 < lists[0][i][c] - number < 1e-6, (n, count, classes)
                c += 1
            i += 1


_hidden()

# %% [markdown]
# ### Exercise 7 · Choose α and β
# **Points** 10 · **Difficulty** 2/5 · **Importance** 4/5 · **Minutes** 5
#
# With few validation images many pairs tie. So choose by the highest validation accuracy; of those equal the lowest
# validation loss; of those equal the smaller α, then the smaller β. `scores` is `{(alpha, beta): (accuracy, loss)}`; give
# the pair.
#
# <details><summary>Hint 1</summary>Python compares tuples from left to right, so <code>max</code> with a <code>key</code>
# can do all four at once.</details>
#
# <details><summary>Hint 2</summary>For the greatest tuple: what should be high stands as it is; what should be low
# changes its sign.</details>

# %% nbgrader={"solution": "search"}
def search(scores: dict[tuple[float, float], tuple[float, float]]) -> tuple[float, float]:
    """(alpha, beta) with the highest accuracy, then the lowest loss, then the smaller alpha, then the smaller beta."""
    ### BEGIN SOLUTION
    return max(scores, key=lambda pair: (scores[pair][0], -scores[pair][1], -pair[0], -pair[1]))
    ### END SOLUTION

# %% nbgrader={"visible": "search", "points": 4}
some_scores = {(9.0, 5.0): (0.75, 0.5), (1.0, 5.0): (0.75, 0.75), (3.0, 4.0): (0.75, 0.5), (3.0, 2.0): (0.75, 0.5),
               (2.0, 2.0): (0.5, 0.25), (0.0, 1.0): (0.25, 2.0), (3.0, 3.0): (0.75, 0.5)}
check("search(scores)", search(some_scores), [3.0, 2.0], {
    "it goes by the loss alone: accuracy comes first.": [2.0, 2.0],
    "of equal accuracy and loss the smaller α is taken, not the first or the greater.": [9.0, 5.0],
    "of equal accuracy the lower loss is taken: here the loss has no say, or its sign is turned.": [1.0, 5.0],
    "of equal accuracy, loss and α the smaller β is taken.": [3.0, 4.0],
    "it takes the lowest accuracy.": [0.0, 1.0],
    "this is a pair's score: give the pair (α, β) itself.": [0.75, 0.5],
    "α and β have changed places.": [2.0, 3.0]})

# %% nbgrader={"hidden": "search", "points": 6}
def _hidden():
    import torch as _torch

    from clip_adapter_lite.checks import fresh
    generator = _torch.Generator().manual_seed(fresh(67))
    for _ in _torch.arange(30).tolist():
        rows = _torch.randint(0, 3, (20, 4), generator=generator).tolist()
        scores = {(row[0] / 2, row[1] * 3.0): (row[2] / 4, row[3] / 8 + 0.1) for row in rows}
        best = None
        for pair in scores:
            accuracy, loss = scores[pair]
            rank = (-accuracy, loss, pair[0], pair[1])
            best = rank if best is None or rank < best else best
        found = search({pair: scores[pair] for pair in scores})
        assert -1e-9 < found[0] - best[2] < 1e-9 and -1e-9 < found[1] - best[3] < 1e-9, (found, best)


_hidden()

# %% [markdown]
# **Not graded: your Tip-Adapter on sketches.** α and β are chosen on the validation images; test is looked at once.

# %%
episode = cal.FeatureBank.load("pacs-sketch", "pocket").episode(shots=16, seed=1)
W = normalize(episode.text_features, dim=-1)
keys, values = cache(episode.support.view(), episode.support.labels, len(W))


def tip_logits(features, alpha, beta):
    zero_shot = episode.logit_scale * normalize(features, dim=-1) @ W.T
    return vote(zero_shot, affinity(features, keys, beta), values, alpha)


def score(split, alpha, beta):
    logits = tip_logits(split.view(), alpha, beta)
    return (logits.argmax(1) == split.labels).double().mean().item(), cross_entropy(logits, split.labels).item()


# %%
alpha, beta = search({(a, b): score(episode.val, a, b) for a in (0, 0.5, 1, 2, 5, 10, 20) for b in (0.5, 1, 2, 5, 10, 20)})
print(f"chosen on validation: α = {alpha}, β = {beta}")
print(f"test accuracy {100 * score(episode.test, alpha, beta)[0]:.1f} %, "
      f"zero-shot {100 * score(episode.test, 0, 1)[0]:.1f} % (one seed)")

# %% [markdown]
# ### Exercise 8 · In words
# **Points** 12 · **Difficulty** 3/5 · **Importance** 4/5 · **Minutes** 8
#
# A shop wants to recognise its 40 products with CLIP, from eight pictures of each. It has one laptop without a GPU, and each
# week a new product arrives. Compare **CoOp** (unified context) with **Tip-Adapter** for this shop in 100 to 150 words. Say
#
# 1. what is trained, and through what the gradient has to pass (4 points);
# 2. what each costs at inference, per picture and in memory (4 points);
# 3. what has to be done for the new product, and what each knows of it before there is any picture (4 points).
#
# This answer is graded by hand: a teacher reads it, and no check tells you your points.
#
# <details><summary>Hint 1</summary>Which of the two methods has a loop over steps above? Whose text features may be computed
# once and kept?</details>
#
# <details><summary>Hint 2</summary>Which of the two has something that grows with the pictures? Which has something that
# belongs to no class in particular?</details>

# %% [markdown] nbgrader={"written": "words", "points": 12}
# ### BEGIN SOLUTION
# CoOp trains M context vectors and nothing else, but each step sends 40 prompts through the frozen text encoder and the
# gradient back through it, which is slow on a laptop. Tip-Adapter trains nothing: it normalises and stores 320 features.
#
# At inference CoOp costs what zero-shot does: W(v) is computed once and kept, 40 rows. Tip-Adapter also compares each
# picture with all 320 keys and keeps them in memory; both grow with every new picture, though beside the image encoder it is
# little.
#
# For the new product CoOp puts the name behind the learned context and encodes one prompt: it can be recognised before there
# is a picture, although the context was not learned for it. Tip-Adapter adds eight keys and a column of values, without
# training; before that it knows the product only through its zero-shot logits. α and β should then be chosen on validation
# again.
# ### END SOLUTION

# %% [markdown]
# **Done?** Restart the kernel, run all cells, and hand in this notebook. More on training-free methods: notebook 10.
