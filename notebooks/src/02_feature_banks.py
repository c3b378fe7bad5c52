# %% [markdown]
# # 02 · Feature banks and the protocol
#
# **What you will learn**
#
# - why the features of a frozen backbone are computed once and kept,
# - what an episode is: shots, seeds, support, validation, test,
# - two classic ways to cheat without noticing, and how much they flatter.
#
# **Prerequisites:** [01 zero-shot CLIP](01_zero_shot_clip.ipynb).
#
# **Minutes:** about 15 minutes to read, 27 s to run on two cores.
#
# **Whose features:** the pocket CLIP's, with an ImageNet-supervised image tower and a distilled text tower. Nothing
# here is a claim about OpenAI's CLIP.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
BACKBONE = "pocket"   # or "RN50-quickgelu" once its banks are built or pulled

import time
from dataclasses import replace
from textwrap import fill

import pandas

import clip_adapter_lite as cal
from clip_adapter_lite import plots, widgets
from clip_adapter_lite.datasets import fashion_mnist
from clip_adapter_lite.encoding import encode
from clip_adapter_lite.questions import ask

# %% [markdown]
# ## Why keep features?
#
# In this course the backbone is *frozen*: it never changes. So a picture gives the same feature in every epoch, for
# every method, α and seed.
#
# **Predict:** how many pictures a second does the image tower take here? And how many features a second does the
# adapter?

# %%
ask("02/speed")

# %%
backbone, clothes = cal.load_backbone(BACKBONE), fashion_mnist()
pictures = [picture for picture, _ in clothes.splits["test"][:64]]
start = time.perf_counter()
encode(backbone, pictures)
tower = len(pictures) / (time.perf_counter() - start)

# %%
bank = cal.FeatureBank.load("fashion-mnist", BACKBONE)
episode = bank.episode(shots=16, seed=1)
fitted = cal.CLIPAdapter(alpha=0.2).fit(episode)
features = len(episode.support) * fitted.steps / fitted.seconds
print(f"image tower: {tower:,.0f} pictures a second; training on features: {features:,.0f} a second")

# %% [markdown]
# An adapter whose α is searched on validation trains ten times over the support set (α = 0 needs no training). With the
# tower inside the loop, that one fit would take:

# %%
passes = len(episode.support) * fitted.steps * 10
print(f"with the tower in the loop: {passes / tower / 60:,.0f} minutes; on features: {passes / features:.1f} seconds")

# %% [markdown]
# The price: no new random crop in every epoch. A bank can hold several views of each training picture instead
# (`views=` of `cal.build_bank`).
#
# ## What is in a bank

# %%
# NBVAL_CHECK_OUTPUT
for name, split in bank.splits.items():
    print(f"{name:5} features {list(split.features.shape)}, labels {list(split.labels.shape)}")
print("text features", list(bank.text_features.shape), "| templates", bank.templates)

# %% [markdown]
# Features are stored as the tower gave them, not brought to unit length, in half precision. A bank also says where it
# comes from. A number without its protocol cannot be repeated.

# %%
# NBVAL_CHECK_OUTPUT
print(bank.meta["source"])
print(fill(f"split: {bank.meta['protocol']}", 96))
print("hash:", bank.hash[:12])

# %% [markdown]
# ## Episodes
#
# A few-shot problem is an **episode**. `shots` is the number of labelled pictures per class. The `seed` says which
# ones.

# %%
# NBVAL_CHECK_OUTPUT
episode = bank.episode(shots=4, seed=1)
for name in ("support", "val", "test"):
    print(f"{name:8} {len(getattr(episode, name)):5} pictures")
more = bank.episode(shots=8, seed=1)
kept = {tuple(f.tolist()) for f in episode.support.features} <= {tuple(f.tolist()) for f in more.support.features}
print("the 4 shots are among the 8 of the same seed:", kept)

# %% [markdown]
# These are the support pictures of an episode, from the excerpt that ships with the course.
#
# **Predict:** will another seed look much different?

