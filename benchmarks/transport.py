"""What half-precision transport costs in accuracy, and what a real update weighs: python -m benchmarks.transport.

Pairs of runs on the embedded lesions that differ in nothing but the transport, without liars and with sign flippers,
under two rules. Rows go into docs/results/transport.csv as they come; what is there is not done again. The table at the
end has the paired differences with the 95 % interval of Student's t over seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy import stats

from fedplatform.cohort import Cohort
from fedplatform.data.splits import Role
from fedplatform.engine import ServerRole, in_process_cohort
from fedplatform.experiment import Experiment, load_settings
from fedplatform.messages import Predictions, Reply
from fedplatform.run import partition_data
from fedplatform.transport import TRANSPORTS, TransportName

TABLE = Path(__file__).parents[1] / "docs/results/transport.csv"
RULES, ATTACKS = ("trust", "median"), ("none", "sign_flip")
KEY = ["seed", "rule", "attack", "transport", "rounds", "size"]


class Weighed:
    """A cohort whose every update is packed in every way; ``bytes`` are the mean of each round, by transport."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self.hospital_ids = cohort.hospital_ids
        self.bytes: dict[TransportName, list[float]] = {name: [] for name in TRANSPORTS}

    def train(self, weights: np.ndarray, round_number: int) -> list[Reply]:
        replies = self._cohort.train(weights, round_number)
        deltas = [reply.update.delta for reply in replies if reply.update is not None]
        for name, transport in TRANSPORTS.items():
            packed = [transport.pack(delta) for delta in deltas]
            self.bytes[name].append(float(np.mean([sum(part.nbytes for part in parts.values()) for parts in packed])))
            for delta, parts in zip(deltas, packed, strict=True):
                if name != "half":
                    assert transport.unpack(parts, size=delta.size).tobytes() == delta.tobytes()
        return replies

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        return self._cohort.evaluate(weights, roles)


@click.command()
@click.option("--seeds", default=5, show_default=True, help="seeds 0 to N-1: weights, batches, liars, split")
@click.option("--rounds", default=6, show_default=True, help="rounds of a run")
@click.option("--size", default=32, show_default=True, help="pixels a side")
@click.option("--out", type=click.Path(path_type=Path), default=TABLE, help="the table")
def main(seeds: int, rounds: int, size: int, out: Path) -> None:
    """Measure exact against half: the recipe lesions, shorter and smaller, in pairs of runs."""
    rows = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=KEY)
    for seed in range(seeds):
        cells = [
            Experiment.from_settings(
                {
                    **load_settings("lesions"),
                    **{"seed": seed, "rounds": rounds, "size": size, "rule": rule, "attack": attack},
                    **({"liars": 0, "f": 3} if attack == "none" else {}),
                    "transport": transport,
                }
            )
            for rule in RULES
            for attack in ATTACKS
            for transport in ("exact", "half")
        ]
        left = [cell for cell in cells if not _is_there(rows, cell)]
        if not left:
            continue
        with tempfile.TemporaryDirectory() as folder:
            shards = Path(folder) / "shards"
            partition_data(cells[0], shards)
            for number, cell in enumerate(left):
                new = _measured(cell, shards, Path(folder) / str(number))
                rows = pd.concat([rows, pd.DataFrame(new)], ignore_index=True) if len(rows) else pd.DataFrame(new)
                out.parent.mkdir(parents=True, exist_ok=True)
                rows.to_csv(out, index=False, float_format="%.6g")
                click.echo(f"seed {seed} of {seeds}, run {number + 1} of {len(left)}: {new[0]}")
    click.echo(f"\n{markdown(rows)}")


def _is_there(rows: pd.DataFrame, cell: Experiment) -> bool:
    here = [cell.seed, cell.rule_slug, cell.attack_slug, cell.transport, cell.rounds, cell.size]
    return bool((rows[KEY] == here).all(axis=1).any())


def _measured(cell: Experiment, shards: Path, state_folder: Path) -> list[dict[str, object]]:
    """The row of a run; of an exact one that of lossless transport, too, whose updates came out bit for bit."""
    cohort = Weighed(in_process_cohort(cell, shards, state_folder=state_folder))
    last = list(ServerRole(cell, shards, cohort).reports())[-1]
    place = {"seed": cell.seed, "rule": cell.rule_slug, "attack": cell.attack_slug}
    names: tuple[TransportName, ...] = ("exact", "lossless") if cell.transport == "exact" else ("half",)
    return [
        {
            **place,
            "transport": name,
            "rounds": cell.rounds,
            "size": cell.size,
            "accuracy": last.accuracy,
            "loss": last.loss,
            "bytes_first_round": cohort.bytes[name][0],
            "bytes_last_round": cohort.bytes[name][-1],
        }
        for name in names
    ]


def markdown(rows: pd.DataFrame) -> str:
    """What half cost, by rule and attack, and what updates weighed."""
    lines = [
        "| rule | attack | accuracy, exact | half less exact, points | loss, half less exact |",
        "|---|---|--:|--:|--:|",
    ]
    for (rule, attack), cells in rows.groupby(["rule", "attack"], sort=False):
        by_seed = cells.pivot(index="seed", columns="transport", values=["accuracy", "loss"]).dropna()
        accuracy, loss = (by_seed[kind]["half"] - by_seed[kind]["exact"] for kind in ("accuracy", "loss"))
        exact = by_seed["accuracy"]["exact"].mean()
        lines.append(f"| {rule} | {attack} | {exact:.3f} | {_interval(100 * accuracy, 2)} | {_interval(loss, 5)} |")
    honest = rows[rows["attack"] == "none"].groupby("transport", sort=False)[["bytes_first_round", "bytes_last_round"]]
    lines += ["", "| transport | bytes of an update, first round | last round |", "|---|--:|--:|"]
    lines += [f"| {name} | {first:,.0f} | {last:,.0f} |" for name, first, last in honest.mean().itertuples()]
    return "\n".join(lines)


def _interval(differences: pd.Series, digits: int) -> str:
    """The mean of paired differences, and Student's 95 % interval of it."""
    mean, n = differences.mean(), len(differences)
    wide = stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n)
    return f"{mean:+.{digits}f} ({mean - wide:+.{digits}f} to {mean + wide:+.{digits}f})"


if __name__ == "__main__":
    main()
