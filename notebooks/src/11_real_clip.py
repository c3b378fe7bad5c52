# %% [markdown]
# # 11 · Real CLIP, your own pictures
#
# **What you will learn**
#
# - to choose a backbone, and what changes with it: the bank, and nothing after it,
# - to go from a folder of your own pictures to a classifier that names new ones, with probabilities,
# - the commands for the paper's eleven datasets, and to set its table beside yours,
# - to save a bank and share it, so that others need neither your pictures nor your GPU.
#
# **Prerequisites:** [00](00_start_here.ipynb) to [03](03_the_adapter.ipynb).
#
# **Minutes:** about 20 minutes to read, 18 s to run on two cores with the pocket CLIP. With real CLIP, add the download of
# its weights; that was not measured here.
#
# **Whose features:** those of the backbone that you set below. As committed it is the pocket CLIP, whose image tower was
# trained on ImageNet with labels; its numbers say nothing about OpenAI's CLIP.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
BACKBONE = "pocket"   # on Colab's GPU: "RN50-quickgelu", as in the paper, or "ViT-B-16-quickgelu"
FOLDER = ""           # your own pictures, FOLDER/<class>/…; empty: some clothes that ship with the library
PROMPT = "a photo of a {}, a type of clothing."   # with {} for the class name

import os
import tempfile
from pathlib import Path

import pandas
import torch

import clip_adapter_lite as cal
from clip_adapter_lite import plots
from clip_adapter_lite.datasets import TABLE, fashion_mnist, load_dataset
from clip_adapter_lite.encoding import preprocessing
from clip_adapter_lite.experiments.reproduce import paper, paper_numbers, reproduce
from clip_adapter_lite.questions import ask

# %% [markdown]
# ## Which CLIP is here?
#
# Real weights are downloaded once. Without a network this cell says so, and the notebook goes on with the pocket CLIP: the
# same cells, other features.

# %%
try:
    backbone = cal.load_backbone(BACKBONE)
except RuntimeError as error:
    print(f"{error}\n")
    BACKBONE, backbone = "pocket", cal.load_backbone("pocket")
print(f"From here on: {plots.features_of(BACKBONE)}, on {backbone.device}.")
if BACKBONE == "pocket":
    print("THIS IS NOT REAL CLIP: see how things are done; its numbers say nothing about OpenAI's CLIP.")
    if torch.cuda.is_available():
        print("A GPU is here: set BACKBONE at the top and run the notebook again.")

# %% [markdown]
# On Colab choose *Runtime → Change runtime type → GPU* first. Which backbone? Their shapes, from open_clip's own
# configurations, and what the papers report on ImageNet with 16 shots, in % (*not measured here*):

# %%
# NBVAL_CHECK_OUTPUT
import open_clip

rows = {}
for name in ("RN50-quickgelu", "RN101-quickgelu", "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"):
    shape, theirs = open_clip.get_model_config(name), paper_numbers(name)
    rows[name] = {"D": shape["embed_dim"], "pixels": shape["vision_cfg"]["image_size"],
                  "zero-shot": theirs["imagenet", "zero-shot", 0][0],
                  "CLIP-Adapter": theirs["imagenet", "clip-adapter", 16][0]}
print(pandas.DataFrame(rows).T.astype({"D": int, "pixels": int}))

# %% [markdown]
# Use the names that end in `quickgelu`: OpenAI's weights were trained with that activation, and a name without it would
# give slightly wrong features. The library refuses such a pair:

# %%
# NBVAL_CHECK_OUTPUT
try:
    cal.load_backbone("ViT-B-16", tag="openai")
except ValueError as error:
    print(error)

# %% [markdown]
# ## Your own folder
#
# A folder per class is all it takes: set `FOLDER` and `PROMPT` at the top. Without one, some of the bundled Fashion-MNIST
# pictures are written to a temporary folder, and that is taken for yours.

