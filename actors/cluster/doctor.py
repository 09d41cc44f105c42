"""What would make a run fail, found before it does: on this machine, at the cluster's door, and on every node."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster import security
from actors.cluster.certificates import SOON, expiry
from actors.cluster.joining import LOCAL, found, join
from actors.placement import PlacementError, require_nodes
from fedplatform.data.error import DataError
from fedplatform.data.shards import Manifest, Shard
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.places import LABEL, Place

NODE_S = 180.0  # to start a process on a node and get its answer
LEAST_FREE_GIB, COMFORTABLY_FREE_GIB = 1.0, 10.0
MOST_SKEW_S = 2.0


class State(StrEnum):
    """How a check ended; a fault stops a run, or leaves the door open."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do about it."""

    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Visit:
    """What a look around on a node saw; ``shards`` maps a hospital to what its file holds, or why it cannot be read."""

    versions: str
    now: float
    free_gib: float
    shards: dict[str, tuple[bool, str]] = field(default_factory=dict)


def examine(experiment: Experiment | None, *, address: str, runs: Path, shards: Path | None) -> list[Finding]:
    """Check everything that a run of ``experiment`` on the cluster at ``address`` needs; nothing is changed."""
    security.secure()
    findings = [Finding("versions here", State.GOOD, versions()), token(), tls(), *mlflow(runs), disk_here(runs)]
    joined = ray.is_initialized()
    try:
        if not joined:
            join(address)
    except (security.AccessError, ConnectionError) as error:
        return [*findings, Finding("cluster", State.FAULT, str(error), "nothing else can be checked until it answers")]
    try:
        places = () if address == LOCAL or experiment is None else experiment.places
        findings.append(Finding("cluster", State.GOOD, f"nodes: {len(_alive())}; {_resources()}"))
        if address != LOCAL:
            findings += [door(found(address)), dashboard()]
        findings += nodes(places)
        findings += visits(places, wanted=_wanted(shards))
    finally:
        if not joined:
            ray.shutdown()
    return findings


def versions() -> str:
    """What must be the same on all nodes."""
    return f"fedplatform {version('fedplatform')}, Ray {ray.__version__}, Python {platform.python_version()}"


def token() -> Finding:
    """Whether there is a token, and who may read it."""
    if not security.asks_for_token():
        remedy = "unset RAY_AUTH_MODE: who reaches Ray's ports can run any code"
        return Finding("token", State.FAULT, "Ray asks nobody for a token", remedy)
    if not security.token():
        return Finding("token", State.DOUBTFUL, "none yet", "'fedplatform node --head' makes one; else copy the head's")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", security.TOKEN_FILE)).expanduser()
    if "RAY_AUTH_TOKEN" not in os.environ and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Finding("token", State.DOUBTFUL, f"others may read {path}", f"chmod 600 {path}")
    return Finding("token", State.GOOD, "there, and for its owner alone")


def tls() -> Finding:
    """Whether Ray's connections are encrypted, and for how long the certificate is good."""
    if os.environ.get("RAY_USE_TLS") != "1":
        remedy = f"on a network that others share: 'fedplatform certificate', then {security.TLS}=FOLDER on every node"
        return Finding("TLS", State.DOUBTFUL, "off: token and weights travel in the clear", remedy)
    certificate, key = (os.environ[f"RAY_TLS_SERVER_{name}"] for name in ("CERT", "KEY"))
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        left = expiry(Path(certificate)) - datetime.now(UTC)
    except (OSError, ValueError) as error:
        return Finding("TLS", State.FAULT, f"{certificate}: {error}", "'fedplatform certificate' makes a new one")
    if left < SOON:
        state = State.DOUBTFUL if left > timedelta(0) else State.FAULT
        return Finding("TLS", state, f"the certificate ends in {left.days} days", "'fedplatform certificate' renews it")
    return Finding("TLS", State.GOOD, f"on; the certificate is good for {left.days} days")


