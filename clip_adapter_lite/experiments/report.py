"""The table of `reproduce` as a page of Markdown: a section a method, both protocols, the banks and
the sources.
"""
from collections.abc import Iterable, Mapping, Sequence

from ..banks import FeatureBank
from ..methods import CoOp
from ..splits import SPLITS
from .paper import paper, settings

RESIZING = {"shortest": "CLIP style (aspect ratio kept, centre crop)",
            "squash": "CoOp style (both sides squashed)"}
TITLE = "# The paper's numbers beside ours: "
PROTOCOL = ("the bank's own split (CoOp's where it says so, below); fitted on `shots` training "
            "images a class, or on what a class has; α learned, and whatever else a method selects "
            "chosen, on min(shots, 4) validation images a class; the test split used once; AdamW on "
            f"all the frozen features at once; CoOp with {CoOp.context_length} context vectors")


def style(bank: FeatureBank) -> str:
    """How the bank's pictures were brought to size, in the paper's words."""
    mode = bank.meta.get("preprocessing", {}).get("resize_mode")
    return RESIZING.get(mode, f"resize_mode {mode}" if mode else "not recorded")


def markdown(table, banks: Sequence[FeatureBank], backbone: str,
             unfit: Mapping[str, str] | None = None) -> str:
    """The table as a page: a section per method, the two protocols, the banks and the sources."""
    lines = [f"{TITLE}{backbone}", "",
             "Accuracy in %. A cell holds theirs / ours ± standard deviation over seeds / ours - "
             "theirs in points; the difference stands only where features and classes are the "
             "paper's.", "",
             f"- **Theirs:** {paper()['protocol']}.", f"- **Ours:** {PROTOCOL}.",
             "- **labelled**: how many labelled images a class ours looked at, shots and validation, "
             "for each number of shots that was run."]
    if backbone == "pocket":
        lines.append("- The pocket CLIP's image tower is ImageNet-supervised: its numbers say "
                     "nothing of OpenAI's CLIP.")
    for method, rows in table.groupby("method", sort=False):
        shots = sorted(rows.shots.unique())
        heads = ["dataset", *({0: "no shots", 1: "1 shot"}.get(s, f"{s} shots") for s in shots),
                 "labelled", "seeds", "remarks"]
        lines += ["", f"## {method}", "", _line(heads), _line(["---"] * len(heads))]
        for dataset, cells in rows.groupby("dataset", sort=False):
            by_shots = {row.shots: cell(row) for row in cells.itertuples()}
            remarks = "; ".join(cells.remarks).replace("not measured: no run", "")
            remarks = dict.fromkeys(remarks.split("; "))
            seeds = sorted(set(cells.seeds) - {0})
            seen = [f"{row.labelled:.3g}" for row in cells.itertuples() if row.seeds]
            lines.append(_line([settings().get(dataset, (dataset,))[0],
                                *(by_shots.get(s, "–") for s in shots), " / ".join(seen) or "–",
                                ", ".join(map(str, seeds)) or "–", "; ".join(filter(None, remarks))]))
    lines += ["", "## Our banks", ""] + ([] if banks else ["None."])
    for bank in banks:
        sizes = " / ".join(str(len(bank.splits[name])) for name in SPLITS)
        lines.append(f"- **{bank.dataset}**: {len(bank.classnames)} classes, {sizes} train / val / "
                     f"test; split: {bank.meta.get('protocol', 'not recorded')}; preprocessing: "
                     f"{style(bank)}; weights: {bank.meta.get('weights_tag', 'not recorded')}; "
                     f"prompts: {', '.join(f'`{template}`' for template in bank.templates)}; hash "
                     f"{bank.hash[:12]}")
    lines += [f"- {dataset}: not run, {reason}" for dataset, reason in (unfit or {}).items()]
    sources = table.dropna(subset="source").groupby("source", sort=False).method.unique()
    lines += ["", "## Where their numbers are from", ""]
    lines += [f"- {', '.join(methods)}: {source}" for source, methods in sources.items()]
    return "\n".join(lines) + "\n"


def cell(row) -> str:
    """"theirs / ours ± deviation / difference" of a row of the table."""
    import pandas
    there = lambda value: not pandas.isna(value)
    ours = "not measured"
    if row.seeds:
        ours = f"{row.ours:.2f}" + (f" ± {row.std:.2f}" if there(row.std) else "")
    return " / ".join([f"{row.paper:.2f}" if there(row.paper) else "–", ours,
                       *([f"{row.difference:+.2f}"] if there(row.difference) else [])])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
