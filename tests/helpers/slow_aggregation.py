"""Every rule once more, straight from its paper: float64, loops, no speed. What the fast ones are held against."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from sklearn.cluster import HDBSCAN, MeanShift, estimate_bandwidth

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


def cosine(left: Rows, right: Rows) -> float:
    length = np.sqrt(sum(left**2)) * np.sqrt(sum(right**2))
    return float(sum(left * right) / length) if length else 0.0


def foolsgold_credits(sums: Rows) -> Rows:
    """Algorithm 1 of FoolsGold with confidence 1, on the summed updates."""
    n = len(sums)
    cosines = np.array([[cosine(sums[i], sums[j]) if i != j else -np.inf for j in range(n)] for i in range(n)])
    likeness = cosines.max(axis=1)
    for i in range(n):
        for j in range(n):
            if i != j and likeness[j] > likeness[i] and likeness[j] > 0:
                cosines[i, j] *= max(likeness[i], 0) / likeness[j]
    own = np.clip(1 - cosines.max(axis=1), 0, 1)
    own = own / own.max()
    credits = []
    for share in own:
        logit = -np.inf if share == 0 else np.inf if share == 1 else np.log(share / (1 - share)) + 0.5
        credits.append(min(max(logit, 0.0), 1.0))
    return np.array(credits)


def foolsgold(rounds: list[Rows]) -> Rows:
    """The step of the last of several rounds by the same hospitals."""
    credits = foolsgold_credits(sum(rounds))
    return sum(credit * row for credit, row in zip(credits, rounds[-1], strict=True)) / credits.sum()


def median_score(values: list[float]) -> Rows:
    spread = np.std(values)
    return np.abs(np.array(values) - np.median(values)) / spread if spread > 1e-12 else np.zeros(len(values))


def clipped_to_median(rows: Rows) -> Rows:
    norms = np.linalg.norm(rows, axis=1)
    return np.array([row * min(1, np.median(norms) / norm) for row, norm in zip(rows, norms, strict=True)])


def lasa(rows: Rows, sizes_and_dims: list[tuple[int, int]], sparsity: float, norms: float, signs: float) -> Rows:
    clipped = clipped_to_median(rows)
    matrices = np.concatenate([np.full(size, dims > 1) for size, dims in sizes_and_dims])
    kept = int(matrices.sum() * (1 - sparsity))
    for row in clipped:
        places = np.flatnonzero(matrices)
        smallest = places[np.argsort(np.abs(row[places]))][: len(places) - kept]
        row[smallest] = 0
    step, start = [], 0
    for size, _ in sizes_and_dims:
        layer = clipped[:, start : start + size]
        start += size
        lengths = [float(np.linalg.norm(row)) for row in layer]
        purity = [0.5 * (1 + np.sign(row).sum() / max(np.count_nonzero(row), 1)) for row in layer]
        usual = (median_score(lengths) < norms) & (median_score(purity) < signs)
        step.append(layer[usual].mean(axis=0) if usual.any() else layer.mean(axis=0))
    return np.concatenate(step)


def alignins(rows: Rows, weights: Rows, share: float, limit: float) -> Rows:
    majority = np.sign(np.sign(rows).sum(axis=0))
    agreement = []
    for row in rows:
        largest = np.argsort(-np.abs(row))[: int(share * len(row))]
        agreement.append(float(np.mean(np.sign(row[largest]) == majority[largest])))
    usual = (median_score([cosine(row, weights) for row in rows]) <= limit) & (median_score(agreement) <= limit)
    return clipped_to_median(rows[usual]).mean(axis=0)


def deepsight(rows: Rows, classes: int, features: int, smallest: int, tolerated: float) -> Rows:
    n = len(rows)
    profiles, biases = [], []
    for row in rows:
        bias = row[len(row) - classes :]
        matrix = row[len(row) - classes * (features + 1) : len(row) - classes].reshape(classes, features)
        energy = np.array([(abs(bias[one]) + sum(abs(matrix[one]))) ** 2 for one in range(classes)])
        profiles.append(energy / energy.sum())
        biases.append(bias)
    order = sorted(range(n), key=lambda i: [*profiles[i], *biases[i]][::-1])
    rows, profiles, biases = rows[order], [profiles[i] for i in order], [biases[i] for i in order]
    counting = [sum(profile > max(0.01, 1 / classes) * max(profile)) for profile in profiles]
    narrow = np.array(counting) <= np.median(counting) / 2

    def labels(distances: Rows, one: bool) -> Rows:
        return HDBSCAN(
            metric="precomputed", min_cluster_size=smallest, min_samples=smallest, allow_single_cluster=one, copy=True
        ).fit_predict(distances)

    first = labels(np.array([[np.linalg.norm(a - b) for b in profiles] for a in profiles]), False)
    second = labels(np.array([[1 - cosine(a, b) if a is not b else 0 for b in biases] for a in biases]), False)
    apart = np.array([[((first[i] != first[j]) + (second[i] != second[j])) / 2 for j in range(n)] for i in range(n)])
    clusters = labels(apart, True)
    admitted = [i for i in range(n) if clusters[i] >= 0 and narrow[clusters == clusters[i]].mean() < tolerated]
    if not admitted:
        return np.zeros(rows.shape[1])
    return clipped_to_median(rows)[admitted].mean(axis=0)


def hessian_times(moves: list[Rows], turns: list[Rows], vector: Rows) -> Rows:
    """L-BFGS in its compact form (Byrd et al., 1994), with all matrices written out."""
    s, y = np.column_stack(moves), np.column_stack(turns)
    sigma = (turns[-1] @ moves[-1]) / (moves[-1] @ moves[-1])
    products = s.T @ y
    lower, diagonal = np.tril(products, -1), np.diag(np.diag(products))
    middle = np.block([[sigma * s.T @ s, lower], [lower.T, -diagonal]])
    both = np.column_stack([sigma * s, y])
    return sigma * vector - both @ np.linalg.solve(middle, both.T @ vector)


def fldetector_errors(rounds: list[Rows], steps: list[Rows]) -> Rows:
    """The errors (n,) of the last round, as shares, from all rounds' updates and the steps before it."""
    moves, turns = steps[:-1], [after - before for before, after in pairwise(steps)]
    turn = hessian_times(moves, turns, steps[-1])
    errors = np.linalg.norm(rounds[-1] - rounds[-2] - turn, axis=1)
    return errors / errors.sum()
