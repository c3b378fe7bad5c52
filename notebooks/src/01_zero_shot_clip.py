# %% [markdown]
# # 01 · Zero-shot CLIP
#
# **What you will learn**
#
# - how a picture and a text become two arrows that can be compared: the *cosine*,
# - what the temperature does, and what it cannot do,
# - how much the wording of a prompt matters, and whether an ensemble of prompts is better.
#
# **Prerequisites:** [00 start here](00_start_here.ipynb); you know what a softmax is.
#
# **Minutes:** about 15 minutes to read, 16 s to run on two cores.
#
# **Whose features:** the pocket CLIP's, with an ImageNet-supervised image tower and a distilled text tower. Nothing
# here is a claim about OpenAI's CLIP.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
BACKBONE = "pocket"   # or "RN50-quickgelu" once its banks are built or pulled

import matplotlib
import pandas
import seaborn
from matplotlib.figure import Figure
from torch.nn.functional import normalize

import clip_adapter_lite as cal
from clip_adapter_lite import plots, widgets
from clip_adapter_lite.datasets import fashion_mnist, template_set
from clip_adapter_lite.questions import ask

# %% [markdown]
# ## Texts become arrows
#
# The text tower turns each text into a feature of `D` numbers. Think of it as an arrow in a space of `D` dimensions.

# %%
# NBVAL_CHECK_OUTPUT
backbone = cal.load_backbone(BACKBONE)
words = ["dog", "cat", "horse", "guitar", "house"]
text = backbone.encode_text([f"a photo of a {word}." for word in words])
print(list(text.shape), "lengths", [round(length) for length in text.norm(dim=1).tolist()])

# %% [markdown]
# The lengths differ and mean little. What counts is the direction. The **cosine** of two arrows compares directions
# only: 1 for the same direction, 0 for a right angle, below 0 if they point apart.
#
# **Predict:** which two of the five words have the highest cosine?

# %%
ask("01/cosine")

# %%
@matplotlib.rc_context(plots.theme())
def cosines(a, b, rows, columns, title):
    """Cosines of the arrows a [N, D] with b [M, D] as a heat map, the highest of each row in bold."""
    figure = Figure(figsize=(0.75 * len(columns) + 2, 0.42 * len(rows) + 1.3), layout="constrained")
    axis, values = figure.subplots(), (normalize(a, dim=-1) @ normalize(b, dim=-1).T).numpy()
    seaborn.heatmap(values, ax=axis, annot=True, fmt=".2f", cmap="vlag", vmin=-0.5, vmax=0.5, cbar=False,
                    xticklabels=columns, yticklabels=rows)
    for row, highest in enumerate(values.argmax(1)):
        axis.texts[row * len(columns) + highest].set_fontweight("bold")
    axis.set_title(title)
    axis.tick_params(axis="y", rotation=0)
    figure.supxlabel(f"features: {plots.features_of(BACKBONE)}", fontsize=9, color=plots.COLOURS["zero-shot"])
    return figure


cosines(text, text, words, words, "cosine of text and text")

# %% [markdown]
# *Figure: cosines between the five texts; animals lie closer to each other than to a guitar or a house.*
#
# ## Pictures become arrows in the same space
#
# Pictures of CIFAR-10 have been through the image tower. Their features wait in a bank.

# %%
# NBVAL_CHECK_OUTPUT
bank = cal.FeatureBank.load("cifar10", BACKBONE)
images, labels = bank.splits["test"].view().float(), bank.splits["test"].labels
print(list(images.shape), ", ".join(bank.classnames))

# %% [markdown]
# Now the first test picture of each of six classes, against the texts of all ten class names.

# %%
W = cal.classifier_weights(backbone, bank.classnames, ["a photo of a {}."])
first = [labels.tolist().index(c) for c in range(6)]
rows = [f"a picture: {name}" for name in bank.classnames[:6]]
cosines(images[first], W, rows, bank.classnames, "cosine of picture and text")

