"""How training goes: the loss and the accuracies of a CLIP-Adapter after every few steps."""
import torch
from torch.nn.functional import cross_entropy

from .episodes import Episode
from .methods import CLIPAdapter
from .splits import share_right
from .training import seeded


def training_curve(method: CLIPAdapter, episode: Episode, every: int = 4):
    """Train as `method.fit(episode)` does and look on: a DataFrame with columns step, loss, train,
    val, test.

    A row for step 0 (before training: the adapter is random), every `every` steps, and the last,
    whose accuracies are those of the fitted classifier. loss is the cross-entropy on the support
    images (view 0), which train is the accuracy on; accuracies are in [0, 1], NaN for a split
    without images. With α = β = 0 there is nothing to train and nothing changes. `.attrs` holds
    backbone, dataset, shots and seed. Looking at `test` while choosing is choosing on test.
    Raises ValueError for a ratio that is not a number, as "val" trains several adapters, and
    BankError as `fit` does.
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
    episode = method.prepared(episode)
    alpha, beta = (getattr(method, ratio) if ratio in used else None for ratio in ("alpha", "beta"))
    splits = (episode.support, episode.val, episode.test)
    images, sizes = torch.cat([split.view() for split in splits]), [len(split) for split in splits]
    rows = []
    watched = {*range(0, method.steps, every), method.steps}

    @torch.no_grad()
    def look(step: int) -> None:
        if step in watched:
            logits = head(images).split(sizes)
            right = [share_right(found, split.labels) for found, split in zip(logits, splits)]
            rows.append((step, cross_entropy(logits[0], episode.support.labels).item(), *right))

    with seeded(episode.seed):
        head = method.new_head(episode, alpha, beta)
        look(0)
        method.train_head(head, episode, after_step=lambda step: look(step + 1))
    rows += [(step, *rows[0][1:]) for step in sorted(watched)[len(rows):]]  # α = β = 0 trains nothing
    table = pandas.DataFrame(rows, columns=["step", "loss", "train", "val", "test"])
    table.attrs = {"backbone": episode.backbone_name, "dataset": episode.dataset,
                   "shots": episode.shots, "seed": episode.seed}
    return table
