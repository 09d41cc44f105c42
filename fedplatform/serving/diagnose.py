"""A folder of scans, diagnosed without a server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedplatform.core.files import write_whole
from fedplatform.data.error import DataError
from fedplatform.data.images import to_images
from fedplatform.defence import DefendedClassifier, Diagnosis
from fedplatform.defence.diagnosis import FOREIGN
from fedplatform.serving.bundle import Card
from fedplatform.serving.intake import Limits, Refused, Study, read_study
from fedplatform.serving.suspicion import most_suspicious

BATCH = 16
WORDS = (
    "file",
    "class_name",
    "referral",
    "votes",
    "reason",
    "input_sha256",
    "hospital_id",
    "model_version",
)  # never missing
Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class FolderDiagnosis:
    """One hospital's defence at work on folders; ``card`` says what its networks were trained on."""

    defended: DefendedClassifier
    card: Card
    hospital_id: str
    model_version: str
    limits: Limits

    def write(self, folder: Path, out: Path, *, progress: Callable[[int, int], None]) -> pd.DataFrame:
        """Diagnose every file below ``folder`` and write a row a scan to ``out``, a .csv or a .parquet file.

        A file that is refused becomes a row with the reason. A call that was stopped goes on where it was, and of a
        table that is there the rows of files that are the same stay if this version of this hospital's model wrote
        them. ``progress`` is told how many files are done, and of how many. Raises :class:`DataError`.
        """
        if out.suffix not in (".csv", ".parquet"):
            raise DataError(f"{out}: a table of answers is a .csv or a .parquet file")
        journal = out.with_name(f".{out.name}.partial")
        files = _files(folder, without={out.resolve(), journal.resolve()})
        known = self._known(out, journal)
        rows: list[Row] = []
        with _Journal(journal) as write:
            for done, of_file in enumerate(self._rows(folder, files, known), start=1):
                rows += of_file
                if of_file[0]["file"] not in known:
                    write(of_file)
                progress(done, len(files))
        table = pd.DataFrame(rows, columns=self.columns)
        _write_whole(table, out)
        journal.unlink()
        return table

    @property
    def columns(self) -> list[str]:
        """The columns of the table, whatever it holds."""
        chances = [f"probability_{name}" for name in self.card.classes]
        said = ["class_name", "referral", "kind_score", "confidence", *chances]
        said += ["anomaly_score", "threshold", "flagged", "depth"]
        where = ["votes", "reason", "input_sha256", "hospital_id", "model_version"]
        return ["file", "scan", "slice", "study", *said, *where]

    def _rows(self, folder: Path, files: Sequence[Path], known: Mapping[str, list[Row]]) -> Iterator[list[Row]]:
        """The rows of each file, in order; what is new goes through the defence in batches."""
        waiting: list[tuple[list[Row], Study | None]] = []
        for path in files:
            name = str(path.relative_to(folder)).encode("utf-8", "backslashreplace").decode()
            sha256, study = "", None
            try:
                data = _read(path, self.limits)
                sha256 = hashlib.sha256(data).hexdigest()
                rows = known.get(name, [])
                if not rows or rows[0]["input_sha256"] != sha256:
                    study = read_study(data, size=self.card.size, channels=self.card.channels, limits=self.limits)
                    slices = study.slices or (None,) * len(study.scans)
                    rows = [self._row(name, scan, sha256, number) for scan, number in enumerate(slices)]
            except Refused as refused:
                rows = [{**self._row(name, 0, sha256), "reason": refused.sentence}]
            waiting.append((rows, study))
            if sum(len(study.scans) for _, study in waiting if study is not None) >= BATCH:
                yield from self._answered(waiting)
                waiting = []
        yield from self._answered(waiting)

    def _answered(self, waiting: Sequence[tuple[list[Row], Study | None]]) -> list[list[Row]]:
        """The rows that wait, those with scans filled in."""
        studies = [(of_file, study) for of_file, study in waiting if study is not None]
        rows = [(row, study.origin) for of_file, study in studies for row in of_file]
        pixels = np.concatenate([study.scans for _, study in studies]) if studies else np.empty(0)
        for start in range(0, len(rows), BATCH):
            found = self.defended.diagnose(to_images(pixels[start : start + BATCH]))
            for (row, origin), diagnosis in zip(rows[start : start + BATCH], found, strict=True):
                row.update(self._columns_of(self.card.judged(diagnosis, origin)))
        for of_file, _ in studies:
            self._choose(of_file)
        return [of_file for of_file, _ in waiting]

    def _choose(self, of_file: Sequence[Row]) -> None:
        """Mark the row that is the answer for its file: that of the most suspicious scan."""
        chances = [[row[f"probability_{name}"] for name in self.card.classes] for row in of_file]
        foreign = np.array([row["referral"] == FOREIGN for row in of_file])
        counts = most_suspicious(np.array(chances, np.float64), self.card.usual, foreign=foreign)
        for number, row in enumerate(of_file):
            row["study"] = number == counts

    def _row(self, name: str, scan: int, sha256: str, slice_number: int | None = None) -> Row:
        blank: Row = dict.fromkeys(self.columns)
        numbers = {"scan": scan, "slice": slice_number}
        where = {"hospital_id": self.hospital_id, "model_version": self.model_version}
        return {**blank, **dict.fromkeys(WORDS, ""), "file": name, **numbers, "input_sha256": sha256, **where}

    def _columns_of(self, diagnosis: Diagnosis) -> Row:
        chances = zip(self.card.classes, diagnosis.probabilities, strict=True)
        return {
            "class_name": self.card.classes[diagnosis.label],
            "referral": diagnosis.referral or "",
            "kind_score": diagnosis.kind_score,
            "confidence": diagnosis.confidence,
            **{f"probability_{name}": chance for name, chance in chances},
            "anomaly_score": diagnosis.anomaly_score,
            "threshold": diagnosis.threshold,
            "flagged": diagnosis.flagged,
            "depth": diagnosis.depth,
            "votes": " ".join(self.card.classes[vote] for vote in diagnosis.votes),
        }

    def _known(self, out: Path, journal: Path) -> dict[str, list[Row]]:
        """Rows that are there by the name of their file, as far as this model gave them."""
        tables = [_table(out, self.columns)] if out.exists() else []
        if journal.exists():
            lines = journal.read_bytes().rpartition(b"\n")[0].splitlines()  # the last one may be cut short
            tables.append(pd.DataFrame([row for line in lines for row in json.loads(line)], columns=self.columns))
        known: dict[str, list[Row]] = {}
        for table in tables:
            same = (table["hospital_id"] == self.hospital_id) & (table["model_version"] == self.model_version)
            for name, rows in table[same].groupby("file", sort=False):
                records = rows.astype(object).where(rows.notna(), None).to_dict("records")
                known[str(name)] = [{str(column): value for column, value in row.items()} for row in records]
        return known


