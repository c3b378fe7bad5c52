"""Figures of CoOp: one training step through the text tower of ViT-B/32, all 77 tokens a class against ours."""
import logging
import sys
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch
from measuring import Measured, by_turns, call_fresh, peak_memory, plural, ratio
from torch.nn.functional import cross_entropy

from clip_adapter_lite import FeatureBank
from clip_adapter_lite.methods.base import cosine_logits
from clip_adapter_lite.methods.coop import Prompts

TOWER, LENGTH = "ViT-B-32-quickgelu", 16
PLAIN_MB = 65  # a class, measured: what the plain step keeps for its gradient
MOST = 1000


def both_steps(classes: int):
    """(plain, ours): forward and backward to the context, which they return the gradient of; random weights.

    The plain step is the one that the tests of the shared prefix compare with, in float32.
    """
    sys.path.insert(0, str(Path(__file__).parent.parent))
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of random weights, which are what we want
    from conftest import random_backbone
    from test_coop_prefix import plain_weights
    given = FeatureBank.load("caltech101").classnames  # underscores are CoOp's spaces, which the plain step knows not of
    names = [name.replace("_", " ") for name in islice(cycle(given), classes)]
    backbone = random_backbone(TOWER)
    prompts = Prompts(backbone, names, length=LENGTH, position="end", class_specific=False, words=None)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(32, backbone.width, generator=generator)
    labels = torch.randint(classes, (32,), generator=generator)

    def step(weights):
        prompts.context.grad = None
        cross_entropy(cosine_logits(features, weights(), 100.0), labels).backward()
        return prompts.context.grad

    return lambda: step(lambda: plain_weights(backbone, names, prompts.context)), lambda: step(prompts)


def our_step():
    """What --profile looks at: our step with 100 classes."""
    return both_steps(100)[1]


def coop_speedup(quick: bool) -> Measured:
    classes = 5 if quick else 100
    plain, ours = both_steps(classes)
    wanted, found = plain(), ours()
    apart = ((found - wanted).abs().max() / wanted.abs().max()).item()
    slow, fast = by_turns(plain, ours, quick=quick)
    return Measured(ratio(slow, fast), (
        f"The plain 77-token step takes {median(slow):.2f} s, ours {median(fast):.3f} s, with gradients that differ by up "
        f"to {apart:.0e} of the largest (forward and backward; M = {LENGTH}, {classes} classes named as caltech101's, text "
        f"tower of {TOWER} with random weights, float32, {plural(torch.get_num_threads())})."), holds=apart < 1e-3)


def added_by_step(side: str, classes: int) -> float:
    """MB that a step adds to this process, which should be a fresh one."""
    before, peak = peak_memory(both_steps(classes)[side == "ours"])
    return peak - before


def coop_memory(quick: bool) -> Measured:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable"))
    classes = 10 if quick else min(MOST, int(0.75 * free / PLAIN_MB))
    plain, ours = (call_fresh(added_by_step, side, classes) for side in ("plain", "ours"))
    told = "" if classes == MOST or quick else f", and {call_fresh(added_by_step, 'ours', MOST):.0f} MB at {MOST} classes"
    return Measured(plain / ours, (
        f"At {classes} classes (three quarters of the {free / 1000:.1f} GB free here at {PLAIN_MB} MB a class, at most "
        f"{MOST}) a plain step adds {plain:.0f} MB to its process, ours {ours:.0f} MB{told} (greatest resident memory less "
        f"what was there before the step; one run each in a fresh process; M = {LENGTH}, text tower of {TOWER}, float32)."))
