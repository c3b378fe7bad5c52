"""Figures of what surrounds a fit: the widget's redraw, sweeps on two cores, building a bank, importing the library."""
import tempfile
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median

import torch
from figures_training import bare_products
from measuring import TURNS, Measured, by_turns, plural, python, ratio, seconds
from torch import Tensor
from torch.nn.functional import interpolate

import clip_adapter_lite as cal
from clip_adapter_lite.datasets import ImageDataset
from clip_adapter_lite.devices import threads

GRID = {"alpha": [round(0.1 * i, 1) for i in range(11)], "reduction": (1, 2, 4, 8, 16, 32),
        "branch": ("visual", "text", "both")}
SEEDS, MOVES, BATCH = (1, 2, 3), 40, 64


# ── the widget ────────────────────────────────────────────────────────────────────────────────────────────────────

def widget_p95_ms(quick: bool) -> Measured:
    from clip_adapter_lite import widgets
    bank, count = cal.FeatureBank.load("cifar10"), 4 if quick else MOVES
    episode, p95s = bank.episode(16, 1), {}
    live = {"alpha_slider": (widgets.alpha_slider(episode), {}),
            "training_curve_explorer": (widgets.training_curve_explorer(episode), {"reduction": 1}),
            "ablation_explorer": (widgets.ablation_explorer([bank]), {"shots": 16, "branch": "both", "reduction": 1})}

    def move(explorer, control: str, value) -> None:
        explorer.controls[control].value = value  # trains, draws and puts the picture into the widget before it returns
        if explorer.message:
            raise RuntimeError(explorer.message)

    for name, (explorer, slowest) in live.items():
        for control, value in slowest.items():
            move(explorer, control, value)
        taken = sorted(1000 * seconds(partial(move, explorer, "alpha", i / count)) for i in range(1, count + 1))
        p95s[name] = taken[ceil(0.95 * count) - 1]
    return Measured(max(p95s.values()), (
        f"Of {plural(count, 'move')} of α, 95 % take up to "
        f"{', '.join(f'{p95:.0f} ms in {name}' for name, p95 in p95s.items())}; the slowest counts. It is what the kernel "
        f"does, a fit of {widgets.LIVE['steps']} steps, its figure drawn and written as SVG (cifar10, 10 classes × 16 "
        f"shots, explorers without a bottleneck and the ablation's with both branches, {plural(torch.get_num_threads())}; "
        "the browser's part is not in it)."))


# ── sweeps ────────────────────────────────────────────────────────────────────────────────────────────────────────

def sweep(jobs: int, seeds=SEEDS, **fewer) -> int:
    """The ablation of 10 classes × 16 shots; how many adapters it trained."""
    bank = cal.FeatureBank.load("cifar10")
    return len(cal.sweep([bank], cal.CLIPAdapter(), GRID | fewer, shots=[16], seeds=seeds, jobs=jobs))


def end_workers() -> None:
    from joblib.externals.loky import get_reusable_executor
    get_reusable_executor().shutdown(wait=True)


def small_fit():
    """What --profile looks at: one adapter on 10 classes × 16 shots, of which sweeps and the widget have many."""
    episode = cal.FeatureBank.load("cifar10").episode(16, 1)
    return lambda: cal.CLIPAdapter(alpha=0.5).fit(episode)


def ablation_600_seconds(quick: bool) -> Measured:
    fewer = {"alpha": (0.2, 0.6), "reduction": (4,)} if quick else {}
    taken, count = [], 0

    def study():
        nonlocal count
        count = sweep(2, **fewer)

    for _ in range(1 if quick else TURNS):
        end_workers()
        taken.append(seconds(study))
    with threads(1):
        episode, trained = cal.FeatureBank.load("cifar10").episode(16, 1), sum(a > 0 for a in (GRID | fewer)["alpha"])
        bare = sum(seconds(bare_products(episode, cal.CLIPAdapter(reduction=r))) for r in (GRID | fewer)["reduction"])
    bare *= trained * 2 * len(SEEDS) / 2  # the visual adapters of two branches, on two cores; α = 0 trains nothing
    return Measured(median(taken), (
        f"{count} adapters ({' × '.join(f'{len(v)} {k}' for k, v in (GRID | fewer).items())} × {len(SEEDS)} seeds) take "
        f"{median(taken):.1f} s, from {min(taken):.1f} to {max(taken):.1f} s in {plural(len(taken), 'run')}, each with the "
        f"start of its two worker processes; the visual adapters' bare matrix products alone are {bare:.0f} s of two cores "
        "(cifar10, 10 classes × 16 shots, one thread a worker)."))


