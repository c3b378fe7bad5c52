"""Feature banks and the few-shot episodes drawn from them.

A bank holds what a frozen backbone made of a dataset, once: image features per split, one text
feature per class, and where all of it came from. An episode is one few-shot problem: what a method
may see (support, validation) and what it is judged on (test). Features are stored un-normalised in
half precision; normalising is the method's business.
"""
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from . import datasets
from .backbones import Backbone, folder_of, load_backbone, read_descriptions
from .building import build
from .datasets import ImageDataset
from .datasets.course import COURSE
from .episodes import TEXT, Episode, check_text
from .errors import BankError, one_line
from .files import BUNDLED, cache_folder, located, may_write, parsed, tensor_hash, write_tensors
from .splits import SPLITS, Split, drawn, halves
from .values import as_json, as_scale, as_tensor, shown, whole_number

# what a file says beside `meta`
NAMED = ("dataset", "backbone", "classnames", "templates", "logit_scale", "hash")
PICTURES = "pictures"  # and the names of its pictures, where they are known


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureBank:
    """Image and text features of one dataset under one backbone, and where they came from.

    text_features [C, D]; splits maps "train", "val" and "test" to `Split`s; tensors are kept in
    half precision on the CPU, without a graph.
    meta: what else is known (protocol, source, licence, preprocessing, weights, versions …),
        JSON-serialisable.
    Raises BankError on shapes, labels or values that cannot be right.
    """
    dataset: str
    backbone: str
    classnames: tuple[str, ...]
    text_features: Tensor
    logit_scale: float
    splits: dict[str, Split]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "templates", (self.templates,) if isinstance(self.templates, str)
                           else self.templates)
        for name in ("classnames", "templates"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(text, str) for text in given):
                raise BankError(f"{self.dataset}: {name} must be a list of texts; got "
                                f"{type(given).__name__}, so give each as a text of its own.")
            object.__setattr__(self, name, tuple(map(str, given)))
        text = as_tensor(self.text_features, f"{self.dataset}: text features must be numbers of "
                                             "shape [C, D]", TEXT)
        for precision in (text, text.half()):
            check_text(precision, len(self.classnames), self.dataset)
        whole = isinstance(self.splits, Mapping) and all(isinstance(split, Split)
                                                         for split in self.splits.values())
        if not whole:
            raise BankError(f"{self.dataset}: splits must be a dictionary of `Split`s; give "
                            f"Split(features, labels) for {', '.join(SPLITS)}.")
        if set(self.splits) != set(SPLITS):
            raise BankError(f"{self.dataset}: splits must be exactly {', '.join(SPLITS)} (an empty "
                            f"one has shape [0, D]); got {', '.join(sorted(self.splits))}.")
        if taken := {*NAMED, PICTURES} & set(self.meta):
            raise BankError(f"{self.dataset}: meta must not hold {', '.join(sorted(taken))}, which "
                            "the bank records itself; use another key.")
        for name, split in self.splits.items():
            split.check(f"{self.dataset}, {name}", text.shape[1], len(self.classnames))
        object.__setattr__(self, "text_features", text.to("cpu", torch.float16))
        object.__setattr__(self, "splits", {name: self.splits[name].to("cpu", torch.float16)
                                            for name in SPLITS})
        object.__setattr__(self, "logit_scale", as_scale(self.logit_scale, self.dataset))
        for name in SPLITS:  # half precision overflows at 65 504
            self.splits[name].check(f"{self.dataset}, {name} in half precision", text.shape[1],
                                    len(self.classnames))

    def __repr__(self):
        sizes = " / ".join(str(len(self.splits[s])) for s in SPLITS)
        return (f"FeatureBank({self.dataset!r}, {self.backbone!r}: {len(self.classnames)} "
                f"classes, {sizes} train / val / test, D = {self.text_features.shape[1]})")

    # ── episodes ──────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def max_shots(self) -> int:
        """The largest number of shots that every class can give."""
        return min(self._counts("train"))

    def _counts(self, split: str) -> list[int]:
        return torch.bincount(self.splits[split].labels, minlength=len(self.classnames)).tolist()

    def check_shots(self, shots: int) -> None:
        """Raise BankError, naming class and count, if a class has fewer than `shots` training
        images.
        """
        shots = whole_number(shots, "shots")
        if shots < 1:
            raise BankError(f"shots must be at least 1; got {shots} (for none at all use ZeroShot).")
        counts = self._counts("train")
        least = counts.index(min(counts))
        if counts[least] < shots:
            raise BankError(f"{self.dataset}: class '{self.classnames[least]}' has {counts[least]} "
                            f"training images, fewer than the {shots} shots asked for; use shots "
                            f"up to {counts[least]}, or allow_fewer=True (--allow-fewer).")

    def episode(self, shots: int | str, seed: int = 1, *, allow_fewer: bool = False) -> Episode:
        """Draw `shots` training images a class, min(shots, 4) validation images a class, and the
        whole test split.

        The draw depends on (seed, class, index) alone, and the images of fewer shots are among
        those of more.
        shots: "all" takes every training and every validation image, however many a class has; the
        episode's `shots` is then their mean over classes, rounded.
        allow_fewer: take what exists of a class that has too few, instead of raising BankError.
        """
        seed = whole_number(seed, "seed")
        if isinstance(shots, str) and shots != "all":
            raise BankError(f"shots must be a whole number or 'all'; got {shown(shots)}.")
        if shots == "all":
            self.check_shots(1)
            many = {name: max(self._counts(name)) for name in ("train", "val")}
            shots = max(1, round(len(self.splits["train"]) / len(self.classnames)))
            wanted = 0  # so that none falls short
        else:
            shots = whole_number(shots, "shots")
            if shots < 1 or not allow_fewer:
                self.check_shots(shots)
            wanted = min(shots, 4)
            many = {"train": shots, "val": wanted}
        return Episode(
            support=self._draw("train", many["train"], seed), val=self._draw("val", many["val"], seed),
            test=self.splits["test"].to(torch.float32), text_features=self.text_features.float(),
            classnames=self.classnames, logit_scale=self.logit_scale, templates=self.templates,
            dataset=self.dataset,
            backbone_name=self.backbone, backbone_tag=self.meta.get("weights_tag", ""),
            preprocessing=self.meta.get("preprocessing", {}), shots=shots, seed=seed,
            shortfall=tuple(max(0, wanted - n) for n in self._counts("val")))

    def hold_out(self, seed: int = 1) -> tuple["FeatureBank", Split]:
        """The bank with half of its validation images, and the other half, which then nothing
        selects on: what `cal.calibrate` takes.

        Halved class by class, by the hash of (seed, class, index), so both are drawn as the whole
        was; of an odd number the bank keeps one more.
        Raises BankError if no class has two validation images.
        """
        val = self.splits["val"]
        kept, held = (torch.tensor(rows, dtype=torch.long) for rows in
                      halves(val.labels.tolist(), len(self.classnames), whole_number(seed, "seed")))
        if not len(held):
            raise BankError(f"{self.dataset} has {len(val)} validation images and no class with two, "
                            "so none can be held out to calibrate on; add pictures (a folder val, or "
                            "at least 10 a class that are split by rule) and build the bank again.")
        bank = replace(self, splits=self.splits | {"val": val.take(kept)})
        return bank, val.take(held).to(torch.float32)

    def _draw(self, name: str, per_class: int, seed: int) -> Split:
        split = self.splits[name]
        rows = drawn(split.labels.tolist(), len(self.classnames), per_class, seed)
        return split.take(torch.tensor(rows, dtype=torch.long)).to(torch.float32)

    # ── files ─────────────────────────────────────────────────────────────────────────────────────

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        named = {"text_features": self.text_features}
        for name, split in self.splits.items():
            named |= {f"{name}.features": split.features,
                      f"{name}.labels": split.labels.to(torch.int32)}
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tensors' names, types, shapes and bytes."""
        return tensor_hash(self.tensors())

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the bank as safetensors with its description as sorted JSON; the same bank gives
        the same bytes.

        Raises OSError if the disk does not take it, or if a file that is no bank lies there, unless
        with `force`.
        """
        description = {"dataset": self.dataset, "backbone": self.backbone,
                       "classnames": self.classnames, "templates": self.templates,
                       "logit_scale": self.logit_scale, "hash": self.hash, **self.meta}
        if pictures := {name: split.names for name, split in self.splits.items() if split.names}:
            description[PICTURES] = pictures
        return write_tensors(self.tensors(), path,
                             {"bank": json.dumps(description, sort_keys=True, default=as_json)},
                             force=force)

    @classmethod
    def load(cls, name: str | Path, backbone: str = "pocket", *, build: bool = False,
             **options) -> "FeatureBank":
        """A bank by name (bundled, or in the cache folder) or by path.

        build: if there is none of that name, build it from pictures and keep it in the cache
        folder; options are those of `build_bank`: `FeatureBank.load("dtd", "RN50-quickgelu",
        build=True, root="/data", download=True)`.
        Raises FileNotFoundError, saying which banks there are and the command that makes this one,
        if there is none; BankError if the file is damaged.
        """
        path = located(name)
        if options and not build:
            raise ValueError(f"{', '.join(options)} {'is' if len(options) == 1 else 'are'} for "
                             "building a bank; add build=True.")
        if path.suffix != ".safetensors":
            path = next((p for p in _places(str(name), backbone) if os.path.exists(p)), path)
        if os.path.isfile(path):
            return cls._read(path)
        if build and path.suffix != ".safetensors":
            place = cache_place(str(name), backbone, "build it with build_bank(out=FILE)")
            return build_bank(str(name), backbone, out=place, **options)
        raise FileNotFoundError(f"No bank '{name}' for backbone '{backbone}' (there: "
                                f"{', '.join(list_banks(backbone)) or 'none'}); "
                                f"{_how_to_get(str(name), backbone)}.")

    @classmethod
    def _read(cls, path: Path) -> "FeatureBank":
        from safetensors import SafetensorError, safe_open
        changed = ""
        try:
            with safe_open(path, "pt") as file:
                about = parsed((file.metadata() or {})["bank"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            keys = {k: about.pop(k) for k in NAMED}
            recorded = keys.pop("hash")
            called = about.pop(PICTURES, {})
            splits = {s: Split(tensors[f"{s}.features"], tensors[f"{s}.labels"], called.get(s, ()))
                      for s in SPLITS}
            text = tensors["text_features"]
            if tensor_hash(tensors) != recorded:
                changed = (f"{path}: the tensors do not match the recorded hash {recorded[:12]}…, so "
                           "the file was changed or damaged; fetch or build it again.")
                raise BankError(changed)
            return cls(**keys, text_features=text, splits=splits, meta=about)
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise BankError(changed or f"{path} is not a complete feature bank "
                            f"({type(error).__name__}: {one_line(error)}); fetch or build it "
                            "again.") from error


def build_bank(dataset: ImageDataset | str, backbone: str | Backbone = "pocket", *,
               root: str | Path | None = None, download: bool = False, allow_missing: bool = False,
               tag: str | None = None, out: str | Path | None = None, force: bool = False,
               views: int = 1, preprocess: str = "clip",
               templates: str | Sequence[str] | None = None, normalize_each: bool = True,
               descriptions: str | Path | None = None,
               batch: int = 64, workers: int | None = None, skip_unreadable: bool = False,
               seed: int = 1, progress: bool = True) -> FeatureBank:
    """The feature bank of a dataset (an `ImageDataset`, or a name for `load_dataset`) under a
    backbone (loaded, or a name).

    root, download, allow_missing: as `load_dataset` has them, for a name. tag: the weights, for a
        backbone's name.
    out: where the bank is written. Until it is, finished shards are kept beside it, in `OUT.parts`:
        after a kill, a full disk or Ctrl-C the same call goes on and gives the same tensors. force:
        build though `out` is there already, or though the shards are another build's.
    views: of each training picture, [V, N, D]: view 0 is the plain picture, the others are random
        crops, half of them mirrored, that depend on `seed`, the picture's place and the view alone.
        val and test are plain.
    preprocess: "clip" keeps the aspect ratio (the backbone's own way; views show 0.5 to 1 of the
        area, as Tip-Adapter's), "coop" squashes both sides (views show 0.08 to 1, as CoOp's).
        Recorded; `predict` does as the bank did.
    templates: prompts with {} for the class name, or sets of them by name (seven, openai-80); the
        dataset's own by default. Their features are averaged at unit length, or raw with
        normalize_each=False.
    descriptions: a JSON file {"class name": ["a sentence", …]} of sentences to be averaged along
        with the templates; see `classifier_weights`.
    batch: pictures at a time, halved where the memory does not suffice. workers: threads that
        decode; one a core.
    skip_unreadable: leave out pictures that cannot be read; `protocol` says how many.
    Raises OSError, naming all of them, for unreadable pictures, once everything else is finished;
    BankError, ValueError and FileNotFoundError for what cannot be right, before any work.
    """
    if isinstance(dataset, str):
        if root is None:
            raise ValueError(f"To build the bank of {dataset}, root=DIR (--root DIR) must say "
                             "which folder holds the datasets.")
        dataset = datasets.load_dataset(dataset, root, download=download,
                                        allow_missing=allow_missing, seed=seed)
    workers = os.cpu_count() or 1 if workers is None else workers
    batch, workers = whole_number(batch, "batch"), whole_number(workers, "workers")
    if batch < 1 or workers < 1:
        raise ValueError(f"batch and workers must be at least 1; got {batch} and {workers}.")
    if out:
        out = located(out)
        if os.path.isfile(out) and not force:
            raise BankError(f"{out} is there already; load it, give another --out (out=…), or build "
                            "it again with --force (force=True).")
        may_write(out)
    templates = _prompts(templates or dataset.templates)
    described = read_descriptions(descriptions, dataset.classnames) if descriptions else None
    backbone = load_backbone(backbone, tag) if isinstance(backbone, str) else backbone
    fields, shards = build(dataset, backbone, templates, out=out, force=force, views=views,
                           style=preprocess, normalize_each=normalize_each, batch=batch,
                           workers=workers, seed=seed, skip_unreadable=skip_unreadable,
                           progress=progress, descriptions=described)
    bank = FeatureBank(**fields)
    if shards:
        shards.put(lambda: bank.save(out, force=force))
        shards.remove()
    return bank


def _prompts(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The prompts, with the sets among them by name taken apart."""
    given = [templates] if isinstance(templates, str) else templates
    return tuple(one for text in given
                 for one in (datasets.template_set(text) if text in datasets.TEMPLATE_SETS
                             else (text,)))