def _files(folder: Path, *, without: set[Path]) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.resolve() not in without]
    files = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise DataError(f"{folder}: no files")
    return files


def _read(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.bytes + 1)  # one more is enough to know that it is too large
    except OSError as error:
        raise Refused(400, f"The file cannot be read: {error.strerror}.") from error


class _Journal:
    """Rows that are done, open for adding: a line a file, at once; a line that was cut short is taken off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Callable[[list[Row]], None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self.path.read_bytes().rpartition(b"\n") if self.path.exists() else (b"", b"", b"")
            self.path.write_bytes(whole[0] + whole[1])
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error
        return self.add

    def add(self, rows: list[Row]) -> None:
        self.file.write(json.dumps(rows) + "\n")
        self.file.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        # In words nothing means "missing", whatever pandas thinks: a class may be called NA, or 1.
        words, numbers = dict.fromkeys(WORDS, str), {name: [""] for name in columns if name not in WORDS}
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=words, na_values=numbers, keep_default_na=False)
        else:
            table = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas and pyarrow raise their own kinds of both
        raise DataError(f"{path} is there and is no table; choose another file") from error
    if list(table.columns) != columns:
        raise DataError(f"{path} is there and holds another table; choose another file")
    return table


def _write_whole(table: pd.DataFrame, out: Path) -> None:
    flags, numbers = (
        dict.fromkeys(("study", "flagged"), "boolean"),
        dict.fromkeys(("slice", "depth"), "Int64"),
    )
    typed = table.astype({**flags, **numbers, "scan": "int64"})
    try:
        if out.suffix == ".csv":
            write_whole(out, lambda path: typed.to_csv(path, index=False))
        else:
            write_whole(out, lambda path: pq.write_table(pa.Table.from_pandas(typed, preserve_index=False), path))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error
