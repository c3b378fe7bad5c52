"""The command that sets the paper's numbers beside ours."""
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..files import cache_folder, located
from ..methods.labels import listed
from .app import app, console, numbers, told
from .studies import Address, Engine, Jobs, Resume, stoppable


@app.command()
def reproduce(
    backbone: Annotated[str, typer.Option(help="Whose banks to take. The paper's: RN50-quickgelu; "
                                               "ImageNet at 16 shots also RN101-, ViT-B-32- and "
                                               "ViT-B-16-quickgelu.")] = "RN50-quickgelu",
    banks: Annotated[Path | None, typer.Option(help="The folder of banks (*.safetensors); by "
                                                    "default the cache's.",
                                               show_default=False)] = None,
    methods: Annotated[str, typer.Option(help="With commas. Published for every dataset are these "
                                              "two; for ImageNet also linear-probe and "
                                              "coop.")] = "zero-shot,clip-adapter",
    shots: Annotated[str, typer.Option(help="Training images per class.")] = "1,2,4,8,16",
    seeds: Annotated[str, typer.Option(help="Which few-shot draws.")] = "1,2,3",
    out: Annotated[Path, typer.Option(help="The folder for reproduce.md, reproduce.csv and "
                                           "runs.csv.")] =
        Path("results/reproduce"),
    resume: Resume = False,
    jobs: Jobs = -1,
    engine: Engine = "joblib",
    address: Address = "",
):
    """Set the paper's published numbers beside ours, for whatever banks there are.

    Every bank is run by our protocol: fitted on the few shots, selected on min(shots, 4) validation
    images a class, judged once on the test split. Those named as the paper's datasets (caltech101,
    oxford_pets …) stand beside its numbers, with a difference only where features and classes are
    the paper's; what has no bank or no run is "not measured".

    Example: `clip-adapter-lite reproduce --backbone RN50-quickgelu --banks banks/ --shots 1,16`
    """
    from ..experiments.reproduce import banks_in
    from ..experiments.reproduce import reproduce as run
    from ..naming import features_of
    folder, out = located(banks or cache_folder() / "banks" / backbone), located(out)
    damaged: dict[str, str] = {}
    with console.status("reading banks"):
        found = banks_in(folder, damaged) if banks or folder.is_dir() else []
    told(*(f"Passed over: {why}." for why in damaged.values()))
    with stoppable(out / "runs.csv"):
        table = run(found, backbone, methods=listed(methods), shots=numbers(shots, "--shots"),
                    seeds=numbers(seeds, "--seeds"), out=out, resume=resume, jobs=jobs, engine=engine,
                    address=address or None, progress=True, damaged=damaged)
    measured = table[table.seeds > 0]
    if len(measured):
        console.print(f"Test accuracy in %, mean over seeds; features: {features_of(backbone)}.",
                      highlight=False)
    for method, rows in measured.groupby("method", sort=False):
        console.print(compact(rows, method))
    if measured.difference.notna().any():
        console.print("In brackets: ours minus the paper's, in points, where features and classes "
                      "are the paper's.")
    if measured.empty:
        place = quote(str(folder / "oxford_pets.safetensors"))
        told(f"Nothing was measured: {folder} holds no bank of {backbone} that can be run. Build one "
             "with `clip-adapter-lite build --dataset oxford_pets --root DATA --backbone "
             f"{quote(backbone)} --out {place}`, or fetch one with `clip-adapter-lite pull SOURCE`.")
    absent = list(dict.fromkeys(table.dataset[table.paper.notna()
                                              & ~table.dataset.isin(measured.dataset)]))
    if absent:
        console.print(f"Not measured: {', '.join(absent)}.", highlight=False)
    told(f"\nWrote {out / 'reproduce.md'} (with both protocols and every remark) and "
         f"{out / 'reproduce.csv'}.")


def compact(rows, method: str) -> Table:
    """One method's measured accuracies: a row per dataset, a column per number of shots, the
    difference in brackets; below it how many labelled images a class it looked at.
    """
    shots = sorted(rows.shots.unique())
    seen = [f"{low:.3g}" + (f" to {high:.3g}" if high > low else "") for low, high in
            rows.groupby("shots").labelled.agg(["min", "max"]).itertuples(index=False)]
    table = Table(title=method, title_justify="left", caption_justify="left",
                  caption=f"labelled images a class: {'/'.join(seen)}")
    table.add_column("dataset")
    for s in shots:
        table.add_column({0: "no shots", 1: "1 shot"}.get(s, f"{s} shots"), justify="right",
                         no_wrap=True)
    for dataset, cells in rows.groupby("dataset", sort=False):
        said = {row.shots: f"{row.ours:.1f}" + (f" ({row.difference:+.1f})"
                                                if row.difference == row.difference else "")
                for row in cells.itertuples()}
        table.add_row(escape(dataset), *(said.get(s, "–") for s in shots))
    return table
