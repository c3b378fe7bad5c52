"""Fine-tuning instead of adapting: the contrast that the paper draws, which finds it worse and
slower than an adapter.

A part of a tower itself is trained, on the cross-entropy over the classes: the text tower against
cached image features, or the last block of the pocket CLIP's image tower against cached activations
below it. Both are tables as of `training_curve`.
"""
import time
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from .backbones import Backbone, classifier_weights, load_backbone
from .datasets.base import ImageDataset
from .devices import best_device
from .encoding import open_image
from .episodes import Episode
from .errors import BankError
from .methods.base import cosine_logits
from .naming import prompts
from .splits import share_right
from .training import seeded, train

RATES = (1e-4, 1e-3, 1e-2)
Logits = Callable[[Tensor], Tensor]


def finetune_text(episode: Episode, *, steps: int = 60, rates: Iterable[float] = RATES, every: int = 10,
                  device: str | torch.device = "auto"):
    """Train the text tower, token embeddings left as they are, on the support features; a table as
    of `training_curve`.

    Columns step, loss (on the support images), train, val, test (accuracies in [0, 1]): a row for
    step 0, which is zero-shot CLIP, every `every` steps, and the last. Full-batch AdamW with a
    cosine schedule and no weight decay, once for each of `rates`; the one with the highest
    validation accuracy is kept, of equals that with the lower cross-entropy. `.attrs` holds
    backbone, dataset, shots, seed, rate (the kept one), tried ({rate: validation accuracy}),
    parameters (trained ones) and seconds (all rates, without the looking on). The episode and its
    backbone, which is left as it was, are brought to `device`.
    Raises BankError as `fit` does and without validation images, ValueError for steps or every
    below 1 or no rates.
    """
    episode.check()
    episode = episode.to(best_device(device))  # its backbone follows
    rates = _checked_rates(steps, rates, every, len(episode.val), episode.dataset)
    frozen, templates = episode.backbone, episode.templates or ("a photo of a {}.",)
    tokens = frozen.tokens([text for template in templates
                            for text in prompts(episode.classnames, template)])

    def made() -> tuple[list[Tensor], Logits]:
        # half on CUDA
        backbone = replace(frozen, model=deepcopy(frozen.model).float(), dtype=torch.float32)
        tower = backbone.text_tower
        projection = tower.text_projection
        trained = [*tower.transformer.parameters(), *tower.ln_final.parameters(),
                   tower.positional_embedding,
                   *(projection.parameters() if isinstance(projection, torch.nn.Module)
                     else [projection])]

        def logits(features: Tensor) -> Tensor:
            each = normalize(backbone.encode_tokens(backbone.embed(tokens), tokens.argmax(1)), dim=-1)
            return cosine_logits(features, each.unflatten(0, (len(templates), -1)).mean(0),
                                 episode.logit_scale)

        return trained, logits

    splits = [(split.view().float(), split.labels)
              for split in (episode.support, episode.val, episode.test)]
    table = _best_rate(made, splits, steps, rates, every, len(episode.support), episode.seed)
    table.attrs |= {"backbone": episode.backbone_name, "dataset": episode.dataset,
                    "shots": episode.shots, "seed": episode.seed}
    return table


def finetune_visual(dataset: ImageDataset, *, shots: int = 16, seed: int = 1,
                    backbone: str | Backbone = "pocket", steps: int = 60,
                    rates: Iterable[float] = RATES, every: int = 20, batch: int = 32,
                    device: str | torch.device = "auto"):
    """Train the last block of the pocket CLIP's image tower on pictures; a table as of `finetune_text`.

    The support and validation pictures are those of `episode(shots, seed)` of a bank built from the
    dataset. What lies below the block is computed once for each picture, a favour to fine-tuning:
    `encoding_seconds` of `.attrs` says what that took, and `seconds` the training alone, on
    minibatches of `batch`. Batch norms keep their statistics; what follows the block stays frozen.
    The backbone is left as it was.
    device: for a backbone's name. Raises ValueError for another tower or as `finetune_text` does,
    and BankError if a class has too few pictures.
    """
    frozen = load_backbone(backbone, device=device) if isinstance(backbone, str) else backbone
    trunk = getattr(frozen.model.visual, "trunk", None)
    if not hasattr(trunk, "conv_stem"):
        raise ValueError("finetune_visual() knows the image tower of the pocket CLIP, not that of "
                         f"{frozen.name}; give backbone='pocket'.")
    rates = _checked_rates(steps, rates, every, len(dataset.splits["val"]), dataset.name)
    weights = classifier_weights(frozen, dataset.classnames, dataset.templates).to(frozen.device)
    start, splits = time.perf_counter(), []
    whole = deepcopy(frozen.model.visual).float()  # half on CUDA
    for split, wanted in (("train", shots), ("val", min(shots, 4)), ("test", None)):
        items = dataset.draw(split, wanted, seed)
        pixels = [frozen.preprocess(open_image(picture, dataset.plain)) for picture, _ in items]
        maps = activations_below(whole.trunk, pixels, frozen.device)
        splits.append((maps, torch.tensor([label for _, label in items], device=frozen.device)))
    encoding = time.perf_counter() - start

    def made() -> tuple[list[Tensor], Logits]:
        tower = deepcopy(whole)

        def logits(maps: Tensor) -> Tensor:
            parts = [tower.trunk.bn2(tower.trunk.conv_head(tower.trunk.blocks[-1](part)))
                     for part in maps.split(256)]
            features = torch.cat([tower.head(tower.trunk.forward_head(part)) for part in parts])
            return cosine_logits(features, weights, frozen.logit_scale)

        return list(tower.trunk.blocks[-1].parameters()), logits

    table = _best_rate(made, splits, steps, rates, every, batch, seed)
    table.attrs |= {"backbone": frozen.name, "dataset": dataset.name, "shots": shots, "seed": seed,
                    "encoding_seconds": encoding}
    return table


