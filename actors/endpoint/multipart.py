"""The files of a request in multipart/form-data, or one sentence that says what is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fedplatform.serving.refused import Refused

PART = "scan"
FIELDS = 8  # text fields that are read, so that one of them can be named
LONGEST_NAME = 80
EXAMPLE = "as 'curl -F scan=@FILE' sends it"


@dataclass(frozen=True)
class File:
    """One file of a request. ``name`` is what its sender calls it, in quotes, fit to stand in a sentence."""

    name: str
    data: bytes


async def files_of(request: Request, *, at_most: int) -> list[File]:
    """The files called ``scan`` of a request, in their order; raises :class:`Refused`, a sentence for each fault."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        came = f"this is {printable(kind)}" if kind else "the request says no Content-Type"
        raise Refused(415, f"Scans are sent in multipart/form-data, {EXAMPLE}; {came}.")
    watched = _Watched(request.stream())
    parser = MultiPartParser(request.headers, watched.chunks(), max_files=at_most, max_fields=FIELDS)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(413 if "Too many files" in error.message else 400, _sentence(error.message, at_most)) from error
    except ClientDisconnect as error:
        raise Refused(400, "The upload ended before it was complete.") from error
    try:
        if not watched.is_closed:
            raise Refused(400, "The multipart body is cut short: its last line, the closing boundary, is missing.")
        return [File(printable(part.filename or ""), await part.read()) for part in _scans(form.multi_items())]
    finally:
        await form.close()


def printable(text: str) -> str:
    """A stranger's text in quotes, without line ends and control characters, cut where it is long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f'"{shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 3] + "..."}"'


def _scans(items: list[tuple[str, UploadFile | str]]) -> list[UploadFile]:
    if not items:
        raise Refused(422, f"The request holds no file; send at least one as the part {PART!r}, {EXAMPLE}.")
    found = []
    for name, part in items:
        if isinstance(part, str):
            advice = "a file is sent with a filename" if name == PART else "parameters go into the address"
            raise Refused(422, f"The part {printable(name)} is a text field; {advice}.")
        if name != PART:
            raise Refused(422, f"The file {printable(part.filename or '')} is in the part {printable(name)}; files "
                               f"are sent as the part {PART!r}.")  # fmt: skip
        found.append(part)
    return found


def _sentence(message: str, at_most: int) -> str:
    if "Too many files" in message:
        return f"A request may hold {at_most} files at most."
    if "Too many fields" in message or "maximum size" in message:
        return f"A request holds files as the part {PART!r} and no text fields; parameters go into the address."
    if "boundary" in message:
        return "The Content-Type names no boundary; let the HTTP library write this header."
    if "Content-Disposition" in message:
        return 'A part of the request has no name; its Content-Disposition says name="scan".'
    return "The multipart body is broken: it does not keep to its own boundary."


class _Watched:
    """A stream of chunks of which the last bytes are remembered."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._end = b""

    @property
    def is_closed(self) -> bool:
        """Whether the body ends with a closing boundary, which no file is cut off from."""
        return self._end.rstrip(b"\r\n").endswith(b"--")

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._end = (self._end + chunk)[-256:]
            yield chunk