# %%
scratch, clothes = Path(tempfile.mkdtemp()), fashion_mnist()
folder = Path(FOLDER) if FOLDER else scratch / "clothes"
for number, (picture, label) in enumerate([] if FOLDER else clothes.cap(train=24).splits["train"]):
    place = folder / clothes.classnames[label].replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    picture.save(place / f"{number:04}.png")

# %%
# NBVAL_CHECK_OUTPUT
for place in sorted(folder.iterdir())[:3]:
    names = sorted(path.name for path in place.iterdir())
    print(f"{folder.name}/{place.name}/  {', '.join(names[:3])}, … ({len(names)} pictures)")

# %% [markdown]
# **Predict:** nobody told the library what is for training, for validation and for test. What should it do?

# %%
ask("11/split")

# %%
# NBVAL_CHECK_OUTPUT
dataset = load_dataset("folder", folder, seed=1)
print(", ".join(dataset.classnames))
print({part: len(items) for part, items in dataset.splits.items()})
print("protocol:", dataset.protocol)

# %% [markdown]
# It splits each class by a hash, as CoOp does 50/20/30, and writes that down. Folders `train`, `val` and `test` of your own
# would be taken as they are. Look at the pictures before you trust any number:

# %%
plots.episode_grid(dataset, shots=4, seed=1)

# %% [markdown]
# *Figure: four training pictures of each class as the backbone will get them, before resizing.*
#
# ## From pictures to a bank
#
# Two preprocessings are in use. Numbers are comparable only within one, so the bank records which:

# %%
# NBVAL_CHECK_OUTPUT
for style in ("clip", "coop"):
    facts = preprocessing(backbone, style)
    print(f"{style}: resize_mode {facts['resize_mode']}, {facts['size']} px, {facts['interpolation']}")

# %% [markdown]
# `clip` keeps the aspect ratio and crops the middle; `coop` squashes both sides. The paper reports both and is higher with
# the first. (For square pictures like these they are the same.)
#
# Now every picture goes through the image tower, once, and every class name, in the prompt, through the text tower.

# %%
bank = cal.build_bank(dataset, backbone, preprocess="clip", templates=[PROMPT], out=scratch / "bank.safetensors",
                      progress=False)
bank

# %% [markdown]
# With thousands of pictures this takes minutes, and it goes on where it stopped if you stop it. `views=10` would add random
# crops of each training picture.
#
# ## Fit and compare
#
# From here on nothing depends on the backbone. Zero-shot, the linear probe and CLIP-Adapter, with three seeds:

# %%
methods = [cal.ZeroShot(), cal.LinearProbe(), cal.CLIPAdapter(alpha=0.2)]
shots = [s for s in (1, 2, 4, 8, 16) if s <= bank.max_shots]
table = cal.compare([bank], methods, shots=shots, seeds=[1, 2, 3], jobs=1)
plots.accuracy_over_shots(table)

# %% [markdown]
# *Figure: your folder; the test split is small, so look at the bars before you believe an order.*

# %%
print(f"{len(bank.splits['test'])} test pictures: one of them is {100 / len(bank.splits['test']):.1f} points")
for rival in ("zero-shot", "linear-probe"):
    print(cal.paired_bootstrap(table, "clip-adapter(alpha=0.2)", rival))

# %% [markdown]
# One bank: that verdict is about this folder. Now the classifier to keep: all the shots there are, α learned on validation.

# %%
episode = bank.episode(shots=bank.max_shots, seed=1)
clf = cal.CLIPAdapter().fit(episode)
print(f"α = {clf.alpha:.2f}, validation {100 * clf.val_accuracy:.0f} %, test {100 * clf.accuracy(episode.test):.0f} %")

# %% [markdown]
# ## Name new pictures
#
# `cal.predict` takes paths or PIL images, preprocesses them as the bank's were, and gives names with probabilities. These
# are from the test split, which no fit has seen.
#
# **Predict:** will a wrong answer look less sure than a right one?

