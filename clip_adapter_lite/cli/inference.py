"""Commands for one classifier: fit it, and ask it about pictures."""
from pathlib import Path
from typing import Annotated

import typer

from ..banks import FeatureBank
from ..inference import load_classifier, save_classifier, zero_shot
from ..inference import predict as use
from ..methods import METHODS, method_named
from .app import app, console


@app.command()
def fit(
    bank: Annotated[str, typer.Option(help="Name or path of a bank.")],
    out: Annotated[Path, typer.Option(help="Where the classifier goes, as .safetensors.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}; settings in brackets: "
                                            "\"clip-adapter(alpha=0.2)\".")] = "clip-adapter",
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Which few-shot draw.")] = 1,
    backbone: Annotated[str, typer.Option(help="Whose bank to load.")] = "pocket",
):
    """Fit one method to one bank and keep the classifier, for `predict`.

    Example: `clip-adapter-lite fit --bank pacs-photo --method clip-adapter --shots 16 --out photo.safetensors`
    """
    from ..plots import features_of
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
    from ..backbones import classifier_weights, load_backbone
    from ..plots import features_of
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