def mlflow(runs: Path) -> Iterator[Finding]:
    """Whether figures can be logged."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
                yield Finding("MLflow", State.GOOD, uri)
        except (urllib.error.URLError, OSError) as error:
            yield Finding(
                "MLflow", State.DOUBTFUL, f"{uri}: {error}", "runs go on untracked; correct MLFLOW_TRACKING_URI"
            )
    else:
        yield Finding("MLflow", State.GOOD, uri or f"a database of its own, {runs / 'mlflow.db'}")


def disk_here(runs: Path) -> Finding:
    """Whether runs can be written."""
    place = next(parent for parent in (runs.resolve(), *runs.resolve().parents) if parent.exists())
    if not os.access(place, os.W_OK):
        return Finding("run folder", State.FAULT, f"{place} cannot be written", "choose another --runs")
    return _room("run folder", place, _free_gib(place))


def door(address: str) -> Finding:
    """Whether the cluster lets somebody in who shows no token."""
    if security.is_open_to_all(address):
        remedy = "start every node by 'fedplatform node', or with RAY_AUTH_MODE=token"
        return Finding("who gets in", State.FAULT, f"{address} lets anybody in", remedy)
    return Finding("who gets in", State.GOOD, f"{address} refuses who shows no token")


def dashboard() -> Finding:
    """Whether the place where code is handed in is reached from the head node alone."""
    node: Any = ray._private.worker._global_node
    url = str(node.webui_url or "")
    if not url:
        return Finding("dashboard", State.GOOD, "there is none")
    host = url.rpartition(":")[0].removeprefix("http://").strip("[]")
    if ip_address(host).is_loopback:
        return Finding("dashboard", State.GOOD, f"{url}, reached from the head node alone")
    remedy = "'fedplatform node --head' binds it to 127.0.0.1; on Kubernetes a network policy must guard it"
    return Finding("dashboard", State.DOUBTFUL, f"{url} is reached from elsewhere", remedy)


def nodes(places: Sequence[Place]) -> Iterator[Finding]:
    """Whether every hospital has its node, with what it asks for."""
    for node in _alive():
        hospital = node["Labels"].get(LABEL)
        what = f"{node['Resources'].get('CPU', 0):g} CPUs, {node['Resources'].get('GPU', 0):g} GPUs"
        yield Finding(f"node {node['NodeManagerAddress']}", State.GOOD, f"{what}, {hospital or 'no hospital'}")
    for place in places:
        try:
            require_nodes([place])
        except PlacementError as error:
            remedy = f"on its machine: 'fedplatform node --address HEAD:PORT --hospital {place.node}'"
            yield Finding(f"hospital {place.name}", State.FAULT, str(error), remedy)


def visits(places: Sequence[Place], *, wanted: Manifest | None) -> Iterator[Finding]:
    """Look around on every node: versions, clock, disk, and the shard of the hospital that lives there."""
    here = versions()
    for node in _alive():
        name = f"node {node['NodeManagerAddress']}"
        files = {place.name: place.shard for place in places if place.node == node["Labels"].get(LABEL) and place.shard}
        look = ray.remote(num_cpus=0, max_retries=0)(look_around).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        try:
            ray.get(look.remote({}), timeout=NODE_S)  # the process that it starts answers the next call at once
            asked = time.time()
            visit: Visit = ray.get(look.remote(files), timeout=NODE_S)
            answered = time.time()
        except RayError as error:
            why = str(error).strip().splitlines()[-1]
            yield Finding(
                name, State.FAULT, f"no process could be run there: {why}", "install the same fedplatform there"
            )
            continue
        if visit.versions != here:
            yield Finding(name, State.FAULT, visit.versions, f"install what is here: {here}")
        skew = max(0.0, asked - visit.now, visit.now - answered)
        if skew > MOST_SKEW_S:
            remedy = "let chrony or systemd-timesyncd set the clock: certificates and signatures have dates"
            yield Finding(name, State.FAULT, f"its clock is {skew:.0f} s off", remedy)
        else:
            yield Finding(name, State.GOOD, f"same versions; clock within {max(skew, answered - asked):.1f} s")
        yield _room(name, None, visit.free_gib)
        for hospital, (readable, says) in visit.shards.items():
            yield _shard(hospital, readable, says, wanted)


def look_around(shard_files: dict[str, str]) -> Visit:
    """What :func:`visits` does on a node."""
    shards = {}
    for hospital, file in shard_files.items():
        try:
            shard = Shard.open(Path(file))
            shards[hospital] = (True, _kind(shard.classes, shard.channels, shard.size))
        except DataError as error:
            shards[hospital] = (False, str(error))
    return Visit(versions(), time.time(), _free_gib(Path("/tmp")), shards)


def _shard(hospital: str, readable: bool, says: str, wanted: Manifest | None) -> Finding:
    check = f"shard of {hospital}"
    if not readable:
        return Finding(check, State.FAULT, says, "'fedplatform data partition' makes it; correct its path in the file")
    if wanted is not None:
        federation = _kind(wanted.classes, wanted.settings.channels, wanted.settings.size)
        if says != federation:
            return Finding(check, State.FAULT, says, f"make it anew as the server has it: {federation}")
    return Finding(check, State.GOOD, says)


def _wanted(shards: Path | None) -> Manifest | None:
    return None if shards is None else Manifest.load(shards)


def _kind(classes: Sequence[str], channels: int, size: int) -> str:
    return f"{', '.join(classes)}; {channels} channels, {size} pixels a side"


def _room(check: str, place: Path | None, free: float) -> Finding:
    says = f"{free:.0f} GiB free" + (f" at {place}" if place else "")
    if free < LEAST_FREE_GIB:
        return Finding(check, State.FAULT, says, "make room: Ray spills objects to /tmp, runs keep every round")
    if free < COMFORTABLY_FREE_GIB:
        return Finding(check, State.DOUBTFUL, says, "make room before a long run")
    return Finding(check, State.GOOD, says)


def _free_gib(place: Path) -> float:
    return shutil.disk_usage(place).free / 2**30


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _resources() -> str:
    there = ray.cluster_resources()
    return f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs"