# %%
ask("11/sure")

# %%
fresh = dataset.splits["test"][::9][:8]
answers = cal.predict(clf, backbone, [picture for picture, _ in fresh], top=3)
pandas.DataFrame([{"it is": dataset.classnames[label]} | {f"answer {rank}": f"{name} ({100 * chance:.0f} %)"
                  for rank, (name, chance) in enumerate(answer, 1)} for (_, label), answer in zip(fresh, answers)])

# %% [markdown]
# Probabilities need care: [notebook 09](09_distribution_shift.ipynb) shows how far they can be off.
#
# A fitted classifier is a small file, without pickle, that carries its class names and its origin. Loaded again, it gives
# the same logits to the last bit, and refuses another backbone.

# %%
# NBVAL_CHECK_OUTPUT
place = cal.save_classifier(clf, scratch / "classifier.safetensors")
again = cal.load_classifier(place)
same = torch.equal(again.logits(episode.test.features), clf.logits(episode.test.features).cpu())
print(f"{place.stat().st_size / 1e6:.1f} MB; same logits: {same}; from {again.origin['dataset']}, "
      f"{again.origin['shots']} shots")

# %% [markdown]
# The same from a terminal:
#
# ```bash
# clip-adapter-lite build --dataset folder --root my_pictures --backbone ViT-B-16-quickgelu
# clip-adapter-lite fit --bank my_pictures --backbone ViT-B-16-quickgelu --shots 8 --out mine.safetensors
# clip-adapter-lite predict new.jpg --classifier mine.safetensors
# ```
#
# ## The paper's eleven datasets
#
# What they are, by the table that the loaders use:

# %%
# NBVAL_CHECK_OUTPUT
eleven = {name: TABLE[name] for name in paper()["datasets"]}
print(pandas.DataFrame({name: {"classes": facts["classes"], "test": facts["splits"]["test"], "size": facts["size"]}
                        for name, facts in eleven.items()}).T)

# %% [markdown]
# Begin with a small one. On Colab put `!` before each line.
#
# ```bash
# clip-adapter-lite datasets dtd
# clip-adapter-lite build --dataset dtd --root data --download --backbone RN50-quickgelu
# clip-adapter-lite reproduce --backbone RN50-quickgelu --shots 1,16
# ```
#
# With a shared bank, `clip-adapter-lite pull SOURCE` takes the place of `build`: no pictures, no GPU.
#
# ## The paper's table beside yours
#
# `reproduce` runs one protocol over whatever banks of this backbone there are. What has no bank stays "not measured".

# %%
known = [cal.FeatureBank.load(name, BACKBONE) for name in cal.list_banks(BACKBONE) if name in paper()["datasets"]]
methods = ["zero-shot"] if BACKBONE == "pocket" else ["zero-shot", "clip-adapter"]   # the pocket's banks are in notebook 04
result = reproduce(known, BACKBONE, methods=methods, shots=[1, 16], out=scratch / "reproduce")
result = result[result.shots.isin([0, 1, 16]) & result.method.isin(["zero-shot", "clip-adapter"])]
result = result.assign(ours=[f"{row.ours:.1f}" if row.seeds else "not measured" for row in result.itertuples()])

# %%
# NBVAL_CHECK_OUTPUT
names = {("zero-shot", 0): "zero-shot", ("clip-adapter", 1): "CLIP-Adapter, 1", ("clip-adapter", 16): "CLIP-Adapter, 16"}
view = result[result.dataset.isin([*paper()["datasets"], "average of the eleven"])]
view = view.assign(what=[names[row.method, row.shots] for row in view.itertuples()])
view.pivot(index="dataset", columns="what", values=["paper", "ours"]).reindex(view.dataset.unique())

# %% [markdown]
# A number on the right without its remark is worth little. If your number and the paper's are not of the same features and
# classes, `difference` stays empty and the remark says why:

