"""The hospital's side of a masked sum: it keeps its update to itself and sends what is of use only in the sum."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedplatform.core.errors import FedplatformError
from fedplatform.federated.secure.fixed_point import FixedPoint
from fedplatform.federated.secure.key_agreement import agree, seal, unseal
from fedplatform.federated.secure.masked_messages import Group, MaskedVector, PublicKeys, RevealedShares, SealedShares
from fedplatform.federated.secure.shamir import PRIME, Share, split
from fedplatform.federated.secure.stream import SEED_BYTES, add_mask

VALUE_BYTES = (PRIME.bit_length() + 7) // 8


class ProtocolError(FedplatformError, ValueError):
    """A request that an honest server does not make, or one out of turn."""


def least_threshold(members: int) -> int:
    """How many members a sum needs so that a third may drop out, and at least two: a sum of one is a single update."""
    return max(2, members - members // 3)


class Masker:
    """One hospital in one round of secure aggregation with double masking (Bonawitz et al., CCS 2017).

    Four requests in order: :meth:`advertise`, :meth:`share`, :meth:`mask`, :meth:`reveal`. Keys and seeds are of this
    round alone, from the operating system and never from the experiment's seed; masks cancel to the last bit, so the
    sum does not depend on them.

    The server is trusted to follow the protocol and to be curious. What is refused here all the same: a group smaller
    than ``least_members``, a threshold below two thirds, a second vector, a second opening, an opening for fewer than
    the threshold. Not noticed are made-up members and different stories told to different hospitals.
    """

    def __init__(self, hospital_id: str, round_number: int, *, least_members: int) -> None:
        self.hospital_id = hospital_id
        self.round_number = round_number
        self._least_members = least_members
        self._masking_key = X25519PrivateKey.generate()
        self._sealing_key = X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(SEED_BYTES)
        self._group: Group | None = None
        self._kept: dict[str, tuple[Share, Share]] = {}  # of whose seed and key
        self._masked = self._revealed = False

    def advertise(self) -> PublicKeys:
        """The public keys of this round."""
        return PublicKeys(
            self.hospital_id,
            self.round_number,
            masking=self._masking_key.public_key().public_bytes_raw(),
            sealing=self._sealing_key.public_key().public_bytes_raw(),
        )

    def share(self, group: Group) -> tuple[SealedShares, ...]:
        """Shares of the own seed and the own masking key, one sealed letter for each other member of the group."""
        members = len(group.members)
        if self._group is not None:
            raise ProtocolError(f"{self.hospital_id} is in a group already in round {self.round_number}")
        if self.advertise() not in group.members or any(m.round_number != self.round_number for m in group.members):
            raise ProtocolError(f"{self.hospital_id} was put into a group that is not of its keys and round")
        if len(set(group.hospital_ids)) < members or members < self._least_members:
            raise ProtocolError(f"{self.hospital_id} takes part in groups of at least {self._least_members}")
        if not least_threshold(members) <= group.threshold <= members:
            raise ProtocolError(
                f"a sum of {members} opens for {least_threshold(members)} of them or more, got {group.threshold}"
            )
        self._group = group
        points = range(1, members + 1)
        seeds = split(self._seed, points, threshold=group.threshold)
        keys = split(self._masking_key.private_bytes_raw(), points, threshold=group.threshold)
        own = group.point_of(self.hospital_id) - 1
        self._kept[self.hospital_id] = (seeds[own], keys[own])
        return tuple(
            SealedShares(
                self.hospital_id, member.hospital_id, seal(self._letter_key(member, sent=True), _packed(*pair))
            )
            for member, pair in zip(group.members, zip(seeds, keys, strict=True), strict=True)
            if member.hospital_id != self.hospital_id
        )

    def mask(self, values: np.ndarray, letters: Iterable[SealedShares], *, fixed_point: FixedPoint) -> MaskedVector:
        """The update (d,) under the own mask and one mask with each member that sent a letter.

        Members without a letter have dropped out before, and no mask is agreed with them. Raises
        :class:`ProtocolError` where too few are left, RangeError for entries that the ring does not hold, SealError for
        a letter that is not of this group.
        """
        group = self._in_group()
        if self._masked:
            raise ProtocolError(f"{self.hospital_id} has masked already in round {self.round_number}")
        self._masked = True
        for letter in letters:
            point = group.point_of(self.hospital_id)
            sender = self._member(letter.sender)
            opened = unseal(self._letter_key(sender, sent=False), letter.letter)
            self._kept[letter.sender] = _unpacked(opened, point=point)
        if len(self._kept) < group.threshold:
            raise ProtocolError(f"{group.threshold} of {len(group.members)} members are needed, got {len(self._kept)}")
        total = fixed_point.encode(values, summands=len(group.members))
        add_mask(total, self._seed)
        for member in group.members:
            if member.hospital_id in self._kept and member.hospital_id != self.hospital_id:
                later = group.point_of(member.hospital_id) > group.point_of(self.hospital_id)
                add_mask(total, pair_seed(self._masking_key, member.masking), subtract=later)
        return MaskedVector(self.hospital_id, self.round_number, total)

    def reveal(self, arrived: tuple[str, ...]) -> RevealedShares:
        """The shares that open the sum of those whose masked vectors ``arrived``; asked once and no more."""
        group = self._in_group()
        if self._revealed:
            raise ProtocolError(f"{self.hospital_id} has opened its sum already in round {self.round_number}")
        known = set(arrived) & set(self._kept)
        if len(known) < group.threshold or known != set(arrived):
            raise ProtocolError(f"a sum opens for {group.threshold} members or more, got {len(known)} of this group")
        self._revealed = True
        return RevealedShares(
            self.hospital_id,
            of_seeds={name: seed for name, (seed, _) in self._kept.items() if name in known},
            of_keys={name: key for name, (_, key) in self._kept.items() if name not in known},
        )

    def _in_group(self) -> Group:
        if self._group is None:
            raise ProtocolError(f"{self.hospital_id} is in no group in round {self.round_number}")
        return self._group

    def _member(self, hospital_id: str) -> PublicKeys:
        for member in self._in_group().members:
            if member.hospital_id == hospital_id != self.hospital_id:
                return member
        raise ProtocolError(f"a letter from {hospital_id!r}, who is in another group")

    def _letter_key(self, other: PublicKeys, *, sent: bool) -> bytes:
        sender, recipient = (self.hospital_id, other.hospital_id) if sent else (other.hospital_id, self.hospital_id)
        place = f"fedplatform shares, round {self.round_number}, from {sender} to {recipient}"
        return agree(self._sealing_key, other.sealing, purpose=place.encode())


def pair_seed(own: X25519PrivateKey, other: bytes) -> bytes:
    """The seed of the mask that two hospitals agree on, one of them by its private key and the other by its public."""
    return agree(own, other, purpose=b"fedplatform mask")


def _packed(*shares: Share) -> bytes:
    return b"".join(share.value.to_bytes(VALUE_BYTES, "big") for share in shares)


def _unpacked(content: bytes, *, point: int) -> tuple[Share, Share]:
    seed, key = content[:VALUE_BYTES], content[VALUE_BYTES:]
    return Share(point, int.from_bytes(seed, "big")), Share(point, int.from_bytes(key, "big"))
