"""The peers' way to train an adapter, written plainly: what `peers-speedup` and the recipe table compare ours with.

CLIP-Adapter, Tip-Adapter and CoOp share this protocol on cached features: a shuffling DataLoader of batch 32, 200 epochs,
AdamW or SGD, a scheduler step per iteration.
"""
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clip_adapter_lite.episodes import Episode
from clip_adapter_lite.methods.clip_adapter import CLIPAdapterHead

EPOCHS, BATCH, RATE = 200, 32, 1e-3


def new_head(episode: Episode, alpha: float, reduction: int = 4) -> CLIPAdapterHead:
    torch.manual_seed(episode.seed)
    width = episode.text_features.shape[1]
    return CLIPAdapterHead(episode.text_features, episode.support.features.mean(0), logit_scale=episode.logit_scale,
                           branch="visual", hidden=width // reduction, alpha=alpha, beta=None)


def accuracy(head, split) -> float:
    with torch.no_grad():
        return (head(split.view()).argmax(1) == split.labels).double().mean().item()


def train_as_peers(episode: Episode, alpha: float, epochs: int = EPOCHS,
                   after_epoch: Callable[[int, CLIPAdapterHead, float], bool] | None = None) -> CLIPAdapterHead:
    """after_epoch(epoch, head, seconds so far) may end the training by returning True; its own time is not counted."""
    head = new_head(episode, alpha)
    loader = DataLoader(TensorDataset(episode.support.features, episode.support.labels), BATCH, shuffle=True)
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    spent = 0.0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        for features, labels in loader:
            loss = cross_entropy(head(features), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        spent += time.perf_counter() - start
        if after_epoch and after_epoch(epoch, head, spent):
            break
    return head