# %% [markdown]
# *Figure: cosines of six pictures with ten class texts; the highest of a row (bold) is the answer, and it is often a
# close race.*
#
# ## That is the whole classifier
#
# Bring both to unit length, multiply, and take the highest: `argmax cos(f, W)`.

# %%
# NBVAL_CHECK_OUTPUT
cosine = normalize(images, dim=-1) @ normalize(W, dim=-1).T
by_hand = (cosine.argmax(1) == labels).double().mean().item()
library = cal.ZeroShot().fit(bank.episode(1)).accuracy(bank.splits["test"])
print(f"by hand {100 * by_hand:.1f} %, the library {100 * library:.1f} %, guessing {100 / len(bank.classnames):.0f} %")

# %% [markdown]
# ## Temperature: how sure to be
#
# Cosines lie between −1 and 1, so their softmax is nearly flat. CLIP multiplies them with `1/τ` first, the *logit
# scale*. It is learned: 100 for OpenAI's CLIP, about 25<!-- shown: 1/τ = 25 --> for the
# pocket CLIP.
#
# **Predict:** you multiply with 100 instead of 25. What happens to the accuracy, and what to the confidence?

# %%
ask("01/factor")

# %%
# NBVAL_CHECK_OUTPUT
own = backbone.logit_scale
rows, curves = [], {}
for scale in (1, 10, own, 100):
    p = (scale * cosine).softmax(1)
    curves[f"1/τ = {scale:.0f}"] = cal.reliability_curve(p, labels)
    right = (p.argmax(1) == labels).double().mean().item()
    rows.append([f"{scale:.0f}", right, p.max(1).values.mean().item(), cal.calibration_error(p, labels)])
print(pandas.DataFrame(rows, columns=["1/τ", "accuracy", "confidence", "ECE"]).round(2).to_string(index=False))

# %% [markdown]
# The accuracy stays the same to the last digit: scaling does not change which cosine is the highest. *Confidence* is
# the mean of the highest probability. *ECE*, the expected calibration error, says how far confidence and accuracy lie
# apart.

# %%
plots.reliability(curves, BACKBONE)

# %% [markdown]
# *Figure: accuracy against confidence; on the dashed line 70 % sure means 70 % right, below it the classifier
# promises too much.*
#
# The cosines of the pocket CLIP spread wider than those of OpenAI's CLIP, so they need a smaller factor. It belongs to
# the backbone; [notebook 06](06_rq3_configuration.ipynb) trains with a wrong one.
#
# ## The words are the classifier
#
# **Predict:** you write `stag` instead of `deer`. How many of the deer will still be found?

# %%
ask("01/stag")

# %%
# NBVAL_CHECK_OUTPUT
def recall(name, instead):
    """The share of the class's test pictures that are found when its name is replaced."""
    names = [instead if n == name else n for n in bank.classnames]
    logits = images @ cal.classifier_weights(backbone, names).T
    return cal.per_class_accuracy(logits, labels)[bank.classnames.index(name)].item()


for pair in ("deer deer", "deer reindeer", "deer stag", "airplane airplane", "airplane plane"):
    name, instead = pair.split()
    print(f"{name:8} called {instead:8}: {100 * recall(name, instead):.0f} % found")

# %% [markdown]
# A synonym can cost nearly everything, and another one can help. You have just tried words *on the test set*. To look
# is fine. To keep the best and report it is cheating: [notebook 02](02_feature_banks.ipynb) measures how much it
# flatters.
#
# ## The template
#
# The words around the name are the *template*. The paper uses one per dataset, such as `a photo of a {}, a type of
# pet.`, and for ImageNet an ensemble of seven.

# %%
# NBVAL_CHECK_OUTPUT
for template in template_set("seven"):
    print(template.format("dog"))

# %% [markdown]
# An ensemble averages the seven text features of a class, each brought to unit length first. The classifier keeps its
# size: one arrow per class.

