# %% [markdown]
# # 00 · Start here
#
# **In your first minute:** click on the first cell below (it may be folded to three dots) and press Shift-Enter. Press it
# again for each cell that follows, until two photographs have been named. Every cell runs offline on an ordinary laptop.
# If one fails, the message says what to do.
#
# **What you will learn**
#
# - whether your set-up works,
# - what CLIP does: it classifies pictures with *words*, without any training on your classes,
# - what a few labelled pictures add: that is CLIP-Adapter, the subject of this course.
#
# **Prerequisites:** Python; you have trained a model in PyTorch before; you have heard of CLIP.
#
# **Minutes:** about 10 minutes to read, 25 s to run on two cores.
#
# **Whose features:** this course ships a *pocket CLIP*, small enough for a laptop. Its image tower was trained on
# ImageNet with labels and its text tower is distilled from another text model. Its numbers show how the methods
# behave. They say nothing about OpenAI's CLIP, which learned from 400 million captioned pictures and no class labels.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
BACKBONE = "pocket"   # or "RN50-quickgelu" once its banks are built or pulled

import matplotlib
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import clip_adapter_lite as cal
from clip_adapter_lite import plots
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.inference import zero_shot
from clip_adapter_lite.questions import ask

# %% [markdown]
# ## Meet the pocket CLIP
#
# A CLIP is two networks, called *towers*. One turns a picture into a list of numbers, the other turns a text into a
# list of the same length. Such a list is called a *feature*.

# %%
# NBVAL_CHECK_OUTPUT
backbone = cal.load_backbone(BACKBONE)
parameters = sum(p.numel() for p in backbone.model.parameters())
print(f"{parameters / 1e6:.1f} million parameters, features of {backbone.width} numbers")

# %% [markdown]
# Here are two photographs. Nothing was trained to tell them apart by the words below. (The pocket CLIP's image
# tower did learn ImageNet's 1000 labels, so buildings and flowers are no strangers to it.)

# %%
photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@matplotlib.rc_context(plots.theme())
def show(pictures, titles, width=1.25, guessed=True):
    """The pictures side by side, each under its title, which a backbone `guessed`; width in inches of one picture."""
    height = width * pictures[0].height / pictures[0].width
    figure = Figure(figsize=(width * len(pictures), height + 0.5), layout="constrained")
    for axis, picture, title in zip(figure.subplots(1, len(pictures)), pictures, titles):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    if guessed:
        figure.supxlabel(f"features: {plots.features_of(backbone.name)}", fontsize=9, color=plots.COLOURS["zero-shot"])
    return figure


show(photos, ["photo 1", "photo 2"], width=3.2, guessed=False)

# %% [markdown]
# *Figure: two photographs that come with scikit-learn (danielbuechele and vultilion on Flickr, CC BY 2.0).*
#
# ## Classify them with words
#
# You choose the words. Each goes into a template, `a photo of a {}.`, and through the text tower. The classifier is
# the four text features and nothing else: no training.
#
# **Predict:** which of the four words wins for each photo, and how sure is it?

# %%
ask("00/words")

# %%
# NBVAL_CHECK_OUTPUT
words = ["temple", "flower", "dog", "car"]
W = cal.classifier_weights(backbone, words, ["a photo of a {}."])
classifier = zero_shot(W, words, backbone)
for found in cal.predict(classifier, backbone, photos, top=2):
    print(", ".join(f"{word} {100 * chance:.0f} %" for word, chance in found))

# %% [markdown]
# Each line is a photo: its two most probable words of the four.
#
# **Predict:** now the right words are taken away, and only `dog`, `car` and `house` are left. What will it say of the
# flower?

# %%
ask("00/others")

# %%
others = ["dog", "car", "house"]
classifier = zero_shot(cal.classifier_weights(backbone, others), others, backbone)
for found in cal.predict(classifier, backbone, photos, top=3):
    print(", ".join(f"{word} {100 * chance:.0f} %" for word, chance in found))

# %% [markdown]
# It must choose among your words: probabilities always sum to 1, and there is no "none of these". Keep that in mind
# whenever you see a confident answer.
#
# ## Harder pictures
#
# Fashion-MNIST has ten kinds of clothing in pictures of 28 × 28 pixels. An excerpt ships with this course.

# %%
clothes = fashion_mnist()
pictures = [picture for picture, _ in clothes.splits["test"][:7]]
classifier = zero_shot(cal.classifier_weights(backbone, clothes.classnames), clothes.classnames, backbone)
guesses = [found[0][0] for found in cal.predict(classifier, backbone, pictures, top=1)]
show(pictures, guesses)

# %% [markdown]
# *Figure: seven test pictures under the word that the pocket CLIP chose; look for the wrong ones.*
#
# How often is it right over the whole test set? All those pictures have been through the image tower already. Their
# features are stored in a *feature bank*, so this takes no time.

# %%
# NBVAL_CHECK_OUTPUT
bank = cal.FeatureBank.load("fashion-mnist", BACKBONE)
print(bank)
episode = bank.episode(shots=16, seed=1)
before = cal.ZeroShot().fit(episode).accuracy(episode.test)
print(f"words alone: {100 * before:.0f} % of {len(episode.test)} test pictures; guessing: 10 %")

