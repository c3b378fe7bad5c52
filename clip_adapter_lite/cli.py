"""The command line: `clip-adapter-lite --help`."""
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .banks import SPLITS, FeatureBank, list_banks
from .methods import METHODS, CoOp, method_named
from .using import load_classifier, save_classifier, zero_shot
from .using import predict as use

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_show_locals=False,
                  help="Few-shot adaptation of CLIP on frozen features: CLIP-Adapter and what it is judged against.\n\n"
                       "Start with `clip-adapter-lite banks`, then `clip-adapter-lite compare`.")
console = Console()


def main() -> None:
    """Run the command line; an error the user can mend is one sentence, not a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, OSError, RuntimeError) as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


def numbers(text: str, option: str) -> list[int]:
    """"1,2,4" → [1, 2, 4]. Raises typer.BadParameter, naming the option, for anything else."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"{option} takes whole numbers with commas between them, such as 1,2,4; got '{text}'."
                                 ) from None


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def banks(backbone: Annotated[str, typer.Option(help="Whose banks to list.")] = "pocket"):
    """List the feature banks there are: classes, images, largest shots, split, zero-shot accuracy, source.

    Example: `clip-adapter-lite banks`
    """
    from .methods import ZeroShot
    numbers = Table("bank", title=f"Feature banks of backbone '{backbone}'", title_justify="left")
    for title in ("classes", "train / val / test", "shots up to", "zero-shot %"):
        numbers.add_column(title, justify="right")
    origins = Table.grid(padding=(0, 2))
    for name in list_banks(backbone):
        bank = FeatureBank.load(name, backbone)
        episode = bank.episode(1, allow_fewer=True)
        numbers.add_row(name, str(len(bank.classnames)), " / ".join(str(len(bank.splits[s])) for s in SPLITS),
                        str(bank.max_shots), f"{100 * ZeroShot(device='cpu').fit(episode).accuracy(episode.test):.1f}")
        origins.add_row(name, f"{bank.meta.get('source', 'unknown source')}. {bank.meta.get('protocol', '')}.")
    console.print(numbers, "Where they come from, and how they were split:", origins)
    if backbone == "pocket":
        console.print("\nThe pocket CLIP's image tower is ImageNet-supervised: no number here says anything of OpenAI's "
                      "CLIP.")


@app.command()
def compare(
    banks: Annotated[str, typer.Option(help="Names or paths of banks, with commas.")] = "caltech101,pacs-cartoon,dtd10",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}; with commas.")] =
        "zero-shot,linear-probe,coop,clip-adapter",
    shots: Annotated[str, typer.Option(help="Training images per class.")] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(help="Which few-shot draws.")] = "1,2,3",
    backbone: Annotated[str, typer.Option(help="Whose banks to load.")] = "pocket",
    out: Annotated[Path, typer.Option(help="The CSV; the picture goes beside it as .png.")] = Path("results/compare.csv"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep the finished runs of --out and do the rest.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.")] = -1,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Take what there is of a class with too few images.")] =
        False,
):
    """Compare methods: every bank × method × shots × seed, as a table per bank, a CSV and a picture.

    Fitted on the few shots, selected on min(shots, 4) validation images a class, judged once on the whole test split.

    Example: `clip-adapter-lite compare --banks rsscn7 --shots 1,16 --seeds 1,2,3`
    """
    from . import plots
    from .compare import compare as run
    from .compare import pending, summarise
    loaded = [FeatureBank.load(name, backbone) for name in names(banks)]
    study = dict(banks=loaded, methods=names(methods), shots=numbers(shots, "--shots"), seeds=numbers(seeds, "--seeds"),
                 allow_fewer=allow_fewer)
    console.print(pending(**study, out=out if resume else None))
    try:
        table = run(**study, out=out, resume=resume, jobs=jobs, progress=True)
    except KeyboardInterrupt:
        console.print(f"\nStopped. The finished runs are in {out}: the same command with --resume goes on from there.")
        raise typer.Exit(130) from None
    summary = summarise(table)
    for bank in loaded:
        here = summary[(summary.dataset == bank.dataset)]
        console.print(accuracy_table(here, f"{bank.dataset}: test accuracy in %, mean ± standard deviation of "
                                           f"{table.seed.nunique()} seeds", plots.features_of(bank.backbone)))
    for line in notes(table, out):
        console.print(line, highlight=False)
    picture = plots.save(plots.accuracy_over_shots(table), out.with_suffix(".png"))
    console.print(f"\nWrote {out} ({len(table)} runs), {out.with_suffix('.json')} (what they were computed from) and "
                  f"{picture}.", highlight=False)


def accuracy_table(summary, title: str, features: str) -> Table:
    """One bank's accuracies: a row per method, a column per number of shots."""
    shots = sorted(summary.shots.unique())
    table = Table(title=title, caption=f"features: {features}", title_justify="left", caption_justify="left")
    table.add_column("method", no_wrap=True)
    for s in shots:
        table.add_column("1 shot" if s == 1 else f"{s} shots", justify="right")
    for method, rows in summary.groupby("method", sort=False):
        cells = rows.set_index("shots")
        table.add_row(method, *(f"{100 * cells['mean'][s]:.1f}±{100 * cells['std'].fillna(0)[s]:.1f}" for s in shots))
    return table


