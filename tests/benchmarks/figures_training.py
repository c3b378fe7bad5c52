"""Figures of training one adapter: beside its bare matrix products, the peers' way, a search, and larger problems."""
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from measuring import Measured, by_turns, call_fresh, fastest, peak_memory, plural, ratio
from peers import EPOCHS, accuracy, train_as_peers
from torch.nn.functional import normalize

from clip_adapter_lite import CLIPAdapter, Episode, FeatureBank, Split
from clip_adapter_lite.devices import threads

ALPHA = 0.2  # the official code's constant
CLOSE = 0.003  # "the same accuracy": within 0.3 points
SHORT = ((20, 2e-3), (20, 4e-3), (40, 2e-3), (40, 4e-3), (60, 2e-3), (80, 2e-3))  # (steps, rate); then the library's own
GROWTH = {"classes 10 → 1000": ((10, 16, 512), (1000, 16, 512)),  # (classes, shots, D), small and large
          "shots 1 → 16": ((100, 1, 512), (100, 16, 512)),
          "D 512 → 1024": ((100, 16, 512), (100, 16, 1024))}


def real_episode(seed: int = 1) -> Episode:
    """100 classes × 16 shots, D = 512: caltech101's features."""
    return FeatureBank.load("caltech101").episode(16, seed)


def synthetic_episode(classes: int, shots: int, width: int) -> Episode:
    """Noisy copies of random class directions; one validation and one test image a class."""
    generator = torch.Generator().manual_seed(0)
    weights = normalize(torch.randn(classes, width, generator=generator), dim=-1)

    def split(per_class: int) -> Split:
        labels = torch.arange(classes).repeat(per_class)
        return Split(weights[labels] + torch.randn(len(labels), width, generator=generator) / width ** 0.5, labels)

    return Episode(support=split(shots), val=split(1), test=split(1), text_features=weights, logit_scale=100.0,
                   classnames=tuple(f"class {c}" for c in range(classes)))


def bare_products(episode: Episode, method: CLIPAdapter):
    """The matrix products of the visual adapter's training and nothing else: seven a step, into tensors made beforehand.

    X is not trained on and W is frozen, so neither needs a gradient; layouts are those of nn.Linear and of its backward.
    """
    x, w = episode.support.view(), episode.text_features
    (n, d), classes, hidden = x.shape, len(w), w.shape[1] // method.reduction
    w1, w2 = torch.randn(hidden, d) / d ** 0.5, torch.randn(d, hidden) / hidden ** 0.5
    h, f, logits = torch.empty(n, hidden), torch.empty(n, d), torch.empty(n, classes)
    f_, h_, w1_, w2_ = (torch.empty_like(t) for t in (f, h, w1, w2))

    def work():
        for _ in range(method.steps):
            torch.mm(x, w1.T, out=h)
            torch.mm(h, w2.T, out=f)
            torch.mm(f, w.T, out=logits)
            torch.mm(logits, w, out=f_)  # the gradient to f*, then to W2, h and W1
            torch.mm(f_.T, h, out=w2_)
            torch.mm(f_, w2, out=h_)
            torch.mm(h_.T, x, out=w1_)
    return work


def one_fit():
    """What --profile looks at: one adapter on 100 classes × 16 shots."""
    episode = real_episode()
    return lambda: CLIPAdapter(alpha=ALPHA).fit(episode)


def adapter_over_matmul(quick: bool) -> Measured:
    episode, method = real_episode(), CLIPAdapter(alpha=ALPHA, steps=10 if quick else CLIPAdapter.steps)
    fit, bare = lambda: method.fit(episode), bare_products(episode, method)
    count, tried = fastest(fit)
    with threads(count):
        ours, products = by_turns(fit, bare, quick=quick)
    return Measured(ratio(ours, products), (
        f"A whole fit takes {median(ours):.3f} s, {method.steps} times the seven products of its step "
        f"{median(products):.3f} s (features 1600 × 512, bottleneck {512 // method.reduction}, 100 classes, float32, "
        f"caltech101; {plural(count)} on both sides, the fastest for the fit: {tried})."))


def peers_curve(episode: Episode, epochs: int) -> list[tuple[float, int, float]]:
    """(test accuracy, epoch, seconds of training so far) after each of the peers' epochs."""
    curve = []
    train_as_peers(episode, ALPHA, epochs,
                   lambda epoch, head, spent: curve.append((accuracy(head, episode.test), epoch, spent)))
    return curve


