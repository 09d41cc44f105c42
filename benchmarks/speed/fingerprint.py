"""What trust costs beside one Multi-Krum on the same updates, and how many coalitions its Shapley values take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from math import factorial

import numpy as np
import torch

from benchmarks.speed.arena import OURS, Result
from benchmarks.speed.bench import Bench
from benchmarks.speed.rules import written
from fedplatform.federated.trust.shapley import GuidedShapley

MULTI_KRUM = "ours/multi_krum"
PARTS = (OURS, MULTI_KRUM, "ours/scorer", "ours/clip_and_combine", "ours/descent")
SIZES = ((10, 1_000_000), (32, 1_000_000), (10, 11_000_000))
SMALL_ERROR = 0.05
SEEDS = 20
MOST_PERMUTATIONS = 2000


def measure(bench: Bench) -> None:
    sizes = ((10, 20_000),) if bench.tiny else SIZES[:1] if bench.quick else SIZES
    for number, (n, d) in enumerate(sizes):
        bench.progress("fingerprint", number, len(sizes) + 1, f"fingerprint, {n} x {d:,}")
        if bench.has("fingerprint", n=n, d=d, hospitals=n):
            continue
        file = bench.folder / f"updates-{n}-{d}.npy"
        rows = written(file, n, d)
        radius = float(np.linalg.norm(rows[0]))
        results = bench.arena.turns(
            "fingerprint", PARTS, repeats=bench.repeats, arguments={"deltas": str(file), "f": n // 5, "radius": radius}
        )
        limit_s = bench.machine.limit(read=4 * n * d, written=0, operations=n * (n + 1) * d)
        bench.add("fingerprint", results, n=n, d=d, hospitals=n, limit_s=limit_s)
        bench.arena.rest(PARTS)
        file.unlink()
    bench.progress("fingerprint", len(sizes), len(sizes) + 1, "Shapley values")
    if not bench.has("shapley"):
        shapley(bench, hospitals=5 if bench.tiny else 10)


def shapley(bench: Bench, *, hospitals: int) -> None:
    """Coalitions valued until the error is under 5 %: guided, truncated and cached against plain permutations.

    The error is the distance to the exact values, of all coalitions, in units of their length; mean over seeds.
    """
    found = bench.arena.turns("coalitions", (OURS,), repeats=1, arguments={"hospitals": hospitals}, keep_result=True)
    bench.arena.rest((OURS,))
    game = found[0].result
    assert game is not None, found[0].cannot
    places = 1 << np.arange(hospitals)
    exact = exact_values(game, hospitals)

    def worth(coalitions: np.ndarray) -> np.ndarray:
        values: np.ndarray = game[coalitions @ places]
        return values

    def guided(permutations: int, seed: int, *, tolerance: float = GuidedShapley.tolerance) -> tuple[np.ndarray, int]:
        shapley = GuidedShapley(permutations, tolerance)
        estimate = shapley(worth, hospitals, generator=torch.Generator().manual_seed(seed))
        return estimate.values, estimate.num_coalitions

    def plain(permutations: int, seed: int) -> tuple[np.ndarray, int]:
        draw, values = np.random.default_rng(seed), np.zeros(hospitals)
        for _ in range(permutations):
            order = draw.permutation(hospitals)
            steps = game[np.concatenate([[0], np.cumsum(places[order])])]
            values[order] += np.diff(steps) / permutations
        return values, 1 + permutations * hospitals

    def judged(estimate: Callable[[int, int], tuple[np.ndarray, int]], permutations: int) -> tuple[float, float]:
        """Mean error and mean number of coalitions."""
        runs = [estimate(permutations, seed) for seed in range(SEEDS)]
        errors = [np.linalg.norm(values - exact) / np.linalg.norm(exact) for values, _ in runs]
        return float(np.mean(errors)), float(np.mean([number for _, number in runs]))

    usual, _ = judged(guided, GuidedShapley.permutations)
    results, errors = [], {}
    for name, estimate, wanted in (
        ("ours", guided, SMALL_ERROR),
        ("ours/untruncated", partial(guided, tolerance=0.0), SMALL_ERROR),
        ("plain", plain, SMALL_ERROR),
        ("ours/default", guided, usual),
        ("plain/default", plain, usual),
    ):
        for permutations in (10 * 2 ** (step / 4) for step in count()):
            error, number = judged(estimate, round(permutations))
            if error <= wanted * 1.0001 or permutations > MOST_PERMUTATIONS:
                break
        errors[name] = error
        reached = error <= wanted * 1.0001
        note = "" if reached else f"not under {100 * wanted:.0f} % with {permutations:.0f} permutations"
        results.append(Result(name, {"figure": [number]}, cannot=note))
    bench.add("shapley", results, n=hospitals, hospitals=hospitals, errors=errors, unit="coalitions")


def exact_values(game: np.ndarray, n: int) -> np.ndarray:
    """Shapley values (n,) of a game that is known for every coalition (2^n,)."""
    masks = np.arange(len(game))
    size = sum(masks >> k & 1 for k in range(n))
    share = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)])
    return np.array(
        [
            (share[size[without]] * (game[without | 1 << k] - game[without])).sum()
            for k in range(n)
            for without in [masks[(masks >> k & 1) == 0]]
        ]
    )
