"""Small messages as JSON in one form, read strictly: these fields, these types, so many bytes."""

from __future__ import annotations

import json
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedplatform.outside.refusal import Reason, Refusal

MOST_BYTES = 2048  # of such a message


class Strict(BaseModel):
    """Exactly these fields of exactly these types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read JSON that somebody sent. Raises :class:`Refusal`."""
        if len(data) > MOST_BYTES:
            raise Refusal(Reason.OVERSIZE, f"{cls.__name__} of {len(data)} bytes; {MOST_BYTES} are the most")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise Refusal(Reason.BROKEN, f"this is no {cls.__name__.lower()}: {where} {first['msg']}"[:200]) from error

    def wire(self) -> bytes:
        """As JSON in the one form that is signed: keys in order, no spaces, ASCII."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
