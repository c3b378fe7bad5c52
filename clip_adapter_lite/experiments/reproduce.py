"""The paper's numbers beside ours: one protocol over whatever banks there are, and one table of both.

Theirs are data (`paper.py`); ours come from `compare`'s engine. Nothing is filled in: what has no
bank or no run is "not measured". The page is written by `report.py`.
"""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from ..banks import FeatureBank
from ..errors import BankError, one_line
from ..files import begins, located, may_write, whole
from ..methods import Method, ZeroShot, method_named
from ..transfer import shifted
from .compare import summarise
from .engines import check_engine
from .paper import paper, paper_averages, paper_numbers, settings
from .report import RESIZING, TITLE, markdown, style
from .runs import COLUMNS, Results, execute, plan, tidy

AVERAGE = "average of the eleven"


def banks_in(folder: str | Path, damaged: dict[str, str] | None = None) -> list[FeatureBank]:
    """The folder's `*.safetensors`, in name order.

    damaged: gets, by its name, what is wrong with each file that is not a whole bank, which is
        passed over.
    Raises FileNotFoundError without such a folder; without `damaged`, BankError for such a file.
    """
    folder, found = located(folder), []
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give the one that holds the banks "
                                "(*.safetensors).")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found.append(FeatureBank.load(path))
        except (BankError, OSError) as error:
            if damaged is None:
                raise
            damaged[path.stem] = one_line(error)
    return found


def reproduce(banks: Iterable[FeatureBank], backbone: str = "RN50-quickgelu", *,
              methods: Sequence[str | Method] = ("zero-shot", "clip-adapter"),
              shots: Sequence[int] = (1, 2, 4, 8, 16), seeds: Sequence[int] = (1, 2, 3),
              out: str | Path = "results/reproduce", resume: bool = False, jobs: int = 1,
              engine: str = "joblib", address: str | None = None, progress: bool = False,
              damaged: Mapping[str, str] | None = None):
    """Run the protocol over the backbone's banks and set the result beside the paper's numbers: a
    DataFrame of both.

    A row per number: dataset, backbone, method, shots (0 for zero-shot, which is run once), paper
    (accuracy in %), paper_backbone, source, ours (mean in %), std (over seeds), seeds, labelled
    (images a class that ours looked at), difference (ours - paper, in points; only where features
    and classes are the paper's), remarks. With banks
    of ImageNet and of its V2 or Sketch, their shift too.

    out: a folder that gets reproduce.md, reproduce.csv and the engine's runs.csv and runs.json, to
        which resume=True adds.
    jobs, engine, address: as for `compare`. damaged: as `banks_in` fills it; the page tells it.
    Raises ValueError or BankError, before any work, for what cannot be run; a bank that lacks
    images of a class, or validation images that a method needs, is not run, and its remarks say so.
    """
    import pandas
    check_engine(engine, jobs, address)
    banks, out = [bank for bank in banks if bank.backbone == backbone], located(out)
    methods = [method_named(method) if isinstance(method, str) else method for method in methods]
    unfit = {bank.dataset: why for bank in banks if (why := _unfit_reason(bank, methods))}
    fit = [bank for bank in banks if bank.dataset not in unfit]
    starts = {"reproduce.csv": "dataset,backbone,method,shots,paper,", "reproduce.md": TITLE}
    for name, start in starts.items():
        may_write(out / name, lambda there, start=start: begins(there, start), "page or table")
    # sees no shots and has no chance in it
    zero = [method for method in methods if isinstance(method, ZeroShot)]
    others = [method for method in methods if method not in zero]
    shifts = _shifts(fit, banks, unfit)
    unfit = dict(damaged or {}) | unfit
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


def _unfit_reason(bank: FeatureBank, methods: Sequence[Method]) -> str:
    """Why the protocol cannot be run on this bank; "" if it can."""
    if not bank.max_shots:
        return "a class without training images"
    needed = ["test", *("val" for method in methods if method.needs_validation)]
    return next((f"no {name} images" for name in needed if not len(bank.splits[name])), "")


def _shifts(fit: Sequence[FeatureBank], banks: Sequence[FeatureBank],
            unfit: dict[str, str]) -> list[FeatureBank]:
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


# ── theirs beside ours ────────────────────────────────────────────────────────────────────────────


