"""The paper's datasets without CoOp's split file: torchvision says what there is; nothing is
decoded here.

Each reader takes (name, folder, seed), the folder being one of the table's `folders`, and returns
class names, splits, the protocol in words, and whether a list names the pictures (which then may be
missing) or they are what the folders hold. Class names are those of CoOp's code (datasets/*.py
there), so that both ways give the same.
"""
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ..errors import BankError, one_line
from ..splits import SPLITS
from .base import Item, folder_items, hold_out, split_by_hash

Read = tuple[tuple[str, ...], dict[str, list[Item]], str, bool]

# torchvision's class, the folder it looks for, and its parts: the last is test, a "val" among them
# is validation
LISTED = {"oxford_pets": ("OxfordIIITPet", "oxford-iiit-pet", ("trainval", "test")),
          "stanford_cars": ("StanfordCars", "stanford_cars", ("train", "test")),
          "flowers102": ("Flowers102", "flowers-102", ("train", "val", "test")),
          "food101": ("Food101", "food-101", ("train", "test")),
          "fgvc_aircraft": ("FGVCAircraft", "fgvc-aircraft-2013b/data", ("train", "val", "test")),
          "dtd": ("DTD", "dtd/dtd", ("train", "val", "test"))}
DOWNLOADS = {name: kind for name, (kind, _, _) in LISTED.items() if name != "stanford_cars"} | {
    "caltech101": "Caltech101", "eurosat": "EuroSAT", "sun397": "SUN397"}
CALTECH101 = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard",
              "Motorbikes": "motorbike"}
EUROSAT = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest",
           "HerbaceousVegetation": "Herbaceous Vegetation Land", "Highway": "Highway or Road",
           "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
           "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings",
           "River": "River", "SeaLake": "Sea or Lake"}
CLEAN = {"oxford_pets": lambda name: name.lower().replace(" ", "_"),
         # the year first
         "stanford_cars": lambda name: " ".join([name.split(" ")[-1], *name.split(" ")[:-1]]),
         "flowers102": lambda name: name.rstrip("?")}  # "pink-yellow dahlia?"
RULE = "CoOp's 50/20/30 rule, by hash, seed {}"
FIFTH = "a fifth of train for validation by hash, seed {}"


def listed(name: str, folder: Path, seed: int) -> Read:
    """Datasets with official lists of pictures; where none is for validation, a fifth of train is,
    as in CoOp.
    """
    kind, called, parts = LISTED[name]
    with _linked_as(folder, called) as root:
        data = {part: _torchvision(kind, root, split=part) for part in parts}
        items = {part: _items(d, folder, Path(root, called)) for part, d in data.items()}
    # flowers: CoOp's file, which torchvision before 0.22 has no names without
    names = folder / "cat_to_name.json"
    given = [n for _, n in sorted(json.loads(names.read_text()).items(),
                                  key=lambda pair: int(pair[0]))] \
        if names.is_file() else data[parts[0]].classes
    classes = tuple(CLEAN.get(name, str)(c) for c in given)
    if name == "flowers102":  # ten pictures a class each; pooled they give 16 shots
        train, val = hold_out(items["train"] + items["val"], seed)
        protocol = ("official train and val pooled, a fifth of it for validation by hash, seed "
                    f"{seed}; official test")
    elif "val" in parts:
        train, val, protocol = items["train"], items["val"], "official train, val and test"
    else:
        train, val = hold_out(items[parts[0]], seed)
        protocol = f"official train and test, {FIFTH.format(seed)}"
    protocol += ", part 1" if name == "dtd" else ""
    return classes, {"train": train, "val": val, "test": items["test"]}, protocol, True


def foldered(name: str, folder: Path, seed: int) -> Read:
    """Caltech101 and EuroSAT: a folder a class and no official split, so CoOp's rule with our hash."""
    images = folder / "101_ObjectCategories" if name == "caltech101" else folder
    ignored = ("BACKGROUND_Google", "Faces_easy") if name == "caltech101" else ()
    classes = sorted(p.name for p in images.iterdir() if p.is_dir() and p.name not in ignored
                     and p.name[0] != ".")
    named = tuple((CALTECH101 | EUROSAT).get(c, c) for c in classes)
    return named, split_by_hash(folder_items(images, classes), seed=seed), RULE.format(seed), False


