"""Every rule once more, straight from its paper: float64, loops, no speed. What the fast ones are held against."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MeanShift, estimate_bandwidth

Rows = np.ndarray


def mean(rows: Rows) -> Rows:
    return sum(rows) / len(rows)


def weighted_mean(rows: Rows, counts: Rows, cap: float) -> Rows:
    capped = [min(count, cap * np.median(counts)) for count in counts]
    return sum(count * row for count, row in zip(capped, rows, strict=True)) / sum(capped)


def median(rows: Rows) -> Rows:
    return np.median(rows, axis=0)


def trimmed_mean(rows: Rows, f: int) -> Rows:
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def squared_distance(a: Rows, b: Rows) -> float:
    return float(((a - b) ** 2).sum())


def krum_ranking(rows: Rows, f: int, num_neighbours: int) -> list[int]:
    scores = []
    for i, row in enumerate(rows):
        others = sorted(squared_distance(row, other) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[:num_neighbours]))
    return sorted(range(len(rows)), key=scores.__getitem__)


def krum(rows: Rows, f: int) -> Rows:
    return rows[krum_ranking(rows, f, len(rows) - f - 2)[0]]


def multi_krum(rows: Rows, f: int, m: int) -> Rows:
    return rows[krum_ranking(rows, f, len(rows) - f - 2)[:m]].mean(axis=0)


def bulyan(rows: Rows, f: int) -> Rows:
    pool, selected = list(rows), []
    for _ in range(len(rows) - 2 * f):
        best = krum_ranking(np.array(pool), f, max(len(pool) - f - 2, f + 1))[0]
        selected.append(pool.pop(best))
    result = []
    for column in np.array(selected).T:
        nearest = column[np.argsort(abs(column - np.median(column)))]
        result.append(np.mean(nearest[: len(rows) - 4 * f]))
    return np.array(result)


def geometric_median(rows: Rows) -> Rows:
    point = rows.mean(axis=0)
    for _ in range(500):
        pulls = [1 / max(np.sqrt(squared_distance(row, point)), 1e-12) for row in rows]
        point = sum(pull * row for pull, row in zip(pulls, rows, strict=True)) / sum(pulls)
    return point


def centered_clipping(rows: Rows, previous: Rows, radius: float | None, steps: int) -> Rows:
    point = previous
    for _ in range(steps):
        away = [np.linalg.norm(row - point) for row in rows]
        limit = np.median(away) if radius is None else radius
        point = point + sum(
            (row - point) * min(1, limit / length) for row, length in zip(rows, away, strict=True)
        ) / len(rows)
    return point


def fltrust(rows: Rows, root: Rows) -> Rows:
    trust = [max(0.0, row @ root / np.linalg.norm(row) / np.linalg.norm(root)) for row in rows]
    alike = [np.linalg.norm(root) / np.linalg.norm(row) * row for row in rows]
    return sum(score * row for score, row in zip(trust, alike, strict=True)) / sum(trust)


def dnc(rows: Rows, f: int) -> Rows:
    centred = rows - rows.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    scores = (centred @ direction) ** 2
    return rows[np.argsort(scores)[: len(rows) - f]].mean(axis=0)


def clip(row: Rows, limit: float) -> Rows:
    return row * min(1.0, limit / np.linalg.norm(row))


def signguard(rows: Rows) -> Rows:
    norms = np.array([np.linalg.norm(row) for row in rows])
    middle = np.median(norms)
    features = []
    for row, norm in zip(rows, norms, strict=True):
        cosines = [row @ other / norm / other_norm for other, other_norm in zip(rows, norms, strict=True)]
        features.append([np.mean(row > 0), np.mean(row < 0), np.mean(row == 0), np.median(cosines)])
    labels = MeanShift(bandwidth=estimate_bandwidth(np.array(features), quantile=0.5)).fit(np.array(features)).labels_
    passed = (labels == np.bincount(labels).argmax()) & (norms >= 0.1 * middle) & (norms <= 3 * middle)
    return np.mean([clip(row, middle) for row in rows[passed]], axis=0)


def flame_without_noise(rows: Rows) -> Rows:
    norms = [np.linalg.norm(row) for row in rows]
    distances = 1 - np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows])
    groups = [{i} for i in range(len(rows))]
    for i, j in sorted(np.ndindex(distances.shape), key=distances.__getitem__):
        joined = next(group for group in groups if i in group) | next(group for group in groups if j in group)
        groups = [group for group in groups if not group & joined] + [joined]
        if len(joined) > len(rows) // 2:
            return np.mean([clip(rows[k], float(np.median(norms))) for k in joined], axis=0)
    raise AssertionError("all points are one group in the end")


def nearest_neighbour_mixing(rows: Rows, f: int) -> Rows:
    return np.array(
        [
            np.mean(sorted(rows, key=lambda other, row=row: squared_distance(row, other))[: len(rows) - f], axis=0)
            for row in rows
        ]
    )


def norm_clipping(rows: Rows) -> Rows:
    middle = float(np.median([np.linalg.norm(row) for row in rows]))
    return np.array([clip(row, middle) for row in rows])