def beside(runs, banks: Sequence[FeatureBank], backbone: str, unfit: Mapping[str, str] | None = None):
    """The table of `reproduce`, from finished runs as `compare` returns them. unfit: why a bank was
    not run, by dataset.
    """
    import pandas
    of = {bank.dataset: bank for bank in banks}
    theirs, ours = paper_numbers(backbone), _ours(runs, banks, backbone)
    reasons = {**dict.fromkeys(of, "no run"), **(unfit or {})}
    rows = {}
    for dataset, method, shots in {**theirs, **ours}:
        accuracy, its_backbone, source = theirs.get((dataset, method, shots), (None, None, None))
        mean, std, seeds, seen = ours.get((dataset, method, shots), (None, None, 0, None))
        if seeds:
            remarks, same = _remarks(of[dataset], shots, its_backbone)
        else:
            remarks, same = [f"not measured: {reasons.get(dataset, 'no bank')}"], False
        rows[dataset, method, shots] = {"paper": accuracy, "paper_backbone": its_backbone,
                                        "source": source, "ours": mean, "std": std, "seeds": seeds,
                                        "labelled": seen,
                                        "difference": _difference(mean, accuracy, same),
                                        "remarks": "; ".join(remarks), "same": same}
    for method, shots in [*dict.fromkeys(key[1:] for key in rows), *paper_averages()]:
        if average := _average(rows, method, shots):
            rows[AVERAGE, method, shots] = average
    datasets = [*paper()["datasets"], AVERAGE, *settings(), *of]
    methods = list(dict.fromkeys(["zero-shot", "clip-adapter", *(method for _, method, _ in rows)]))
    order = sorted(rows, key=lambda key: (methods.index(key[1]), datasets.index(key[0]), key[2]))
    table = pandas.DataFrame([{"dataset": dataset, "backbone": backbone, "method": method,
                               "shots": shots, **rows[dataset, method, shots]} for dataset, method,
                              shots in order])
    numbers = dict.fromkeys(("paper", "ours", "std", "labelled", "difference"), float)
    return table.drop(columns="same").astype(numbers)


def _ours(runs, banks: Sequence[FeatureBank],
          backbone: str) -> dict[tuple[str, str, int], tuple[float, float, int, float]]:
    """(dataset, method, shots) → (mean in %, standard deviation in points, seeds, labelled images a
    class) of the runs on these banks.
    """
    here = runs[runs.dataset.isin([bank.dataset for bank in banks]) & (runs.backbone == backbone)]
    here = here.assign(shots=here.shots.where(~here.method.str.startswith(ZeroShot.name), 0))
    return {(line.dataset, line.method,
             int(line.shots)): (round(100 * line.mean, 2), round(100 * line.std, 2), line.count,
                               getattr(line, "labelled", None))
            # there may be no bank of this backbone
            for line in (summarise(here).itertuples() if len(here) else ())}


def _difference(ours: float | None, theirs: float | None, same: bool) -> float | None:
    return round(ours - theirs, 2) if same and theirs is not None else None


def _remarks(bank: FeatureBank, shots: int, its_backbone: str | None) -> tuple[list[str], bool]:
    """What is not as in the paper's setting; and whether features and classes are, so that a
    difference says something.
    """
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
    if not len(bank.splits["val"]):
        remarks.append("no validation images: shots only")
    if images != their_images:
        remarks.append(f"{images} test images, the paper's {their_images}")
    if (found := style(bank)) != RESIZING[paper()["resize_mode"]]:
        remarks.append(f"preprocessing: {found}")
    counts = torch.bincount(bank.splits["train"].labels, minlength=classes)
    if short := int((counts < shots).sum()):
        remarks.append(f"{short} classes have fewer than {shots} training images")
    return remarks, same


def _average(rows: Mapping[tuple, dict], method: str, shots: int) -> dict | None:
    """The mean over the paper's eleven datasets, theirs and ours, each only where all eleven are
    there.
    """
    eleven = [rows.get((dataset, method, shots), {}) for dataset in paper()["datasets"]]
    theirs, source = paper_averages().get((method, shots), (None, None))
    measured = all(row.get("seeds") for row in eleven)
    if theirs is None and not measured:
        return None
    ours = round(fmean(row["ours"] for row in eleven), 2) if measured else None
    return {"paper": theirs, "paper_backbone": paper()["backbone"] if theirs else None,
            "source": source, "ours": ours, "std": None,
            "seeds": min(row["seeds"] for row in eleven) if measured else 0,
            "labelled": fmean(row["labelled"] for row in eleven) if measured else None,
            "difference": _difference(ours, theirs,
                                      measured and all(row["same"] for row in eleven)),
            "remarks": "derived" if measured else "derived; not measured on all eleven", "same": False}
