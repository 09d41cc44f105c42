"""What half-precision transport costs in accuracy, and what a real update weighs: python -m benchmarks.transport.

Runs on the embedded lesions that differ in nothing but the transport, without attackers and with sign flippers, under
two rules. Training is chaotic: any change, however small, leads to another model. So a third run beside each pair is
exact and begins with weights one unit in the last place higher; a cost of rounding is what half loses beyond that. Rows
go into docs/results/transport.csv as they come; what is there is not done again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy import stats

from fedplatform.core.compute import one_thread
from fedplatform.core.messages import Predictions, Reply
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import ServerRole, in_process_cohort, local_training
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import partition_data
from fedplatform.federated.cohort import Cohort
from fedplatform.federated.transport import TRANSPORTS, TransportName
from fedplatform.learning.training import Trainer

TABLE = Path(__file__).parents[1] / "docs/results/transport.csv"
RULES, ATTACKS = ("trust", "median"), ("none", "sign_flip")
NUDGED = "exact, nudged"
KEY = ["seed", "rule", "attack", "transport", "rounds"]


class Weighed:
    """A cohort whose every update is packed in every way; ``bytes`` are the mean of each round, by transport."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self.hospital_ids = cohort.hospital_ids
        self.bytes: dict[TransportName, list[float]] = {name: [] for name in TRANSPORTS}

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        replies = list(self._cohort.train(weights, round_number, asked))
        deltas = [reply.update.delta for reply in replies if reply.update is not None]
        for name, transport in TRANSPORTS.items():
            packed = [transport.pack(delta) for delta in deltas]
            self.bytes[name].append(float(np.mean([sum(part.nbytes for part in parts.values()) for parts in packed])))
            for delta, parts in zip(deltas, packed, strict=True):
                if name != "half":
                    assert transport.unpack(parts, size=delta.size).tobytes() == delta.tobytes()
        yield from replies

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        return self._cohort.evaluate(weights, roles)


@click.command()
@click.option(
    "--seeds", default=5, show_default=True, help="seeds 0 to N-1: weights, batches, attackers; the split is 0's"
)
@click.option("--rounds", default=6, show_default=True, help="rounds of a run")
@click.option("--out", type=click.Path(path_type=Path), default=TABLE, help="the table")
def main(seeds: int, rounds: int, out: Path) -> None:
    """Measure half against exact: the recipe lesions with fewer rounds and epochs, 32 pixels a side."""
    rows = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=KEY)
    cells = [
        (_experiment(seed, rule, attack, rounds), name)
        for seed in range(seeds)
        for rule in RULES
        for attack in ATTACKS
        for name in ("exact", "half", NUDGED)
    ]
    left = [cell for cell in cells if not _is_there(rows, *cell)]
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        if left:
            partition_data(cells[0][0], shards)
        for number, (experiment, name) in enumerate(left):
            new = pd.DataFrame(_measured(experiment, name, shards, Path(folder) / str(number)))
            rows = pd.concat([rows, new], ignore_index=True) if len(rows) else new
            out.parent.mkdir(parents=True, exist_ok=True)
            rows.to_csv(out, index=False, float_format="%.6g")
            click.echo(f"[{number + 1} of {len(left)}] {' '.join(map(str, rows.iloc[-1]))}")
    click.echo(f"\n{markdown(rows)}")


def _experiment(seed: int, rule: str, attack: str, rounds: int) -> Experiment:
    byzantine = 0 if attack == "none" else 3
    settings = {"seed": seed, "rule": rule, "attack": attack, "byzantine": byzantine, "f": 3, "rounds": rounds}
    return Experiment.from_settings({**load_settings("lesions"), **settings, "size": 32, "local_epochs": 1})


def _is_there(rows: pd.DataFrame, cell: Experiment, name: str) -> bool:
    here = [cell.seed, cell.rule_slug, cell.attack_slug, name, cell.rounds]
    return bool((rows[KEY] == here).all(axis=1).any())


def _measured(cell: Experiment, name: str, shards: Path, state_folder: Path) -> list[dict[str, object]]:
    """The row of a run; of an exact one that of lossless transport, too, whose updates came out bit for bit."""
    cell = cell.replace(transport="half" if name == "half" else "exact")
    start = Trainer(local_training(cell, Manifest.load(shards))).initial_weights
    if name == NUDGED:
        start = np.nextafter(start, np.float32(np.inf))
    with one_thread():
        cohort = Weighed(in_process_cohort(cell, shards, state_folder=state_folder))
        last = list(ServerRole(cell, shards, cohort, start=start).reports())[-1]
    return [
        {
            **dict(zip(KEY, (cell.seed, cell.rule_slug, cell.attack_slug, row, cell.rounds), strict=True)),
            "accuracy": last.accuracy,
            "loss": last.loss,
            "bytes_first_round": cohort.bytes[kind][0],
            "bytes_last_round": cohort.bytes[kind][-1],
        }
        for row, kind in {"exact": {"exact": "exact", "lossless": "lossless"}}.get(name, {name: cell.transport}).items()
    ]


def markdown(rows: pd.DataFrame) -> str:
    """What half cost, by rule and attack, and what updates weighed."""
    lines = ["| rule | attack | exact | half less exact, points | nudged less exact | loss: half less exact | nudged |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    cells = rows.set_index([*KEY[:3], "transport"])[["accuracy", "loss"]].unstack("transport").dropna()
    cells["accuracy"] *= 100
    groups = [*cells.groupby(["rule", "attack"], sort=False), (("all", "both"), cells)]
    for (rule, attack), cell in groups:
        less = [
            _interval(cell[kind][other] - cell[kind]["exact"], digits)
            for kind, digits in (("accuracy", 1), ("loss", 3))
            for other in ("half", NUDGED)
        ]
        lines.append(f"| {rule} | {attack} | {cell['accuracy']['exact'].mean():.1f} % | {' | '.join(less)} |")
    honest = rows[rows["attack"] == "none"].groupby("transport", sort=False)[["bytes_first_round", "bytes_last_round"]]
    lines += ["", "| transport | bytes of an update, first round | last round |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {first:,.0f} | {last:,.0f} |" for name, first, last in honest.mean().drop(NUDGED).itertuples()
    ]
    return "\n".join(lines)


def _interval(differences: pd.Series, digits: int) -> str:
    """The mean of paired differences, and Student's 95 % interval of it."""
    mean, n = differences.mean(), len(differences)
    wide = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return f"{mean:+.{digits}f} ({mean - wide:+.{digits}f} to {mean + wide:+.{digits}f})"


if __name__ == "__main__":
    main()