# %%
for row in result[result.seeds > 0].fillna({"difference": 0}).itertuples():
    print(f"{row.dataset}, {row.method}: difference: {row.difference or 'none given'}")
    print(f"   {row.remarks or 'as in the paper'}")

# %% [markdown]
# ## Share a bank
#
# A bank holds features and no pictures. `cal.push` copies it to a folder, a bucket or a Hugging Face repository
# (`hf://datasets/OWNER/REPO`), with its SHA-256 beside it. Here: to a local folder.

# %%
address, digest = cal.push(bank, scratch / "shared")
print(f"others get it with: clip-adapter-lite pull {Path(address).name} --sha256 {digest[:12]}…")
print(sorted(path.name for path in (scratch / "shared").iterdir()))

# %% [markdown]
# Now be somebody else, with an empty cache. `cal.pull` checks the file against the hash, then the tensors against the
# bank's own hash.

# %%
# NBVAL_CHECK_OUTPUT
os.environ["CLIP_ADAPTER_LITE_CACHE"] = str(scratch / "the other's cache")
cal.pull(scratch / "shared", sha256=digest)
theirs = cal.FeatureBank.load(bank.dataset, BACKBONE)
print(f"{theirs.dataset}: the same tensors: {theirs.hash == bank.hash}")
print("they know:", theirs.meta["protocol"], theirs.templates[0], theirs.meta["preprocessing"]["resize_mode"], sep="\n   ")

# %% [markdown]
# **Predict:** somebody changes one byte on the way. What happens?

# %%
ask("11/byte")

# %%
# NBVAL_CHECK_OUTPUT
shared = Path(address)
changed = bytearray(shared.read_bytes())
changed[-1] ^= 1
shared.write_bytes(changed)
try:
    cal.pull(shared, sha256=digest, name="once-more")
except cal.BankError as error:
    print("refused:", str(error).partition(", so ")[2])   # the first half names both hashes

# %% [markdown]
# ## What we found against what the paper says
#
# The paper's numbers are of OpenAI's RN50. A comparison counts only with its features and classes.

# %%
# NBVAL_CHECK_OUTPUT
measured = result[result.difference.notna()]
for row in measured.itertuples():
    print(f"{row.dataset}, {row.method}, {row.shots} shots: {row.difference:+.1f} points from the paper's {row.paper:.1f}")
if measured.empty:
    print("not measured here: no bank with the paper's features and classes")

# %% [markdown]
# Where a difference of some points appears, look at the protocol first: α (we choose on validation), preprocessing, the
# split, the prompt. [Notebook 03](03_the_adapter.ipynb) tells what each of the code's options changes.
#
# ## Check your understanding
#
# **1.** You go from RN50 to ViT-B-16. What has to be done again, and what stays?
#
# <details><summary>Answer</summary>
#
# The bank: all pictures and all prompts through the new towers. The splits, the episodes' pictures and every line of code
# stay. Fitted classifiers do not: their weights belong to RN50's features, and the library refuses the mix.
#
# </details>
#
# **2.** Your folder has 24 pictures a class, and you report the test accuracy of the best of five prompts. What is wrong?
#
# <details><summary>Answer</summary>
#
# The prompt was chosen on test, and with so few test pictures the best of five is mostly luck. Choose it on validation, then
# look at test once.
#
# </details>
#
# **3.** A colleague sends a bank and a SHA-256 in the same e-mail. What does the hash protect from?
#
# <details><summary>Answer</summary>
#
# From damage on the way. Not from a sender who wants to deceive: they would send the hash of their own file. For that the
# hash must come another way. A bank is never unpickled, so loading it runs no code in any case.
#
# </details>
#
# ## Exercise
#
# All six graded assignments are in [exercises](../exercises/); the last is *prompts and beyond*. Your own exercise: take
# twenty pictures each of two things on your desk, and find out how many of them an adapter needs. Then put it to work:
# [notebook 12](12_at_work.ipynb).
