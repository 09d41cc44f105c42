"""A hospital that trains honestly and lies in what it answers to an evaluation, in any cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from fedplatform.core.messages import Predictions
from fedplatform.data.splits import Role
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.hospital import Hospital, Participant
from fedplatform.learning.training import Trainer

INVENTED = 900_000


def without_columns(told: Predictions) -> Predictions:
    return replace(told, probabilities=told.probabilities[:, :0])


def of_zeros(told: Predictions) -> Predictions:
    return replace(told, probabilities=np.zeros_like(told.probabilities))


def with_a_nan(told: Predictions) -> Predictions:
    spoilt = told.probabilities.copy()
    spoilt[:1, 0] = np.nan
    return replace(told, probabilities=spoilt)


def of_one_class_too_many(told: Predictions) -> Predictions:
    return replace(told, labels=np.full_like(told.labels, 99))


def of_too_many_scans(told: Predictions) -> Predictions:
    labels = np.zeros(INVENTED, np.int64)
    sure = np.tile(np.eye(told.probabilities.shape[1], dtype=np.float32)[0], (INVENTED, 1))
    return Predictions(told.hospital_id, told.role, sure, labels, 0.0)


def as_another(told: Predictions) -> Predictions:
    return replace(told, hospital_id="hospital-00")


REFUSED_LIES: dict[str, tuple[Callable[[Predictions], Predictions], str]] = {
    "no columns": (without_columns, "probabilities a scan"),
    "zeros": (of_zeros, "sum to 1"),
    "a NaN": (with_a_nan, "between 0 and 1"),
    "no such class": (of_one_class_too_many, "a label is one of"),
    "invented scans": (of_too_many_scans, f"it holds {INVENTED} scans"),
    "another's name": (as_another, "another hospital's name"),
}


class LyingHospital(Hospital):
    """It says what ``lie`` makes of its predictions."""

    lie: Callable[[Predictions], Predictions]

    def evaluate(
        self, weights: np.ndarray, roles: Sequence[Role], *, round_number: int | None = None
    ) -> list[Predictions]:
        return [self.lie(told) for told in super().evaluate(weights, roles, round_number=round_number)]


@dataclass(frozen=True)
class LyingPlan(CohortPlan):
    """A plan under which one hospital lies in its answers."""

    liar: str = ""
    lie: str = ""

    @classmethod
    def of(cls, plan: CohortPlan, *, liar: str, lie: str) -> LyingPlan:
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)}, liar=liar, lie=lie)

    def admit(self, hospital_id: str, trainer: Trainer) -> Participant:
        hospital = super().admit(hospital_id, trainer)
        if hospital_id == self.liar:
            assert isinstance(hospital, Hospital)
            hospital.__class__ = LyingHospital
            hospital.lie = REFUSED_LIES[self.lie][0]  # type: ignore[attr-defined]
        return hospital