def sun397(name: str, folder: Path, seed: int) -> Read:
    """SUN397: the official partition 1 where its lists lie beside the folder, else CoOp's rule over
    all pictures.
    """
    with _linked_as(folder, "SUN397") as root:
        data = _torchvision("SUN397", root)
        # torchvision gives them in the disk's order
        items = sorted(_items(data, folder, Path(root, "SUN397")))
    # "apartment_building/outdoor"
    classes = tuple(" ".join(reversed(c.split("/"))) for c in data.classes)
    lists = [folder.parent / f"{part}_01.txt" for part in ("Training", "Testing")]
    if not all(path.is_file() for path in lists):
        return classes, split_by_hash(items, seed=seed), RULE.format(seed), False
    # "/a/abbey/sun_x.jpg"
    train, test = ([(folder / line[1:], data.class_to_idx[str(PurePosixPath(line[3:]).parent)])
                    for line in path.read_text().split()] for path in lists)
    train, val = hold_out(train, seed)
    splits = {"train": train, "val": val, "test": test}
    return classes, splits, f"official partition 1, {FIFTH.format(seed)}", True


def ucf101(name: str, folder: Path, seed: int) -> Read:
    """UCF101's middle frames, as CoOp extracted and named them, by the official first train and
    test list.
    """
    lists = folder / "ucfTrainTestlist"
    label = {action: int(number) - 1 for number, action in
             (line.split() for line in (lists / "classInd.txt").read_text().splitlines()
              if line.strip())}
    # ApplyLipstick → Apply_Lipstick
    named = {action: "_".join(re.findall("[A-Z][^A-Z]*", action)) for action in label}
    parts = []
    for part in ("trainlist01.txt", "testlist01.txt"):
        clips = [PurePosixPath(line.split()[0]) for line in (lists / part).read_text().splitlines()
                 if line.strip()]
        parts.append([(folder / "UCF-101-midframes" / named[clip.parent.name] / f"{clip.stem}.jpg",
                       label[clip.parent.name])
                      for clip in clips])
    train, val = hold_out(parts[0], seed)
    classes = tuple(named[action] for action in sorted(label, key=label.get))
    splits = dict(zip(SPLITS, (train, val, parts[1])))
    return classes, splits, f"official list 1, {FIFTH.format(seed)}", True


def download(name: str, root: Path) -> None:
    """Let torchvision fetch and unpack a dataset under `root`, in its own layout."""
    _torchvision(DOWNLOADS[name], root, download=True)


def _torchvision(kind: str, root, **options):
    import torchvision
    return getattr(torchvision.datasets, kind)(root, **options)


def _items(data, folder: Path, seen: Path) -> list[Item]:
    """What a torchvision dataset lists, with paths under `folder`, which torchvision saw as `seen`."""
    files = getattr(data, "_image_files", None) or getattr(data, "_images", None)
    pairs = zip(files, data._labels) if files else data._samples
    return [(folder / Path(file).relative_to(seen), int(label)) for file, label in pairs]


@contextmanager
def _linked_as(folder: Path, name: str) -> Iterator[Path]:
    """A root in which torchvision finds `folder` as `name`: its own, or a temporary one with a link
    (CoOp's layout).
    """
    parts = Path(name).parts
    if folder.parts[-len(parts):] == parts:
        yield folder.parents[len(parts) - 1]
        return
    with TemporaryDirectory() as root:
        link = Path(root, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(folder.absolute(), target_is_directory=True)
        except OSError as error:  # Windows allows links to some users only
            raise BankError(f"torchvision reads {folder} as {name}, but no link could be made "
                            f"({one_line(error)}); rename it.") from error
        try:
            yield Path(root)
        except FileNotFoundError as error:  # name what is missing, not the link
            error.filename = str(error.filename).replace(str(link), str(folder))
            raise


READERS = dict.fromkeys(LISTED, listed) | {"caltech101": foldered, "eurosat": foldered,
                                           "sun397": sun397, "ucf101": ucf101}
