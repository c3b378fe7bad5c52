# %% [markdown]
# # 07 · RQ4: can the residual ratio be learned?
#
# **What you will learn**
#
# - four ways to an α: a constant, a search, learned on the support pictures, learned on held-out ones,
# - why what is learned on the support pictures asks for too much adapter,
# - what a network that gives every picture its own α gains over one number,
# - how noisy a search on a few validation pictures is.
#
# **Prerequisites:** notebooks [03](03_the_adapter.ipynb) and [06](06_rq3_configuration.ipynb).
#
# **Minutes:** about 20 minutes to read, 60 s to run on two cores.
#
# **Whose features:** the pocket CLIP's. Its image tower was trained on ImageNet with labels. The numbers show how the
# method behaves and say nothing about OpenAI's CLIP.

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
BACKBONE = "pocket"   # or "RN50-quickgelu" once its banks are built or pulled

import pandas
import torch

import clip_adapter_lite as cal
from clip_adapter_lite import plots
from clip_adapter_lite.questions import ask

FIXED, SEARCHED = "clip-adapter(alpha=0.2)", "clip-adapter(alpha=val)"
SHARED, NETWORK = "clip-adapter", "clip-adapter(alpha=learned)"

# %% [markdown]
# ## A network for the ratio
#
# Searching α trains many adapters. The paper learns it instead: a *hypernetwork* Q looks at features and classifier weights
# and gives the ratios, $\alpha, \beta = Q(f, W)$.
#
# **The architecture of Q is in no source that we could read, and there is no official code. The Q here is our own
# design:** what we find is about ours.

# %%
# NBVAL_CHECK_OUTPUT
bank = cal.FeatureBank.load("pacs-cartoon", BACKBONE)
episode = bank.episode(shots=16, seed=1)
learned = cal.CLIPAdapter(alpha="learned").fit(episode)
print(learned.head.ratios)
extra = sum(p.numel() for p in learned.head.ratios.parameters())
print(f"adapter {learned.parameters - extra} parameters, Q {extra} more")

# %% [markdown]
# Our Q has two small layers over a picture's feature beside a class's; a sigmoid keeps both outputs in (0, 1). α is asked
# for each picture, with the mean of W in the class's place. β is asked for each class, with the mean support feature in
# the picture's.
#
# **Predict:** Q starts at exactly 0.4 for everything. What does an untrained learned-ratio adapter equal?

# %%
ask("07/start")

# %%
# NBVAL_CHECK_OUTPUT
start = cal.CLIPAdapter(alpha="learned", steps=0).fit(episode)
fixed = cal.CLIPAdapter(alpha=0.4, steps=0).fit(episode)
features = episode.test.features
same = torch.allclose(start.logits(features), fixed.logits(features), atol=1e-4)
print(f"ratios at the start: {start.alphas(features).unique().numpy().round(4)}; the logits of α = 0.4: {same}")

# %% [markdown]
# ## Who teaches the ratio?
#
# The adapter learns on the support pictures. The ratio can learn there too, on the same loss. Or it learns on pictures
# that are *held out*: here the few validation pictures. Then each step moves the adapter by the one loss and the ratio by
# the other.
#
# **Predict:** the adapter soon knows the support pictures by heart. What will their loss make of α?

# %%
ask("07/support")


# %%
def history(alpha, task, held_out):
    """The mean α of the support pictures after each step; held_out: what the ratio learns from, None for them too."""
    method, found = cal.CLIPAdapter(alpha=alpha, device="cpu"), []
    head, support = method.new_head(task, alpha, None), task.support.view()
    look = lambda step: found.append(head.alphas(support).mean().item())
    method.train_head(head, task, held_out=held_out, after_step=look)
    return found, head


task = episode.to(torch.float32)
ways = {"Q, support": ("learned", None), "one number, support": ("auto", None),
        "Q, held out": ("learned", task.val), "one number, held out": ("auto", task.val)}
steps, heads = {}, {}
for name, (alpha, held_out) in ways.items():
    steps[name], heads[name] = history(alpha, task, held_out)
plots.ratio_over_steps(steps, BACKBONE)

# %% [markdown]
# *Figure: live; α while it is learned, 16 shots of one bank. All start at 0.4. Look which lines part, those of Q and of one
# number, or those of support and held out.*
#
# **A memorised support set asks for more adapter**: more of it makes the loss of known pictures still smaller, whatever
# it does to new ones. What does that cost? Four banks, three seeds, live:

