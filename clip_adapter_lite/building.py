"""From pictures to a feature bank: decode, preprocess and encode every image once."""
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from .backbones import Backbone, classifier_weights, load_backbone
from .banks import SPLITS, FeatureBank, Split


def open_image(item):
    """The RGB picture of a path, or the PIL image itself. Raises OSError, naming the file, if it cannot be read."""
    from PIL import Image
    if isinstance(item, Image.Image):
        return item.convert("RGB")
    try:
        with Image.open(item) as picture:
            return picture.convert("RGB")
    except Exception as error:  # PIL raises many types for damaged files
        raise OSError(f"{item} is not a readable picture ({error}); replace or remove it.") from error


def encode(backbone: Backbone, items: Sequence, *, batch: int = 64, workers: int = 2, advance=None):
    """Features [N, D] of pictures (paths or PIL images); `advance(n)` is called after each batch of n."""
    if not items:
        return torch.empty(0, backbone.width)
    features = []
    load = lambda item: backbone.preprocess(open_image(item))
    with ThreadPoolExecutor(workers) as pool:
        coming = [pool.submit(load, item) for item in items[:batch]]
        for start in range(batch, len(items) + batch, batch):
            ready = torch.stack([picture.result() for picture in coming])
            coming = [pool.submit(load, item) for item in items[start:start + batch]]  # decoded while the tower works
            features.append(backbone.encode_images(ready).cpu())
            if advance:
                advance(len(ready))
    return torch.cat(features)


def preprocessing(backbone: Backbone) -> dict:
    """What the backbone does to a picture before the image tower: size, resizing, mean and deviation, as JSON has it."""
    import json
    return json.loads(json.dumps(backbone.model.visual.preprocess_cfg, sort_keys=True))


def build_bank(dataset, backbone: str | Backbone = "pocket", *, templates: Sequence[str] | None = None,
               progress: bool = True) -> FeatureBank:
    """The feature bank of an `ImageDataset` under a backbone (a name or a loaded one).

    templates: prompts with {} for the class name; the dataset's own by default.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .compare import versions
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    templates = tuple(templates or dataset.templates)
    splits = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, disable=not progress) as bar:
        for name in SPLITS:
            items = dataset.splits[name]
            task = bar.add_task(f"{dataset.name}, {name}", total=len(items))
            features = encode(backbone, [picture for picture, _ in items], advance=partial(bar.advance, task))
            splits[name] = Split(features, torch.tensor([label for _, label in items], dtype=torch.long))
    return FeatureBank(
        dataset=dataset.name, backbone=backbone.name, classnames=dataset.classnames, templates=templates,
        text_features=classifier_weights(backbone, dataset.classnames, templates).cpu(), logit_scale=backbone.logit_scale,
        splits=splits,
        meta={"weights_tag": backbone.tag, "protocol": dataset.protocol, "source": dataset.source,
              "licence": dataset.licence, "preprocessing": preprocessing(backbone), "versions": versions()})
