"""Figures of one CUDA card: fits, searches and an ablation, CoOp's step, and building, each beside what it replaces."""
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from figures_coop import LENGTH
from figures_system import GRID, SEEDS, as_dataset, draw_pictures
from figures_training import ALPHA, CLOSE, bare_products, synthetic_episode
from measuring import Measured, by_turns, ratio, seconds
from peers import EPOCHS, accuracy, train_as_peers
from torch.nn.functional import cross_entropy

import clip_adapter_lite as cal
from clip_adapter_lite import encoding
from clip_adapter_lite.methods.base import cosine_logits
from clip_adapter_lite.methods.coop import CoOp, Prompts
from clip_adapter_lite.training import train

STEPS, GPU = 63, "cuda"
ROUNDS = 3  # of what takes seconds: such a machine is lent for minutes


def waited(work):
    """`work` until the card has done it."""
    def done():
        found = work()
        torch.cuda.synchronize()
        return found
    return done


def card() -> str:
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def fit_over_matmul(quick: bool) -> Measured:
    method = cal.CLIPAdapter(alpha=ALPHA, device=GPU)
    episode = synthetic_episode(100, 16, 1024).to(GPU)
    with torch.device(GPU):
        bare = bare_products(episode, method)
    ours, products = by_turns(waited(lambda: method.fit(episode)), waited(bare), quick=quick)
    return Measured(ratio(ours, products), (
        f"A whole fit, its capture included, takes {1000 * median(ours):.0f} ms, {method.steps} times the seven products of "
        f"its step {1000 * median(products):.0f} ms (100 classes × 16 shots, D = 1024, float32; {card()})."))


def alpha_search(quick: bool) -> Measured:
    episode = cal.FeatureBank.load("cifar10").episode(16, 1)
    one, search = cal.CLIPAdapter(alpha=0.5, device=GPU), cal.CLIPAdapter(alpha="val", device=GPU)
    searched, fitted = by_turns(waited(lambda: search.fit(episode)), waited(lambda: one.fit(episode)), quick=quick)
    return Measured(ratio(searched, fitted), (
        f"The search of {len(search.grid)} ratios takes {1000 * median(searched):.0f} ms, one fit "
        f"{1000 * median(fitted):.0f} ms (cifar10, 10 classes × 16 shots; {card()})."))


def ablation_seconds(quick: bool) -> Measured:
    bank, grid = cal.FeatureBank.load("cifar10"), GRID | ({"reduction": (4,)} if quick else {})
    rows = []
    study = waited(lambda: rows.append(len(cal.sweep(bank, cal.CLIPAdapter(device=GPU), grid, [16], SEEDS))))
    taken, = by_turns(study, quick=quick, turns=ROUNDS)
    return Measured(median(taken), f"{rows[0]} adapters through cal.sweep take {median(taken):.1f} s ({card()}).")


def peers_speedup(quick: bool) -> Measured:
    bank, epochs = cal.FeatureBank.load("caltech101"), 5 if quick else EPOCHS
    episode, method = bank.episode(16, 1), cal.CLIPAdapter(alpha=ALPHA, device=GPU)
    there, kept = episode.to(GPU, torch.float32), {}
    peers = waited(lambda: kept.update(theirs=train_as_peers(there, ALPHA, epochs)))
    train_as_peers(there, ALPHA, 1)  # their whole training takes half a minute, so it is not also run uncounted
    fit = waited(lambda: kept.update(ours=method.fit(episode)))
    fit()
    theirs, ours = [seconds(peers)], [seconds(fit)]
    goal, reached = accuracy(kept["theirs"], there.test), kept["ours"].accuracy(episode.test)
    return Measured(ratio(theirs, ours), (
        f"The peers' {epochs} epochs take {median(theirs):.1f} s and reach {100 * goal:.1f} % on test, our fit takes "
        f"{1000 * median(ours):.0f} ms and reaches {100 * reached:.1f} % (caltech101, 100 classes × 16 shots, D = 512, α = "
        f"{ALPHA}; {card()})."), holds=reached >= goal - CLOSE)