# %%
# NBVAL_CHECK_OUTPUT
rows = []
for name in ("pacs-cartoon", "dtd10", "rsscn7", "sun18"):
    one = cal.FeatureBank.load(name, BACKBONE)
    for shots, seed in ((1, 1), (1, 2), (1, 3), (16, 1), (16, 2), (16, 3)):
        draw = one.episode(shots, seed).to(torch.float32)
        for way, held_out in (("support", None), ("held out", draw.val)):
            alpha, head = history("learned", draw, held_out)
            accuracy = (head(draw.test.view()).argmax(1) == draw.test.labels).double().mean().item()
            rows.append({"dataset": name, "backbone": BACKBONE, "method": way, "shots": shots, "seed": seed,
                         "α": alpha[-1], "accuracy": accuracy})
taught = pandas.DataFrame(rows)
print(taught.groupby(["shots", "method"])[["α", "accuracy"]].mean().round(2))
for shots, part in taught.groupby("shots"):
    print(f"shots {shots}: {cal.paired_bootstrap(part, 'held out', 'support')}")

# %% [markdown]
# ## What the library does
#
# `CLIPAdapter()` learns **one number on held-out pictures** (`alpha="auto"`), and adds a *prior*: the loss grows with
# $\frac{4}{n}(\mathrm{logit}\,\alpha - \mathrm{logit}\,0.4)^2$ for n held-out pictures, so few pictures cannot carry α far.
# `alpha="learned"` gives Q the same two losses and the same prior.
#
# HOSO (arXiv 2603.04341) holds one shot of each class out. So do we without validation pictures: the ratio from the
# held-out shots, then the adapter again from all shots.

# %%
# NBVAL_CHECK_OUTPUT
default = cal.CLIPAdapter()
for name, draw in {"16 shots + validation": episode, "16 shots only": episode.shots_only(),
                   "1 shot only": bank.episode(1).shots_only()}.items():
    fit = default.fit(draw)
    print(f"{name:21} α = {fit.alpha:.2f}, from {fit.details['ratio_from']}; labelled a class: {default.labelled(draw):.0f}")

# %% [markdown]
# ## Constant, searched, learned: the reference results
#
# *Precomputed* with the pocket CLIP's features: twelve banks, three to ten seeds. Six banks are drawn; the verdict below
# rests on all twelve. All but the constant and zero-shot look at up to four validation pictures a class.

# %%
reference = cal.reference()
methods = ["zero-shot", FIXED, SEARCHED, NETWORK, SHARED]
drawn = ["pacs-cartoon", "pacs-sketch", "dtd10", "rsscn7", "sun18", "caltech101"]
rows = reference[reference.method.isin(methods) & reference.dataset.isin(drawn)]
rows.attrs = reference.attrs
plots.accuracy_over_shots(rows)

# %% [markdown]
# *Figure: precomputed; accuracy over shots by how α came about. Look for banks where the lines part.*
#
# Do these numbers hold on your machine? Some rows are run again now and must agree.

# %%
# NBVAL_CHECK_OUTPUT
named = reference[reference.method.isin([FIXED, NETWORK, SHARED]) & reference.dataset.isin(["pacs-cartoon", "dtd10"])
                  & reference.shots.isin([1, 16]) & (reference.seed <= 2)]
if BACKBONE == "pocket":
    again = cal.recompute(named, jobs=2)
    assert (again.accuracy - again.recomputed).abs().max() <= 0.015, again
    print(f"{len(again)} rows run again, all within 1.5 points of the reference")

# %% [markdown]
# **Predict:** will one learned number be above, below or level with the search? And Q with the one number?

# %%
ask("07/search")

# %%
pairs = {"one number − searched": (SHARED, SEARCHED), "one number − fixed 0.2": (SHARED, FIXED),
         "Q − searched": (NETWORK, SEARCHED), "Q − one number": (NETWORK, SHARED)}
parts = {"all shots": reference, "1 shot": reference[reference.shots == 1], "16 shots": reference[reference.shots == 16]}
shared = {(name, part): rows[rows.seed <= 3] for name in pairs for part, rows in parts.items()}
found = {f"{name}\n{part}": cal.paired_bootstrap(rows, *pairs[name]) for (name, part), rows in shared.items()}
plots.differences(found, "pocket")

