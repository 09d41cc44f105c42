"""Uploads that nobody means well with: every one of them is to be refused with a 4xx and one sentence.

A few are honest mistakes, most are bombs and lies: little to send, much to decode, or a header that promises what does
not follow. Good scans stand beside them, because each lie is told about one.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000 as JPEG2000_LOSSY
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

READABLE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEG2000Lossless,
    JPEG2000_LOSSY,
    RLELossless,
)
MEBIBYTE = 2**20


@dataclass(frozen=True)
class HostileUpload:
    """The bytes of an upload and the name of what is wrong with it."""

    name: str
    data: bytes = field(repr=False)


def hostile_uploads() -> Iterator[HostileUpload]:
    """At least 200 of them, the same at every call; one after the other, for some are tens of megabytes."""
    for family, members in (
        ("other", _other_kinds),
        ("png", _pngs),
        ("jpeg", _jpegs),
        ("tiff", _tiffs),
        ("bmp and webp", _bmps_and_webps),
        ("dicom", _dicoms),
        ("nifti", _niftis),
        ("noise", _noise),
    ):
        for name, data in members():
            yield HostileUpload(f"{family}: {name}", data)


def scan_pixels(height: int = 40, width: int = 32) -> np.ndarray:
    """A smooth grey picture (h, w) uint8 with a spot, not square, so that a swapped side shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 90 + 60 * np.sin(rows / 9.0) * np.cos(columns / 7.0)
    smooth[height // 3 : height // 3 + 6, width // 4 : width // 4 + 5] += 70
    return smooth.round().astype(np.uint8)


def picture_bytes(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Pixels (h, w) or (h, w, 3) as a file of PIL's ``kind``."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def dicom_bytes(
    pixels: np.ndarray,
    *,
    syntax: str = ExplicitVRLittleEndian,
    frames: list[bytes] | None = None,
    change: Callable[[pydicom.Dataset], object] = lambda data: None,
    **tags: object,
) -> bytes:
    """Pixels (h, w) or (frames, h, w) of 8 or 16 bits as a DICOM file; ``frames`` are compressed ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says what is wrong with a hostile value
        return _dicom_bytes(pixels, syntax, frames, change, tags)


def _dicom_bytes(
    pixels: np.ndarray,
    syntax: str,
    frames: list[bytes] | None,
    change: Callable[[pydicom.Dataset], object],
    tags: dict[str, object],
) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = syntax if syntax in READABLE else ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = SecondaryCaptureImageStorage, "1.2.3", "p1"
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    if frames is None:
        stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == ExplicitVRBigEndian else pixels
        data.PixelData = stored.tobytes()
    else:
        data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB" if bits == 8 or frames is not None else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    change(data)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    if syntax in READABLE:
        return stream.getvalue()
    there, other = (text.encode() + b"\x00" * (len(text) % 2) for text in (str(ExplicitVRLittleEndian), syntax))
    element = b"\x02\x00\x10\x00UI"
    before, _, after = stream.getvalue().partition(element + struct.pack("<H", len(there)) + there)
    # The length of the file's own heading is now wrong, which pydicom does not mind.
    return before + element + struct.pack("<H", len(other)) + other + after


def nifti_bytes(volume: np.ndarray, *, change: Callable[[nib.Nifti1Header], object] = lambda header: None) -> bytes:
    """A volume (x, y, z) as an uncompressed NIfTI-1 file."""
    image = nib.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0]), dtype=volume.dtype)
    change(image.header)
    return image.to_bytes()


def volume_voxels(shape: tuple[int, ...] = (12, 14, 9)) -> np.ndarray:
    """Voxels (x, y, z) int16, all different."""
    return (np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 7 % 1009).astype(np.int16)


def rle_frame(pixels: np.ndarray) -> bytes:
    """Pixels (h, w) uint8 as one RLE segment of literal runs."""
    body = b"".join(
        bytes([len(part) - 1]) + part for part in (pixels.tobytes()[at : at + 128] for at in range(0, pixels.size, 128))
    )
    return _rle([body + b"\x00" * (len(body) % 2)])


def _rle(segments: list[bytes]) -> bytes:
    starts = np.cumsum([64, *(len(segment) for segment in segments)])[: len(segments)]
    header = struct.pack("<L", len(segments)) + b"".join(struct.pack("<L", start) for start in starts)
    return header.ljust(64, b"\x00") + b"".join(segments)


def _cuts(data: bytes, parts: int, *, up_to: float = 0.97) -> Iterator[tuple[str, bytes]]:
    for length in sorted({int(len(data) * up_to * part / parts) for part in range(1, parts + 1)}):
        yield f"cut after {length} of {len(data)} bytes", data[:length]


def _changed(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


def _other_kinds() -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "a blank line", b"\n"
    yield "zeros", bytes(5000)
    yield "larger than an upload may be", bytes(33 * MEBIBYTE)
    png = picture_bytes(scan_pixels(), "PNG")
    for name, inside in (("a scan", png), ("a page", b"<html>"), ("zeros", bytes(MEBIBYTE))):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("scan.png"), inside, zipfile.ZIP_DEFLATED)
        yield f"zip of {name}", stream.getvalue()
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            member = tarfile.TarInfo("scan.png")
            member.size = len(inside)
            tar.addfile(member, io.BytesIO(inside))
        yield f"tar of {name}", stream.getvalue()
        yield f"tar.gz of {name}", _gz(stream.getvalue())
        yield f"gzip of {name}", _gz(inside)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(1)</script></svg>'
    for name, text in (
        ("svg", svg),
        ("svg behind an XML heading", f'<?xml version="1.0"?>{svg}'),
        ("svg behind a doctype", f'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "">{svg}'),
        ("svg behind blanks", f"\n \t{svg}"),
        ("svg behind a byte order mark", f"\ufeff{svg}"),
        ("svg in capitals", svg.upper()),
        ("svg that fetches a file", svg.replace("<script>", '<image href="file:///etc/passwd"/><script>')),
        ("html", "<!doctype html><script>alert(1)</script>"),
        ("html behind a comment", "<!-- scan --><html><body onload=alert(1)>"),
        ("html in capitals", "<HTML><BODY>"),
        ("html, only an image tag", "<img src=x onerror=alert(1)>"),
        ("a billion laughs", _billion_laughs()),
        ("an external entity", '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
        ("json", json.dumps({"image": "iVBORw0KGgo="})),
        ("a data URI", "data:image/png;base64,iVBORw0KGgo="),
        ("base64", "iVBORw0KGgoAAAANSUhEUgAA"),
        ("csv", "file,label\na.png,1\n"),
        ("a shell script", "#!/bin/sh\nid\n"),
        ("a path", "/etc/passwd"),
        ("a path upwards", "../../../../etc/passwd"),
        ("a URL", "http://169.254.169.254/latest/meta-data/"),
        ("PostScript", "%!PS-Adobe-3.0\n"),
        ("a template", "{{ 7 * 7 }}"),
        ("an X PixMap", "/* XPM */\nstatic char *a[] = {\n"),
        ("a portable pixmap", "P3\n1 1\n255\n0 0 0\n"),
    ):
        yield name, text.encode()
        if name in ("svg", "html"):
            yield f"{name} in UTF-16", text.encode("utf-16")
    for name, start in (
        ("GIF", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"),
        ("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
        ("a Linux program", b"\x7fELF\x02\x01\x01" + bytes(64)),
        ("a Windows program", b"MZ\x90\x00" + bytes(64)),
        ("RAR", b"Rar!\x1a\x07\x01\x00"),
        ("7z", b"7z\xbc\xaf\x27\x1c"),
        ("bzip2", b"BZh91AY&SY"),
        ("xz", b"\xfd7zXZ\x00"),
        ("zstandard", b"\x28\xb5\x2f\xfd"),
        ("HDF5", b"\x89HDF\r\n\x1a\n"),
        ("NumPy", b"\x93NUMPY\x01\x00v\x00"),
        ("Parquet", b"PAR1" + bytes(32) + b"PAR1"),
        ("pickle that would run", b"cos\nsystem\n(S'id'\ntR."),
        ("pickle of protocol 5", b"\x80\x05\x95" + bytes(16)),
        ("safetensors", struct.pack("<Q", 2) + b"{}"),
        ("MP4", b"\x00\x00\x00\x18ftypmp42"),
        ("HEIC", b"\x00\x00\x00\x18ftypheic"),
        ("AVIF", b"\x00\x00\x00\x18ftypavif"),
        ("JPEG XL", b"\xff\x0a" + bytes(16)),
        ("PSD", b"8BPS\x00\x01"),
        ("ICO", b"\x00\x00\x01\x00\x01\x00"),
        ("FITS", b"SIMPLE  =                    T"),
        ("OpenEXR", b"v/1\x01"),
        ("Java", b"\xca\xfe\xba\xbe"),
        ("WebAssembly", b"\x00asm\x01\x00\x00\x00"),
        ("SQLite", b"SQLite format 3\x00"),
        ("Analyze without its voxels", struct.pack("<i", 348) + bytes(344)),
    ):
        yield name, start
    for kind in ("PPM", "TGA", "JPEG2000", "GIF"):
        yield f"a whole {kind}", picture_bytes(scan_pixels(), kind)


def _billion_laughs() -> str:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY l0 "ha">{entities}]><l>&l9;</l>'


def _pngs() -> Iterator[tuple[str, bytes]]:
    good = picture_bytes(scan_pixels(), "PNG")
    yield from _cuts(good, 20, up_to=0.9)  # without its very end it is whole
    yield "its signature alone", good[:8]
    yield "mangled by a text transfer", good.replace(b"\r\n", b"\n")
    yield "a wrong checksum", _changed(good, 29, b"\x00\x00\x00\x00")
    yield "no pixels", good[:33] + _chunk(b"IEND", b"")
    yield "pixels that do not inflate", good[:33] + _chunk(b"IDAT", b"\x00" * 50) + _chunk(b"IEND", b"")
    for width, height in ((0, 10), (10, 0), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (64_000_001, 1), (1, 40_000)):
        yield f"says it is {width} x {height}", _png(width, height, b"")
    yield "a colour type there is none of", _png(8, 8, bytes(72), colour=5)
    yield "a bit depth there is none of", _png(8, 8, bytes(72), bits=3)
    yield "a bomb of 9,000 x 9,000 pixels", _png(9000, 9000, _zeros(9001 * 9000))
    yield "a bomb of 40,000 x 40,000 pixels of a bit", _png(40_000, 40_000, _zeros(5001 * 40_000), bits=1)
    yield (
        "a bomb in a compressed comment",
        (good[:33] + _chunk(b"zTXt", b"Comment\x00\x00" + _zeros(100 * MEBIBYTE)) + good[33:]),
    )
    yield (
        "a bomb in an international comment",
        (good[:33] + _chunk(b"iTXt", b"Comment\x00\x01\x00\x00\x00" + _zeros(100 * MEBIBYTE)) + good[33:]),
    )
    yield "a comment whose length is 2 GB", good[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + good[33:]


def _png(width: int, height: int, compressed: bytes, *, bits: int = 8, colour: int = 0) -> bytes:
    heading = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", heading) + _chunk(b"IDAT", compressed) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _zeros(length: int, *, wbits: int = zlib.MAX_WBITS) -> bytes:
    """So many zero bytes, compressed, and never held in memory."""
    squeeze = zlib.compressobj(9, wbits=wbits)
    block = bytes(MEBIBYTE)
    parts = [squeeze.compress(block) for _ in range(length // MEBIBYTE)]
    return b"".join([*parts, squeeze.compress(bytes(length % MEBIBYTE)), squeeze.flush()])


def _jpegs() -> Iterator[tuple[str, bytes]]:
    good = picture_bytes(scan_pixels(), "JPEG", quality=95)
    yield from _cuts(good, 20, up_to=0.9)
    yield "its first marker alone", good[:3]
    yield "its two first markers and its end", good[:4] + b"\xff\xd9"
    size = good.index(b"\xff\xc0") + 5
    for height, width in ((65_535, 65_535), (65_535, 1), (0, 32), (40, 0), (12_000, 12_000)):
        yield f"says it is {width} x {height}", _changed(good, size, struct.pack(">HH", height, width))
    yield "of 12 bits", _changed(good, size - 1, b"\x0c")
    yield "of five colours", _changed(good, size + 4, b"\x05")
    yield "lossless", _changed(good, size - 5, b"\xff\xc3")
    yield "no quantisation", good.replace(b"\xff\xdb", b"\xff\xfe")
    progressive = picture_bytes(scan_pixels(), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    yield "a thousand passes", progressive[:last] + progressive[last:-2] * 1000 + b"\xff\xd9"
    yield "a marker without a length", b"\xff\xd8\xff\xe0\x00\x00" + bytes(50)


def _tiffs() -> Iterator[tuple[str, bytes]]:
    good = picture_bytes(scan_pixels(), "TIFF")
    yield from _cuts(good, 8)
    yield "its signature alone", good[:4]
    directory = struct.unpack("<I", good[4:8])[0]
    count = struct.unpack("<H", good[directory : directory + 2])[0]
    tags = {struct.unpack_from("<H", good, directory + 2 + 12 * n)[0]: directory + 2 + 12 * n for n in range(count)}
    for width, height in ((60_000, 60_000), (0, 40), (64_000_001, 1), (9_000, 9_000)):
        huge = _changed(good, tags[256] + 2, struct.pack("<HII", 4, 1, width))
        yield f"says it is {width} x {height}", _changed(huge, tags[257] + 2, struct.pack("<HII", 4, 1, height))
    yield "a directory behind its end", _changed(good, 4, struct.pack("<I", 2**31))
    yield "a compression there is none of", _changed(good, tags[259] + 8, struct.pack("<H", 12_345))
    yield "99 bits a pixel", _changed(good, tags[258] + 8, struct.pack("<H", 99))
    stream = io.BytesIO()
    tiny = Image.fromarray(scan_pixels(8, 8))
    tiny.save(stream, "TIFF", save_all=True, append_images=[tiny] * 512)
    yield "513 pages", stream.getvalue()
    deep = bytes(imagecodecs.tiff_encode(np.repeat(scan_pixels().astype(np.uint16)[..., None], 3, axis=2)))
    yield from ((f"16-bit colours, {name}", data) for name, data in _cuts(deep, 6, up_to=0.9))


def _bmps_and_webps() -> Iterator[tuple[str, bytes]]:
    bmp = picture_bytes(scan_pixels(), "BMP")
    yield from ((f"BMP, {name}", data) for name, data in _cuts(bmp, 6))
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (0, 40), (9_000, 9_000)):
        yield f"BMP, says it is {width} x {height}", _changed(bmp, 18, struct.pack("<ii", width, height))
    yield "BMP, pixels behind its end", _changed(bmp, 10, struct.pack("<I", 2**31))
    yield "BMP, a compression there is none of", _changed(bmp, 30, struct.pack("<I", 99))
    webp = picture_bytes(scan_pixels(), "WEBP", lossless=True)
    yield from ((f"WebP, {name}", data) for name, data in _cuts(webp, 6))
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2
    behind = webp[12:]
    size = struct.pack("<I", 4 + len(canvas) + len(behind))
    yield "WebP, a canvas of 16,384 x 16,384", b"RIFF" + size + b"WEBP" + canvas + behind
    moving = [Image.fromarray(scan_pixels())] * 4
    stream = io.BytesIO()
    moving[0].save(stream, "WEBP", save_all=True, append_images=moving[1:])
    yield from ((f"WebP in motion, {name}", data) for name, data in _cuts(stream.getvalue(), 4, up_to=0.5))


def _dicoms() -> Iterator[tuple[str, bytes]]:
    pixels = scan_pixels()
    good = dicom_bytes(pixels)
    yield from _cuts(good, 20)
    yield "its preamble alone", good[:132]
    yield "its heading alone", good[132 : _body_at(good)]
    for syntax in AllTransferSyntaxes:
        if syntax not in READABLE:
            yield f"transfer syntax {syntax}", dicom_bytes(pixels, syntax=syntax)
    for unknown in ("1.2.840.10008.1.2.99", "1.2.3.4.5", "2.25.1", "", "x" * 64, "../../etc/passwd"):
        yield f"transfer syntax {unknown[:20]!r}", dicom_bytes(pixels, syntax=unknown)
    for rows, columns in ((65_535, 65_535), (0, 32), (40, 0), (9_000, 9_000), (40_000, 1), (41, 32)):
        yield f"says it is {columns} x {rows}", dicom_bytes(pixels, Rows=rows, Columns=columns)
    for frames in ("2", "65", "2147483647", "-1"):
        yield f"says it has {frames} frames", dicom_bytes(pixels, NumberOfFrames=frames)
    yield "513 frames", dicom_bytes(np.stack([pixels] * 513))
    for name, value in (
        ("BitsAllocated", 7),
        ("BitsAllocated", 0),
        ("BitsAllocated", 64),
        ("BitsStored", 99),
        ("SamplesPerPixel", 5),
        ("SamplesPerPixel", 3),
        ("PixelRepresentation", 7),
        ("PhotometricInterpretation", "YBR_NONSENSE"),
        ("PhotometricInterpretation", "PALETTE COLOR"),
        ("PhotometricInterpretation", ""),
    ):
        yield f"{name} {value}", dicom_bytes(pixels, **{name: value})
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        yield f"without {name}", dicom_bytes(pixels, change=lambda data, name=name: delattr(data, name))
    yield "no pixels in its pixels", dicom_bytes(pixels, PixelData=b"")
    deflated = dicom_bytes(pixels, syntax=DeflatedExplicitVRLittleEndian)
    yield from ((f"deflated, {name}", data) for name, data in _cuts(deflated, 8))
    start = deflated[: _body_at(deflated)]
    yield "deflated, and no deflate", start + bytes(200)
    yield "a deflate bomb of half a gigabyte", start + _zeros(500 * MEBIBYTE, wbits=-zlib.MAX_WBITS)
    body = dicom_bytes(pixels)
    at = _body_at(body)
    flood = b"".join(struct.pack("<HH2sH", 0x0009, n, b"LO", 0) for n in range(0x1000, 0xFFFF)) * 3
    yield "a header of 1.5 MB of empty elements", body[:at] + flood + body[at:]
    items = (
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 2_000_000
    )
    yield "two million empty items", body[:at] + items + body[at:]
    deep = (struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 20_000
    yield "twenty thousand sequences in each other", body[:at] + deep + body[at:]
    yield "an element of 4 GB", body[:at] + struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 0xFFFFFFF0) + body[at:]
    yield "a value of another kind", dicom_bytes(pixels).replace(b"US\x02\x00", b"SQ\x02\x00", 1)
    for name, tags in (
        ("a window of no number", {"WindowCenter": 7777, "WindowWidth": 7777}),
        ("a sigmoid of no number", {"WindowCenter": 7777, "WindowWidth": 1, "VOILUTFunction": "SIGMOID"}),
        ("a slope of no number", {"RescaleSlope": 7777, "RescaleIntercept": 0}),
    ):
        yield name, re.sub(rb"(DS.\x00)7777", rb"\g<1>nan ", dicom_bytes(pixels, **tags))
    yield "a sigmoid of no width", dicom_bytes(pixels, WindowCenter=1, WindowWidth=0, VOILUTFunction="SIGMOID")
    other_pixels = scan_pixels(80, 64)
    jpeg, other = picture_bytes(pixels, "JPEG"), picture_bytes(other_pixels, "JPEG")
    j2k, boxed = _codestream(pixels), picture_bytes(pixels, "JPEG2000")
    for name, syntax, frames in (
        ("a JPEG frame of another size", JPEGBaseline8Bit, [other]),
        ("a JPEG frame cut short", JPEGBaseline8Bit, [jpeg[: len(jpeg) // 2]]),
        ("a JPEG frame that is a PNG", JPEGBaseline8Bit, [picture_bytes(pixels, "PNG")]),
        ("a JPEG frame that is a page", JPEGBaseline8Bit, [b"<html></html> "]),
        ("a JPEG frame of nothing", JPEGBaseline8Bit, [bytes(2)]),
        ("a JPEG frame of a thousand passes", JPEGBaseline8Bit, [jpeg[:-2] + b"\xff\xda" * 1000 + b"\xff\xd9"]),
        ("a JPEG frame of 65,535 x 65,535", JPEGBaseline8Bit, [_enlarged(jpeg)]),
        ("a JPEG 2000 frame of another size", JPEG2000Lossless, [_codestream(scan_pixels(80, 64))]),
        ("a JPEG 2000 frame of 2^31 pixels a side", JPEG2000Lossless, [_changed(j2k, 8, b"\x7f\xff\xff\xff" * 2)]),
        ("a JPEG 2000 frame of a tile a pixel", JPEG2000Lossless, [_changed(j2k, 24, b"\x00\x00\x00\x00" * 2)]),
        ("a JPEG 2000 frame cut short", JPEG2000Lossless, [j2k[: len(j2k) // 2]]),
        ("a JPEG 2000 frame of another size in a box", JPEG2000Lossless, [picture_bytes(other_pixels, "JPEG2000")]),
        ("a JPEG 2000 box of no length", JPEG2000Lossless, [_changed(boxed, 12, bytes(4))]),
        ("a JPEG 2000 box of 4 GB", JPEG2000Lossless, [_changed(boxed, 12, b"\xff" * 4)]),
        ("a JPEG 2000 frame of 16,384 components", JPEG2000Lossless, [_changed(j2k, 40, b"\x40\x00")]),
        ("a lossless JPEG frame of another size", JPEGLossless, [_lossless(other_pixels)]),
        ("a lossless JPEG frame of 65,535 x 65,535", JPEGLossless, [_enlarged(_lossless(pixels), b"\xff\xc3")]),
        ("a lossless JPEG frame cut short", JPEGLossless, [_lossless(pixels)[:200]]),
        ("a lossless JPEG frame of no marker", JPEGLossless, [b"\xff\xd8" + b"\xff" * 500]),
        ("a JPEG-LS frame of another size", JPEGLSLossless, [_jpeg_ls(other_pixels)]),
        ("a JPEG-LS frame of 65,535 x 65,535", JPEGLSLossless, [_enlarged(_jpeg_ls(pixels), b"\xff\xf7")]),
        ("a JPEG-LS frame cut short", JPEGLSLossless, [_jpeg_ls(pixels)[:200]]),
        ("an HTJ2K frame of another size", HTJ2KLossless, [_htj2k(other_pixels)]),
        ("an HTJ2K frame cut short", HTJ2KLossless, [_htj2k(pixels)[:100]]),
        ("an HTJ2K frame of zeros", HTJ2KLossless, [bytes(100)]),
        ("a JPEG 2000 frame of zeros", JPEG2000Lossless, [bytes(500)]),
        ("an RLE frame without a header", RLELossless, [b"\x01\x00\x00\x00"]),
        ("an RLE frame of no segment", RLELossless, [bytes(64)]),
        ("an RLE frame of 4 billion segments", RLELossless, [b"\xff" * 64]),
        ("an RLE frame of two segments", RLELossless, [_rle([b"\x00\x00", b"\x00\x00"])]),
        ("an RLE frame that is too short", RLELossless, [_rle([b"\x81\x00" * 2])]),
        ("an RLE bomb", RLELossless, [_rle([b"\x81\x00" * 8_000_000])]),
        ("two frames for one", JPEGBaseline8Bit, [other, other]),
    ):
        yield name, dicom_bytes(pixels, syntax=syntax, frames=frames)
    encapsulated = dicom_bytes(pixels, syntax=JPEGBaseline8Bit, frames=[jpeg])
    yield from ((f"JPEG, {name}", data) for name, data in _cuts(encapsulated, 6, up_to=0.9))


def _body_at(data: bytes) -> int:
    """Where the data set begins behind the file's own heading."""
    at = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    return at + 4 + struct.unpack("<I", data[at : at + 4])[0]


def _enlarged(jpeg: bytes, marker: bytes = b"\xff\xc0") -> bytes:
    return _changed(jpeg, jpeg.index(marker) + 5, b"\xff\xff\xff\xff")


def _lossless(pixels: np.ndarray) -> bytes:
    return _even(imagecodecs.jpeg8_encode(pixels, lossless=True))


def _jpeg_ls(pixels: np.ndarray) -> bytes:
    return _even(imagecodecs.jpegls_encode(pixels))


def _htj2k(pixels: np.ndarray) -> bytes:
    return _even(imagecodecs.htj2k_encode(pixels))


def _even(frame: bytes) -> bytes:
    return frame + bytes(len(frame) % 2)


def _codestream(pixels: np.ndarray) -> bytes:
    return picture_bytes(pixels, "JPEG2000", no_jp2=True)


def _niftis() -> Iterator[tuple[str, bytes]]:
    voxels = volume_voxels()
    good = nifti_bytes(voxels)
    yield from _cuts(good, 15)
    yield from ((f"gz, {name}", data) for name, data in _cuts(_gz(good), 15))
    for name, volume in (
        ("no number in it", np.full((8, 8, 8), np.nan, np.float32)),
        ("infinity in all of it", np.full((8, 8, 8), np.inf, np.float32)),
        ("no number in it, double", np.full((8, 8, 8), np.nan, np.float64)),
        ("complex", np.ones((8, 8, 8), np.complex64)),
        ("of two dimensions", voxels[:, :, 0]),
        ("of one dimension", voxels[:, 0, 0]),
        ("of four dimensions", np.stack([voxels, voxels], axis=3)),
        ("of five dimensions", np.ones((4, 4, 4, 2, 2), np.int16)),
    ):
        yield name, nifti_bytes(volume)
        yield f"gz, {name}", _gz(nifti_bytes(volume))
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield "of colours", nifti_bytes(colours)
    for name, at, by in (
        ("says it is 32,767 a side", 40, struct.pack("<8h", 3, 32_767, 32_767, 32_767, 1, 1, 1, 1)),
        ("says it is 400 x 400 x 401", 40, struct.pack("<8h", 3, 400, 400, 401, 1, 1, 1, 1)),
        ("a side of 0", 40, struct.pack("<8h", 3, 12, 0, 9, 1, 1, 1, 1)),
        ("a side of -12", 40, struct.pack("<8h", 3, -12, 14, 9, 1, 1, 1, 1)),
        ("two sides of -12", 40, struct.pack("<8h", 3, -12, -12, 9, 1, 1, 1, 1)),
        ("of no dimension", 40, struct.pack("<h", 0)),
        ("of 99 dimensions", 40, struct.pack("<h", 99)),
        ("of -3 dimensions", 40, struct.pack("<h", -3)),
        ("a data type there is none of", 70, struct.pack("<h", 12_345)),
        ("bits for voxels", 70, struct.pack("<h", 1)),
        ("quadruple floats", 70, struct.pack("<h", 1536)),
        ("complex in its header", 70, struct.pack("<h", 32)),
        ("voxels at no number", 108, struct.pack("<f", float("nan"))),
        ("voxels at infinity", 108, struct.pack("<f", float("inf"))),
        ("voxels at -1000", 108, struct.pack("<f", -1000.0)),
        ("voxels behind 4 GB", 108, struct.pack("<f", 4e9)),
        ("voxels behind the end", 108, struct.pack("<f", 90_000.0)),
        ("the voxels in another file", 344, b"ni1\x00"),
        ("another magic", 344, b"n+9\x00"),
        ("another length", 0, struct.pack("<i", 349)),
    ):
        yield name, _changed(good, at, by)
        yield f"gz, {name}", _gz(_changed(good, at, by))
    huge = _changed(good, 40, struct.pack("<8h", 3, 2000, 2000, 2000, 1, 1, 1, 1))
    yield "a gz bomb of 8 billion voxels", _gz_behind(huge, 300 * MEBIBYTE)
    yield "a gz bomb behind a small volume", _gz_behind(good, 300 * MEBIBYTE)
    yield "a gz bomb before its voxels", _gz_behind(_changed(good, 108, struct.pack("<f", 3e8)), 300 * MEBIBYTE)
    yield "gz in gz", _gz(_gz(good))
    yield "gz with a wrong checksum", _gz(good)[:-8] + b"\x00" * 8
    yield "gz of nothing", _gz(b"")
    yield "gz, and no deflate", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 100
    yield "gz, its magic alone", b"\x1f\x8b"
    second = nib.Nifti2Image(voxels, np.eye(4)).to_bytes()
    yield from ((f"version 2, {name}", data) for name, data in _cuts(second, 6))
    yield "version 2, 2^62 voxels", _changed(second, 16, struct.pack("<4q", 3, 2**21, 2**21, 2**20))
    yield "version 2, sides that overflow", _changed(second, 16, struct.pack("<4q", 3, 2**62, 2**62, 2**62))


def _gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _gz_behind(start: bytes, zeros: int) -> bytes:
    """``start`` and so many zero bytes as one gzip member."""
    squeeze = zlib.compressobj(9, wbits=31)
    block = bytes(MEBIBYTE)
    parts = [squeeze.compress(start), *(squeeze.compress(block) for _ in range(zeros // MEBIBYTE)), squeeze.flush()]
    return b"".join(parts)


def _noise() -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(0)
    for length in (2, 16, 131, 132, 133, 348, 352, 540, 4096, 100_000):
        yield f"{length} bytes", generator.bytes(length)
    png = b"\x89PNG\r\n\x1a\n"
    for name, start in (
        ("PNG", png),
        ("JPEG", b"\xff\xd8\xff"),
        ("DICOM", bytes(128) + b"DICM"),
        ("gzip", b"\x1f\x8b\x08"),
    ):
        for length in (10, 1000, 50_000):
            yield f"{length} bytes behind the beginning of a {name}", start + generator.bytes(length)