def plain_weights(backbone, names, context):
    """CoOp's way, as a function without arguments: every token of every prompt, padding included, in the tower's dtype."""
    tower, tokens = backbone.text_tower, backbone.tokens([f"{name}." for name in names])
    embedded, end = backbone.embed(tokens), tokens.argmax(1) + len(context)
    room, rows = tokens.shape[1] - len(context), torch.arange(len(names), device=backbone.device)

    def weights():
        learned = context.to(embedded.dtype).expand(len(names), -1, -1)
        x = torch.cat([embedded[:, :1], learned, embedded[:, 1:room]], dim=1)
        x = x + tower.positional_embedding.to(x.dtype)
        return tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))[rows, end] @ tower.text_projection
    return weights


def both_trainings(classes: int):
    """(plain, ours): STEPS steps of CoOp through ViT-B/16's text tower, all 77 tokens eagerly, and as the library does."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    logging.getLogger().setLevel(logging.ERROR)
    from conftest import random_backbone
    names = [f"thing number {i}" for i in range(classes)]
    backbone = random_backbone("ViT-B-16-quickgelu", precision="fp16", device=GPU)
    backbone = replace(backbone, device=torch.device(GPU), dtype=torch.float16)
    prompts = Prompts(backbone, names, length=LENGTH, position="end", class_specific=False, words=None)
    features = torch.randn(4 * classes, backbone.width, device=GPU)
    labels = torch.arange(classes, device=GPU).repeat(4)

    def training(weights, still: bool):
        loss = lambda step: cross_entropy(cosine_logits(features, weights().float(), 100.0), labels)
        return waited(lambda: train([prompts.context], loss, steps=STEPS, rate=CoOp.rate, still=still))

    return training(plain_weights(backbone, names, prompts.context), False), training(prompts, True)


def coop_speedup(classes: int):
    def measure(quick: bool) -> Measured:
        plain, ours = by_turns(*both_trainings(10 if quick else classes), quick=quick, turns=ROUNDS)
        return Measured(ratio(plain, ours), (
            f"A plain eager 77-token step takes {1000 * median(plain) / STEPS:.1f} ms, ours "
            f"{1000 * median(ours) / STEPS:.1f} ms, its capture included ({classes} classes, M = {LENGTH}, text tower of "
            f"ViT-B/16 with random weights, half precision; {card()})."))
    return measure


def coop_memory(quick: bool) -> Measured:
    peaks = []
    for side in (0, 1):
        work = both_trainings(10 if quick else 1000)[side]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    return Measured(peaks[0] / peaks[1], (
        f"1000 classes add {peaks[0] / 1e9:.1f} GB plainly and {peaks[1] / 1e9:.1f} GB our way "
        f"(as gpu-coop-1000; {card()})."))


def build_rate(quick: bool) -> Measured:
    """Today's way against PIL's, which was yesterday's."""
    backbone, usual = cal.load_backbone("pocket", device=GPU), encoding.can_decode
    with tempfile.TemporaryDirectory() as folder:
        dataset = as_dataset(4 * draw_pictures(Path(folder), 16 if quick else 320, 500))  # to draw them takes longest

        def build(decodes):
            encoding.can_decode = decodes
            try:
                cal.build_bank(dataset, backbone, progress=False)
            finally:
                encoding.can_decode = usual

        pil, ours = by_turns(lambda: build(lambda: False), lambda: build(usual), quick=quick, turns=ROUNDS)
    many = len(dataset.splits["train"]) + len(dataset.splits["val"]) + len(dataset.splits["test"])
    return Measured(ratio(pil, ours), (
        f"{many} JPEGs of 500 px (a quarter of them different) become a bank of the pocket CLIP at "
        f"{many / median(ours):.0f} pictures/s, with PIL's decoding at {many / median(pil):.0f} ({card()})."))


# name, unit, target, how
FIGURES = (("gpu-fit-over-matmul", "ratio", "≤ 3", fit_over_matmul), ("gpu-alpha-search", "ratio", "≤ 3", alpha_search),
           ("gpu-coop-100", "ratio", "≥ 5", coop_speedup(100)), ("gpu-peers-speedup", "ratio", "≥ 200", peers_speedup),
           ("gpu-ablation-seconds", "s", "≤ 3", ablation_seconds), ("gpu-coop-1000", "ratio", "≥ 4.5", coop_speedup(1000)),
           ("gpu-coop-memory", "ratio", "≥ 4", coop_memory), ("gpu-build-rate", "ratio", "≥ 2", build_rate))
