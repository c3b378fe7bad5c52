"""The paper's numbers beside ours: one protocol over whatever banks there are, and one table of both.

The numbers that the authors or others published are data (`paper.json`, with where each is from); ours come from
`compare`'s engine. Nothing is filled in: what has no bank or no run is "not measured".
"""
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from ..banks import FeatureBank
from ..datasets import TABLE
from ..files import whole
from ..methods import CoOp, Method, ZeroShot, method_named
from ..splits import SPLITS
from ..transfer import shifted
from .compare import summarise
from .engines import check_engine
from .runs import COLUMNS, Results, execute, plan, tidy

AVERAGE = "average of the eleven"
STYLES = {"shortest": "CLIP style (aspect ratio kept, centre crop)", "squash": "CoOp style (both sides squashed)"}
PROTOCOL = ("the bank's own split (CoOp's where it says so, below); fitted on `shots` training images a class, or on what a "
            "class has; α, and whatever else a method selects, chosen on min(shots, 4) validation images a class; the test "
            "split used once; AdamW on all the frozen features at once; CoOp with "
            f"{CoOp.context_length} context vectors")


@cache
def paper() -> dict:
    """The published numbers and their setting, in %: see `paper.json`."""
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


@cache
def settings() -> dict[str, tuple[str, int, int]]:
    """The paper's datasets and shifts: title, classes and test images, from the table of datasets."""
    entries = {name: (TABLE[name], TABLE[name]["title"]) for name in paper()["datasets"]}
    entries |= {f"imagenet-to-{name}": (TABLE[name], f"ImageNet → {TABLE[name]['title']}") for name in paper()["shifts"]}
    return {name: (title, facts["classes"], facts["splits"]["test"]) for name, (facts, title) in entries.items()}


def paper_numbers(backbone: str) -> dict[tuple[str, str, int], tuple[float, str, str]]:
    """(dataset, method, shots) → (accuracy in %, backbone, source): this backbone's number, or else RN50's.

    Zero-shot has 0 shots. Of two published numbers the author's counts.
    """
    found = {}
    for series in sorted(paper()["numbers"], key=lambda series: series["backbone"] != backbone):
        if series["backbone"] in (backbone, paper()["backbone"]):
            for shots, accuracy in series["accuracy"].items():
                key = (series["dataset"], series["method"], int(shots))
                found.setdefault(key, (accuracy, series["backbone"], paper()["sources"][series["source"]]))
    return found


def paper_averages() -> dict[tuple[str, int], tuple[float, str]]:
    """(method, shots) → (mean over the eleven datasets in %, source), of RN50: derived, as the sources say."""
    numbers, sources, found = paper_numbers(paper()["backbone"]), paper()["sources"], {}
    for series in paper()["averages"]:  # of single numbers that are not in the file
        for shots, accuracy in series["accuracy"].items():
            found[series["method"], int(shots)] = accuracy, sources[series["source"]]
    for method, shots in {key[1:] for key in numbers}:
        eleven = [numbers.get((dataset, method, shots), (None,))[0] for dataset in paper()["datasets"]]
        if None not in eleven:
            found[method, shots] = round(fmean(eleven), 2), sources["mean"]
    return found


