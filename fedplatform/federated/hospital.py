"""A hospital: its scans and its personal state stay here; weights come in, an update goes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from fedplatform.core.logs import of
from fedplatform.core.messages import Predictions, Update
from fedplatform.core.seeding import torch_generator
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.core.tasks import answers_of, has, is_multilabel, mean_loss
from fedplatform.data.device_pixels import Pictures, placed
from fedplatform.data.shards import Shard
from fedplatform.data.site_statistics import site_statistics
from fedplatform.data.splits import Role
from fedplatform.data.subgroups import Subgroups
from fedplatform.federated.hospital_state import Launch, OwnState
from fedplatform.learning.training import LEAST_BATCH, PersonalState, Trainer

if TYPE_CHECKING:  # a hospital outside loads no attack
    from fedplatform.attacks.poisoning.attack import Backdooring

log = logging.getLogger(__name__)


def never_stop() -> bool:
    """The answer of nobody who wants the training stopped."""
    return False


class Participant(Protocol):
    """Whoever takes part in the federation, honest or not."""

    @property
    def hospital_id(self) -> str: ...

    def train(
        self, weights: np.ndarray, round_number: int, *, should_stop: Callable[[], bool] = never_stop
    ) -> Update: ...

    def evaluate(
        self, weights: np.ndarray, roles: Sequence[Role], *, round_number: int | None = None
    ) -> list[Predictions]: ...

    def statistics(self, least: int = LEAST) -> SiteStatistics: ...


class Hospital:
    """An honest hospital.

    ``state_file`` keeps its personal state (such as batch normalisation) between rounds, on the hospital's own disk, so
    that a hospital whose process died goes on from where it was; None keeps it in memory. ``launch`` is of
    :class:`fedplatform.federated.hospital_state.OwnState`. It trains on the scans in ``role``. In a simulation of a
    ``backdoor`` it also counts how often its own test scans open it.
    """

    def __init__(
        self,
        hospital_id: str,
        shard: Shard,
        *,
        trainer: Trainer,
        state_file: Path | None,
        role: Role = Role.TRAIN,
        launch: Launch | None = None,
        backdoor: Backdooring | None = None,
    ) -> None:
        self.hospital_id = hospital_id
        self.backdoor = backdoor
        self.trainer = trainer
        self.shard = shard
        self.training_images: Pictures = placed(shard.pictures(role), trainer.compute)
        self.training_labels = shard.labels(role)
        self.training_groups = shard.groups(role)
        self._read = {role: (self.training_images, self.training_labels, _numbered(self.training_groups))}
        self._state = OwnState(state_file, launch=launch) if state_file is not None else None
        kept = self._state.load() if self._state else None
        self.personal: PersonalState = dict(trainer.initial_personal) if kept is None else kept
        self._round = self._state.round_number if self._state else 0

    def train(self, weights: np.ndarray, round_number: int, *, should_stop: Callable[[], bool] = never_stop) -> Update:
        """One round of local training from the broadcast weights (d,).

        With too few scans for a batch nothing is learned, and the update says that it comes from no scan.
        """
        started = time.monotonic()
        self._round = round_number
        seed = self.trainer.training.seed
        delta, personal, loss = self.trainer.fit(
            weights,
            self.personal,
            images=self.training_images,
            labels=self.training_labels,
            groups=self.training_groups,
            round_number=round_number,
            generator=torch_generator(seed, self.hospital_id, round_number, "batches"),
            should_stop=should_stop,
        )
        personal = self.trainer.fit_own(
            weights,
            personal,
            images=self.training_images,
            labels=self.training_labels,
            groups=self.training_groups,
            round_number=round_number,
            generator=torch_generator(seed, self.hospital_id, round_number, "own batches"),
            should_stop=should_stop,
        )
        self._keep(personal)
        seconds, scans = time.monotonic() - started, len(self.training_labels)
        where = of(round_number=round_number, hospital=self.hospital_id)
        log.info("trained on %d scans in %.1f s, loss %.4f", scans, seconds, loss, extra=where)
        return Update(
            hospital_id=self.hospital_id,
            round_number=round_number,
            delta=delta,
            num_examples=scans if scans >= LEAST_BATCH else 0,
            train_loss=loss,
            seconds=seconds,
        )

    def evaluate(
        self, weights: np.ndarray, roles: Sequence[Role], *, round_number: int | None = None
    ) -> list[Predictions]:
        """What the broadcast weights, with this hospital's personal state, say of its scans in each role.

        ``round_number`` is the round that they came out of, by default the one in which it trained last. Where the
        network raises, such as batch normalisation on a single value, there are no predictions and the reason.
        """
        self._round = self._round if round_number is None else round_number
        try:
            if self.personal:
                self._keep(self.trainer.settle(weights, self.personal, self.training_images, self.training_labels))
            return [self._predict(weights, role) for role in roles]
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            where = of(round_number=self._round, hospital=self.hospital_id)
            log.info("could not judge the model on its own scans: %s", said, extra=where)
            return Predictions.failed(self.hospital_id, roles, said)

    def statistics(self, least: int = LEAST) -> SiteStatistics:
        """Its scans in numbers; a count of fewer than ``least`` patients stays here, and so does every scan."""
        return site_statistics(self.shard, self.hospital_id, least=least)

    def _predict(self, weights: np.ndarray, role: Role) -> Predictions:
        images, labels, groups = self._scans(role)
        probabilities = self.trainer.predict(weights, self.personal, images)
        if probabilities.shape[1]:
            loss = mean_loss(probabilities, labels)
        else:
            loss = self.trainer.plain_loss(weights, self.personal, images, labels)
        subgroups = self._test_subgroups if role is Role.TEST else {}
        stamped, hits = self._tried_backdoor(weights) if role is Role.TEST and probabilities.shape[1] else (0, 0)
        return Predictions(
            self.hospital_id,
            role,
            probabilities,
            labels,
            loss,
            groups=groups,
            subgroups=subgroups,
            stamped=stamped,
            hits=hits,
        )

    def _tried_backdoor(self, weights: np.ndarray) -> tuple[int, int]:
        """How many test scans of other classes carry the trigger, and how many of them are answered with the target."""
        if self.backdoor is None or self._stamped is None:
            return 0, 0
        answered = self.trainer.predict(weights, self.personal, self._stamped)
        answers = answers_of(answered, multilabel=is_multilabel(self._scans(Role.TEST)[1]))
        return len(answers), int(has(answers, self.backdoor.target).sum())

    @cached_property
    def _stamped(self) -> Pictures | None:
        """The test scans of other classes than the backdoor's target, with its trigger; None where there are none."""
        assert self.backdoor is not None
        images, labels, _ = self._scans(Role.TEST)
        others = np.flatnonzero(~has(labels, self.backdoor.target))
        if not len(others):
            return None
        return placed(self.backdoor.stamp(np.asarray(images[others])), self.trainer.compute)

    @cached_property
    def _test_subgroups(self) -> Subgroups:
        """The subgroups of its test scans; read from the shard once, for every round asks."""
        return self.shard.subgroups(Role.TEST)

    def _scans(self, role: Role) -> tuple[Pictures, np.ndarray, np.ndarray]:
        """Images, labels and patients, numbered from 0, of a role; read from the shard once, for every round asks."""
        if role not in self._read:
            pictures = placed(self.shard.pictures(role), self.trainer.compute)
            self._read[role] = pictures, self.shard.labels(role), _numbered(self.shard.groups(role))
        return self._read[role]

    def _keep(self, personal: PersonalState) -> None:
        """Take over a new personal state; one with a NaN would spoil every later round, and the one before stays."""
        if not all(bool(torch.isfinite(value).all()) for value in personal.values()):
            return
        self.personal = dict(personal)
        if personal and self._state is not None:
            self._state.keep(self.personal, round_number=self._round)


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Groups as numbers from 0, which tell nobody which patients they are."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
