"""A hospital whose update leaves it only under masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fedplatform.core.errors import FedplatformError
from fedplatform.core.messages import Predictions, Update
from fedplatform.data.splits import Role
from fedplatform.federated.byzantine import ByzantineHospital
from fedplatform.federated.hospital import Participant, never_stop
from fedplatform.federated.secure.differential_privacy import protect
from fedplatform.federated.secure.fixed_point import FixedPoint
from fedplatform.federated.secure.masked_messages import Group, MaskedVector, PublicKeys, RevealedShares, SealedShares
from fedplatform.federated.secure.masking import Masker, ProtocolError
from fedplatform.federated.secure.privacy import Grouped

Request = Literal["advertise", "share", "mask", "reveal"]
FIXED_POINT = FixedPoint()


class NothingLearnedError(FedplatformError, ValueError):
    """A hospital with too few scans for a batch: its update of zeros would make its group's mean smaller."""


class MaskedHospital:
    """A participant behind secure aggregation: no answer of it holds its update in the clear.

    Requests of a round come in order: ``advertise``, ``share``, then training, ``mask``, ``reveal``. An attacker is one
    as before: it lies in its update, before that is masked. Noise of differential privacy comes from the operating
    system's entropy: drawn from the experiment's seed, the server could take it off again.
    """

    def __init__(self, participant: Participant, privacy: Grouped) -> None:
        self.hospital_id = participant.hospital_id
        self.participant = participant
        self._privacy = privacy
        self._masker: Masker | None = None
        self._group: Group | None = None
        self._update: Update | None = None

    def answer(
        self, request: Request, *content: object
    ) -> PublicKeys | tuple[SealedShares, ...] | MaskedVector | RevealedShares:
        """The answer to a request of the protocol.

        Raises ProtocolError for one that is none, or is out of turn, and NothingLearnedError where there is no update.
        """
        match request, content:
            case "advertise", (int(round_number),):
                self._masker = Masker(self.hospital_id, round_number, least_members=self._privacy.size)
                self._group = self._update = None
                return self._masker.advertise()
            case "share", (Group() as group,) if self._masker:
                letters = self._masker.share(group)
                self._group = group
                return letters
            case "mask", (tuple() as letters,) if self._masker and self._group:
                if self.own_update.num_examples < 1:
                    raise NothingLearnedError("an update comes from at least one scan, in a batch of two or more")
                protected = protect(
                    self.own_update.delta,
                    self._privacy,
                    members=len(self._group.members),
                    generator=np.random.default_rng(),
                )
                return self._masker.mask(protected, letters, fixed_point=FIXED_POINT)
            case "reveal", (tuple() as arrived,) if self._masker:
                return self._masker.reveal(arrived)
        raise ProtocolError(f"{self.hospital_id} has nothing to answer to {request!r} now")

    def train(self, weights: np.ndarray, round_number: int, *, should_stop: Callable[[], bool] = never_stop) -> None:
        """Train, and keep the update; an attacker knows by then who is in its group."""
        if isinstance(self.participant, ByzantineHospital) and self._group:
            self.participant.group = self._group.hospital_ids
        self._update = self.participant.train(weights, round_number, should_stop=should_stop)

    @property
    def own_update(self) -> Update:
        """The update of this round, for this process's eyes only. Raises ProtocolError before the training."""
        if self._update is None:
            raise ProtocolError(f"{self.hospital_id} has not trained in this round")
        return self._update

    def adopt(self, forged: Update) -> None:
        """Send, as an attacker, what the attackers have agreed on. Raises ProtocolError in an honest hospital."""
        if not isinstance(self.participant, ByzantineHospital):
            raise ProtocolError(f"{self.hospital_id} is honest and takes nobody's update")
        self._update = forged

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """As the participant does."""
        return self.participant.evaluate(weights, roles)
