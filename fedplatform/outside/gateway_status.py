"""What a gateway is about, in a file beside its ledger: who is registered, who is here, who is awaited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import yaml

from fedplatform.core.files import write_whole
from fedplatform.core.settings import ExperimentError
from fedplatform.core.specification import nearest
from fedplatform.outside.identity import Roster

STATUS, ROSTER, REVOKED = "status.json", "roster.yaml", "revoked.yaml"
GATEWAY = "gateway"  # in the run's folder


@dataclass(frozen=True)
class HospitalStatus:
    """A hospital of the roster: whether it has joined, when it was heard last (ISO 8601), whether an answer is due."""

    hospital: str
    joined: bool
    heard: str
    awaited: bool


@dataclass(frozen=True)
class GatewayStatus:
    """The order under way (``update`` or ``predictions``, empty before the first) and every hospital of the roster."""

    run: str
    round_number: int
    order: str
    written: str
    hospitals: tuple[HospitalStatus, ...]

    def write(self, folder: Path) -> None:
        """Put it in place of the one before."""
        text = json.dumps(asdict(self), indent=2)
        write_whole(folder / STATUS, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, run: Path) -> Self:
        """The status in a run's folder. Raises :class:`ExperimentError` where there is no gateway."""
        try:
            found = json.loads((run / GATEWAY / STATUS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{run} has no gateway: {error}") from error
        return cls(**{**found, "hospitals": tuple(HospitalStatus(**one) for one in found["hospitals"])})


def now() -> str:
    """The time, for a status."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_roster(folder: Path, given: Roster) -> Roster:
    """Put the roster of a launch where its gateway looks at it; keys that were revoked before stay revoked."""
    revoked = _revoked(folder)
    roster = Roster({name: key for name, key in given.keys.items() if key not in revoked})
    _write(folder / ROSTER, dict(roster.keys))
    return roster


def revoke(run: Path, hospital: str) -> Roster:
    """Take a hospital's key out of the roster of a run, for good, also while it goes on.

    Raises :class:`ExperimentError` where the run has no gateway, or the roster no such hospital.
    """
    folder, keys = _keys_of(run)
    if hospital not in keys:
        raise ExperimentError(f"{run} has no key of {hospital}{nearest(hospital, keys)}; it has {', '.join(keys)}")
    _write(folder / REVOKED, sorted({*_revoked(folder), keys.pop(hospital)}))
    _write(folder / ROSTER, keys)
    return Roster(keys)


def add(run: Path, hospital: str, key: str, *, may_come: Sequence[str]) -> Roster:
    """Add a hospital's key, or exchange the one that it has, also while the run goes on.

    ``may_come`` are the hospitals that the run has outside. Raises :class:`ExperimentError` for another one, a key that
    is none or another hospital's, or one that was revoked.
    """
    folder, keys = _keys_of(run)
    if hospital not in may_come:
        raise ExperimentError(f"{run} has no hospital {hospital} outside{nearest(hospital, may_come)}")
    if key in _revoked(folder):
        raise ExperimentError(f"this key of {hospital} was revoked; 'fedplatform keygen' makes a new one")
    keys[hospital] = key
    roster = Roster.checked(keys, where=str(run))
    _write(folder / ROSTER, dict(roster.keys))
    return roster


def _keys_of(run: Path) -> tuple[Path, dict[str, str]]:
    folder = run / GATEWAY
    if not (folder / ROSTER).exists():
        raise ExperimentError(f"{run} has no gateway")
    return folder, read_keys(folder)


def read_keys(folder: Path) -> dict[str, str]:
    """The keys in a gateway's folder; none is no fault."""
    found = yaml.safe_load((folder / ROSTER).read_text(encoding="utf-8")) or {}
    return dict(Roster.checked(found, where=str(folder / ROSTER)).keys)


def _revoked(folder: Path) -> set[str]:
    file = folder / REVOKED
    return set(yaml.safe_load(file.read_text(encoding="utf-8")) or []) if file.exists() else set()


def _write(file: Path, content: object) -> None:
    text = yaml.safe_dump(content, sort_keys=True)
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
