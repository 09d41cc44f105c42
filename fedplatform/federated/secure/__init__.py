"""Secure aggregation: the server sees sums of groups, and still finds out whom to trust."""

from __future__ import annotations

from fedplatform.federated.secure.differential_privacy import promise
from fedplatform.federated.secure.fixed_point import RangeError
from fedplatform.federated.secure.group_rule import GroupMemory, GroupTested
from fedplatform.federated.secure.grouped_cohort import GroupedCohort, MaskedHospitals
from fedplatform.federated.secure.masked_hospital import MaskedHospital, NothingLearnedError, Request
from fedplatform.federated.secure.masking import ProtocolError
from fedplatform.federated.secure.privacy import PRIVACY, Grouped

__all__ = [
    "PRIVACY",
    "GroupMemory",
    "GroupTested",
    "Grouped",
    "GroupedCohort",
    "MaskedHospital",
    "MaskedHospitals",
    "NothingLearnedError",
    "ProtocolError",
    "RangeError",
    "Request",
    "promise",
]
