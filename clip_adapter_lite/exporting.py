"""A fitted classifier as one file that runs with torch alone, without this package: torch.export's
.pt2 (TorchScript is deprecated).
"""
import copy
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .encoding import preprocessing
from .errors import one_line
from .files import located, may_write, whole
from .inference import style_for
from .methods import Classifier

ABOUT = "about.json"  # in the file, beside the program
MOST = 4096  # pictures at a time that an exported program takes
CLOSE = 1e-4  # of the greatest logit


class Whole(nn.Module):
    """Features [N, D], or with a tower preprocessed pictures [N, 3, H, W] → logits [N, C] and
    probabilities [N, C].
    """

    def __init__(self, classifier: Classifier, tower: nn.Module | None = None):
        super().__init__()
        # the file is for any machine
        self.tower, self.head = tower, copy.deepcopy(classifier.head).cpu()
        self.calibration = classifier.calibration

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x if self.tower is None else self.tower(x)
        logits = self.head(features)
        scaled = logits if self.calibration is None else self.calibration.scaled(logits, features)
        return logits, scaled.softmax(1)


@dataclass(frozen=True)
class Exported:
    """What `export_classifier` wrote: where, and by how much its logits differed from the
    classifier's at most on inputs that it was not made from.
    """
    path: Path
    difference: float


def export_classifier(classifier: Classifier, out: str | Path,
                      backbone: Backbone | None = None) -> Exported:
    """Write the head, and with a backbone the image tower before it, as a torch.export program.

    It takes 1 to 4096 rows, features [N, D] or pictures [N, 3, H, W] that were preprocessed as
    `about.json` in the file says, and gives (logits, probabilities), each [N, C]:

        files = {"about.json": ""}
        program = torch.export.load("photo.pt2", extra_files=files).module()
        logits, probabilities = program(features)

    Before the file gets its name, it is loaded again and compared with the classifier on random
    inputs of other numbers of rows. Raises ValueError for another suffix than .pt2, for a method
    that torch.export cannot trace or that gives other outputs, and for a backbone that is not the
    one fitted on; OSError if the disk does not take it, or something that is no export lies there.
    """
    out = located(out)
    if out.suffix != ".pt2":
        raise ValueError(f"An export is a program of torch.export, a .pt2 file; got {out}, so give "
                         f"--out {out.stem or 'exported'}.pt2 (out=…).")
    may_write(out, _ours, "exported classifier")
    about = {"classnames": classifier.classnames, "method": classifier.method.label,
             "origin": classifier.origin, "input": "features [N, D]", "threshold": None,
             "output": "logits [N, C], probabilities [N, C]"}
    if classifier.calibration is not None:
        about["threshold"] = classifier.calibration.threshold
    tower, shape = None, (classifier.head.width,)
    if backbone is not None:
        style = style_for(classifier, backbone)
        about["preprocessing"] = facts = preprocessing(backbone, style)
        size = facts["size"]
        height, width = (size, size) if isinstance(size, int) else size
        tower, shape = copy.deepcopy(backbone.model.visual).cpu().float(), (3, height, width)
        about["input"] = f"preprocessed pictures [N, 3, {height}, {width}]"
    module = Whole(classifier, tower).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    draw = lambda rows: torch.randn(rows, *shape, generator=generator)
    # kept: the calibration's own tensors are constants of the program
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on how it stores weights
        try:
            program = torch.export.export(module, (draw(2),),
                                          dynamic_shapes=({0: torch.export.Dim("n", min=1, max=MOST)},))
        except Exception as error:  # torch raises many types
            raise ValueError(f"{classifier.method.label} cannot be exported "
                             f"({one_line(error)[:200]}); use the classifier file itself, or "
                             "export a clip-adapter.") from error
        with whole(out) as partial, partial.open("wb") as file:
            torch.export.save(program, file, extra_files={ABOUT: json.dumps(about, default=str)})
            file.flush()
            difference = _difference(partial, module, [draw(1), draw(5)])
    return Exported(out, difference)


def _difference(path: Path, module: Whole, inputs: list[Tensor]) -> float:
    """The greatest difference of the saved program's logits, as a share of the greatest logit.

    Raises ValueError if it is not close.
    """
    with path.open("rb") as file:
        again = torch.export.load(file).module()
    most = 0.0
    for x in inputs:
        right, found = module(x), again(x)
        for a, b in zip(right, found):
            scale = max(1.0, a.abs().max().item())
            most = max(most, (a - b).abs().max().item() / scale)
    if not most <= CLOSE:
        raise ValueError(f"The exported program's outputs differ by {most:.2g} of the greatest, where "
                         f"at most {CLOSE:g} was expected, so nothing was written; report this with "
                         "`clip-adapter-lite info`.")
    return most


def _ours(path: Path) -> bool:
    import zipfile
    if os.path.getsize(path) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(ABOUT) for name in archive.namelist())
    return False
