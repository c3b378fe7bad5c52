"""The command that fits a classifier, and what it says of it."""
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..banks import FeatureBank
from ..calibration import SCALINGS, calibrate, spread
from ..episodes import Episode
from ..files import located
from ..inference import may_save_classifier, save_classifier
from ..methods import METHODS, Classifier, Method, ZeroShot, method_named
from ..opensets import open_set
from ..reports import Report, errors_before_and_after, few, may_save_report, report
from ..splits import Split
from .app import AllowFewer, app, console, told

ROWS = 30  # classes that a terminal shows; the CSV has all
Share = typer.Option(show_default="off")


def shots_given(text: str) -> int | str:
    """A number, or "all". Raises typer.BadParameter for anything else."""
    if text.strip().lower() == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"takes a whole number or all; got '{text}'.") from None


@app.command()
def fit(
    bank: Annotated[str, typer.Option(help="Name or path of a bank.")],
    out: Annotated[Path, typer.Option(help="Where the classifier goes, as .safetensors; the confusion "
                                           "matrix goes beside it, as .confusion.csv and .png.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}; settings in brackets: "
                                            "\"clip-adapter(alpha=0.2)\".")] = "clip-adapter",
    shots: Annotated[str, typer.Option(help="Training images per class; all takes every one, however "
                                            "many a class has.", parser=shots_given,
                                       metavar="INTEGER|all")] = "16",
    seed: Annotated[int, typer.Option(help="Which few-shot draw.")] = 1,
    backbone: Annotated[str, typer.Option(help="Whose bank to load.")] = "pocket",
    allow_fewer: AllowFewer = False,
    scaling: Annotated[str, typer.Option(help="How sure: temperature (on held-out images), sals (to "
                                              "zero-shot's range) or none.")] = "none",
    none_of_these: Annotated[float | None, typer.Option(
        help="Reject pictures of none of the classes, and at most this share of the others, such as "
             "0.05.", show_default="off")] = None,
    coverage: Annotated[float | None, typer.Option(
        help="Prediction sets that hold the true class this often at least, such as 0.9.",
        show_default="off")] = None,
    class_wise: Annotated[bool, typer.Option("--class-wise",
                                             help="With --coverage: in each class, not on "
                                                  "average.")] = False,
    all_pictures: Annotated[bool, typer.Option("--all",
                                               help="Once measured, fit the chosen settings again to "
                                                    "every labelled picture.")] = False,
):
    """Fit one method to one bank and keep the classifier, for `predict`; say where it goes wrong.

    Fitted on --shots training images a class, selected on validation images, judged on test images.
    With --scaling temperature, --none-of-these or --coverage half of the validation images are held
    out: they calibrate, and the other half selects.

    Example: `clip-adapter-lite fit --bank pacs-photo --method clip-adapter --shots 16 --out
        photo.safetensors --none-of-these 0.05`
    """
    from .. import plots
    from ..naming import count, features_of
    if scaling not in SCALINGS:
        raise ValueError(f"--scaling must be one of {', '.join(SCALINGS)}; got '{scaling}'.")
    out, loaded, chosen = located(out), FeatureBank.load(bank, backbone), method_named(method)
    matrix = out.with_suffix(".confusion.csv")
    picture = matrix.with_suffix(".png")
    may_save_classifier(out)  # a fit that cannot be kept is lost
    may_save_report(matrix)
    plots.may_save(picture)
    asked = scaling == "temperature" or none_of_these is not None or coverage is not None
    whole, held_out = loaded, None
    if asked:
        loaded, held_out = whole.hold_out(seed)
    episode = loaded.episode(shots, seed, allow_fewer=allow_fewer)
    zero_shot = ZeroShot().fit(episode)

    def sure(fitted: Classifier) -> Classifier:
        if not asked and scaling == "none":
            return fitted
        return calibrate(fitted, held_out, scaling=scaling, false_reject=none_of_these,
                         coverage=coverage, class_wise=class_wise, zero_shot=zero_shot)

    fitted = sure(chosen.fit(episode))
    saved = save_classifier(fitted, out)  # before anything is measured or printed, which can fail
    drawn = "all shots" if shots == "all" else count(shots, "shot")
    seen = f"{fitted.method.labelled(episode):.3g} labelled images a class"
    told(f"{fitted.method.label} on {loaded.dataset}, {drawn}, seed {seed}, {seen}: "
         f"{', '.join(facts(fitted, episode))} (features: {features_of(loaded.backbone)}).")
    written = [str(saved)]
    if len(episode.test):
        judged, before = report(fitted, episode.test), report(zero_shot, episode.test)
        show(judged, before, fitted.method.label)
        judged.save(matrix)
        written += [str(matrix), str(plots.save(
            plots.confusion(judged, loaded.dataset, loaded.backbone), picture))]
    if fitted.calibration is not None:
        told(*calibrated(fitted, episode.test))
    if none_of_these is not None:
        told(*left_out(whole, chosen, shots, seed, none_of_these, allow_fewer))
    if all_pictures:
        told(*refit(fitted, loaded, episode, sure, out, len(held_out) if asked else 0))
    told(f"Wrote {', '.join(written)}; use it with "
         f"`clip-adapter-lite predict IMAGES… --classifier {quote(str(saved))}`.")


