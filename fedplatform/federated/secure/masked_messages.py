"""What the protocol of masked sums sends: frozen values, none of which tells of a single hospital's update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.federated.secure.shamir import Share


@dataclass(frozen=True)
class PublicKeys:
    """A hospital's two public X25519 keys of one round: one to agree on masks with, the other to seal letters with."""

    hospital_id: str
    round_number: int
    masking: bytes
    sealing: bytes


@dataclass(frozen=True)
class Group:
    """The hospitals whose updates are summed in one round, in order, and how many of them it takes to open the sum.

    A hospital's point in Shamir's scheme is its place here, from 1.
    """

    members: tuple[PublicKeys, ...]
    threshold: int

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """The members' names."""
        return tuple(member.hospital_id for member in self.members)

    def point_of(self, hospital_id: str) -> int:
        """A member's point, from 1."""
        return 1 + self.hospital_ids.index(hospital_id)


@dataclass(frozen=True)
class SealedShares:
    """The shares of a sender's two secrets that one recipient keeps for it; only the recipient can open the letter."""

    sender: str
    recipient: str
    letter: bytes


@dataclass(frozen=True, eq=False)
class MaskedVector:
    """A hospital's update under its masks, (d,) uint64: without the others', as good as random."""

    hospital_id: str
    round_number: int
    values: np.ndarray


@dataclass(frozen=True)
class RevealedShares:
    """What a hospital gives up so that a sum can be opened, each by the name of the hospital whose secret it is of.

    ``of_seeds`` are of those whose masked vectors arrived, ``of_keys`` of those whose did not; never both of one.
    """

    hospital_id: str
    of_seeds: dict[str, Share]
    of_keys: dict[str, Share]
