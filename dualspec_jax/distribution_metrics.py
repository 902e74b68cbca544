"""Distances between sets of clips: Frechet distance, inception score, Kullback-Leibler divergence of event labels.

Functions of NumPy arrays, float64 inside. Which network made embeddings and scores decides what the numbers mean:
compare only numbers of the same one, and of the same number of clips.
"""

import numpy as np

EXTRAPOLATION_SIZES = 8  # sizes of the subsets from which the Frechet distance is extrapolated
EXTRAPOLATION_DRAWS = 8  # subsets of each size


def frechet_distance_gaussian(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two normal distributions, exact.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^1/2 cov_b cov_a^1/2)^1/2), with symmetric square roots: no complex
    numbers come up, also for singular covariances.

    Args:
      mean_a, mean_b: [D].
      cov_a, cov_b: [D, D], symmetric, positive semidefinite.

    Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500).
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.sum(np.sqrt(np.maximum(cross, 0.0)))
    return float(max(np.sum((mean_a - mean_b) ** 2) + trace, 0.0))


def frechet_distance(a: np.ndarray, b: np.ndarray, *, extrapolate: bool = False, seed: int = 0) -> float:
    """Return the squared Frechet distance of two sets of embeddings [n, D] and [m, D].

    The plain estimate is too large, by about a constant over the number of clips: with few clips that bias is most of
    the number. With `extrapolate`, distances of random subsets of n/2 to n clips (of each set, the same share) are
    fitted by a line in 1/n and read at 1/n = 0. That can come out below zero where the sets hardly differ. The bias is
    such a line only where the subsets have more clips than dimensions; for fewer clips take `kernel_distance`.

    Raises:
      ValueError: fewer than 2 clips in a set (`least_to_extrapolate` with `extrapolate`), or sets of different width.

    Source: Chong and Forsyth 2020 (arXiv:1911.07023), for `extrapolate`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_sets(a, b, least_to_extrapolate(a.shape[-1]) if extrapolate else 2)
    moments = lambda x: (np.mean(x, axis=0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]))
    if not extrapolate:
        return frechet_distance_gaussian(*moments(a), *moments(b))
    rng = np.random.default_rng(seed)
    inverse, distances = [], []
    for share in 1.0 / np.linspace(2.0, 1.0, EXTRAPOLATION_SIZES):
        for _ in range(EXTRAPOLATION_DRAWS):
            parts = [x[rng.permutation(len(x))[: max(2, round(share * len(x)))]] for x in (a, b)]
            inverse.append(1.0 / share)
            distances.append(frechet_distance_gaussian(*moments(parts[0]), *moments(parts[1])))
    slope, offset = np.polyfit(inverse, distances, 1)
    return float(offset)


def least_to_extrapolate(width: int) -> int:
    """Return how many clips of embeddings [n, width] the extrapolated Frechet distance needs."""
    return max(8, 2 * (width + 1))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared kernel distance of two sets of embeddings [n, D] and [m, D], kernel (x y / D + 1)^3.

    Its expectation does not depend on the number of clips, and is 0 for sets of one distribution: so the number may be
    below zero.

    Raises:
      ValueError: fewer than 2 clips in a set, or sets of different width.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), the "kernel inception distance".
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check_sets(a, b, 2)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1.0) ** 3
    within = lambda k: (np.sum(k) - np.trace(k)) / (len(k) * (len(k) - 1))
    return float(within(kernel(a, a)) + within(kernel(b, b)) - 2.0 * np.mean(kernel(a, b)))


def _check_sets(a: np.ndarray, b: np.ndarray, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings of shapes {a.shape} and {b.shape}: must be [n, D] and [m, D]")
    if min(len(a), len(b)) < least:
        raise ValueError(f"embeddings of {len(a)} and {len(b)} clips: at least {least} are needed")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    exp = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return exp / np.sum(exp, axis=-1, keepdims=True)


def kl_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return KL(p || q) over the last axis, nats; probabilities below 1e-12 count as that much."""
    p, q = (np.maximum(np.asarray(x, np.float64), 1e-12) for x in (p, q))
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def inception_score(probabilities: np.ndarray) -> float:
    """Return exp(mean KL(p(y | clip) || p(y))) of [n, K]: 1 (all alike) to K (every clip sure, all labels as often).

    Source: Salimans et al. 2016 (arXiv:1606.03498).
    """
    p = np.asarray(probabilities, np.float64)
    return float(np.exp(np.mean(kl_divergence(p, np.mean(p, axis=0)))))


def label_kl(real: np.ndarray, real_labels, made: np.ndarray, made_labels) -> np.ndarray:
    """Return, for each made clip, KL(mean p of the real clips of its label || p of the clip), nats [n].

    Labels without a real clip give NaN. No clip is paired with another one: a made dog need not be that real dog.

    Args:
      real, made: probabilities [m, K] and [n, K].
      real_labels, made_labels: what each clip is, or was asked to be.
    """
    real_labels = np.asarray(real_labels)
    means = {label: np.mean(np.asarray(real)[real_labels == label], axis=0) for label in np.unique(real_labels)}
    missing = np.full(np.shape(made)[1], np.nan)
    return np.array([kl_divergence(means.get(label, missing), p) for label, p in zip(made_labels, made, strict=True)])