# %% [markdown]
# *Figure: precomputed; paired differences over twelve banks (those that have the shots) and seeds 1 to 3, which every
# method was run with. Right of the line the first is better.*
#
# ## Why a search is noisy
#
# The protocol gives seven classes 7 to 28 validation pictures. Here are eleven adapters, and from a large validation part
# we draw many small ones. Each chooses among the eleven, by accuracy, then loss.
#
# **Predict:** how far do the choices of ten pictures spread?

# %%
ask("07/spread")

# %%
clothes = cal.FeatureBank.load("fashion-mnist", BACKBONE)
draw, pool = clothes.episode(shots=4, seed=1), clothes.splits["val"].to(torch.float32)
eleven = {k / 10: cal.CLIPAdapter(alpha=k / 10).fit(draw) for k in range(11)}
logits = torch.stack([fit.logits(pool.view()) for fit in eleven.values()])  # [11, N, C]
right = (logits.argmax(2) == pool.labels).double()
loss = -logits.log_softmax(2)[:, range(len(pool)), pool.labels].double()
test = torch.tensor([fit.accuracy(draw.test) for fit in eleven.values()])
generator, chosen = torch.Generator().manual_seed(0), {}
for n in (10, 20, 40, 80):
    picks = [torch.randperm(len(pool), generator=generator)[:n] for _ in range(300)]
    best = [max(range(11), key=lambda i: (right[i, p].mean().item(), -loss[i, p].mean().item())) for p in picks]  # noqa: B023
    chosen[f"{n} pictures"] = torch.tensor(best)
print(f"{len(pool)} validation pictures to draw from, {len(clothes.classnames)} classes, 4 shots")
plots.ratio_distributions({name: (best / 10).numpy() for name, best in chosen.items()}, BACKBONE)

# %% [markdown]
# *Figure: live; the α that 300 random validation sets of each size choose among the same eleven adapters.*

# %%
# NBVAL_CHECK_OUTPUT
spread = {name: {"sd of α": (best / 10).std().item(), "test accuracy, mean (%)": 100 * test[best].mean().item(),
                 "worst (%)": 100 * test[best].min().item()} for name, best in chosen.items()}
print(pandas.DataFrame(spread).T.round(2))
top = max(range(11), key=lambda i: right[i].mean().item())
print(f"chosen by all {len(pool)}: α = {top / 10}, test accuracy {100 * test[top]:.2f} %")

# %% [markdown]
# That is why `alpha="val"` does not take the highest accuracy at its word: of the ratios within one standard error of the
# highest it keeps the one nearest to the prior, 0.4.
#
# ## Which ratios come out?
#
# First per bank. The table column `alpha` holds the searched α, the learned number, or the mean of Q's over the support
# pictures.

# %%
kinds = {SEARCHED: "searched", SHARED: "one number", NETWORK: "Q"}
ratios = reference[reference.method.isin(kinds) & reference.shots.isin([1, 4, 16])]
kind = ratios.method.map(kinds)
ratios.assign(kind=kind).pivot_table(index="dataset", columns=["kind", "shots"], values="alpha", sort=False).round(2)

# %% [markdown]
# *Table: precomputed; mean α over seeds for 1, 4 and 16 shots (NaN: the bank has fewer). Compare how far the three parts
# spread: a search that few pictures cannot decide stays at the prior.*
#
# Now Q's for each test picture, live: five banks, 16 shots, one seed.
#
# **Predict:** one value for all pictures of a bank, or a broad spread?

# %%
ask("07/pictures")

# %%
names = ("pacs-cartoon", "dtd10", "rsscn7", "sun18", "cifar10")
episodes = {name: cal.FeatureBank.load(name, BACKBONE).episode(shots=16, seed=1) for name in names}
fits = {name: cal.CLIPAdapter(alpha="learned").fit(task) for name, task in episodes.items()}
alphas = {name: fit.alphas(episodes[name].test.features) for name, fit in fits.items()}
plots.ratio_distributions({name: values.numpy() for name, values in alphas.items()}, BACKBONE)

# %% [markdown]
# *Figure: Q's α of every test picture, a row per bank; compare the spread within a bank with the differences between
# banks. All started at 0.4.*
#
# A wise Q would trust the adapter more where CLIP alone is wrong. Does ours? (This looks at test labels to describe, not
# to choose.)

