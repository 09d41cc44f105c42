"""The parts of a DICOM file: its heading, the elements before the pixels, and the pixels."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

PREAMBLE = 132  # bytes: 128 of anything, then "DICM"
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # of floats, of doubles, of integers
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF  # the length of what is closed by a delimiter
DEEPEST = 64  # sequences in each other
KNOWN_VR = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
LONG_VR = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
NO_SEQUENCE = frozenset({b"OB", b"OW"})  # of these, items of undefined length hold bytes and no elements


class NoPixels(ValueError):  # noqa: N818 - a file without a picture is whole
    """The elements of a DICOM file end without pixels."""


class HeaderTooLong(ValueError):  # noqa: N818
    """More stands before the pixels of a DICOM file than was allowed."""


@dataclass(frozen=True)
class HeaderLimits:
    """How much may stand before the pixels: ``bytes``, and ``elements``, sequences' included (a kilobyte each)."""

    bytes: int
    elements: int


def begins_like_dicom(start: bytes) -> bool:
    """Whether the first 140 bytes of a file are those of a DICOM file, be it without preamble or without heading."""
    if start[128:PREAMBLE] == b"DICM":
        return True
    if len(start) < 12:
        return False
    is_big = start[:2] == b"\x00\x08"
    group, element = struct.unpack(">HH" if is_big else "<HH", start[:4])
    if group not in (2, 8) or element > 0x0070:
        return False
    length = int.from_bytes(start[4:8], "little")
    return start[4:6] in KNOWN_VR or (group == 8 and not is_big and 0 < length <= 128 and length % 2 == 0)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file in memory: its heading, its transfer syntax, and where in ``data`` the data set begins.

    A file without preamble or without heading is taken, too; the syntax is then told from its first element.
    """

    meta: FileMetaDataset
    syntax: UID
    data: bytes
    begin: int

    @classmethod
    def of(cls, data: bytes) -> DicomFile:
        """Read the heading. Raises ValueError where the file begins otherwise, or whatever pydicom raises."""
        if not begins_like_dicom(data[:140]):
            raise ValueError("it does not begin like one")
        stream = io.BytesIO(data)
        stream.seek(PREAMBLE if data[128:PREAMBLE] == b"DICM" else 0)
        meta = FileMetaDataset()
        if data[stream.tell() : stream.tell() + 2] == b"\x02\x00":
            meta.update(read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2))
        begin = stream.tell()
        if not meta:
            meta.TransferSyntaxUID = _syntax_of(data[begin : begin + 6])
        return cls(meta, UID(str(meta.get("TransferSyntaxUID") or "")), data, begin)

    def inflated(self, *, at_most: int | None = None) -> DicomFile:
        """The same file with its data set inflated where it is deflated.

        Raises OverflowError where that gives more than ``at_most`` bytes, EOFError where its end is missing.
        """
        if self.syntax != DeflatedExplicitVRLittleEndian:
            return self
        body = self.data[self.begin :]
        if at_most is not None and _inflates_beyond(body, at_most):
            raise OverflowError("the data set inflates to too much")
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(body)
        if not inflater.eof:
            raise EOFError("the deflated data set is cut short")
        return DicomFile(self.meta, self.syntax, inflated, 0)

    def parsed(self, limits: HeaderLimits | None = None) -> Dataset:
        """All elements up to the pixels and the pixels, as they are; what stands behind them is never looked at.

        Raises :class:`NoPixels`, :class:`HeaderTooLong`, or whatever pydicom raises on broken bytes.
        """
        implicit, little = self.syntax == ImplicitVRLittleEndian, self.syntax != ExplicitVRBigEndian
        pixels = self._find_pixels(limits)
        stream = io.BytesIO(self.data)
        stream.seek(self.begin)
        dataset = read_dataset(stream, implicit, little, bytelength=pixels - self.begin)
        stream.seek(pixels)
        dataset.update(read_dataset(stream, dataset.original_encoding[0], little, bytelength=1))
        dataset.file_meta = self.meta
        return dataset

    def _find_pixels(self, limits: HeaderLimits | None) -> int:
        """Where the pixels begin, by a walk over tags and lengths that keeps nothing."""
        data, at = self.data, self.begin
        most = HeaderLimits(len(data), len(data)) if limits is None else limits
        order = ">" if self.syntax == ExplicitVRBigEndian else "<"
        short, tag_of, long = struct.Struct(order + "H"), struct.Struct(order + "HH"), struct.Struct(order + "L")
        is_implicit = data[at + 4 : at + 6] not in KNOWN_VR  # whatever the heading says
        ends: list[int] = []  # of the sequences and items around this place
        elements = 0
        while True:
            while ends and at >= ends[-1] and ends[-1] != UNDEFINED:
                at = ends.pop()
            if at - self.begin > most.bytes or elements > most.elements or len(ends) > DEEPEST:
                raise HeaderTooLong
            if at + 8 > len(data):
                raise NoPixels
            group, element = tag_of.unpack_from(data, at)
            tag = group << 16 | element
            if tag in PIXELS and not ends:
                return at
            elements += 1
            if tag in (ITEM, ITEM_END, SEQUENCE_END):
                length = long.unpack_from(data, at + 4)[0]
                at += 8
                if tag == ITEM:
                    ends.append(UNDEFINED if length == UNDEFINED else at + length)
                elif ends and ends[-1] == UNDEFINED:
                    ends.pop()
                continue
            vr = data[at + 4 : at + 6]
            if is_implicit or not (b"AA" <= vr <= b"ZZ"):  # an explicit file may hold implicit sequences
                vr, length, at = b"", long.unpack_from(data, at + 4)[0], at + 8
            elif vr not in LONG_VR:
                length, at = short.unpack_from(data, at + 6)[0], at + 8
            elif at + 12 <= len(data):
                length, at = long.unpack_from(data, at + 8)[0], at + 12
            else:
                raise NoPixels
            if length == UNDEFINED and (tag in PIXELS or vr in NO_SEQUENCE):
                at = self._behind_fragments(at, long)
            elif length == UNDEFINED:
                ends.append(UNDEFINED)
            elif vr in (b"SQ", b"UN", b"") and data[at : at + 4] == tag_of.pack(0xFFFE, 0xE000):
                ends.append(at + length)
            else:
                at += length

    def _behind_fragments(self, at: int, long: struct.Struct) -> int:
        """The place behind the delimiter of fragments that begin at ``at``."""
        while at + 8 <= len(self.data):
            tag, length = self.data[at : at + 4], long.unpack_from(self.data, at + 4)[0]
            at += 8
            if tag != b"\xfe\xff\x00\xe0":
                return at
            at += length
        raise NoPixels


def _inflates_beyond(body: bytes, length: int) -> bool:
    """Whether a deflated data set is longer than ``length`` bytes; holds a mebibyte of it at a time."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    while body and not inflater.eof and total <= length:
        total += len(inflater.decompress(body, 2**20))
        body = inflater.unconsumed_tail
    return total > length


def _syntax_of(start: bytes) -> UID:
    """The transfer syntax of a data set that begins so, in a file that does not say."""
    if start[4:6] not in KNOWN_VR:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if start[:1] == b"\x00" else ExplicitVRLittleEndian