# %%
# NBVAL_CHECK_OUTPUT
texts = [template.replace("{}", name) for template in template_set("seven") for name in bank.classnames]
each = normalize(backbone.encode_text(texts), dim=-1).reshape(7, len(bank.classnames), -1)
ensemble = normalize(each.mean(0), dim=-1)
same = (ensemble - cal.classifier_weights(backbone, bank.classnames, template_set("seven"))).abs().max()
print(list(each.shape), "->", list(ensemble.shape), "| as the library has it:", bool(same < 1e-5))

# %% [markdown]
# **Predict:** the paper finds the ensemble slightly better than one prompt. Will it be so here, over twelve banks?

# %%
ask("01/ensemble")

# %%
banks = [cal.FeatureBank.load(name, BACKBONE) for name in cal.list_banks(BACKBONE)]
prompts = {"the name alone": ("{}",), "a photo of a {}.": ("a photo of a {}.",), "seven prompts": template_set("seven")}
parts = [cal.compare(banks, [cal.ZeroShot(templates=templates)], shots=[1], seeds=[1]).assign(method=prompt)
         for prompt, templates in prompts.items()]
table = pandas.concat(parts)
(100 * table.pivot(index="dataset", columns="method", values="accuracy")[list(prompts)]).round(1)

# %% [markdown]
# Zero-shot accuracy on test, in %, of three ways to prompt. There is no chance in zero-shot, so there are no seeds. But
# the test pictures are a sample: with 210 of them, as in the `pacs` banks, an accuracy is uncertain by about three points.
#
# ## Play with it
#
# A small bank, built now from the Fashion-MNIST pictures that ship with the course, so that you can see what you
# classify.

# %%
clothes = fashion_mnist().cap(train=1, val=1, test=200)
small = cal.build_bank(clothes, backbone, progress=False)
pictures = [picture for picture, _ in clothes.splits["test"]]
plots.prompt_result(small, small.text_features, small.classnames, image=3, picture=pictures[3])

# %% [markdown]
# *Figure: left a test picture, in the middle the five most probable of your words (blue: the true one), right the
# accuracy of your prompts beside the bank's own.*
#
# In the next cell you can edit the template and the names, then press Enter. Try `sneaker` → `running shoe`, or add
# an eleventh name: a *distractor*.

# %%
widgets.prompt_playground(small, backbone, pictures)

# %% [markdown]
# ## What we found against what the paper says
#
# The paper: hard prompts give good results, and an ensemble of prompts is slightly better than one.

# %%
# NBVAL_CHECK_OUTPUT
found = cal.paired_bootstrap(table, "seven prompts", "a photo of a {}.")
answer = {"seven prompts above a photo of a {}.": "agrees", "cannot tell": "cannot tell"}.get(found.verdict, "disagrees")
print(f"{found}\nAn ensemble is slightly better: {answer}.")

# %% [markdown]
# Why might OpenAI's CLIP differ? Its text tower read captions of real pictures, in which `art of` and `a photo of` stand
# for different looks. The pocket CLIP's was taught by another text model, from words alone, so a template can tell it
# little about how a picture looks.
#
# ## Check your understanding
#
# **1.** You double all image features before computing cosines. What changes?
#
# <details><summary>Answer</summary>
#
# Nothing. The cosine compares directions, and doubling changes only the length.
#
# </details>
#
# **2.** A classifier with 1/τ = 100 is wrong on 40 % of the pictures and 95 % sure on average. What does a smaller
# 1/τ repair?
#
# <details><summary>Answer</summary>
#
# Only the confidence. With a factor that fits, it is about 60 % sure on average. It still makes the same mistakes.
#
# </details>
#
# **3.** Why does an ensemble of 80 prompts take no longer than one prompt to classify a picture?
#
# <details><summary>Answer</summary>
#
# The 80 text features of a class are averaged once, beforehand. What remains is one arrow per class, as with one
# prompt.
#
# </details>
#
# ## Exercise
#
# You are ready for the first graded exercise, *[zero-shot
# classification](../exercises/1_zero_shot/1_zero_shot.ipynb)*. Then go on to [02 feature banks](02_feature_banks.ipynb).