def core_scaling(quick: bool) -> Measured:
    fewer = {"alpha": (0.2, 0.6), "reduction": (4,)} if quick else {}
    count = sweep(2, SEEDS[:1], **fewer)  # starts the workers; they stay for the next sweeps
    one, two = by_turns(lambda: sweep(1, SEEDS[:1], **fewer), lambda: sweep(2, SEEDS[:1], **fewer), quick=quick)
    return Measured(ratio(one, two), (
        f"{count} adapters take {median(one):.1f} s in one process and {median(two):.1f} s in two that were started before "
        "(the ablation's sweep with one of its three seeds, one thread a process)."))


# ── building and importing ────────────────────────────────────────────────────────────────────────────────────────

def draw_pictures(folder: Path, count: int, short: int) -> list[Path]:
    """JPEGs of quality 85 of smooth random colours with some finer grain, 4 : 3, `short` pixels high."""
    from PIL import Image
    generator, size, paths = torch.Generator().manual_seed(0), (short, short * 4 // 3), []

    def noise(cells: int) -> Tensor:
        coarse = torch.randn(1, 3, cells, cells * 4 // 3, generator=generator)
        return interpolate(coarse, size, mode="bicubic")[0]

    for i in range(count):
        picture = 128 + 45 * noise(4) + 25 * noise(12) + 12 * noise(48)
        paths.append(folder / f"{short}-{i:05d}.jpg")
        Image.fromarray(picture.clamp(0, 255).byte().permute(1, 2, 0).numpy()).save(paths[-1], quality=85)
    return paths


def as_dataset(paths: list[Path]) -> ImageDataset:
    """Ten classes; an eighth of the pictures each for validation and test."""
    items, part = [(path, i % 10) for i, path in enumerate(paths)], len(paths) // 8
    return ImageDataset(name="drawn", classnames=tuple(f"class {c}" for c in range(10)), templates=("a photo of a {}.",),
                        protocol="random pictures", source="drawn by the bench",
                        splits={"train": items[2 * part:], "val": items[:part], "test": items[part:2 * part]})


def build_and_forward(paths: list[Path]):
    """(a bank from the files, the tower alone on tensors that are there already), the same batches of both."""
    from PIL import Image
    backbone = cal.load_backbone("pocket", device="cpu")
    ready = torch.stack([backbone.preprocess(Image.open(path).convert("RGB")) for path in paths])
    batches = ready.contiguous(memory_format=torch.channels_last).split(BATCH)
    dataset = as_dataset(paths)
    return (lambda: cal.build_bank(dataset, backbone, batch=BATCH, progress=False),
            lambda: [backbone.encode_images(batch) for batch in batches])


def one_build():
    """What --profile looks at: a bank of 256 files."""
    folder = tempfile.TemporaryDirectory()
    build, _ = build_and_forward(draw_pictures(Path(folder.name), 256, 160))
    return lambda: (build(), folder)  # which holds on to the folder


def build_rate(quick: bool) -> Measured:
    told, values = [], []
    for short, count in ((160, 64), (500, 64)) if quick else ((160, 1280), (500, 640)):
        with tempfile.TemporaryDirectory() as folder:
            paths = draw_pictures(Path(folder), count, short)
            kilobytes = sum(path.stat().st_size for path in paths) / count / 1000
            build, forward = by_turns(*build_and_forward(paths), quick=quick)
        values.append(ratio(forward, build))
        told.append(f"{count} files of {short} px ({kilobytes:.0f} kB each) become a bank at {count / median(build):.0f} "
                    f"images/s, the tower alone does {count / median(forward):.0f}, ratio {values[-1]:.2f}")
    return Measured(values[0], (
        f"{'; '.join(told)} (drawn JPEGs of quality 85, short side given, train, val and test 6 : 1 : 1; the pocket CLIP at "
        f"160 px, channels-last, batches of {BATCH}, {plural(torch.get_num_threads())}; the bank's side also decodes and "
        "encodes ten class names)."))


def import_ratio(quick: bool) -> Measured:
    code = "import sys, time; start = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - start)"
    rounds = [[python(code, name) for name in ("clip_adapter_lite", "torch")] for _ in range(1 + (1 if quick else TURNS))]
    ours, torch_alone = zip(*rounds[1:])  # the first round reads the files into memory
    return Measured(ratio(ours, torch_alone), (
        f"import clip_adapter_lite takes {median(ours):.2f} s and import torch {median(torch_alone):.2f} s, each in fresh "
        "interpreters, without the interpreter's own start."))