# %%
trust = {}
for name, task in episodes.items():
    right = cal.ZeroShot().fit(task).logits(task.test.features).argmax(1) == task.test.labels
    trust[name] = {"α where zero-shot is right": alphas[name][right].mean().item(),
                   "α where it is wrong": alphas[name][~right].mean().item(), "spread (one sd)": alphas[name].std().item()}
pandas.DataFrame(trust).T.round(3)

# %% [markdown]
# *Table: mean of Q's α by whether zero-shot CLIP is right; a difference well below the spread says little about a single
# picture.*
#
# ## Both branches
#
# With both branches, α and β are learned together. Q gives a β for each class:

# %%
both = cal.CLIPAdapter(branch="both", alpha="learned", beta="learned").fit(episodes["sun18"])
betas = pandas.Series(both.betas().numpy(), episodes["sun18"].classnames).sort_values()
print("lowest β: ", ", ".join(f"{name} {beta:.3f}" for name, beta in betas.head(3).items()))
print("highest β:", ", ".join(f"{name} {beta:.3f}" for name, beta in betas.tail(3).items()))
plots.ratio_distributions({"α, each picture": both.alphas(episodes["sun18"].test.features).numpy(),
                           "β, each class": betas.to_numpy()}, BACKBONE)

# %% [markdown]
# *Figure: sun18, 16 shots; Q's α of every test picture and β of every class.*
#
# Does the second branch pay when its ratio is learned as well? The reference has one number for each, on twelve banks:

# %%
# NBVAL_CHECK_OUTPUT
for part, rows in parts.items():
    print(f"{part}:\n   {cal.paired_bootstrap(rows[rows.seed <= 3], 'clip-adapter(branch=both)', SHARED)}")

# %% [markdown]
# ## What does it cost?
#
# Searching trains ten adapters (α = 0 needs none), learning trains one and the ratio beside it. On your machine, once each:

# %%
timed = [(cal.CLIPAdapter(alpha=0.2), 1), (cal.CLIPAdapter(), 1), (cal.CLIPAdapter(alpha="learned"), 1),
         (cal.CLIPAdapter(alpha="val"), 10)]
for method, adapters in timed:
    fit = method.fit(episode)
    print(f"{plots.NAMES[method.label]:24} {adapters:2} trained, {fit.seconds:5.2f} s, {fit.parameters} parameters, "
          f"α = {fit.alpha:.2f}")

# %% [markdown]
# ## What we found against what the paper says
#
# The paper: learned ratios come close to searched ones. We read "close" as the whole 95 % interval within one point. The
# rule was fixed before any result.

# %%
# NBVAL_CHECK_OUTPUT
for name in ("Q − searched", "one number − searched"):
    for part in parts:
        c = found[f"{name}\n{part}"]
        within = max(abs(c.low), abs(c.high)) < 0.01
        answer = "agrees (within a point)" if within else "cannot tell" if c.verdict == "cannot tell" else "disagrees"
        answer = "agrees (even better)" if c.low > 0 else answer
        print(f"{name}, {part}: {answer}\n   {c}")

# %% [markdown]
# All this holds for our Q, learned on held-out pictures, and the pocket CLIP's features. On which pictures the paper's Q
# was learned is not stated, and nobody outside can build it from what was published.
#
# ## Check your understanding
#
# **1.** Why does a ratio that learns on the support pictures drift upwards?
#
# <details><summary>Answer</summary>
#
# It lowers the *training* loss: the adapter learns the support pictures by heart, and gets more weight for it. Whether that
# carries over to new pictures it never sees. Held-out pictures were not trained on, so they can say that.
#
# </details>
#
# **2.** Why is α asked with the mean of W, and not with the W of the right class?
#
# <details><summary>Answer</summary>
#
# At test time the right class is not known. With the mean of W, α depends on the picture alone, and one picture's answer
# does not depend on the others in its batch.
#
# </details>
#
# **3.** With seven validation pictures, what keeps the learned number from following their luck?
#
# <details><summary>Answer</summary>
#
# The prior: it is worth four pictures, so seven can move α only as far as they outweigh those. With four hundred the prior
# is hardly felt.
#
# </details>
#
# ## Exercise
#
# Next is [assignment 5, *learned ratios*](../exercises/5_learned_ratios/5_learned_ratios.ipynb): build Q and see what it
# learns. Then go on to [notebook 08](08_rq5_manifold.ipynb).