# %% [markdown]
# ## Add sixteen pictures a class
#
# CLIP-Adapter learns from a few labelled pictures. It trains a tiny network on top of the features. CLIP itself stays
# frozen.
#
# **Predict:** 16 pictures of each class, a few seconds of training on a laptop. Where will the accuracy go?

# %%
ask("00/guess")

# %%
# NBVAL_CHECK_OUTPUT
adapter = cal.CLIPAdapter().fit(episode)
after = adapter.accuracy(episode.test)
print(f"words and 16 pictures a class: {100 * after:.0f} %")
print(f"{adapter.parameters} trained parameters, α = {adapter.alpha:.2f}")

# %% [markdown]
# α is the *residual ratio*, learned on validation pictures: from 0 (CLIP's feature alone) to 1 (the adapter's output alone).
# [Notebook 05](05_rq2_residual.ipynb) shows how it differs from bank to bank.
#
# That number is one draw of 16 pictures. Another draw gives another number, so always repeat with other *seeds*. Here
# are three banks with three seeds each.

# %%
banks = [cal.FeatureBank.load(name, BACKBONE) for name in ("fashion-mnist", "pacs-cartoon", "cifar10")]
table = cal.compare(banks, ["zero-shot", "clip-adapter"], shots=[16], seeds=[1, 2, 3], jobs=2)
plots.accuracy_bars(table, by="method")

# %% [markdown]
# *Figure: test accuracy of words alone (grey) and with 16 pictures a class (orange); the thin bars show how little
# the three seeds differ beside the gain.*
#
# ## What we found against what the paper says
#
# The paper says that CLIP-Adapter is better than zero-shot CLIP. A verdict in this course always comes from the same
# rule: a 95 % interval of the difference that lies wholly on one side of zero. The rule was fixed before any result.

# %%
# NBVAL_CHECK_OUTPUT
found = cal.paired_bootstrap(table, "clip-adapter", "zero-shot")
answer = {"clip-adapter above zero-shot": "agrees", "cannot tell": "cannot tell"}.get(found.verdict, "disagrees")
print(f"{found}\nWith 16 shots, on three banks: {answer}.")

# %% [markdown]
# Three banks and three seeds are few, and such an interval is too narrow: it says so in the docstring of
# `cal.paired_bootstrap`. [Notebook 04](04_rq1_prompt_tuning.ipynb) asks the question properly, on twelve banks.
#
# ## The map of the course
#
# | notebook | what you do |
# |---|---|
# | [01 zero-shot CLIP](01_zero_shot_clip.ipynb) | features, cosine, temperature, prompts; a playground for your own words |
# | [02 feature banks](02_feature_banks.ipynb) | episodes, shots, seeds, and two ways to cheat |
# | [03 the adapter](03_the_adapter.ipynb) | build CLIP-Adapter by hand and check it against the library |
# | [04 RQ1 prompt tuning](04_rq1_prompt_tuning.ipynb) | against zero-shot, linear probe and CoOp: accuracy and cost |
# | [05 RQ2 residual](05_rq2_residual.ipynb) | why the residual and the bottleneck are there |
# | [06 RQ3 configuration](06_rq3_configuration.ipynb) | which branch, which width, which ratio |
# | [07 RQ4 learned ratios](07_rq4_learned_ratios.ipynb) | let a small network choose the ratio |
# | [08 RQ5 manifold](08_rq5_manifold.ipynb) | what adaptation does to the feature space |
# | [09 distribution shift](09_distribution_shift.ipynb) | train on photos, test on sketches; new classes; calibration |
# | [10 training-free and beyond](10_training_free_and_beyond.ipynb) | Tip-Adapter, and where the neighbours stand |
# | [11 real CLIP](11_real_clip.ipynb) | OpenAI's CLIP on a GPU, your own pictures, sharing a bank |
# | [12 at work](12_at_work.ipynb) | which classes go wrong, *none of these*, how sure, a folder at once |
#
# RQ stands for the paper's research questions. Take 01 to 03 in order; after that pick what you like. Six graded
# exercises go with them.
#
# ## Check your understanding
#
# **1.** You classify a photo of a zebra with the words `cat` and `dog`. What does zero-shot CLIP answer?
#
# <details><summary>Answer</summary>
#
# `cat` or `dog`, perhaps with high probability. The softmax compares your words only with each other. It cannot say
# that none of them fits.
#
# </details>
#
# **2.** What was trained when the accuracy went up from zero-shot to 16 shots?
#
# <details><summary>Answer</summary>
#
# Only the adapter: two small linear layers on the features. Both towers of CLIP stayed as they were. That is why it
# takes seconds on a laptop.
#
# </details>
#
# **3.** May you conclude from the figure that OpenAI's CLIP gains as much on CIFAR-10?
#
# <details><summary>Answer</summary>
#
# No. The features here are the pocket CLIP's, whose image tower has seen ImageNet's labels. How the methods behave
# carries over; numbers do not. [Notebook 11](11_real_clip.ipynb) shows how to run real CLIP.
#
# </details>
#
# ## Exercise
#
# The first graded exercise, *zero-shot classification*, follows [notebook 01](01_zero_shot_clip.ipynb). Go there
# next.
