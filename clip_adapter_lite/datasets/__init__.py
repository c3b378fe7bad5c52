"""Image datasets: where the pictures are, what they show, and how they are split."""
from .base import ImageDataset, split_by_hash
from .fashion_mnist import fashion_mnist

__all__ = ["ImageDataset", "fashion_mnist", "split_by_hash"]
