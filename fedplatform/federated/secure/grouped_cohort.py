"""Secure aggregation as the server conducts it: requests to all, groups, masked vectors, and the means of sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from fedplatform.core.messages import NAN, HospitalState, Predictions, Reply, Update
from fedplatform.core.seeding import torch_generator
from fedplatform.data.splits import Role
from fedplatform.federated.secure.groups import Seating, draw_groups
from fedplatform.federated.secure.masked_hospital import FIXED_POINT, Request
from fedplatform.federated.secure.masked_messages import Group, MaskedVector, PublicKeys, RevealedShares, SealedShares
from fedplatform.federated.secure.masking import least_threshold
from fedplatform.federated.secure.privacy import Grouped
from fedplatform.federated.secure.shamir import SharesError
from fedplatform.federated.secure.unmasking import unmask

Answer = TypeVar("Answer")
EVERYBODY = Seating()


class MaskedHospitals(Protocol):
    """All hospitals behind masks, wherever they run; who does not answer in time is a reply that says why."""

    @property
    def hospital_ids(self) -> tuple[str, ...]: ...

    def ask(self, request: Request, content: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, Any]]:
        """Put a request to each hospital named, with the content meant for it: its answer, or a :class:`Reply`.

        Answers come one at a time, each with the hospital's name, and are not kept.
        """
        ...

    def train(self, weights: np.ndarray, round_number: int, hospital_ids: Sequence[str]) -> dict[str, Reply]:
        """Let hospitals train from ``weights`` (d,) and keep their updates; who did has reported, without an update."""
        ...

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """As :class:`fedplatform.federated.cohort.Cohort` does."""
        ...


class GroupedCohort:
    """A cohort of which the server sees nothing smaller than the mean of a group.

    Every member of a group whose sum opened replies with the same update: the mean over the members that arrived, who
    are its ``group``. Each member counts the same, whatever number of scans it has: a claim could not be checked or
    capped behind a mask, and an attacker's would rule its group. Claims and training losses stay in the hospitals.
    """

    def __init__(
        self, hospitals: MaskedHospitals, privacy: Grouped, *, seed: int, seating: Seating = EVERYBODY
    ) -> None:
        self._hospitals = hospitals
        self._privacy = privacy
        self._seed = seed
        self._seating = seating

    def seated(self, seating: Seating) -> GroupedCohort:
        """The same cohort, its groups dealt as ``seating`` says."""
        return GroupedCohort(self._hospitals, self._privacy, seed=self._seed, seating=seating)

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return self._hospitals.hospital_ids

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital that answers."""
        return self._hospitals.evaluate(weights, roles)

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """One round of secure aggregation; whoever fails at a step drops out of it, and is a reply that says why."""
        dropped: dict[str, Reply] = {}
        names = self.hospital_ids if asked is None else asked

        def ask(
            request: Request, content: Mapping[str, tuple[object, ...]], kind: type[Answer]
        ) -> Iterator[tuple[str, Answer]]:
            for name, answer in self._hospitals.ask(request, content):
                if isinstance(answer, kind):
                    yield name, answer
                else:
                    dropped[name] = _refusal(name, answer)

        keys = dict(ask("advertise", dict.fromkeys(names, (round_number,)), PublicKeys))
        group_of = self._draw(keys, round_number)
        letters = dict(ask("share", {name: (group,) for name, group in group_of.items()}, tuple))
        for name, reply in self._hospitals.train(weights, round_number, list(letters)).items():
            if reply.state is not HospitalState.REPORTED:
                dropped[name] = reply
        trained = {name: (_letters_to(name, group_of[name], letters),) for name in letters if name not in dropped}
        totals: dict[Group, np.ndarray] = {}  # of what has arrived of each group: a masked vector itself is not kept
        masked: list[str] = []
        for name, vector in ask("mask", trained, MaskedVector):
            if complaint := _malformation(vector, name, size=len(weights), round_number=round_number):
                dropped[name] = Reply(name, HospitalState.MALFORMED, reason=complaint)
                continue
            masked.append(name)
            group = group_of[name]
            if group in totals:
                totals[group] += vector.values
            else:
                totals[group] = vector.values.copy()
        arrived = {group: tuple(name for name in group.hospital_ids if name in masked) for group in group_of.values()}
        opening = {name: (arrived[group_of[name]],) for name in masked if _opens(group_of[name], arrived)}
        revealed = dict(ask("reveal", opening, RevealedShares))
        closed: dict[Group, str] = {}
        for group, members in arrived.items():
            if not _opens(group, arrived):
                closed[group] = f"its group's sum stays closed: {len(members)} of {len(group.members)} members arrived"
                continue
            total = totals.pop(group)
            try:
                unmask(
                    total,
                    group,
                    sharing=[name for name in group.hospital_ids if name in letters],
                    arrived=members,
                    revealed=[revealed[name] for name in members if name in revealed],
                )
            except SharesError as error:
                closed[group] = str(error)
                continue
            mean = (FIXED_POINT.decode(total) / len(members)).astype(np.float32)
            same = Update("", round_number, mean, 1, NAN, NAN, group=members, travelled=total.nbytes)
            for name in members:
                update = replace(same, hospital_id=name)
                yield Reply(name, HospitalState.REPORTED, update)
        for name in names:
            found = group_of.get(name)
            if name not in masked or found in closed:
                yield self._without_update(name, found, closed, dropped)

    def _draw(self, keys: Mapping[str, PublicKeys], round_number: int) -> dict[str, Group]:
        """The group of every hospital that is in one, dealt among those that have sent keys."""
        drawn = draw_groups(
            list(keys),
            size=self._privacy.size,
            seating=self._seating,
            generator=torch_generator(self._seed, "server", round_number, "groups"),
        )
        return {
            name: Group(tuple(keys[member] for member in names), least_threshold(len(names)))
            for names in drawn
            for name in names
        }

    def _without_update(
        self, name: str, group: Group | None, closed: Mapping[Group, str], dropped: Mapping[str, Reply]
    ) -> Reply:
        """Why a hospital has no update."""
        if name in dropped:
            return dropped[name]
        if group and group in closed:
            return Reply(name, HospitalState.LATE, reason=closed[group])
        if name in self._seating.apart:
            reason = f"still excluded, and not in a group: too few to make one of {self._privacy.size}"
            return Reply(name, HospitalState.HOSTILE, reason=reason)
        return Reply(name, HospitalState.LATE, reason=f"too few hospitals for a group of {self._privacy.size}")