def facts(fitted: Classifier, episode: Episode) -> list[str]:
    """What the fit found, and its accuracies."""
    source = fitted.details.get("ratio_from")  # of a learned ratio
    said = [f"{name} = {ratio:.2f}{f' (from {source})' if source else ''}"
            for name, ratio in (("α", fitted.alpha), ("β", fitted.beta)) if ratio is not None]
    if fitted.val_accuracy is not None:
        said.append(f"validation accuracy {100 * fitted.val_accuracy:.1f} %")
    said.append(f"test accuracy {100 * fitted.accuracy(episode.test):.1f} % on "
                f"{len(episode.test)} images" if len(episode.test) else
                "test accuracy not measured, as the bank has no test images")
    return said


def show(judged: Report, before: Report, label: str) -> None:
    """Zero-shot beside the method, class by class, and the worst confusions with their pictures."""
    classes = judged.classes.assign(before=before.classes["accuracy"])
    classes = classes[classes.images > 0]
    shown = classes
    if len(classes) > ROWS:
        shown = classes.sort_values("accuracy", kind="stable").head(ROWS)
    title = "Test accuracy by class, in %"
    if len(shown) < len(classes):
        title += f" (the lowest {ROWS} of {len(classes)}; the confusion matrix has all)"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in ("images", "zero-shot", label):
        table.add_column(name, justify="right")
    for row in shown.to_dict("records"):
        table.add_row(escape(row["class"]), str(row["images"]), f"{100 * row['before']:.1f}",
                      f"{100 * row['accuracy']:.1f}")
    table.add_section()
    for name, value in (("all images alike", "accuracy"), ("all classes alike", "balanced_accuracy")):
        table.add_row(name, str(judged.images), *(f"{100 * getattr(one, value):.1f}"
                                                  for one in (before, judged)))
    console.print(table)
    worst = judged.worst(5)
    if len(worst):
        told("Confused most often:", *(
            f"  {row['true']} taken for {row['predicted']}: {row['count']} "
            f"({100 * row['share']:.0f} % of the class): {few(row['pictures'])}"
            for row in worst.to_dict("records")))


def calibrated(fitted: Classifier, test: Split) -> list[str]:
    """What was calibrated, on which images, and what that is worth on test images."""
    found, said = fitted.calibration, []
    on = (f" ({found.images} held-out validation images, which selected nothing)"
          if found.images else " (no images needed)")
    if found.scaling != "none":
        how = f"temperature {found.temperature:.2f}" if found.scaling == "temperature" else \
            "SaLS, each image's logits in zero-shot's range"
        line = f"How sure: {how}{on}"
        if len(test):
            before, after = errors_before_and_after(fitted, test)
            line += (f"; expected calibration error on test {100 * before:.1f} % before, "
                     f"{100 * after:.1f} % after")
        said.append(f"{line}.")
    if found.coverage is not None:
        line = (f"Prediction sets: the true class is in {100 * found.coverage:g} % at least"
                f"{', in each class' if found.class_wise else ''}{on}")
        if len(test):
            sets = fitted.prediction_sets(test.view())
            held = sets.gather(1, test.labels[:, None]).double().mean().item()
            line += (f"; on test in {100 * held:.1f} %, with {sets.sum(1).double().mean():.2f} "
                     "classes a set on average")
        if not found.class_wise:
            moves = 100 * spread(1 - found.coverage, found.images)
            line += f" (from one draw of held-out images to another by about ±{moves:.1f} points)"
        said.append(f"{line}.")
    if found.threshold is not None:
        line = (f"None of these is on: highest logits below {found.threshold:.2f} are rejected, for "
                f"at most {100 * found.false_reject:g} % of pictures of the classes{on}")
        if len(test):
            line += f"; on test {100 * fitted.rejected(test.view()).double().mean():.1f} %"
        said.append(f"{line}.")
    return said + [f"Note: {note}" for note in found.notes]


def left_out(bank: FeatureBank, method: Method, shots, seed: int, share: float,
             allow_fewer: bool) -> list[str]:
    """What a threshold rejects of classes that it never saw: from a second fit, without them."""
    try:
        found = open_set(bank, method, shots, seed, false_reject=share, allow_fewer=allow_fewer)
    except ValueError as error:  # too few classes or images; the classifier is kept all the same
        return [f"Left-out classes not measured: {error}"]
    return [f"{found} (a second fit, to measure this alone; left out: {few(list(found.left_out))})."]


def refit(fitted: Classifier, bank: FeatureBank, episode: Episode,
          sure: Callable[[Classifier], Classifier], out: Path, held: int) -> list[str]:
    """Fit again with nothing left to choose to every labelled picture but those that calibrate."""
    parts = [bank.splits[name] for name in ("train", "val", "test")]
    every = Split.joined([part.to(episode.test.features.dtype) for part in parts])
    settled = fitted.method.settled(fitted)
    full = replace(episode, support=every, val=episode.val.take(slice(0)),
                   test=episode.test.take(slice(0)),
                   shots=max(1, round(len(every) / len(episode.classnames))))
    again = sure(settled.fit(full))
    save_classifier(again, out)
    but = f", which are all but the {held} that calibrate" if held else ", which are all"
    return [f"Fitted again, {settled.label}, to {len(every)} labelled pictures (training, validation "
            f"and test){but}: the accuracies above are the estimate, from before; the refit itself "
            "is unmeasured, as no picture is left to judge it on."]
