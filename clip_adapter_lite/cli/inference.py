"""Commands for a fitted classifier: ask it about pictures, and take it elsewhere."""
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from ..inference import Prediction, load_classifier, zero_shot
from ..methods.labels import names_listed
from ..naming import count
from .app import app, console, told


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, folders of them, or patterns in "
                                                      "quotes: \"shoots/**/*.jpg\".",
                                                 show_default=False)],
    classes: Annotated[str, typer.Option(help="Zero-shot class names, with commas: \"cat, dog\"; a "
                                              "name that holds "
                                              "one stands in quotes.")] = "",
    classifier: Annotated[Path | None, typer.Option(help="A file from `fit`, instead of "
                                                         "--classes.")] = None,
    template: Annotated[list[str], typer.Option(help="Prompt(s) with {} for the class name, for "
                                                     "--classes.")] =
        ("a photo of a {}.",),
    descriptions: Annotated[Path | None, typer.Option(
        help="A JSON of sentences, {\"class name\": [\"a sentence\", …]}, averaged along with the "
             "prompts, for --classes.")] = None,
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write a table instead: .csv, or .jsonl, a line a "
                                                  "picture. Goes on where it was stopped.")] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable",
                                                  help="Leave out damaged pictures.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a table that is there.")] = False,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 64,
    workers: Annotated[int | None, typer.Option(help="Threads that decode.", min=1,
                                                show_default="one a core")] = None,
    backbone: Annotated[str, typer.Option(help="Which CLIP, with --classes: pocket, or an "
                                               "open_clip name.")] = "pocket",
    tag: Annotated[str | None, typer.Option(help="The backbone's weights: open_clip's tag, or a "
                                                 "checkpoint's path; with --classifier, where "
                                                 "the checkpoint lies now.")] = None,
):
    """Name what is in pictures, zero-shot from class names or with a fitted classifier.

    Example: `clip-adapter-lite predict cat.jpg --classes "cat, dog, bird"`

    A folder to a table: `clip-adapter-lite predict my_folder --classifier mine.safetensors --out
        found.csv`
    """
    from ..backbones import classifier_weights, load_backbone, read_descriptions
    from ..naming import features_of
    from ..predictions import answers, gathered, predict_files
    if bool(classes) == bool(classifier):
        raise ValueError("Give either --classes \"cat, dog\" for zero-shot or --classifier FILE "
                         "for a fitted classifier.")
    files = gathered(images)
    if classifier:
        fitted = load_classifier(classifier)
        model = load_backbone(fitted.origin["backbone"], tag or fitted.origin["weights_tag"] or None)
    else:
        model = load_backbone(backbone, tag)
        wanted = tuple(names_listed(classes))
        if not wanted:
            raise ValueError(f"--classes '{classes}' holds no name; write for example --classes "
                             "\"cat, dog\".")
        sentences = read_descriptions(descriptions, wanted) if descriptions else None
        fitted = zero_shot(classifier_weights(model, wanted, template, descriptions=sentences),
                           wanted, model)
    about = f"(features: {features_of(model.name)}; {fitted.method.label}{switched_on(fitted)})"
    if out:
        table(out, predict_files, fitted, model, files, out, top=top, batch=batch, workers=workers,
              skip_unreadable=skip_unreadable, force=force)
        console.print(about, style="dim", highlight=False)
        return
    unreadable = []
    for found in answers(fitted, model, files, top, batch=batch, workers=workers):
        for file, answer in found:
            if isinstance(answer, str):
                unreadable.append(answer)
            else:
                show(file, answer)
    console.print(about, style="dim", highlight=False)
    if unreadable and not skip_unreadable:
        raise OSError(unreadable[0] if len(unreadable) == 1 else
                      f"{len(unreadable)} of {len(files)} pictures could not be read, the others "
                      f"are named above: {'; '.join(why.rstrip('.') for why in unreadable[:5])}.")
    told(*(f"Left out: {why}" for why in unreadable))


def show(file: Path, answer: Prediction) -> None:
    """One picture's answer, as lines."""
    console.print(str(file), style="bold", markup=False, highlight=False, soft_wrap=True)
    if answer.rejected:
        console.print("  none of these; nearest:", highlight=False)
    for name, probability in answer:
        console.print(f"  {100 * probability:5.1f} %  {name}", markup=False, highlight=False)
    if answer.names is not None:
        told(f"  set: {', '.join(answer.names) or 'empty, as no class is likely enough'}")


def switched_on(fitted) -> str:
    """What was calibrated, in words: it changes what is shown."""
    found, said = fitted.calibration, []
    if found is None:
        return ""
    if found.scaling != "none":
        said.append("probabilities scaled by temperature" if found.scaling == "temperature"
                    else "probabilities scaled by SaLS")
    if found.threshold is not None:
        said.append(f"none of these is on, for at most {100 * found.false_reject:g} % of pictures of "
                    "the classes")
    if found.coverage is not None:
        said.append(f"sets hold the true class in {100 * found.coverage:g} % at least")
    return "; " + "; ".join(said) if said else ""


def table(out: Path, write, *given, **options) -> None:
    """Write a table of predictions, and say what came of it."""
    try:
        path, many, unreadable = write(*given, **options)
    except KeyboardInterrupt:
        told(f"\nStopped. What is finished is kept in {out}.part: the same command goes on from there.")
        raise typer.Exit(130) from None
    told(*(f"Left out: {why}" for why in unreadable), f"Wrote {path}: {count(many, 'picture')}.")


@app.command()
def export(
    classifier: Annotated[Path, typer.Argument(help="A file from `fit`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the program goes, as .pt2.")],
    head_only: Annotated[bool, typer.Option("--head-only", help="Features in, without the image "
                                                                "tower.")] = False,
    tag: Annotated[str | None, typer.Option(help="Where a checkpoint of the backbone lies now.")] = None,
):
    """Export a classifier as one file that runs with torch alone (torch.export), checked to give the
    same outputs.

    Example: `clip-adapter-lite export photo.safetensors --out photo.pt2`
    """
    from ..backbones import load_backbone
    from ..exporting import MOST, export_classifier
    fitted = load_classifier(classifier)
    model = None
    if not head_only:
        model = load_backbone(fitted.origin["backbone"], tag or fitted.origin["weights_tag"] or None)
    with console.status("Tracing and checking"):
        found = export_classifier(fitted, out, model)
    what = f"features [N, {fitted.head.width}]" if head_only else "preprocessed pictures (as " \
        "about.json in the file says)"
    told(f"Wrote {found.path}; loaded again, its outputs differ by {found.difference:.1g} of the "
         f"greatest at most. It takes 1 to {MOST} {what}:",
         f"  logits, probabilities = torch.export.load({quote(str(found.path))!r}).module()(x)")
