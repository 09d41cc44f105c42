"""Secure aggregation: the server sees sums of groups, and still finds out whom to trust."""

from __future__ import annotations

from fedplatform.secure.cohort import GroupedCohort, MaskedHospitals
from fedplatform.secure.differential_privacy import promise
from fedplatform.secure.fixed_point import RangeError
from fedplatform.secure.group_rule import GroupMemory, GroupTested
from fedplatform.secure.hospital import MaskedHospital, Request
from fedplatform.secure.masking import ProtocolError
from fedplatform.secure.privacy import PRIVACY, Grouped

__all__ = [
    "PRIVACY",
    "GroupMemory",
    "GroupTested",
    "Grouped",
    "GroupedCohort",
    "MaskedHospital",
    "MaskedHospitals",
    "ProtocolError",
    "RangeError",
    "Request",
    "promise",
]
