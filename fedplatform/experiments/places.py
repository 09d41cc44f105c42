"""Where hospitals live: each on the node that bears its label, with its shard on that node's own disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fedplatform.core.settings import ExperimentError, Settings

LABEL = "fedplatform/hospital"  # of a node, to Ray: whose it is
NAME = r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?"  # what Ray's labels, Kubernetes' names and file names all take


def _name(text: str) -> str:
    if text and re.fullmatch(NAME, text) is None:
        raise ValueError(f"a hospital is called like st-mary: small letters, digits and '-', at most 40; got {text!r}")
    return text


def _full_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError(f"a shard is a full path on the hospital's own node, such as /srv/scans.parquet; got {text!r}")
    return text


class Place(Settings):
    """One hospital of a federation file, by its name alone or with the settings below."""

    name: Annotated[str, AfterValidator(_name)] = Field(
        min_length=1, description="the hospital's name: small letters, digits and '-', at most 40"
    )
    node: Annotated[str, AfterValidator(_name)] = Field("", description="label of the hospital's node (its name)")
    shard: Annotated[str, AfterValidator(_full_path)] = Field(
        "", description="the hospital's Parquet shard, a full path on its own node"
    )
    cpus: float = Field(1.0, gt=0, description="CPUs that the hospital's actor takes")
    gpus: float = Field(0.0, ge=0, description="GPUs that the hospital's actor takes")
    memory_gib: float = Field(4.0, gt=0, description="memory of the hospital's pod on Kubernetes")

    @model_validator(mode="after")
    def _is_labelled_with_its_name(self) -> Self:
        if not self.node:
            object.__setattr__(self, "node", self.name)  # frozen for everybody else
        return self

    @classmethod
    def of(cls, entry: object) -> Self:
        """Read an entry of the list: a name, or a mapping of settings. Raises :class:`ExperimentError`."""
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, str):
            return cls.from_settings({"name": entry})
        if not isinstance(entry, dict):
            raise ExperimentError(f"hospitals are a number or a list of names or 'name: ...' entries, got {entry!r}")
        try:
            return cls.from_settings(entry)
        except ExperimentError as error:
            raise ExperimentError(f"hospital {entry.get('name', entry)!r}: {error}") from error


def require_distinct(places: Sequence[Place], *, count: int) -> None:
    """Refuse places that are not one for each hospital, each with a name and a node of its own, and shards in part."""
    if len(places) != count:
        raise ExperimentError(f"one place for each hospital, got {len(places)} for {count}")
    for what, values in (("name", [place.name for place in places]), ("node", [place.node for place in places])):
        twice = [value for value, times in Counter(values).items() if times > 1]
        if twice:
            raise ExperimentError(f"every hospital has a {what} of its own, got {', '.join(twice)} twice")
    without = [place.name for place in places if not place.shard]
    if 0 < len(without) < len(places):
        raise ExperimentError(f"all hospitals open a shard of their own or none does, {', '.join(without)} has none")
