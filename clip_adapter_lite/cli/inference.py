"""Commands for one classifier: fit it, and ask it about pictures."""
import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from ..banks import FeatureBank
from ..encoding import open_image
from ..files import located
from ..inference import load_classifier, may_save_classifier, save_classifier, zero_shot
from ..inference import predict as use
from ..methods import METHODS, method_named
from ..methods.labels import names_listed
from .app import AllowFewer, app, console, told


@app.command()
def fit(
    bank: Annotated[str, typer.Option(help="Name or path of a bank.")],
    out: Annotated[Path, typer.Option(help="Where the classifier goes, as .safetensors.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}; settings in brackets: "
                                            "\"clip-adapter(alpha=0.2)\".")] = "clip-adapter",
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Which few-shot draw.")] = 1,
    backbone: Annotated[str, typer.Option(help="Whose bank to load.")] = "pocket",
    allow_fewer: AllowFewer = False,
):
    """Fit one method to one bank and keep the classifier, for `predict`.

    Example: `clip-adapter-lite fit --bank pacs-photo --method clip-adapter --shots 16 --out
        photo.safetensors`
    """
    from ..naming import count, features_of
    loaded = FeatureBank.load(bank, backbone)
    episode, chosen = loaded.episode(shots, seed, allow_fewer=allow_fewer), method_named(method)
    may_save_classifier(out)  # a fit that cannot be kept is lost
    fitted = chosen.fit(episode)
    saved = save_classifier(fitted, out)  # before anything is measured or printed, which can fail
    source = fitted.details.get("ratio_from")  # of a learned ratio
    facts = [f"{name} = {ratio:.2f}{f' (from {source})' if source else ''}"
             for name, ratio in (("α", fitted.alpha), ("β", fitted.beta)) if ratio is not None]
    if fitted.val_accuracy is not None:
        facts.append(f"validation accuracy {100 * fitted.val_accuracy:.1f} %")
    facts.append(f"test accuracy {100 * fitted.accuracy(episode.test):.1f} % on "
                 f"{len(episode.test)} images"
                 if len(episode.test) else "test accuracy not measured, as the bank has no test images")
    told(f"{fitted.method.label} on {loaded.dataset}, {count(shots, 'shot')}, seed {seed}: "
         f"{', '.join(facts)} (features: {features_of(loaded.backbone)}).",
         f"Wrote {saved}; use it with "
         f"`clip-adapter-lite predict IMAGES… --classifier {quote(str(saved))}`.")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)],
    classes: Annotated[str, typer.Option(help="Zero-shot class names, with commas: \"cat, dog\"; a "
                                              "name that holds "
                                           "one stands in quotes.")] = "",
    classifier: Annotated[Path | None, typer.Option(help="A file from `fit`, instead of "
                                                         "--classes.")] = None,
    template: Annotated[list[str], typer.Option(help="Prompt(s) with {} for the class name, for "
                                                     "--classes.")] =
        ("a photo of a {}.",),
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 5,
    backbone: Annotated[str, typer.Option(help="Which CLIP, with --classes: pocket, or an "
                                               "open_clip name.")] = "pocket",
    tag: Annotated[str | None, typer.Option(help="The backbone's weights: open_clip's tag, or a "
                                                 "checkpoint's path; with --classifier, where "
                                                 "the checkpoint lies now.")] = None,
):
    """Name what is in pictures, zero-shot from class names or with a fitted classifier.

    Example: `clip-adapter-lite predict cat.jpg --classes "cat, dog, bird"`
    """
    from ..backbones import classifier_weights, load_backbone
    from ..naming import features_of
    if bool(classes) == bool(classifier):
        raise ValueError("Give either --classes \"cat, dog\" for zero-shot or --classifier FILE "
                         "for a fitted classifier.")
    images = [located(image) for image in images]
    if absent := [str(image) for image in images if not os.path.isfile(image)]:
        raise FileNotFoundError(f"No such picture: {', '.join(absent[:5])}; check the path.")
    if classifier:
        fitted = load_classifier(classifier)
        model = load_backbone(fitted.origin["backbone"], tag or fitted.origin["weights_tag"] or None)
    else:
        model = load_backbone(backbone, tag)
        wanted = tuple(names_listed(classes))
        if not wanted:
            raise ValueError(f"--classes '{classes}' holds no name; write for example --classes "
                             "\"cat, dog\".")
        fitted = zero_shot(classifier_weights(model, wanted, template), wanted, model)
    opened, unreadable = [], []
    for image in images:
        try:
            opened.append((image, open_image(image)))
        except OSError as error:
            unreadable.append(str(error))
    answers = use(fitted, model, [picture for _, picture in opened], top) if opened else ()
    for (image, _), found in zip(opened, answers):
        console.print(str(image), style="bold", markup=False, highlight=False, soft_wrap=True)
        for name, probability in found:
            console.print(f"  {100 * probability:5.1f} %  {name}", markup=False, highlight=False)
    console.print(f"(features: {features_of(model.name)}; {fitted.method.label})", style="dim",
                  highlight=False)
    if unreadable:
        raise OSError(unreadable[0] if len(unreadable) == 1 else
                      f"{len(unreadable)} of {len(images)} pictures could not be read, the others "
                      f"are named above: {'; '.join(why.rstrip('.') for why in unreadable[:5])}.")
