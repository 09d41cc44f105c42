"""One cell: what is run, and the figures that it is judged by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedplatform.attacks.poisoning.attack import Intermittent, PoisoningAttack
from fedplatform.core.compute import one_thread
from fedplatform.core.messages import NAN, HospitalRecord, HospitalState, RoundReport
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR, nearest_neighbour
from fedplatform.experiments.engine import ServerRole, in_process_cohort
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import NoEffectError, require_effect
from fedplatform.experiments.trust_benchmark.cells import HONEST_ONLY, Cell

WARM_UP = 3  # rounds in which a rule that learns whom to trust is not yet held to its verdicts
FIGURES = [
    "accuracy",
    "macro_f1",
    "auc",
    "attack_success",
    "worst_hospital_accuracy",
    "rarest_hospital_accuracy",
    "detection_f1",
    "detection_precision",
    "detection_recall",
    "false_alarm_rate",
    "seconds",
    "aggregate_seconds",
    "train_seconds",
]
DONE, INFEASIBLE, FAILED = "done", "infeasible", "failed"
WITHOUT_EFFECT = "without effect"  # every round was: the figures would be those of the untrained network


@dataclass(frozen=True)
class Filled:
    """A cell with its figures, or the reason why there are none, and what became of every hospital in every round."""

    cell: Cell
    status: str
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    hospitals: tuple[HospitalRecord, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        figures = f"accuracy {self.figures['accuracy']:.3f}" if self.figures else f"{self.status}, {self.reason}"
        return f"{self.cell.name}: {figures}"

    def row(self) -> dict[str, object]:
        """The row of ``trust.parquet``."""
        return {**self.cell.key(), "status": self.status, "reason": self.reason, **dict.fromkeys(FIGURES, NAN)} | dict(
            self.figures
        )


def fill_cell(cell: Cell, shards: Path, scratch: Path) -> Filled:
    """Run one cell in this process on shards that are written; an error is an answer, too."""
    try:
        if cell.rule == NEAREST_NEIGHBOUR:
            found = nearest_neighbour(shards)
            return Filled(
                cell, DONE, figures={"accuracy": found.accuracy, "macro_f1": found.macro_f1, "auc": found.auc}
            )
        try:
            experiment = {CENTRAL: cell.central, HONEST_ONLY: cell.honest_only}.get(cell.rule, cell.experiment)()
        except ValueError as error:
            return Filled(cell, INFEASIBLE, in_one_line(error))
        reports = _play(experiment, shards, scratch)
        require_effect(reports)
        figures = _figures(reports, Manifest.load(shards), attack=experiment.attack)
        return Filled(
            cell, DONE, figures=figures, hospitals=tuple(record for report in reports for record in report.hospitals)
        )
    except NoEffectError as error:
        return Filled(cell, WITHOUT_EFFECT, in_one_line(error))
    except Exception as error:  # whatever it was, the other cells go on
        return Filled(cell, FAILED, f"{type(error).__name__}: {in_one_line(error)}")


def _play(experiment: Experiment, shards: Path, scratch: Path) -> list[RoundReport]:
    with one_thread(), tempfile.TemporaryDirectory(dir=scratch) as state:
        cohort = in_process_cohort(experiment, shards, state_folder=Path(state))
        return list(ServerRole(experiment, shards, cohort).reports())


def _figures(reports: Sequence[RoundReport], manifest: Manifest, *, attack: PoisoningAttack | None) -> dict[str, float]:
    last = reports[-1]
    own = np.array([NAN if record.is_byzantine else record.accuracy for record in last.hospitals])
    graded = np.flatnonzero(np.isfinite(own))
    counts = np.array([shard.counts[Role.TRAIN] for shard in manifest.hospitals])
    train, aggregate, evaluate = (
        sum(getattr(report, f"{phase}_seconds") for report in reports) for phase in ("train", "aggregate", "evaluate")
    )
    return {
        "accuracy": last.accuracy,
        "macro_f1": last.macro_f1,
        "auc": last.auc,
        "attack_success": last.attack_success,
        "worst_hospital_accuracy": float(own[graded].min()),
        "rarest_hospital_accuracy": float(own[graded[rarity(counts)[graded].argmax()]]),
        **detection([record for report in reports for record in report.hospitals], attack=attack),
        "seconds": train + aggregate + evaluate,
        "aggregate_seconds": aggregate,
        "train_seconds": train,
    }


def rarity(counts: np.ndarray) -> np.ndarray:
    """Total variation between each hospital's mix of classes and everybody's: counts (n, classes) to (n,), 0 to 1."""
    own = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.abs(own - counts.sum(axis=0) / counts.sum()).sum(axis=1) / 2)


def detection(records: Iterable[HospitalRecord], *, attack: object) -> dict[str, float]:
    """How well the hostile ones were told: F1, precision, recall and the share of honest ones called hostile.

    What is counted are hospitals in rounds, after the first three; in a round in which the ``attack`` does not lie, its
    attackers are honest. NaN where there is nothing to divide by: without a lie there is no F1.
    """

    def is_lying(record: HospitalRecord) -> bool:
        lies = not isinstance(attack, Intermittent) or attack.lies_in(record.round_number)
        return record.is_byzantine and lies

    judged = [record for record in records if record.round_number > WARM_UP]
    flagged = np.array([record.state is HospitalState.HOSTILE for record in judged], bool)
    byzantine = np.array([is_lying(record) for record in judged], bool)
    hits, false_alarms, missed = (flagged & byzantine).sum(), (flagged & ~byzantine).sum(), (~flagged & byzantine).sum()

    def share(part: int, whole: int) -> float:
        return float(part / whole) if whole else NAN

    return {
        "detection_f1": share(2 * hits, 2 * hits + false_alarms + missed) if byzantine.any() else NAN,
        "detection_precision": share(hits, hits + false_alarms) if byzantine.any() else NAN,
        "detection_recall": share(hits, hits + missed),
        "false_alarm_rate": share(false_alarms, (~byzantine).sum()),
    }


def in_one_line(error: BaseException) -> str:
    """An error's words without line breaks."""
    return " ".join(str(error).split())