def banks_in(folder: str | Path) -> list[FeatureBank]:
    """The folder's `*.safetensors`, in name order.

    Raises FileNotFoundError without such a folder, BankError for a file that is not a whole bank.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give the one that holds the banks (*.safetensors).")
    return [FeatureBank.load(path) for path in sorted(folder.glob("*.safetensors"))]


def reproduce(banks: Iterable[FeatureBank], backbone: str = "RN50-quickgelu", *,
              methods: Sequence[str | Method] = ("zero-shot", "clip-adapter"), shots: Sequence[int] = (1, 2, 4, 8, 16),
              seeds: Sequence[int] = (1, 2, 3), out: str | Path = "results/reproduce", resume: bool = False, jobs: int = 1,
              engine: str = "joblib", address: str | None = None, progress: bool = False):
    """Run the protocol over the backbone's banks and set the result beside the paper's numbers: a DataFrame of both.

    A row per number: dataset, backbone, method, shots (0 for zero-shot, which is run once), paper (accuracy in %),
    paper_backbone, source, ours (mean in %), std (over seeds), seeds, difference (ours - paper, in points; only where
    features and classes are the paper's), remarks. With banks of ImageNet and of its V2 or Sketch, their shift too.

    out: a folder that gets reproduce.md, reproduce.csv and the engine's runs.csv and runs.json, to which resume=True adds.
    jobs, engine, address: as for `compare`.
    Raises ValueError or BankError, before any work, for what cannot be run; a bank that lacks images of a class, or
    validation images, is not run, and its remarks say so.
    """
    import pandas
    check_engine(engine, jobs, address)
    banks, out = [bank for bank in banks if bank.backbone == backbone], Path(out)
    unfit = {bank.dataset: why for bank in banks if (why := _unfit_reason(bank))}
    fit = [bank for bank in banks if bank.dataset not in unfit]
    methods = [method_named(method) if isinstance(method, str) else method for method in methods]
    zero = [method for method in methods if isinstance(method, ZeroShot)]  # sees no shots and has no chance in it
    others = [method for method in methods if method not in zero]
    shifts = _shifts(fit, banks, unfit)
    runs = []
    if fit and zero:
        runs += plan(fit + shifts, zero, [1], [1], allow_fewer=True)
    if fit and others:
        runs += plan(fit, others, shots, seeds, allow_fewer=True)
        if shifts and 16 in shots:  # the paper's number of shots there
            runs += plan(shifts, others, [16], seeds, allow_fewer=True)
    rows = []
    if runs:
        results = Results(out / "runs.csv", runs, resume)
        execute(runs, results, progress=progress, jobs=jobs, engine=engine, address=address)
        rows = list(results.rows.values())  # with those of earlier, other studies in the file
    table = beside(tidy(pandas.DataFrame(rows, columns=COLUMNS)), fit + shifts, backbone, unfit)
    for name, text in (("reproduce.csv", table.to_csv(index=False)),
                       ("reproduce.md", markdown(table, fit + shifts, backbone, unfit))):
        with whole(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return table


def _unfit_reason(bank: FeatureBank) -> str:
    """Why the protocol cannot be run on this bank; "" if it can."""
    if not bank.max_shots:
        return "a class without training images"
    return next((f"no {name} images" for name in ("val", "test") if not len(bank.splits[name])), "")


def _shifts(fit: Sequence[FeatureBank], banks: Sequence[FeatureBank], unfit: dict[str, str]) -> list[FeatureBank]:
    """ImageNet fitted and a variant judged; a reason why not goes into `unfit`."""
    of, made = {bank.dataset: bank for bank in banks}, []
    for target in paper()["shifts"]:
        if target in of and any(bank.dataset == "imagenet" for bank in fit):
            try:
                made.append(shifted(of["imagenet"], of[target]))
                unfit.pop(target, None)  # it was not to be fitted on
            except ValueError as error:
                unfit[f"imagenet-to-{target}"] = str(error).rstrip(".")
    return made


# ── theirs beside ours ────────────────────────────────────────────────────────────────────────────────────────────


def beside(runs, banks: Sequence[FeatureBank], backbone: str, unfit: Mapping[str, str] | None = None):
    """The table of `reproduce`, from finished runs as `compare` returns them. unfit: why a bank was not run, by dataset."""
    import pandas
    of, theirs, ours = {bank.dataset: bank for bank in banks}, paper_numbers(backbone), _ours(runs, banks, backbone)
    reasons = {**dict.fromkeys(of, "no run"), **(unfit or {})}
    rows = {}
    for dataset, method, shots in {**theirs, **ours}:
        accuracy, its_backbone, source = theirs.get((dataset, method, shots), (None, None, None))
        mean, std, seeds = ours.get((dataset, method, shots), (None, None, 0))
        if seeds:
            remarks, same = _remarks(of[dataset], shots, its_backbone)
        else:
            remarks, same = [f"not measured: {reasons.get(dataset, 'no bank')}"], False
        rows[dataset, method, shots] = {"paper": accuracy, "paper_backbone": its_backbone, "source": source, "ours": mean,
                                        "std": std, "seeds": seeds, "difference": _difference(mean, accuracy, same),
                                        "remarks": "; ".join(remarks), "same": same}
    for method, shots in [*dict.fromkeys(key[1:] for key in rows), *paper_averages()]:
        if average := _average(rows, method, shots):
            rows[AVERAGE, method, shots] = average
    datasets = [*paper()["datasets"], AVERAGE, *settings(), *of]
    methods = list(dict.fromkeys(["zero-shot", "clip-adapter", *(method for _, method, _ in rows)]))
    order = sorted(rows, key=lambda key: (methods.index(key[1]), datasets.index(key[0]), key[2]))
    table = pandas.DataFrame([{"dataset": dataset, "backbone": backbone, "method": method, "shots": shots,
                               **rows[dataset, method, shots]} for dataset, method, shots in order])
    return table.drop(columns="same").astype(dict.fromkeys(("paper", "ours", "std", "difference"), float))


def _ours(runs, banks: Sequence[FeatureBank], backbone: str) -> dict[tuple[str, str, int], tuple[float, float, int]]:
    """(dataset, method, shots) → (mean in %, standard deviation in points, seeds) of the runs on these banks."""
    here = runs[runs.dataset.isin([bank.dataset for bank in banks]) & (runs.backbone == backbone)]
    here = here.assign(shots=here.shots.where(~here.method.str.startswith(ZeroShot.name), 0))
    return {(line.dataset, line.method, int(line.shots)): (round(100 * line.mean, 2), round(100 * line.std, 2), line.count)
            for line in (summarise(here).itertuples() if len(here) else ())}  # there may be no bank of this backbone


def _difference(ours: float | None, theirs: float | None, same: bool) -> float | None:
    return round(ours - theirs, 2) if same and theirs is not None else None


def _remarks(bank: FeatureBank, shots: int, its_backbone: str | None) -> tuple[list[str], bool]:
    """What is not as in the paper's setting; and whether features and classes are, so that a difference says something."""
    if bank.dataset not in settings():
        return ["not one of the paper's datasets"], False
    _, their_classes, their_images = settings()[bank.dataset]
    classes, images, tag = len(bank.classnames), len(bank.splits["test"]), bank.meta.get("weights_tag")
    remarks, published = [], its_backbone or paper()["backbone"]
    if bank.backbone != published:
        remarks.append(f"other features: {bank.backbone}, the paper's are of {published}")
    elif tag and tag != paper()["weights"]:
        remarks.append(f"other features: weights '{tag}', the paper's are OpenAI's")
    if classes != their_classes:
        remarks.append(f"{classes} classes, the paper's {their_classes}")
    same = not remarks
    if not tag:
        remarks.append("weights not recorded")
    if images != their_images:
        remarks.append(f"{images} test images, the paper's {their_images}")
    if (found := style(bank)) != STYLES[paper()["resize_mode"]]:
        remarks.append(f"preprocessing: {found}")
    counts = torch.bincount(bank.splits["train"].labels, minlength=classes)
    if short := int((counts < shots).sum()):
        remarks.append(f"{short} classes have fewer than {shots} training images")
    return remarks, same


def style(bank: FeatureBank) -> str:
    """How the bank's pictures were brought to size, in the paper's words."""
    mode = bank.meta.get("preprocessing", {}).get("resize_mode")
    return STYLES.get(mode, f"resize_mode {mode}" if mode else "not recorded")


def _average(rows: Mapping[tuple, dict], method: str, shots: int) -> dict | None:
    """The mean over the paper's eleven datasets, theirs and ours, each only where all eleven are there."""
    eleven = [rows.get((dataset, method, shots), {}) for dataset in paper()["datasets"]]
    theirs, source = paper_averages().get((method, shots), (None, None))
    measured = all(row.get("seeds") for row in eleven)
    if theirs is None and not measured:
        return None
    ours = round(fmean(row["ours"] for row in eleven), 2) if measured else None
    return {"paper": theirs, "paper_backbone": paper()["backbone"] if theirs else None, "source": source, "ours": ours,
            "std": None, "seeds": min(row["seeds"] for row in eleven) if measured else 0,
            "difference": _difference(ours, theirs, measured and all(row["same"] for row in eleven)),
            "remarks": "derived" if measured else "derived; not measured on all eleven", "same": False}


# ── Markdown ──────────────────────────────────────────────────────────────────────────────────────────────────────


def markdown(table, banks: Sequence[FeatureBank], backbone: str, unfit: Mapping[str, str] | None = None) -> str:
    """The table as a page: a section per method, the two protocols, the banks and the sources."""
    lines = [f"# The paper's numbers beside ours: {backbone}", "",
             "Accuracy in %. A cell holds theirs / ours ± standard deviation over seeds / ours - theirs in points; the "
             "difference stands only where features and classes are the paper's.", "",
             f"- **Theirs:** {paper()['protocol']}.", f"- **Ours:** {PROTOCOL}."]
    if backbone == "pocket":
        lines.append("- The pocket CLIP's image tower is ImageNet-supervised: its numbers say nothing of OpenAI's CLIP.")
    for method, rows in table.groupby("method", sort=False):
        shots = sorted(rows.shots.unique())
        heads = ["dataset", *({0: "no shots", 1: "1 shot"}.get(s, f"{s} shots") for s in shots), "seeds", "remarks"]
        lines += ["", f"## {method}", "", _line(heads), _line(["---"] * len(heads))]
        for dataset, cells in rows.groupby("dataset", sort=False):
            by_shots = {row.shots: cell(row) for row in cells.itertuples()}
            remarks = dict.fromkeys("; ".join(cells.remarks).replace("not measured: no run", "").split("; "))
            seeds = sorted(set(cells.seeds) - {0})
            lines.append(_line([settings().get(dataset, (dataset,))[0], *(by_shots.get(s, "–") for s in shots),
                                ", ".join(map(str, seeds)) or "–", "; ".join(filter(None, remarks))]))
    lines += ["", "## Our banks", ""] + ([] if banks else ["None."])
    for bank in banks:
        sizes = " / ".join(str(len(bank.splits[name])) for name in SPLITS)
        lines.append(f"- **{bank.dataset}**: {len(bank.classnames)} classes, {sizes} train / val / test; "
                     f"split: {bank.meta.get('protocol', 'not recorded')}; preprocessing: {style(bank)}; "
                     f"weights: {bank.meta.get('weights_tag', 'not recorded')}; prompts: "
                     f"{', '.join(f'`{template}`' for template in bank.templates)}; hash {bank.hash[:12]}")
    lines += [f"- {dataset}: not run, {reason}" for dataset, reason in (unfit or {}).items()]
    sources = table.dropna(subset="source").groupby("source", sort=False).method.unique()
    lines += ["", "## Where their numbers are from", ""]
    lines += [f"- {', '.join(methods)}: {source}" for source, methods in sources.items()]
    return "\n".join(lines) + "\n"


def cell(row) -> str:
    """"theirs / ours ± deviation / difference" of a row of the table."""
    import pandas
    there = lambda value: not pandas.isna(value)
    ours = "not measured" if not row.seeds else f"{row.ours:.2f}" + (f" ± {row.std:.2f}" if there(row.std) else "")
    return " / ".join([f"{row.paper:.2f}" if there(row.paper) else "–", ours,
                       *([f"{row.difference:+.2f}"] if there(row.difference) else [])])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


