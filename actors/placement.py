"""Which node a hospital's actor runs on: its own, by Ray's label, or any, several hospitals an actor."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import ray

from actors.cluster.security import ClusterError
from fedplatform.core.compute import Compute
from fedplatform.experiments.places import LABEL, Place
from fedplatform.federated.cohort import CohortPlan

log = logging.getLogger(__name__)

FRACTIONS = 10_000  # of a GPU: Ray counts no finer
POLL_S = 1.0  # between two looks at who is there


class PlacementError(ClusterError):
    """A hospital that lives on no node of the cluster, or on one that is too small."""


@dataclass(frozen=True)
class GpuShares:
    """How much of a GPU the server and each of the actors that hospitals share asks for; 0 for the CPU."""

    server: float = 0.0
    host: float = 0.0

    @staticmethod
    def of(gpus: int, *, hosts: int, beside_server: bool) -> GpuShares:
        """All GPUs of a cluster dealt out evenly, to the server too where its machine has one."""
        if not gpus:
            return GpuShares()
        on_each = -(-(hosts + beside_server) // gpus)
        share = FRACTIONS // on_each / FRACTIONS
        return GpuShares(share if beside_server else 0.0, share)

    @staticmethod
    def within(gpus: float, *, hosts: int) -> GpuShares:
        """A given share of a GPU: all of it to the actors that train, or to the one process where there are none."""
        return GpuShares(host=gpus * FRACTIONS // hosts / FRACTIONS) if hosts else GpuShares(server=gpus)


@dataclass(frozen=True)
class ActorPlacement:
    """One actor: the hospitals that live in it, and how Ray is to place it."""

    hospital_ids: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1})

    def plan(self, plan: CohortPlan) -> CohortPlan:
        """The plan as this actor is to read it: without a share of a GPU, it trains on its CPU."""
        compute = with_share(plan.training.compute, self.options.get("num_gpus", 0))
        return replace(plan, training=replace(plan.training, compute=compute))


def with_share(compute: Compute, gpus: float) -> Compute:
    """What an actor with so much of a GPU computes with: Ray may show GPUs to actors that asked for none."""
    return compute if gpus or not takes_gpus(compute) else replace(compute, device="cpu")


def takes_gpus(compute: Compute) -> bool:
    """Whether Ray's GPUs are asked for, or taken where there are some."""
    return compute.device.partition(":")[0] in ("auto", "cuda")


def spread(plan: CohortPlan, num_hosts: int, gpus: float = 0.0) -> list[ActorPlacement]:
    """Hospitals dealt in turn to actors that may run anywhere, each with so much of a GPU."""
    # Honest hospitals and attackers are dealt apart: colluding attackers do not train, and would leave one host idle.
    order = [*plan.honest, *(name for name in plan.shard_files if name not in plan.honest)]
    options = {"num_cpus": 1, "num_gpus": gpus}
    return [ActorPlacement(tuple(order[host::num_hosts]), options) for host in range(num_hosts)]


def at_home(places: Sequence[Place]) -> list[ActorPlacement]:
    """An actor for each hospital, which runs on that hospital's node and nowhere else."""
    return [
        ActorPlacement(
            (place.name,), {"num_cpus": place.cpus, "num_gpus": place.gpus, "label_selector": {LABEL: place.node}}
        )
        for place in places
    ]


@dataclass(frozen=True)
class Absences:
    """Which hospitals a run may begin without, because their nodes are not there; they join when these come.

    ``without`` need not be there. After ``wait_s`` seconds any other may be missing too, if ``least`` are there.
    None waits not at all, and lets nobody else be missing.
    """

    without: tuple[str, ...] = ()
    wait_s: float | None = None
    least: int = 0


NOBODY = Absences()


def require_nodes(places: Sequence[Place], absences: Absences = NOBODY) -> tuple[str, ...]:
    """Say which hospitals no living node is labelled for, or gives too little; Ray would wait for ever.

    Returns those that are missing and may be. Raises :class:`PlacementError` for any other.
    """
    until = time.monotonic() + (absences.wait_s or 0.0)
    told: set[str] = set()
    while True:
        nodes = _labelled()
        missing = [place for place in places if place.node not in nodes]
        needed = [place for place in missing if place.name not in absences.without]
        if not needed or time.monotonic() >= until:
            break
        if names := {place.name for place in needed} - told:
            left = timedelta(seconds=round(until - time.monotonic()))
            log.warning("waiting for the node of %s, %s at most", ", ".join(sorted(names)), left)
            told |= names
        time.sleep(POLL_S)
    present = len(places) - len(missing)
    if needed and (absences.wait_s is None or present < absences.least):
        labels = ", ".join(f"{place.name} ({LABEL}={place.node})" for place in needed)
        there = ", ".join(sorted(nodes)) or "nobody"
        waited = absences.wait_s is not None
        few = (
            f" after {absences.wait_s:g} s, and {present} are fewer than the quorum of {absences.least}"
            if waited
            else ""
        )
        raise PlacementError(
            f"no node of the cluster is labelled as that of {labels}{few}; nodes are there for {there}; "
            f"--wait TIME begins once a quorum is there, --without {','.join(place.name for place in needed)} at once"
        )
    for place in places:
        for what, wanted in (("CPU", place.cpus), ("GPU", place.gpus)):
            has = nodes.get(place.node, {}).get(what, 0)
            if wanted > has and place.node in nodes:
                raise PlacementError(f"{place.name} wants {wanted:g} {what}, its node has {has:g}")
    return tuple(place.name for place in missing)


def here(places: Sequence[Place]) -> frozenset[str]:
    """The hospitals whose node is there at this moment."""
    nodes = _labelled()
    return frozenset(place.name for place in places if place.node in nodes)


def _labelled() -> dict[str, dict[str, float]]:
    """The resources of every living node that is a hospital's, by its label."""
    return {
        node["Labels"][LABEL]: node["Resources"] for node in ray.nodes() if node["Alive"] and LABEL in node["Labels"]
    }
