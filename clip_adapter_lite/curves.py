"""How training goes: the loss and the accuracies of a CLIP-Adapter after every few steps."""
import torch
from torch.nn.functional import cross_entropy, normalize

from .backbones import best_device
from .banks import Episode
from .methods import CLIPAdapter
from .methods.clip_adapter import CLIPAdapterHead
from .training import train


def training_curve(method: CLIPAdapter, episode: Episode, every: int = 4):
    """Train as `method.fit(episode)` does and look on: a DataFrame with columns step, loss, train, val, test.

    A row for step 0 (before training: the adapter is random), every `every` steps, and the last, whose accuracies are those
    of the fitted classifier. loss is the cross-entropy on the support images (view 0), which train is the accuracy on;
    accuracies are in [0, 1], NaN for a split without images. With α = β = 0 there is nothing to train and nothing changes.
    `.attrs` holds backbone, dataset, shots and seed. Looking at `test` while choosing is choosing on test.
    Raises ValueError for a ratio that is not a number, as "val" trains several adapters, and BankError as `fit` does.
    """
    import pandas
    if not isinstance(method, CLIPAdapter):
        raise ValueError(f"training_curve() shows the training of a CLIPAdapter; got {method!r}.")
    used = {"visual": ["alpha"], "text": ["beta"], "both": ["alpha", "beta"]}[method.branch]
    for ratio in used:
        if isinstance(getattr(method, ratio), str):
            raise ValueError(f"training_curve() shows one training, so {ratio} must be a number; got "
                             f"{getattr(method, ratio)!r}, for which fit() tells what it finds.")
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}.")
    episode.check()
    asked, episode = episode, episode.to(best_device(method.device),
                                         torch.promote_types(episode.support.features.dtype, torch.float32))
    alpha, beta = (getattr(method, ratio) if ratio in used else None for ratio in ("alpha", "beta"))
    splits = (episode.support, episode.val, episode.test)
    images, sizes = torch.cat([split.view() for split in splits]), [len(split) for split in splits]
    rows = []

    @torch.no_grad()
    def look(step: int) -> None:
        logits = head(images).split(sizes)
        right = [(found.argmax(1) == split.labels).double().mean().item() for found, split in zip(logits, splits)]
        rows.append((step, cross_entropy(logits[0], episode.support.labels).item(), *right))

    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(episode.seed)
        weights, support = episode.text_features, episode.support
        head = CLIPAdapterHead(weights, normalize(support.view(), dim=-1).mean(0), logit_scale=episode.logit_scale,
                               branch=method.branch, hidden=max(1, weights.shape[1] // method.reduction), alpha=alpha,
                               beta=beta, final_relu=method.final_relu, normalize=method.normalize)
        look(0)
        watched = {*range(every, method.steps, every), method.steps} - {0}
        if alpha or beta:
            train(head.parameters(), lambda step: cross_entropy(head(support.view(step)), support.labels),
                  steps=method.steps, rate=method.rate, weight_decay=method.weight_decay,
                  after_step=lambda step: look(step + 1) if step + 1 in watched else None)
        else:
            rows += [(step, *rows[0][1:]) for step in sorted(watched)]
    table = pandas.DataFrame(rows, columns=["step", "loss", "train", "val", "test"])
    table.attrs = {"backbone": asked.backbone_name, "dataset": asked.dataset, "shots": asked.shots, "seed": asked.seed}
    return table