# %%
ask("02/seed")

# %%
plots.episode_grid(clothes, shots=4, seed=1)

# %% [markdown]
# *Figure: an episode of four shots, a row per class; these 40 pictures are all that a method may learn from.*

# %%
widgets.episode_viewer(clothes)

# %% [markdown]
# ## One seed is no result
#
# The same method on the same bank, ten draws each.

# %%
methods = ["zero-shot", "linear-probe", cal.CLIPAdapter(alpha=0.2)]
runs = cal.compare([cal.FeatureBank.load("pacs-cartoon", BACKBONE)], methods, shots=[1, 4], seeds=range(1, 11), jobs=2)
plots.accuracy_over_shots(runs)

# %% [markdown]
# *Figure: mean of ten seeds with bars of one standard deviation; with one shot, the bars are wider than the gap between
# the two trained methods.*

# %%
# NBVAL_CHECK_OUTPUT
one = runs[(runs.shots == 1) & (runs.method == "linear-probe")].accuracy
print(f"linear probe, 1 shot: worst seed {100 * one.min():.0f} %, best {100 * one.max():.0f} %, "
      f"standard deviation {100 * one.std():.1f} points")

# %% [markdown]
# ## The protocol
#
# | part | what for | how much |
# |---|---|---|
# | support | fitting | `shots` pictures a class |
# | validation | choosing α, C, epochs, prompts … | min(shots, 4) pictures a class |
# | test | judging, once | all of it |
#
# Three or more seeds, mean and standard deviation. Now see what happens to those who bend it.
#
# ## Cheat 1: tune on test
#
# An honest search trains once for each α of a grid and lets *validation* choose: `alpha="val"`. (Of ratios that so few
# pictures cannot tell apart it keeps the one nearest to 0.4.) The cheat trains the same adapters and keeps the one that is
# best on *test*.

# %%
names, ratios = ["pacs-cartoon", "pacs-sketch", "rsscn7"], (0, 0.25, 0.5, 0.75, 1)
banks, study = [cal.FeatureBank.load(name, BACKBONE) for name in names], dict(shots=[1, 4], seeds=[1, 2, 3], jobs=2)
honest = cal.compare(banks, [cal.CLIPAdapter(alpha="val", grid=ratios)], **study)
every = cal.sweep(banks, cal.CLIPAdapter(), {"alpha": ratios}, **study)
cheated = every.loc[every.groupby(["dataset", "shots", "seed"]).accuracy.idxmax()]

# %% [markdown]
# The last line is the whole cheat: of each bank, shots and seed, keep the row with the highest test accuracy.
#
# **Predict:** by how many points does that flatter, with just five ratios to choose among?

# %%
ask("02/flatters")

# %%
def together(**tables):
    """The tables under each other; a column says which choice each row comes from, and so does the method's name."""
    return pandas.concat(table.assign(choice=name, method=name) for name, table in tables.items())


plots.accuracy_bars(together(validation=honest, test=cheated), by="dataset", hue="choice")

# %% [markdown]
# *Figure: the test accuracy that each would report, by where α was chosen; mean and standard deviation of three seeds. The
# orange bars are never lower, whatever the method is worth.*

# %%
# NBVAL_CHECK_OUTPUT
both = together(validation=honest, test=cheated)
tuned = {shots: cal.paired_bootstrap(both[both.shots == shots], "test", "validation") for shots in (1, 4)}
for shots, found in tuned.items():
    print(f"shots {shots}: choosing on {found}")

# %% [markdown]
# Five ratios and one choice are a small search. With more settings to choose among, the reported number rises further,
# though no method has become better.
#
# ## Cheat 2: validation inside the support set
#
# With few pictures it is tempting to validate on those that you train on. Our banks do not allow that, so we make banks
# that leak: their validation split *is* the training split.

