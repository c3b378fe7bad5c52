"""Small real files in the layouts of the course's public datasets, and a small CLIP whose image tower is built as RN50's."""
import json
from pathlib import Path

import numpy
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from clip_adapter_lite.datasets.course import rows_of
from clip_adapter_lite.datasets.fashion_mnist import EXCERPT

RN = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
      "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}, "quick_gelu": True}
PLACES = {"caltech101": "caltech101/101_ObjectCategories", "dtd10": "dtd/dtd/images", "sun18": "sun397/SUN397",
          "pacs-photo": "pacs/photo", "pacs-art": "pacs/art_painting", "pacs-cartoon": "pacs/cartoon",
          "pacs-sketch": "pacs/sketch", "rsscn7": "rsscn7/RSSCN7-master", "gtsrb": "gtsrb/GTSRB/Training",
          "cifar10": "cifar10", "grocery": "grocery/GroceryStoreDataset-master/dataset"}


def whole_model(folder: Path, seed: int = 0) -> str:
    """Write that CLIP with random weights as open_clip's `local-dir:` reads it; returns its name."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**RN)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": RN, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def published(bank: str, folder: str) -> str:
    """A class folder as the public dataset calls it."""
    if bank == "rsscn7":
        return {"Grass": "a", "Field": "b", "Industry": "c", "RiverLake": "d", "Forest": "e", "Resident": "f",
                "Parking": "g"}[folder] + folder
    if bank == "sun18":
        for room in ("ice_skating_rink", "library", "tennis_court"):
            folder = folder.replace(f"{room}_indoor", f"{room}/indoor")
        return f"{folder[0]}/{folder}"
    if bank == "grocery":
        part, kind = folder.split("/")
        return f"{part}/Fruit/Some/{kind}"
    return folder


def write_files(bank: str, root: Path, train: int = 16, val: int = 4, test: int = 4) -> int:
    """Pictures for the first rows of each class of a bank's splits; returns how many."""
    if bank == "fashion-mnist":
        (root / "fashion-mnist").symlink_to(EXCERPT)
        return 0
    draw, many = numpy.random.default_rng(len(bank)), 0
    for split, most in (("train", train), ("val", val), ("test", test)):
        for folder, stems in rows_of()[bank][split]:
            place = root / PLACES[bank] / published(bank, folder)
            place.mkdir(parents=True, exist_ok=True)
            suffix = ".ppm" if bank == "gtsrb" else ".png" if bank in ("dtd10", "cifar10") else ".jpg"
            hue = 40 * rows_of()[bank]["labels"][folder] % 200
            for stem in stems.split()[:most]:
                pixels = draw.integers(0, 56, (36, 40, 3), dtype=numpy.uint8)
                pixels[:, :, many % 3] += hue
                Image.fromarray(pixels).save(place / f"{stem}{suffix}")
                many += 1
    return many
