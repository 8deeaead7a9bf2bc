"""Tail probabilities that drift is judged by.

Written out, as `scipy.stats` would take more memory than the rest of the scoring process has to spare; the tests hold
them against it. Pure.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# Above so many cells the exact distribution of the Kolmogorov-Smirnov distance is as good as its limit, and slower.
EXACT_CELLS_MAX = 250_000


def ks_distance(known: Float64Array, scores: Float64Array) -> float:
    """Return the largest distance between the two distribution functions; `known` is sorted."""
    other = np.sort(scores)
    at = np.concatenate([known, other])
    gaps = np.searchsorted(known, at, "right") / len(known) - np.searchsorted(other, at, "right") / len(other)
    return float(np.abs(gaps).max())


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Return the probability of at least `distance` between samples of `n` and `m` of one continuous distribution.

    Exact for small samples, by counting the paths of a lattice that keep within the distance (Hodges, The
    significance probability of the Smirnov two-sample test, 1958); ties make it higher than it is. For large ones by
    Kolmogorov's limit with Stephens' correction (Use of the Kolmogorov-Smirnov statistics, JRSS B 1970).
    """
    if n * m <= EXACT_CELLS_MAX:
        exact = _ks_exact(distance, n, m)
        if exact > 1e-9:  # below it, one less the paths within has no digit left
            return exact
    root = math.sqrt(n * m / (n + m))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:
        return 1.0
    total = math.fsum((-1.0) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * total))


def share_p_value(beyond: int, images: int, false_alarms: int, n: int) -> float:
    """Return the probability that at least `beyond` of `images` exchangeable scores are above the threshold.

    The threshold is the `false_alarms`-th highest of `n` reference scores. Given the share of all normals above it
    the number is binomial; but that share is not the promised one, it is Beta(false_alarms, n + 1 - false_alarms) over
    the draw of the reference, and the number beta-binomial. With 99 held-out images at a rate of 0.01 one draw in
    twenty has a share of 0.03: not drift, and no binomial test at 0.01 would say so.
    """
    if beyond <= 0:
        return 1.0
    a, b = float(false_alarms), float(n + 1 - false_alarms)
    if b <= 0:
        return 1.0
    log_betas = _log_beta(beyond + a, images - beyond + b) - _log_beta(a, b)
    term = math.exp(_log_choose(images, beyond) + log_betas)
    total = 0.0
    for j in range(beyond, images + 1):
        total += term
        term *= (images - j) / (j + 1) * (j + a) / max(images - j - 1 + b, 1e-300)
    return min(1.0, total)


def binomial_p_value(k: int, n: int, p: float) -> float:
    """Return the probability that a binomial number of `n` at `p` is at least `k`."""
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0:
        return 0.0
    log_p, log_q = math.log(p), math.log1p(-p)
    return min(1.0, sum(math.exp(_log_choose(n, j) + j * log_p + (n - j) * log_q) for j in range(k, n + 1)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _ks_exact(distance: float, n: int, m: int) -> float:
    # Of all paths from (0, 0) to (n, m), each as likely, the share that stays where |i / n - j / m| < distance.
    bound = math.floor(distance * n * m + 0.5) - 0.5  # distances are whole multiples of 1 / (n m)
    if bound < 0:
        return 1.0
    columns = np.arange(m + 1)
    row = np.where(columns * n <= bound, 1.0, 0.0)
    log_scale = 0.0
    for i in range(1, n + 1):
        inside = np.abs(i * m - columns * n) <= bound
        row = np.cumsum(row * inside) * inside
        peak = float(row.max())
        if peak == 0:
            return 1.0
        if peak > 1e200:
            row /= peak
            log_scale += math.log(peak)
    paths = float(row[m])
    if paths == 0:
        return 1.0
    return min(1.0, max(0.0, 1.0 - math.exp(math.log(paths) + log_scale - _log_choose(n + m, n))))
