"""What a file's header says that its pictures are: modality, body part, writing burned into the pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# What scanners write for one region (DICOM PS3.16, annex L); a model of one name takes scans of the others.
SAME_REGION = ({"HEAD", "BRAIN", "SKULL"}, {"CHEST", "THORAX", "LUNG", "LUNGS"}, {"ABDOMEN", "ABDOMENPELVIS", "PELVIS"})
SAYS_NOTHING = {"", "OT", "SC"}  # other, secondary capture: whatever it is of
TAGS = ("Modality", "BodyPartExamined", "BurnedInAnnotation")


@dataclass(frozen=True, order=True)
class Origin:
    """One kind of file, "" where the header does not say: ``modality`` as MR, ``body_part`` as BRAIN."""

    modality: str = ""
    body_part: str = ""
    burned_in: bool = False

    @staticmethod
    def of(header: Any) -> Origin:
        """From a parsed DICOM header."""
        modality, body_part, burned_in = (str(header.get(tag) or "").strip().upper() for tag in TAGS)
        return Origin("" if modality in SAYS_NOTHING else modality, body_part, burned_in == "YES")


UNKNOWN = Origin()


def is_foreign(origin: Origin, known: Iterable[Origin]) -> bool:
    """Whether a header names another kind than those that a model was trained on. What either leaves out is no reason.

    >>> is_foreign(Origin("CT", "CHEST"), [Origin("MR", "BRAIN")])
    True
    >>> is_foreign(Origin("MR", "HEAD"), [Origin("MR", "BRAIN")])
    False
    """
    trained = tuple(known)
    modalities = {one.modality for one in trained if one.modality}
    regions = {_region(one.body_part) for one in trained if one.body_part}
    return (
        bool(origin.modality and modalities and origin.modality not in modalities)
        or bool(origin.body_part and regions and _region(origin.body_part) not in regions)
        or (origin.burned_in and bool(trained) and not any(one.burned_in for one in trained))
    )


def _region(body_part: str) -> str:
    return next((min(names) for names in SAME_REGION if body_part in names), body_part)