# %%
# NBVAL_CHECK_OUTPUT
leaking = [replace(bank, splits={**bank.splits, "val": bank.splits["train"]}) for bank in banks]
episode = leaking[0].episode(shots=4, seed=1)
inside = {tuple(f.tolist()) for f in episode.val.features} <= {tuple(f.tolist()) for f in episode.support.features}
print(f"{len(episode.val)} validation pictures, all of them in the support set: {inside}")

# %% [markdown]
# The default, `CLIPAdapter()`, *learns* α on validation pictures ([notebook 07](07_rq4_learned_ratios.ipynb)).
#
# **Predict:** where will α go now? And how does what validation *promises* compare with what test then *gives*?

# %%
ask("02/leak")

# %%
# NBVAL_CHECK_OUTPUT
straight, leaky = (cal.compare(which, ["clip-adapter"], **study) for which in (banks, leaking))
both = together(honest=straight, leaking=leaky)
means = both.groupby(["shots", "choice"])[["val_accuracy", "accuracy", "alpha"]].mean()
print(means.rename(columns={"val_accuracy": "promised", "accuracy": "given"}).round(2))

# %% [markdown]
# The leak promises that everything is right, always, since the adapter has learnt these very pictures. And their loss
# asks for more of what has learnt them by heart, which says nothing of new ones: compare the α of the two rows.
#
# Does another α also cost test accuracy? Let the rule decide.

# %%
# NBVAL_CHECK_OUTPUT
cost = {shots: cal.paired_bootstrap(both[both.shots == shots], "leaking", "honest") for shots in (1, 4)}
for shots, found in cost.items():
    print(f"shots {shots}: {found}")

# %%
shown = {f"cheat 1: tuned on test,\nshots {shots}": found for shots, found in tuned.items()}
plots.differences(shown | {f"cheat 2: leak,\nshots {shots}": found for shots, found in cost.items()}, BACKBONE)

# %% [markdown]
# *Figure: test accuracy of each cheat minus that of the honest choice; the points of cheat 1 exist on paper only, and for
# cheat 2 look whether the bars cross zero.*
#
# ## What we found against what the paper says
#
# The paper searches α for each dataset and reports the best. On which split it was chosen is not stated. (Tip-Adapter's
# authors concede in their repository, issue 11, that they selected on test.) How much could it matter?

# %%
# NBVAL_CHECK_OUTPUT
for shots, found in tuned.items():
    answer = "yes" if found.low > 0 else "cannot tell"
    print(f"shots {shots}: does choosing α on test flatter? {answer}: {100 * found.difference:.1f} points "
          f"[{100 * found.low:.1f}, {100 * found.high:.1f}]")
print("Are the paper's numbers flattered? Cannot tell: it does not say where α was chosen.")

# %% [markdown]
# So when you compare with a paper's table, ask first how its settings were chosen. Everywhere else in this course
# test is used once.
#
# ## Check your understanding
#
# **1.** Someone reports the best of ten seeds. Which of the two cheats is that like?
#
# <details><summary>Answer</summary>
#
# The first: the seed was chosen on test. Report the mean over all seeds, with the standard deviation.
#
# </details>
#
# **2.** Why can support pictures not say which ratio is good for new ones?
#
# <details><summary>Answer</summary>
#
# The adapter was trained to be right on exactly these pictures, and nearly every ratio above 0 lets it be. What is left
# is the loss, that is, how sure it is of what it has learnt by heart, and that asks for a larger ratio.
#
# </details>
#
# **3.** At one shot, validation has one picture a class. What follows for a method that chooses α by it?
#
# <details><summary>Answer</summary>
#
# Many ratios tie, and the choice is partly luck. So the honest result at one shot is noisy. That noise is part of the
# method's true accuracy, and the cheat hides it. A prior helps: go only as far from a sensible ratio as the pictures can
# tell.
#
# </details>
#
# ## Exercise
#
# The second graded exercise, *[episodes and protocol](../exercises/2_episodes/2_episodes.ipynb)*, asks you to draw episodes
# yourself and to catch a leak. Then build [the adapter](03_the_adapter.ipynb).
