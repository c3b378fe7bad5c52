"""Commands about feature banks (list, build, share) and the machine they are on."""
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..banks import FeatureBank, cache_place, list_banks
from ..datasets import names
from ..errors import BankError
from ..splits import SPLITS
from .app import app, console, told


@app.command()
def banks(backbone: Annotated[str, typer.Option(help="Whose banks to list.")] = "pocket"):
    """List the feature banks there are: classes, images, largest shots, split, zero-shot accuracy,
    source.

    Example: `clip-adapter-lite banks`
    """
    from ..methods.base import cosine_logits
    numbers = Table("bank", title=f"Feature banks of backbone '{backbone}'", title_justify="left")
    for title in ("classes", "train / val / test", "shots up to", "zero-shot %"):
        numbers.add_column(title, justify="right")
    origins = Table.grid(padding=(0, 2))
    damaged = []
    for name in list_banks(backbone):
        try:
            bank = FeatureBank.load(name, backbone)
        except (BankError, OSError) as error:  # one does not keep the others from being listed
            damaged.append(str(error))
            continue
        test = bank.splits["test"]  # no episode: a bank of ImageNet's variants has no training images
        right = cosine_logits(test.view().float(), bank.text_features.float(),
                              bank.logit_scale).argmax(1) == test.labels
        numbers.add_row(escape(name), str(len(bank.classnames)),
                        " / ".join(str(len(bank.splits[s])) for s in SPLITS), str(bank.max_shots),
                        f"{100 * right.double().mean():.1f}" if len(test) else "–")
        origins.add_row(escape(name), escape(f"{bank.meta.get('source', 'unknown source')}. "
                                             f"{bank.meta.get('protocol', '')}."))
    console.print(numbers, "Where they come from, and how they were split:", origins)
    told(*damaged)
    if backbone == "pocket":
        console.print("\nThe pocket CLIP's image tower is ImageNet-supervised: no number here says "
                      "anything of OpenAI's CLIP.")


@app.command()
def build(
    dataset: Annotated[str, typer.Option(help=f"One of {', '.join(names())} (your own pictures).")],
    root: Annotated[Path, typer.Option(help="The folder that holds the datasets, as CoOp's; for "
                                            "`folder` your own.")],
    backbone: Annotated[str, typer.Option(help="pocket, or an open_clip name such as "
                                               "ViT-B-16-quickgelu.")] = "pocket",
    tag: Annotated[str | None, typer.Option(help="The backbone's weights: open_clip's tag, or a "
                                                 "checkpoint's path.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bank's file; by default where `--bank NAME` "
                                                  "finds it.")] = None,
    views: Annotated[int, typer.Option(help="Of each training picture: the plain one, and random "
                                            "crops.")] = 1,
    preprocess: Annotated[str, typer.Option(help="clip keeps the aspect ratio, coop squashes both "
                                                 "sides.")] = "clip",
    template: Annotated[list[str] | None, typer.Option(
        help="Prompt(s) with {} for the class name, or a set: seven, openai-80.",
        show_default="the dataset's")] = None,
    descriptions: Annotated[Path | None, typer.Option(
        help="A JSON of sentences, {\"class name\": [\"a sentence\", …]}, averaged along with the "
             "prompts.")] = None,
    raw_average: Annotated[bool, typer.Option("--raw-average",
                                              help="Average prompts without unit length.")] = False,
    download: Annotated[bool, typer.Option("--download",
                                           help="Fetch the dataset if it is not there.")] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing",
                                                help="Leave out missing pictures.")] = False,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable",
                                                  help="Leave out damaged pictures.")] = False,
    cap_train: Annotated[int | None, typer.Option(help="At most so many training pictures a class.",
                                                  min=1)] = None,
    cap_val: Annotated[int | None, typer.Option(help="At most so many validation pictures a class.",
                                                min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of splits that the dataset does not give, and of "
                                           "views.")] = 1,
    batch: Annotated[int, typer.Option(help="Pictures at a time; halved if memory does not "
                                            "suffice.")] = 64,
    workers: Annotated[int | None, typer.Option(help="Threads that decode.",
                                                show_default="one a core")] = None,
    force: Annotated[bool, typer.Option("--force",
                                        help="Replace a bank, or another build's unfinished "
                                             "one.")] = False,
):
    """Build a feature bank: every picture of a dataset through the backbone, once.

    Goes on where it stopped: after Ctrl-C, a kill or a full disk give the same command again.

    Example: `clip-adapter-lite build --dataset dtd --root /data --download --backbone
        RN50-quickgelu --views 10`
    """
    from ..banks import build_bank
    from ..datasets import load_dataset
    loaded = load_dataset(dataset, root, download=download, allow_missing=allow_missing, seed=seed)
    caps = {name: most for name, most in (("train", cap_train), ("val", cap_val)) if most}
    loaded = loaded.cap(**caps) if caps else loaded
    called, out = loaded.name if out is None else out, out or cache_place(
        loaded.name, backbone, "give the bank's file with --out")
    try:
        bank = build_bank(loaded, backbone, tag=tag, out=out, force=force, views=views,
                          preprocess=preprocess, templates=template, normalize_each=not raw_average,
                          descriptions=descriptions, batch=batch, workers=workers,
                          skip_unreadable=skip_unreadable, seed=seed)
    except KeyboardInterrupt:
        told(f"\nStopped. What is finished is kept in {out}.parts: the same command goes on from "
             "there.")
        raise typer.Exit(130) from None
    told(f"Wrote {out}: {bank}; {bank.meta['protocol']}.",
         f"Use it with --bank {quote(str(called))} --backbone {quote(bank.backbone)}.")