def _checked_rates(steps: int, rates: Iterable[float], every: int, validation: int,
                   dataset: str) -> list[float]:
    """The rates, if there is something to do and something to choose by."""
    rates = list(rates)
    if not rates or steps < 1 or every < 1:
        raise ValueError("Fine-tuning needs at least one rate, and steps and every of at least 1; "
                         f"got rates {rates}, steps {steps} and every {every}.")
    if not validation:
        raise BankError(f"{dataset}: the learning rate is chosen on validation images and there "
                        "are none; give a bank or a dataset with a validation split.")
    return rates


@torch.no_grad()
def activations_below(trunk, pixels: Sequence[Tensor], device: torch.device, batch: int = 64) -> Tensor:
    """What the last block of the trunk is given for each preprocessed picture [3, H, W]: maps [N,
    channels, h, w].
    """
    parts = [torch.stack(pixels[start:start + batch]).to(device, memory_format=torch.channels_last)
             for start in range(0, len(pixels), batch)]
    return torch.cat([trunk.blocks[:-1](trunk.bn1(trunk.conv_stem(part))) for part in parts])


def _best_rate(made: Callable[[], tuple[list[Tensor], Logits]], splits: list[tuple[Tensor, Tensor]],
               steps: int,
            rates: list[float], every: int, batch: int, seed: int):
    """The table of the rate that does best on validation; made() gives fresh parameters and the
    logits they lead to.
    """
    import pandas
    (images, labels), sizes = splits[0], [len(y) for _, y in splits]
    everything = torch.cat([x for x, _ in splits])
    seconds, tables, scores = 0.0, {}, {}
    for rate in rates:
        start, looking = time.perf_counter(), 0.0
        parameters, logits = made()
        rows, batches = [], []

        @torch.no_grad()
        def look(step: int, logits=logits, rows=rows) -> None:
            nonlocal looking
            began = time.perf_counter()
            found = logits(everything).split(sizes)
            right = [share_right(scored, y) for scored, (_, y) in zip(found, splits)]
            losses = [cross_entropy(scored, y).item() for scored, (_, y) in zip(found[:2], splits)]
            rows.append((step, losses[0], *right, losses[1]))
            looking += time.perf_counter() - began

        def loss(step: int, logits=logits, batches=batches) -> Tensor:
            if not batches:
                batches.extend(torch.randperm(len(labels)).split(batch))
            rows = batches.pop().to(labels.device)
            return cross_entropy(logits(images[rows]), labels[rows])

        def after_step(step: int, look=look) -> None:
            if (step + 1) % every == 0 or step + 1 == steps:
                look(step + 1)

        with seeded(seed):
            for parameter in parameters:
                parameter.requires_grad_()
            look(0)
            train(parameters, loss, steps=steps, rate=rate, after_step=after_step)
        seconds += time.perf_counter() - start - looking
        table = pandas.DataFrame(rows, columns=["step", "loss", "train", "val", "test", "val_loss"])
        tables[rate] = table.drop(columns="val_loss")
        scores[rate] = float(table.val.iloc[-1]), -table.val_loss.iloc[-1]
    best = max(rates, key=scores.get)
    table = tables[best]
    table.attrs = {"rate": best, "tried": {rate: score[0] for rate, score in scores.items()},
                   "seconds": seconds, "parameters": sum(p.numel() for p in parameters)}
    return table
