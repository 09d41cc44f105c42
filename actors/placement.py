"""Which node a hospital's actor runs on: its own, by Ray's label, or any, several hospitals an actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.cluster.security import ClusterError
from fedplatform.experiments.places import LABEL, Place
from fedplatform.federated.cohort import CohortPlan


class PlacementError(ClusterError):
    """A hospital that lives on no node of the cluster, or on one that is too small."""


@dataclass(frozen=True)
class ActorPlacement:
    """One actor: the hospitals that live in it, and how Ray is to place it."""

    hospital_ids: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1})


def spread(plan: CohortPlan, num_hosts: int) -> list[ActorPlacement]:
    """Hospitals dealt in turn to actors that may run anywhere."""
    # Honest hospitals and attackers are dealt apart: colluding attackers do not train, and would leave one host idle.
    order = [*plan.honest, *(name for name in plan.shard_files if name not in plan.honest)]
    return [ActorPlacement(tuple(order[host::num_hosts])) for host in range(num_hosts)]


def at_home(places: Sequence[Place]) -> list[ActorPlacement]:
    """An actor for each hospital, which runs on that hospital's node and nowhere else."""
    return [
        ActorPlacement(
            (place.name,), {"num_cpus": place.cpus, "num_gpus": place.gpus, "label_selector": {LABEL: place.node}}
        )
        for place in places
    ]


def require_nodes(places: Sequence[Place]) -> None:
    """Say at once which hospitals no living node bears the label of, or gives too little; Ray would wait for ever."""
    nodes: dict[str, dict[str, float]] = {}
    for node in ray.nodes():
        if node["Alive"] and LABEL in node["Labels"]:
            nodes[node["Labels"][LABEL]] = node["Resources"]
    missing = [place for place in places if place.node not in nodes]
    if missing:
        labels = ", ".join(f"{place.name} ({LABEL}={place.node})" for place in missing)
        there = ", ".join(sorted(nodes)) or "nobody"
        raise PlacementError(f"no node of the cluster is labelled as that of {labels}; nodes are there for {there}")
    for place in places:
        for what, wanted in (("CPU", place.cpus), ("GPU", place.gpus)):
            has = nodes[place.node].get(what, 0)
            if wanted > has:
                raise PlacementError(f"{place.name} wants {wanted:g} {what}, its node has {has:g}")
