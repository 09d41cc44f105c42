"""A Byzantine hospital: it trains as an honest one does, and an attack alters its scans or its update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import (
    Collusion,
    DataPoisoning,
    Divided,
    PoisoningAttack,
    Renaming,
    Situation,
    UpdatePoisoning,
)
from fedplatform.core.messages import Predictions, Update
from fedplatform.core.seeding import COLLUSION, numpy_generator, torch_generator
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.data.device_pixels import placed
from fedplatform.data.splits import Role
from fedplatform.federated.hospital import Hospital, never_stop
from fedplatform.federated.hospital_state import OwnState

LAST_WEIGHTS = "last_weights"
MEMORY = "memory"  # begins the names of what the attack itself keeps


@dataclass(frozen=True)
class Adversary:
    """Which hospitals are Byzantine and what they do: the part of an experiment that only a simulation knows.

    ``num_hospitals`` take part in a round; ``honest_ids`` are all others of the federation, in order.
    """

    hospital_ids: tuple[str, ...]
    attack: PoisoningAttack | None
    num_hospitals: int
    honest_ids: tuple[str, ...] = ()

    def attack_of(self, hospital_id: str) -> PoisoningAttack | None:
        """What one attacker does: the attack, or its own part of it."""
        attack: object = self.attack  # not its declared type: what a class of somebody's own has beside it counts
        if isinstance(attack, Divided):
            return attack.part(self.hospital_ids.index(hospital_id), len(self.hospital_ids))
        return self.attack

    def name_in(self, hospital_id: str, round_number: int) -> str:
        """The name under which a hospital takes part in a round: its own, unless it whitewashes."""
        attack: object = self.attack
        if isinstance(attack, Renaming) and hospital_id in self.hospital_ids:
            return attack.name_in(hospital_id, round_number)
        return hospital_id

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

    ``state`` is where it keeps the weights that it was sent last, and what its attack remembers; None nowhere.
    ``group`` names the members of its own group under secure aggregation, which it learns before it trains.
    """

    def __init__(self, hospital: Hospital, adversary: Adversary, *, state: OwnState | None = None) -> None:
        attack = adversary.attack_of(hospital.hospital_id)
        assert attack is not None
        self.hospital_id = hospital.hospital_id
        self.group: tuple[str, ...] = ()
        self._hospital = hospital
        self._adversary = adversary
        self._attack = attack
        self._state = state
        kept = (state.load() if state else None) or {}
        last = kept.pop(LAST_WEIGHTS, None)
        self._last_weights: np.ndarray | None = None if last is None else last.numpy()
        self._memories: dict[int, dict[str, torch.Tensor]] = {}  # by the number of the part, see _parts
        for name, value in kept.items():
            _, part, own_name = name.split(".", 2)
            self._memories.setdefault(int(part), {})[own_name] = value
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
        self._keep(round_number)
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
        self._keep(round_number)
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
        self._keep(round_number)
        generator = torch_generator(self._hospital.trainer.training.seed, stream, round_number, "attack")
        return [
            Situation(
                num_hospitals=self._adversary.num_hospitals,
                num_byzantine=attackers,
                round_number=round_number,
                previous_delta=part,
                generator=generator,
                weights=broadcast,
                honest_ids=self._adversary.honest_ids,
                group=self.group,
                memory=self._memories.setdefault(number, {}),
            )
            for number, (part, broadcast) in enumerate(
                zip(self._parts(torch.from_numpy(previous)), self._parts(torch.from_numpy(weights.copy())), strict=True)
            )
        ]

    def _keep(self, round_number: int) -> None:
        """Write down what has to survive a restart: before the training, and again once the attack has lied."""
        if self._state is None or self._last_weights is None:
            return
        remembered = {
            f"{MEMORY}.{part}.{name}": value.contiguous()
            for part, memory in self._memories.items()
            for name, value in memory.items()
        }
        last = {LAST_WEIGHTS: torch.from_numpy(self._last_weights.copy())}
        self._state.keep(last | remembered, round_number=round_number)