def notes(table, out: Path) -> list[str]:
    """What a reader of the tables must know beside them: steps, and how often ties decided the ratio."""
    import json
    steps = table[(table.steps > 0) & ~table.method.str.startswith("linear-probe")].groupby("method", sort=False).steps
    lines = [f"{method}: {low}{f' to {high}' if high > low else ''} optimiser steps"
             f"{f', M = {CoOp.context_length} context vectors' if method == CoOp.name else ''}."
             for method, low, high in zip(steps.min().index, steps.min(), steps.max())]
    details = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["details"]
    tied = [d["tied"] for d in details.values() if "tied" in d]
    if tied:
        lines.append(f"Of {len(tied)} searches on validation, {sum(t > 1 for t in tied)} had several ratios tied on "
                     "accuracy, and the lower cross-entropy decided.")
    return lines


@app.command()
def fit(
    bank: Annotated[str, typer.Option(help="Name or path of a bank.")],
    out: Annotated[Path, typer.Option(help="Where the classifier goes, as .safetensors.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "clip-adapter",
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Which few-shot draw.")] = 1,
    backbone: Annotated[str, typer.Option(help="Whose bank to load.")] = "pocket",
):
    """Fit one method to one bank and keep the classifier, for `predict`.

    Example: `clip-adapter-lite fit --bank pacs-photo --method clip-adapter --shots 16 --out photo.safetensors`
    """
    from .plots import features_of
    loaded = FeatureBank.load(bank, backbone)
    episode = loaded.episode(shots, seed)
    fitted = method_named(method).fit(episode)
    facts = [f"α = {fitted.alpha:.2f}"] if fitted.alpha is not None else []
    if fitted.val_accuracy is not None:
        facts.append(f"validation accuracy {100 * fitted.val_accuracy:.1f} %")
    facts.append(f"test accuracy {100 * fitted.accuracy(episode.test):.1f} % on {len(episode.test)} images")
    console.print(f"{fitted.method.label} on {loaded.dataset}, {shots} shots, seed {seed}: {', '.join(facts)} "
                  f"(features: {features_of(backbone)}).", highlight=False)
    console.print(f"Wrote {save_classifier(fitted, out)}; use it with "
                  f"`clip-adapter-lite predict IMAGES… --classifier {out}`.", highlight=False)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)],
    classes: Annotated[str, typer.Option(help="Zero-shot class names, with commas: \"cat, dog\".")] = "",
    classifier: Annotated[Path | None, typer.Option(help="A file from `fit`, instead of --classes.")] = None,
    template: Annotated[list[str], typer.Option(help="Prompt(s) with {} for the class name, for --classes.")] =
        ("a photo of a {}.",),
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 5,
    backbone: Annotated[str, typer.Option(help="Which CLIP, with --classes: pocket, or an open_clip name.")] = "pocket",
):
    """Name what is in pictures, zero-shot from class names or with a fitted classifier.

    Example: `clip-adapter-lite predict cat.jpg --classes "cat, dog, bird"`
    """
    from .backbones import classifier_weights, load_backbone
    from .plots import features_of
    if bool(classes) == bool(classifier):
        raise ValueError("Give either --classes \"cat, dog\" for zero-shot or --classifier FILE for a fitted classifier.")
    absent = [str(p) for p in images if not p.is_file()]
    if absent:
        raise FileNotFoundError(f"No such picture: {', '.join(absent[:5])}; check the path.")
    if classifier:
        fitted = load_classifier(classifier)
        model = load_backbone(fitted.origin["backbone"], fitted.origin["weights_tag"] or None)
    else:
        model = load_backbone(backbone)
        wanted = tuple(name.strip() for name in classes.split(",") if name.strip())
        if not wanted:
            raise ValueError(f"--classes '{classes}' holds no name; write for example --classes \"cat, dog\".")
        fitted = zero_shot(classifier_weights(model, wanted, template), wanted, model)
    for image, found in zip(images, use(fitted, model, images, top)):
        console.print(str(image), style="bold", markup=False, highlight=False, soft_wrap=True)
        for name, probability in found:
            console.print(f"  {100 * probability:5.1f} %  {name}", markup=False, highlight=False)
    console.print(f"(features: {features_of(model.name)}; {fitted.method.label})", style="dim", highlight=False)


@app.command()
def info():
    """Versions, devices, threads and folders: what to send along with a question.

    Example: `clip-adapter-lite info`
    """
    import platform

    import torch

    from .backbones import best_device
    from .banks import BUNDLED, cache_folder
    from .compare import versions
    table = Table(show_header=False)
    facts = {"python": platform.python_version(), **versions(), "machine": platform.platform(),
             "device": str(best_device()), "threads": str(torch.get_num_threads()),
             "bundled banks": str(BUNDLED / "banks"), "cache": str(cache_folder())}
    for fact in facts.items():
        table.add_row(*fact)
    console.print(table)


if __name__ == "__main__":
    main()