def _places(name: str, backbone: str) -> list[Path]:
    cached = cache_folder() / "banks" / folder_of(backbone) / f"{name}.safetensors"
    return [BUNDLED / "banks" / f"{name}.safetensors", cached] if backbone == "pocket" else [cached]


def cache_place(name: str, backbone: str, otherwise: str = "give another name") -> Path:
    """Where a built or pulled bank goes so that `FeatureBank.load(name, backbone)` finds it.

    otherwise: what to do about a name for which there is no such place. Raises BankError for one
    that is no file's name, or that a bundled bank has.
    """
    *bundled, place = _places(name, backbone)
    for what in (name, folder_of(backbone)):
        if what in ("", ".", "..") or any(sign in what for sign in "/\\\0"):
            raise BankError(f"{shown(what)} cannot be part of a file's name, as a bank's name and "
                            f"backbone must; {otherwise}.")
    if any(os.path.exists(p) for p in bundled):
        raise BankError(f"'{name}' is the name of a bundled bank, which comes first for backbone "
                        f"'{backbone}'; {otherwise}.")
    return place


def _how_to_get(given: str, backbone: str) -> str:
    """What to do about a bank that is not there, as the end of a sentence."""
    named, name = not given.endswith(".safetensors"), Path(given).name.removesuffix(".safetensors")
    build = f"`clip-adapter-lite build --backbone {quote(backbone)}"
    pull = f"`clip-adapter-lite pull SOURCE --name {quote(name)}`"
    if named and name in COURSE and backbone != "pocket":
        return (f"make the course's banks with `clip-adapter-lite course --backbone {quote(backbone)} "
                f"--root DIR` (this one alone: --only {name}), where DIR is the folder that holds the "
                f"datasets, or gets them, or fetch it with {pull}")
    if named and name in datasets.names():
        return (f"build it with {build} --dataset {name} --root DIR`, where DIR is the folder that "
                f"holds the datasets (--download fetches what can be), or fetch it with {pull}")
    place = quote(str(_places(name, backbone)[-1]) if named else given)
    return (f"give another name, the path of a .safetensors bank, fetch one with {pull}, or build "
            f"one of your own pictures with {build} --dataset folder --root DIR --out {place}`")


def list_banks(backbone: str = "pocket") -> list[str]:
    """Names of the banks that `FeatureBank.load` finds for this backbone, the bundled ones first."""
    folders = [place.parent for place in _places("any", backbone)]
    return list(dict.fromkeys(p.stem for folder in folders
                              for p in sorted(folder.glob("*.safetensors"))))
