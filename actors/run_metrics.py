"""What a run tells Prometheus: Ray exports it on the node where the run is, each name with ``ray_`` in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from actors.cluster.certificates import expiry
from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.experiment import Experiment

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "loss", "validation_accuracy", "attack_success")
AWAY = (HospitalState.LATE, HospitalState.CRASHED, HospitalState.MALFORMED)


class RunMetrics(Callback):
    """Gauges of the newest round of a run, by its name; ``certificate`` is the gateway's, where it has one."""

    def __init__(self, run: str, *, certificate: Path | None = None) -> None:
        self._run, self._certificate = run, certificate
        self.absent: dict[str, int] = {}
        """Rounds in a row, by hospital, without a usable update."""
        self._states: dict[str, HospitalState] = {}
        self._round = self._gauge("round", "The newest round.")
        self._rounds = self._gauge("rounds", "Rounds that the run is to have.")
        self._figures = self._gauge("score", "Figures of the pooled test scans.", "figure")
        self._seconds = self._gauge("stage_seconds", "What each stage of the newest round took.", "stage")
        self._effect = self._gauge("round_had_effect", "Whether the newest round changed the model.")
        self._weight = self._gauge("hospital_weight", "How much a hospital's update counted, 0 to 1.", "hospital")
        self._trust = self._gauge("hospital_trust", "What the rule trusts a hospital.", "hospital")
        self._bytes = self._gauge("hospital_update_bytes", "What came for a hospital's update.", "hospital")
        self._state = self._gauge("hospital_state", "1 for the state that a hospital is in.", "hospital", "state")
        self._rounds_absent = self._gauge(
            "hospital_absent_rounds", "Rounds in a row without a usable update.", "hospital"
        )
        self._left = self._gauge("certificate_seconds_left", "Until the gateway's certificate ends.")

    def _gauge(self, name: str, description: str, *tags: str) -> Any:
        return Gauge(f"fedplatform_run_{name}", description=description, tag_keys=("run", *tags))

    def _set(self, gauge: Any, value: float, **tags: str) -> None:
        if not math.isnan(value):
            gauge.set(float(value), tags={"run": self._run, **tags})

    def started(self, experiment: Experiment, earlier: Sequence[RoundReport]) -> None:
        """How far the run is to go, and where it stands."""
        self._set(self._rounds, experiment.rounds)
        self._set(self._round, earlier[-1].round_number if earlier else 0)
        self._tell_certificate()

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """The figures of the newest round."""
        report = reports[-1]
        self._set(self._round, report.round_number)
        self._set(self._effect, report.had_effect)
        for name in FIGURES:
            self._set(self._figures, getattr(report, name), figure=name)
        for stage in ("train", "aggregate", "evaluate"):
            self._set(self._seconds, getattr(report, f"{stage}_seconds"), stage=stage)
        for record in report.hospitals:
            self._tell_hospital(record)
        self._tell_certificate()

    def _tell_hospital(self, record: HospitalRecord) -> None:
        name, was = record.hospital_id, self.absent.get(record.hospital_id, 0)
        self.absent[name] = was + 1 if record.state in AWAY else was if record.state is HospitalState.RESTING else 0
        self._set(self._rounds_absent, self.absent[name], hospital=name)
        self._set(self._weight, record.weight, hospital=name)
        self._set(self._trust, record.trust, hospital=name)
        self._set(self._bytes, record.update_bytes, hospital=name)
        before = self._states.get(name)
        if before not in (None, record.state):
            self._set(self._state, 0, hospital=name, state=str(before))
        self._set(self._state, 1, hospital=name, state=str(record.state))
        self._states[name] = record.state

    def _tell_certificate(self) -> None:
        if self._certificate is not None:
            self._set(self._left, (expiry(self._certificate) - datetime.now(UTC)).total_seconds())
