"""The feature space: how well classes are separated, in numbers and in two dimensions (paper,
section 4.4).
"""
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .devices import as_array
from .methods import Classifier
from .values import as_tensor, whole_number


def manifold_measures(features, labels, k: int = 10) -> dict[str, float]:
    """How well classes are separated in the original space: of features [N, D], brought to unit
    length, and labels [N].

    Labels may be words too: only which are equal matters.

    silhouette: the mean silhouette with cosine distances, in [-1, 1] (Rousseeuw 1987).
    fisher: trace of the between-class scatter over that of the within-class scatter, from 0 up.
    purity: the mean share of a point's k nearest neighbours (by cosine, itself left out) that have
        its label, in [0, 1].
    Raises ValueError on shapes that do not fit, gaps among the labels, fewer than two classes or no
    more classes than points, or k over N - 1.
    """
    import numpy
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors
    x, y, k = _unit(features), _groups(labels), whole_number(k, "k")
    classes = len(numpy.unique(y))
    if y.shape != (len(x),) or not 2 <= classes < len(x):
        raise ValueError("Expected N labels of at least two classes, and fewer classes than the N "
                         f"= {len(x)} features; got labels of shape {list(y.shape)} and {classes} "
                         "classes.")
    if not 1 <= k < len(x):
        raise ValueError(f"k must be from 1 to {len(x) - 1}, the number of other points; got {k}.")
    means = {label: x[y == label].mean(0) for label in numpy.unique(y)}
    own = numpy.stack([means[label] for label in y])
    between, within = ((own - x.mean(0)) ** 2).sum(), ((x - own) ** 2).sum()
    neighbours = NearestNeighbors(n_neighbors=k,
                                  metric="cosine").fit(x).kneighbors(return_distance=False)
    return {"silhouette": float(silhouette_score(x, y, metric="cosine")),
            "fisher": float(between / max(within, 1e-12)),
            "purity": float((y[neighbours] == y[:, None]).mean())}


def tsne(features, perplexity: float = 30, seed: int = 0):
    """t-SNE of features [N, D] as an array [N, 2]: cosine distances, started from their first two
    principal components.

    One protocol for all that is compared (van der Maaten and Hinton 2008): only features,
    perplexity and seed differ. Distances between groups, and how large a group is, mean nothing;
    see `manifold_measures`.
    Raises ValueError unless 0 < perplexity < N.
    """
    from sklearn.manifold import TSNE
    x = _unit(features)
    if not isinstance(perplexity, Real) or not 0 < perplexity < len(x):
        raise ValueError(f"perplexity must be above 0 and below the number of points, {len(x)}; "
                         f"got {perplexity}.")
    return TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(x)


@torch.no_grad()
def fitted_features(classifier: Classifier, features: Tensor) -> Tensor:
    """What a fitted classifier compares with its classifier weights, at unit length: [N, D], where
    the features [N, D] are.

    f* of a CLIP-Adapter with a visual branch (paper, equation of the residual blend); f itself of
    one without, and of zero-shot and CoOp, which change W alone. Raises BankError for features of
    another width.
    """
    brought, home = classifier.brought(features)
    return normalize(classifier.head.features(brought), dim=-1).to(home)


def _unit(features):
    """Features [N, D] at unit length, as a float64 array. Raises ValueError for other shapes, NaN
    or a row of zeros.
    """
    must = "Expected features of shape [N, D], finite and none of them all zero"
    x = as_tensor(features, must, "give a row of numbers for each image").cpu()
    if x.ndim != 2 or not x.numel() or x.is_complex():
        raise ValueError(f"{must}; got {x.dtype} of shape {list(x.shape)}.")
    lengths = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)
    if not ((lengths > 0) & (lengths < float("inf"))).all():
        raise ValueError(f"{must}; got lengths from {lengths.min():.3g} to {lengths.max():.3g}, so "
                         "drop those images.")
    return (x.double() / lengths).numpy()


def _groups(labels):
    """Labels as an array that numpy can sort. Raises ValueError for gaps among them and what is no
    list of labels.
    """
    import numpy
    import pandas
    try:
        y = as_array(labels)
        # a column of words is one of objects
        found = numpy.asarray(y.tolist()) if y.dtype == object else y
    except ValueError:  # rows of unequal length
        found = numpy.empty(0, object)
    if found.dtype == object or numpy.any(pandas.isna(y)):
        raise ValueError("Labels must be whole numbers or words, one for each image; got gaps or "
                         "other things among them, so drop those images.")
    return found
