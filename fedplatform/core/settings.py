"""Typed, frozen settings to and from plain values: what experiments and defences have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from fedplatform.core.errors import FedplatformError
from fedplatform.core.specification import build, describe, nearest


class ExperimentError(FedplatformError, ValueError):
    """An experiment that cannot be run as written; the message is one line for the person who wrote it."""


class Settings(BaseModel):
    """Fields with descriptions, of which the command line makes options; an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Self:
        """Build from plain values, e.g. those of a YAML file.

        Raises :class:`ExperimentError` in one line for an unknown key (naming the nearest), a wrong type, an infeasible
        combination.
        """
        for key in settings:
            if key not in cls.model_fields:
                raise ExperimentError(f"unknown setting {key!r}{nearest(key, cls.model_fields)}")
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{first['loc'][0]}: " if first["loc"] else ""
            message = first["msg"].removeprefix("Value error, ")
            got = f", got {first['input']!r}" if first["loc"] and first["type"] != "value_error" else ""
            raise ExperimentError(f"{where}{message}{got}") from error
        except ValueError as error:
            raise ExperimentError(str(error)) from error

    @classmethod
    def defaults(cls) -> dict[str, object]:
        """What every setting is worth where nobody gives it."""
        return cls.from_settings({}).settings()

    def settings(self) -> dict[str, object]:
        """All fields as plain values, every default resolved: what a YAML file holds."""
        return self.model_dump(mode="python")


def parsed_by(table: Mapping[str, Any], what: str) -> BeforeValidator:
    """Let a field be given as text that names an object of the table (:func:`fedplatform.core.specification.build`)."""
    return BeforeValidator(lambda value: build(value, table, what=what, given={}) if isinstance(value, str) else value)


def written_by(table: Mapping[str, Any]) -> PlainSerializer:
    """Write such a field back as that text."""
    return PlainSerializer(lambda value: describe(value, table))
