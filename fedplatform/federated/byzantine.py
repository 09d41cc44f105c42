"""A Byzantine hospital: it trains as an honest one does, and an attack alters its scans or its update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Collusion, DataPoisoning, PoisoningAttack, Situation, UpdatePoisoning
from fedplatform.core.messages import Predictions, Update
from fedplatform.core.seeding import COLLUSION, numpy_generator, torch_generator
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.data.device_pixels import placed
from fedplatform.data.splits import Role
from fedplatform.federated.hospital import Hospital, never_stop
from fedplatform.federated.hospital_state import OwnState

LAST_WEIGHTS = "last_weights"


@dataclass(frozen=True)
class Adversary:
    """Which hospitals are Byzantine and what they do: the part of an experiment that only a simulation knows.

    ``num_hospitals`` take part in a round.
    """

    hospital_ids: tuple[str, ...]
    attack: PoisoningAttack | None
    num_hospitals: int

    @property
    def colluding(self) -> tuple[str, ...]:
        """The attackers that wait for the honest updates before they send their own."""
        return self.hospital_ids if isinstance(self.attack, Collusion) else ()

    def colluding_among(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Those of them that take part in a round."""
        taking_part = set(asked)
        return tuple(name for name in self.colluding if name in taking_part)


class ByzantineHospital:
    """A hospital under the control of an attack (Byzantine in the sense of Lamport et al., 1982).

    ``state`` is where it keeps the weights that it was sent last, None nowhere.
    """

    def __init__(self, hospital: Hospital, adversary: Adversary, *, state: OwnState | None = None) -> None:
        assert adversary.attack is not None
        self.hospital_id = hospital.hospital_id
        self._hospital = hospital
        self._adversary = adversary
        self._attack = adversary.attack
        self._state = state
        kept = state.load() if state else None
        self._last_weights: np.ndarray | None = None if kept is None else kept[LAST_WEIGHTS].numpy()
        if isinstance(self._attack, DataPoisoning):
            poisoned, hospital.training_labels = self._attack.poison(
                np.asarray(hospital.training_images),
                hospital.training_labels,
                num_classes=hospital.trainer.training.num_classes,
                generator=numpy_generator(hospital.trainer.training.seed, self.hospital_id, "poison"),
            )
            hospital.training_images = placed(poisoned, hospital.trainer.compute)

    def train(self, weights: np.ndarray, round_number: int, *, should_stop: Callable[[], bool] = never_stop) -> Update:
        """Train honestly on what it has, then bend the update where the attack does so."""
        attackers = len(self._adversary.hospital_ids)
        situations = self._situations(weights, round_number, stream=self.hospital_id, attackers=attackers)
        update = self._hospital.train(weights, round_number, should_stop=should_stop)
        if not isinstance(self._attack, UpdatePoisoning):
            return update
        own = self._parts(torch.from_numpy(update.delta))
        sent = torch.cat([self._attack.corrupt(*pair) for pair in zip(own, situations, strict=True)])
        return replace(update, delta=sent.numpy().astype(np.float32, copy=False))

    def forge(
        self, honest: np.ndarray, weights: np.ndarray, round_number: int, colluding: Sequence[str]
    ) -> list[Update]:
        """The update of every ``colluding`` attacker, in order, from the honest ones (h, d); no training needed.

        Raises ValueError where the attack has neither one update for all nor one for each.
        """
        assert isinstance(self._attack, Collusion)
        situations = self._situations(weights, round_number, stream=COLLUSION, attackers=len(colluding))
        seen = self._parts(torch.from_numpy(honest))
        sent = torch.cat([self._attack.collude(*pair) for pair in zip(seen, situations, strict=True)], dim=-1)
        if sent.ndim == 2 and len(sent) != len(colluding):
            raise ValueError(
                f"a collusion sends one update for all or each of {len(colluding)} attackers, got {len(sent)}"
            )
        delta = sent.numpy().astype(np.float32, copy=False)
        common = Update(
            hospital_id=self.hospital_id,
            round_number=round_number,
            delta=delta,
            num_examples=len(self._hospital.training_labels),
            train_loss=float("nan"),
            seconds=0.0,
        )
        # Where all send the same, it is the same array and not a copy of it, in this process and on the way to another.
        each = delta if delta.ndim == 2 else [delta] * len(colluding)
        return [replace(common, hospital_id=attacker, delta=row) for attacker, row in zip(colluding, each, strict=True)]

    def evaluate(
        self, weights: np.ndarray, roles: Sequence[Role], *, round_number: int | None = None
    ) -> list[Predictions]:
        """As its hospital would; the federation never asks an attacker to grade the model."""
        return self._hospital.evaluate(weights, roles, round_number=round_number)

    def statistics(self, least: int = LEAST) -> SiteStatistics:
        """As its hospital would tell them: no attack is on statistics."""
        return self._hospital.statistics(least)

    def _parts(self, vectors: torch.Tensor) -> list[torch.Tensor]:
        """The shared weights and, where it is sent too, the batch normalisation, each (..., d) cut at its place.

        A rule measures the first and not the second, so an attack that hides within a distance has to hide in each.
        """
        layout = self._hospital.trainer.layout
        cuts = [layout.num_shared, layout.size - layout.num_shared]
        return list(vectors.split([cut for cut in cuts if cut], dim=-1))

    def _situations(self, weights: np.ndarray, round_number: int, *, stream: str, attackers: int) -> list[Situation]:
        """What the attacker knows of each part."""
        previous = np.zeros_like(weights) if self._last_weights is None else weights - self._last_weights
        self._last_weights = weights
        if self._state is not None:
            self._state.keep({LAST_WEIGHTS: torch.from_numpy(weights.copy())}, round_number=round_number)
        generator = torch_generator(self._hospital.trainer.training.seed, stream, round_number, "attack")
        return [
            Situation(
                num_hospitals=self._adversary.num_hospitals,
                num_byzantine=attackers,
                round_number=round_number,
                previous_delta=part,
                generator=generator,
            )
            for part in self._parts(torch.from_numpy(previous))
        ]
