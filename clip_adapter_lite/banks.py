"""Feature banks and the few-shot episodes drawn from them.

A bank holds what a frozen backbone made of a dataset, once: image features per split, one text feature per class, and
where all of it came from. An episode is one few-shot problem: what a method may see (support, validation) and what it
is judged on (test). Features are stored un-normalised in half precision; normalising is the method's business.
"""
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

BUNDLED = Path(__file__).parent / "bundled"
SPLITS = ("train", "val", "test")
NAMED = ("dataset", "backbone", "classnames", "templates", "logit_scale", "hash")  # what a file says beside `meta`


class BankError(ValueError):
    """A bank, split or episode that cannot be right; the message says what, what was expected and what to do."""


def cache_folder() -> Path:
    """Where built and pulled banks live: $CLIP_ADAPTER_LITE_CACHE, else ~/.cache/clip-adapter-lite."""
    return Path(os.environ.get("CLIP_ADAPTER_LITE_CACHE", "~/.cache/clip-adapter-lite")).expanduser()


@dataclass(frozen=True, eq=False)
class Split:
    """Image features and their labels.

    features: [N, D] float, un-normalised; or [V, N, D] with V augmented views of each image.
    labels: [N] integers, the index of each image's class.
    """
    features: Tensor
    labels: Tensor

    def __post_init__(self):
        features, labels = torch.as_tensor(self.features), torch.as_tensor(self.labels)
        if features.ndim not in (2, 3) or not features.is_floating_point():
            raise BankError(f"A split's features must be floating point of shape [N, D] or [V, N, D]; "
                            f"got {features.dtype} of shape {list(features.shape)}.")
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) != features.shape[-2]:
            raise BankError(f"A split's labels must be {features.shape[-2]} integers, one for each image; "
                            f"got {labels.dtype} of shape {list(labels.shape)}.")
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """How many views there are of each image."""
        return 1 if self.features.ndim == 2 else len(self.features)

    def view(self, step: int = 0) -> Tensor:
        """The features [N, D] of view `step` modulo V: a fresh view each training step, view 0 for judging."""
        return self.features if self.features.ndim == 2 else self.features[step % len(self.features)]

    def take(self, rows: Tensor) -> "Split":
        """The images at `rows`, in that order, with all their views."""
        return Split(self.features[..., rows, :], self.labels[rows])

    def to(self, *args) -> "Split":
        """The split with its features on another device or in another dtype (arguments of `Tensor.to`)."""
        features = self.features.to(*args)
        return Split(features, self.labels.to(features.device))

    def check(self, name: str, width: int, classes: int) -> None:
        """Raise BankError unless features are [.., width], finite and non-zero, and labels are in 0 … classes - 1."""
        if self.features.shape[-1] != width:
            raise BankError(f"{name}: features have {self.features.shape[-1]} dimensions but the classifier weights "
                            f"have {width}; both must come from the same backbone.")
        wrong = ~torch.isfinite(self.features).all(-1)
        if wrong.any():
            raise BankError(f"{name}: {int(wrong.sum())} feature rows hold NaN or infinity, the first at index "
                            f"{wrong.nonzero()[0].tolist()}; build the bank again or drop those images.")
        empty = ~self.features.any(-1)
        if empty.any():
            raise BankError(f"{name}: {int(empty.sum())} feature rows are all zero and so have no direction, the first at "
                            f"index {empty.nonzero()[0].tolist()}; build the bank again or drop those images.")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes:
            raise BankError(f"{name}: labels run from {int(self.labels.min())} to {int(self.labels.max())} but there "
                            f"are {classes} classes, so they must lie in 0 … {classes - 1}.")


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot problem. Nothing but `support` and `val` may be used for fitting; `test` is for judging, once.

    text_features [C, D] are the classifier weights W; logit_scale is 1/τ of the backbone; `shortfall` counts, per class,
    how many of the min(shots, 4) validation images the bank did not have.
    """
    support: Split
    val: Split
    test: Split
    text_features: Tensor
    classnames: tuple[str, ...]
    logit_scale: float
    templates: tuple[str, ...] = ()
    dataset: str = "arrays"
    backbone_name: str = "unknown"
    backbone_tag: str = ""
    preprocessing: dict = field(default_factory=dict)
    shots: int = 0
    seed: int = 0
    shortfall: tuple[int, ...] = ()

    @cached_property
    def backbone(self):
        """The backbone that made the features, loaded on first use (CoOp needs its text encoder)."""
        from .backbones import shared_backbone
        return shared_backbone(self.backbone_name, self.backbone_tag, self.text_features.device)

    def to(self, *args) -> "Episode":
        """The episode on another device or in another dtype (arguments of `Tensor.to`)."""
        return replace(self, support=self.support.to(*args), val=self.val.to(*args), test=self.test.to(*args),
                       text_features=self.text_features.to(*args))

    def check(self) -> None:
        """Raise BankError if a method could not be fitted to this episode."""
        classes, width = self.text_features.shape
        if not len(self.support):
            raise BankError("The support set is empty; a method needs at least one image of each class.")
        for name in ("support", "val", "test"):
            getattr(self, name).check(f"{self.dataset}, {name}", width, classes)
        missing = sorted(set(range(classes)) - set(self.support.labels.tolist()))
        if missing:
            raise BankError(f"{self.dataset}: the support set has no image of class "
                            f"{', '.join(self.classnames[c] for c in missing[:5])}; each class needs at least one.")


def rank(seed: int, label: int, indices: list[int]) -> list[int]:
    """`indices` in the order of a SHA-256 of (seed, class, index): the same on every machine and version."""
    return sorted(indices, key=lambda i: hashlib.sha256(f"{seed}/{label}/{i}".encode()).digest())


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureBank:
    """Image and text features of one dataset under one backbone, and where they came from.

    text_features [C, D]; splits maps "train", "val" and "test" to `Split`s; tensors are kept in half precision.
    meta: what else is known (protocol, source, licence, preprocessing, weights, versions …), JSON-serialisable.
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
        text = torch.as_tensor(self.text_features)
        if text.ndim != 2 or len(text) != len(self.classnames):
            raise BankError(f"{self.dataset}: text features must be [C, D] with C = {len(self.classnames)} class "
                            f"names; got {list(text.shape)}.")
        if not torch.isfinite(text.half()).all():
            raise BankError(f"{self.dataset}: text features hold NaN or infinity in half precision; encode the class names "
                            "again.")
        if set(self.splits) != set(SPLITS):
            raise BankError(f"{self.dataset}: splits must be exactly {', '.join(SPLITS)} (an empty one has shape "
                            f"[0, D]); got {', '.join(sorted(self.splits))}.")
        if not 0 < self.logit_scale < float("inf"):
            raise BankError(f"{self.dataset}: logit_scale must be positive (CLIP's is 100); got {self.logit_scale}.")
        if taken := set(NAMED) & set(self.meta):
            raise BankError(f"{self.dataset}: meta must not hold {', '.join(sorted(taken))}, which the bank records itself; "
                            "use another key.")
        for name, split in self.splits.items():
            split.check(f"{self.dataset}, {name}", text.shape[1], len(self.classnames))
        object.__setattr__(self, "text_features", text.half())
        object.__setattr__(self, "splits", {name: self.splits[name].to(torch.float16) for name in SPLITS})
        object.__setattr__(self, "classnames", tuple(self.classnames))
        object.__setattr__(self, "templates", tuple(self.templates))
        object.__setattr__(self, "logit_scale", float(self.logit_scale))
        for name in SPLITS:  # half precision overflows at 65 504
            self.splits[name].check(f"{self.dataset}, {name} in half precision", text.shape[1], len(self.classnames))

    def __repr__(self):
        sizes = " / ".join(str(len(self.splits[s])) for s in SPLITS)
        return (f"FeatureBank({self.dataset!r}, backbone={self.backbone!r}: {len(self.classnames)} classes, "
                f"{sizes} train / val / test, D = {self.text_features.shape[1]})")

    # ── episodes ──────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def max_shots(self) -> int:
        """The largest number of shots that every class can give."""
        return min(self._counts("train"))

    def _counts(self, split: str) -> list[int]:
        return torch.bincount(self.splits[split].labels, minlength=len(self.classnames)).tolist()

    def check_shots(self, shots: int) -> None:
        """Raise BankError, naming class and count, if a class has fewer than `shots` training images."""
        if shots < 1:
            raise BankError(f"shots must be at least 1; got {shots} (for none at all use ZeroShot).")
        counts = self._counts("train")
        least = counts.index(min(counts))
        if counts[least] < shots:
            raise BankError(f"{self.dataset}: class '{self.classnames[least]}' has {counts[least]} training images, "
                            f"fewer than the {shots} shots asked for; use shots up to {counts[least]}, or "
                            "allow_fewer=True (--allow-fewer).")

    def episode(self, shots: int, seed: int = 1, *, allow_fewer: bool = False) -> Episode:
        """Draw `shots` training images a class, min(shots, 4) validation images a class, and the whole test split.

        The draw depends on (seed, class, index) alone, and the images of fewer shots are among those of more.
        allow_fewer: take what exists of a class that has too few, instead of raising BankError.
        """
        if shots < 1 or not allow_fewer:
            self.check_shots(shots)
        wanted = min(shots, 4)
        return Episode(
            support=self._draw("train", shots, seed), val=self._draw("val", wanted, seed),
            test=self.splits["test"].to(torch.float32), text_features=self.text_features.float(),
            classnames=self.classnames, logit_scale=self.logit_scale, templates=self.templates, dataset=self.dataset,
            backbone_name=self.backbone, backbone_tag=self.meta.get("weights_tag", ""),
            preprocessing=self.meta.get("preprocessing", {}), shots=shots, seed=seed,
            shortfall=tuple(max(0, wanted - n) for n in self._counts("val")))

    def _draw(self, name: str, per_class: int, seed: int) -> Split:
        split, rows = self.splits[name], [[] for _ in self.classnames]
        for index, label in enumerate(split.labels.tolist()):
            rows[label].append(index)
        chosen = [i for label, indices in enumerate(rows) for i in rank(seed, label, indices)[:per_class]]
        return split.take(torch.tensor(chosen, dtype=torch.long)).to(torch.float32)

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        named = {"text_features": self.text_features}
        for name, split in self.splits.items():
            named |= {f"{name}.features": split.features, f"{name}.labels": split.labels.to(torch.int32)}
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tensors' names, types, shapes and bytes."""
        return tensor_hash(self.tensors())

    def save(self, path: str | Path) -> Path:
        """Write the bank as safetensors with its description as sorted JSON; the same bank gives the same bytes."""
        description = {"dataset": self.dataset, "backbone": self.backbone, "classnames": self.classnames,
                       "templates": self.templates, "logit_scale": self.logit_scale, "hash": self.hash, **self.meta}
        return write_tensors(self.tensors(), path, {"bank": json.dumps(description, sort_keys=True)})

    @classmethod
    def load(cls, name: str | Path, backbone: str = "pocket", *, build: bool = False, **options) -> "FeatureBank":
        """A bank by name (bundled, or in the cache folder) or by path.

        build: if there is none of that name, build it from pictures and keep it in the cache folder; options are those of
        `build_bank`: `FeatureBank.load("dtd", "RN50-quickgelu", build=True, root="/data", download=True)`.
        Raises FileNotFoundError, saying which banks there are and the command that makes this one, if there is none;
        BankError if the file is damaged.
        """
        path = Path(name)
        if options and not build:
            raise ValueError(f"{', '.join(options)} {'is' if len(options) == 1 else 'are'} for building a bank; add "
                             "build=True.")
        if path.suffix != ".safetensors":
            path = next((p for p in _places(str(name), backbone) if p.exists()), path)
        if path.is_file():
            return cls._read(path)
        if build and path.suffix != ".safetensors":
            from .building import build_bank  # here, since it stands on this module
            return build_bank(str(name), backbone, out=cache_place(str(name), backbone), **options)
        raise FileNotFoundError(f"No bank '{name}' for backbone '{backbone}' (there: "
                                f"{', '.join(list_banks(backbone)) or 'none'}); {_how_to_get(path, backbone)}.")

    @classmethod
    def _read(cls, path: Path) -> "FeatureBank":
        from safetensors import SafetensorError, safe_open
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["bank"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            keys = {k: about.pop(k) for k in NAMED}
            recorded = keys.pop("hash")
            splits = {s: Split(tensors[f"{s}.features"], tensors[f"{s}.labels"]) for s in SPLITS}
            text = tensors["text_features"]
        except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise BankError(f"{path} is not a complete feature bank ({type(error).__name__}: {error}); fetch or build "
                            "it again.") from error
        if tensor_hash(tensors) != recorded:
            raise BankError(f"{path}: the tensors do not match the recorded hash {recorded[:12]}…, so the file was "
                            "changed or damaged; fetch or build it again.")
        return cls(**keys, text_features=text, splits=splits, meta=about)


def write_tensors(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file under a temporary name and rename it, so that a failure leaves an older file as it was."""
    from safetensors.torch import save_file
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(0o644)  # safetensors leaves 0600, which nobody else could read in a shared folder
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the tensors in name order: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _places(name: str, backbone: str) -> list[Path]:
    cached = cache_folder() / "banks" / backbone / f"{name}.safetensors"
    return [BUNDLED / "banks" / f"{name}.safetensors", cached] if backbone == "pocket" else [cached]


def cache_place(name: str, backbone: str) -> Path:
    """Where a built or pulled bank goes so that `FeatureBank.load(name, backbone)` finds it.

    Raises BankError for a name that is no file's name, or that a bundled bank has.
    """
    *bundled, place = _places(name, backbone)
    for what in (name, backbone):
        if what in ("", ".", "..") or "/" in what or "\\" in what:
            raise BankError(f"'{what}' cannot be part of a file's name, as a bank's name and backbone must; give another "
                            "name with --name (name=…), or a file with --out.")
    if any(p.exists() for p in bundled):
        raise BankError(f"'{name}' is the name of a bundled bank, which comes first for backbone '{backbone}'; give another "
                        "name with --name (name=…), or a file with --out.")
    return place


def _how_to_get(path: Path, backbone: str) -> str:
    """What to do about a bank that is not there, as the end of a sentence."""
    from . import datasets  # here, since it stands on this module
    named, name = path.suffix != ".safetensors", path.stem
    build = f"`clip-adapter-lite build --backbone {quote(backbone)}"
    pull = f"`clip-adapter-lite pull SOURCE --name {quote(name)}`"
    if named and name in datasets.names():
        return (f"build it with {build} --dataset {name} --root DIR`, where DIR is the folder that holds the datasets "
                f"(--download fetches what can be), or fetch it with {pull}")
    place = quote(str(_places(name, backbone)[-1] if named else path))
    return (f"give another name, the path of a .safetensors bank, fetch one with {pull}, or build one of your own pictures "
            f"with {build} --dataset folder --root DIR --out {place}`")


def list_banks(backbone: str = "pocket") -> list[str]:
    """Names of the banks that `FeatureBank.load` finds for this backbone, the bundled ones first."""
    folders = [place.parent for place in _places("any", backbone)]
    return list(dict.fromkeys(p.stem for folder in folders for p in sorted(folder.glob("*.safetensors"))))