@app.command()
def course(
    backbone: Annotated[str | None, typer.Option(help="An open_clip name such as RN50-quickgelu.",
                                                 show_default=False)] = None,
    root: Annotated[Path | None, typer.Option(help="The folder that holds the datasets, or gets them.",
                                              show_default=False)] = None,
    tag: Annotated[str | None, typer.Option(help="The backbone's weights: open_clip's tag, or a "
                                                 "checkpoint's path.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Just this bank; may be repeated.",
                                                   show_default="all twelve")] = None,
    download: Annotated[bool, typer.Option("--download/--no-download",
                                           help="Fetch what is not in the folder.")] = True,
    sources: Annotated[bool, typer.Option("--sources", help="Only say where each comes from: size, "
                                                            "licence, hash, and how "
                                                            "that is known.")] = False,
    batch: Annotated[int, typer.Option(help="Pictures at a time; halved if memory does not "
                                            "suffice.")] = 64,
    workers: Annotated[int | None, typer.Option(help="Threads that decode.",
                                                show_default="one a core")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there.")] = False,
):
    """Make the banks that the course's notebooks load, with another backbone.

    Fetches what can be had, keeps every finished bank, goes on where it stopped, and says at the
    end what is missing and which notebooks wait for it. The rows are those of the bundled banks.

    Example: `clip-adapter-lite course --backbone RN50-quickgelu --root data`
    """
    from ..course import course_banks
    if sources:
        from ..datasets.course import SOURCES
        for source in SOURCES.values():
            told(f"{source['title']} ({', '.join(source['banks'])}): {source['size']}; "
                 f"{source['source']}; licence: {source['licence']}; SHA-256: {source['sha256']}; "
                 f"how that is known: {source['checked']}")
        return
    if backbone is None or root is None:
        raise typer.BadParameter("give --backbone and --root, such as --backbone RN50-quickgelu "
                                 "--root data; or --sources alone.")
    try:
        found = course_banks(backbone, root, tag=tag, only=only or (), download=download, batch=batch,
                             workers=workers, force=force, tell=told)
    except KeyboardInterrupt:
        told("\nStopped. Finished banks and shards are kept: the same command goes on from there.")
        raise typer.Exit(130) from None
    told(str(found))
    if found.lacking:
        raise typer.Exit(1)


@app.command()
def push(
    bank: Annotated[str, typer.Argument(help="Name or path of a bank.", show_default=False)],
    dest: Annotated[str, typer.Argument(help="hf://datasets/OWNER/REPO, a bucket or a folder.",
                                        show_default=False)],
    backbone: Annotated[str, typer.Option(help="Whose bank, for a name.")] = "pocket",
    force: Annotated[bool, typer.Option("--force", help="Replace another bank that is there.")] = False,
):
    """Share a bank: copy it, with its SHA-256 beside it, to where others can pull it.

    Example: `clip-adapter-lite push dtd hf://datasets/me/banks --backbone RN50-quickgelu`
    """
    from ..sharing import push
    url, digest = push(bank, dest, backbone=backbone, force=force)
    told(f"Pushed to {url}; others get it with:",
         f"clip-adapter-lite pull {quote(url)} --sha256 {digest}")


@app.command()
def pull(
    source: Annotated[str | None, typer.Argument(
        help="Address or path of a bank, or a folder with one; or the name of one in a place that "
             "is known.", show_default="all in that place")] = None,
    place: Annotated[str | None, typer.Option("--from", help="The folder, repository or bucket that "
                                                             "holds the banks.",
                                              show_default="$CLIP_ADAPTER_LITE_PLACES")] = None,
    sha256: Annotated[str | None, typer.Option(
        help="What the file must have.", show_default="SOURCE.sha256, if it is there")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the bank.",
                                             show_default="the file's name")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another bank of that name.")] = False,
):
    """Fetch a bank that somebody shared, check it, and keep it where every command finds it by name.

    Example: `clip-adapter-lite pull hf://datasets/me/banks/dtd.safetensors`, or all banks of a place:
        `clip-adapter-lite pull --from hf://datasets/me/banks`
    """
    from ..sharing import pull, pull_shared
    if place or source is None or Path(source).name == source and "." not in source \
            and not Path(source).exists():
        if sha256 or name:
            raise ValueError("--sha256 and --name are of one bank; give its whole address.")
        for got in pull_shared([source] if source else [], source=place, force=force, progress=True):
            told(f"Pulled {FeatureBank.load(got)} to {got}.")
        return
    place = pull(source, name=name, sha256=sha256, force=force, progress=True)
    bank = FeatureBank.load(place)
    told(f"Pulled {bank} to {place}; use it with --bank {quote(place.stem)} --backbone "
         f"{quote(bank.backbone)}.")


@app.command()
def info():
    """Versions, devices, threads and folders: what to send along with a question.

    Example: `clip-adapter-lite info`
    """
    import platform

    import torch

    from ..devices import best_device
    from ..files import BUNDLED, cache_folder, versions
    table = Table(show_header=False)
    try:
        device = str(best_device())
    except RuntimeError as error:  # of a card, which is what somebody will ask about
        device = str(error)
    facts = {"python": platform.python_version(), **versions(), "machine": platform.platform(),
             "device": device, "threads": str(torch.get_num_threads()),
             "bundled banks": str(BUNDLED / "banks"), "cache": str(cache_folder())}
    for fact in facts.items():
        table.add_row(*fact)
    console.print(table)