def _refusal(name: str, answer: object) -> Reply:
    if isinstance(answer, Reply):
        return answer
    return Reply(name, HospitalState.MALFORMED, reason=f"it answered with a {type(answer).__name__}")


def _letters_to(name: str, group: Group, letters: Mapping[str, tuple[SealedShares, ...]]) -> tuple[SealedShares, ...]:
    """The letters to a hospital from the members of its group that sent any."""
    senders = (member for member in group.hospital_ids if member in letters)
    return tuple(letter for sender in senders for letter in letters[sender] if letter.recipient == name)


def _opens(group: Group, arrived: Mapping[Group, tuple[str, ...]]) -> bool:
    return len(arrived[group]) >= group.threshold


def _malformation(vector: MaskedVector, name: str, *, size: int, round_number: int) -> str:
    """What is wrong with the form of a masked vector, in words; empty where nothing is."""
    values = vector.values
    if (vector.hospital_id, vector.round_number) != (name, round_number):
        return f"it sent a masked vector of {vector.hospital_id} for round {vector.round_number}"
    if not isinstance(values, np.ndarray) or values.dtype != np.uint64 or values.shape != (size,):
        shape, kind = getattr(values, "shape", ()), getattr(values, "dtype", type(values).__name__)
        return f"a masked vector is ({size},) uint64, got {shape} {kind}"
    return ""