def peers_speedup(quick: bool) -> Measured:
    bank, own, epochs = FeatureBank.load("caltech101"), CLIPAdapter(alpha=ALPHA), 2 if quick else EPOCHS
    recipes = [replace(own, steps=steps, rate=rate) for steps, rate in SHORT] + [own]
    first = bank.episode(16, 1)
    ours_threads, ours_tried = fastest(lambda: recipes[0].fit(first))
    their_threads, their_tried = fastest(lambda: train_as_peers(first, ALPHA, epochs=1))
    theirs, reached, near = [], {}, []  # their seconds a turn, accuracy by seed, (epoch, seconds) of coming close
    times, found = [[] for _ in recipes], [{} for _ in recipes]  # the same of each of our recipes
    for seed in (1,) if quick else (1, 2, 3, 1, 2):
        episode = bank.episode(16, seed)
        with threads(their_threads):
            curve = peers_curve(episode, epochs)
        reached[seed], _, spent = curve[-1]
        theirs.append(spent)
        near.append(next(point[1:] for point in curve if point[0] >= reached[seed] - CLOSE))
        for recipe, taken, accuracies in zip(recipes, times, found):
            with threads(ours_threads):
                start = time.perf_counter()
                fitted = recipe.fit(episode)
                taken.append(time.perf_counter() - start)
            accuracies[seed] = fitted.accuracy(episode.test)
    goal = median(reached.values())
    close = [i for i, accuracies in enumerate(found) if median(accuracies.values()) >= goal - CLOSE]
    best = close[0] if close else -1

    def told(i: int) -> str:
        return (f"{recipes[i].steps} full-batch steps at {recipes[i].rate:g} take {median(times[i]):.3f} s and reach "
                f"{100 * median(found[i].values()):.1f} %, {ratio(theirs, times[i]):.0f} times as fast")

    epoch, spent = (median(column) for column in zip(*near))
    listed = ", ".join(f"{r.steps} at {r.rate:g}" for r in recipes)
    which = "the first" if close else "the library's own, since none of them is,"
    return Measured(ratio(theirs, times[best]), (
        f"The peers' {epochs} epochs of batches of 32 take {median(theirs):.2f} s and reach {100 * goal:.1f} % on test; "
        f"{told(best)} ({which} of the fixed list {listed} within 0.3 points of the peers on test: a figure of speed, not "
        f"of accuracy); the library's own recipe: {told(-1)}; the peers themselves are first within 0.3 points of their end "
        f"after {epoch:g} epochs and {spent:.2f} s, {spent / median(times[best]):.0f} times the fit compared (caltech101, "
        f"100 classes × 16 shots, D = 512, α = {ALPHA}; medians over seeds 1 to 3, of five runs for times; each side at its "
        f"fastest thread count: our first recipe {ours_tried}, an epoch of theirs {their_tried})."), holds=bool(close))


def over_one_training(alpha: str, quick: bool, told: Callable[[Episode, CLIPAdapter], str]) -> Measured:
    """A fit that finds its ratio by `alpha` over one training at a fixed one; told(episode, method) names the former."""
    steps = 10 if quick else CLIPAdapter.steps
    episode, single = real_episode(), CLIPAdapter(alpha=0.5, steps=steps)
    found = replace(single, alpha=alpha)
    count, tried = fastest(lambda: single.fit(episode))
    with threads(count):
        whole, one = by_turns(lambda: found.fit(episode), lambda: single.fit(episode), quick=quick)
    return Measured(ratio(whole, one), (
        f"{told(episode, found)} takes {median(whole):.3f} s, one training at α = 0.5 {median(one):.3f} s (caltech101, 100 "
        f"classes × 16 shots, D = 512, {steps} steps; {plural(count)}, the fastest: {tried})."))


def alpha_search(quick: bool) -> Measured:
    return over_one_training("val", quick, lambda _, method: (
        f"The search over {len(method.grid)} ratios, of which α = 0 needs no training,"))


def learned_ratio(quick: bool) -> Measured:
    return over_one_training(CLIPAdapter.alpha, quick, lambda episode, _: (
        f"The default, α learned on {len(episode.val)} validation images,"))


def growth(quick: bool) -> Measured:
    method = CLIPAdapter(alpha=ALPHA, steps=2 if quick else 10)
    told, beside = [], []
    for axis, sizes in GROWTH.items():
        if quick:
            sizes = [(min(classes, 100), *rest) for classes, *rest in sizes]
        episodes = [synthetic_episode(*size) for size in sizes]
        small, large = ((lambda e=e: method.fit(e), bare_products(e, method)) for e in episodes)
        taken = by_turns(*small, *large, quick=quick)
        ours, products = ratio(taken[2], taken[0]), ratio(taken[3], taken[1])
        beside.append(ours / products)
        told.append(f"{axis}: {ours:.3g} times ({median(taken[0]):.3g} → {median(taken[2]):.3g} s), products {products:.3g} "
                    f"times ({median(taken[1]):.3g} → {median(taken[3]):.3g} s)")
    return Measured(max(beside), (
        f"The value is the largest growth of a fit over that of its products; {'; '.join(told)} (synthetic features, 100 "
        f"classes × 16 shots at D = 512 where not varied, α = {ALPHA}, {method.steps} steps, "
        f"{plural(torch.get_num_threads())})."))


def peak_of_fit(classes: int, shots: int, width: int, steps: int) -> tuple[float, float]:
    episode = synthetic_episode(classes, shots, width)
    return peak_memory(lambda: CLIPAdapter(alpha=ALPHA, steps=steps).fit(episode))


def peak_memory_mb(quick: bool) -> Measured:
    classes, steps = 100 if quick else 1000, 10
    before, peak = call_fresh(peak_of_fit, classes, 16, 1024, steps)
    return Measured(peak, (
        f"The whole process is {peak:.0f} MB at its greatest, of which {before:.0f} MB were there before the fit: "
        f"torch, the library and {classes} × 16 synthetic features at D = 1024 (resident memory of one fresh process; "
        f"α = {ALPHA}, {steps} steps, since more need no more memory)."))
