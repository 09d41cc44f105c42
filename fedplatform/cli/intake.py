"""Commands of the day's work: diagnose a folder, keep the keys, check the audit log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from fedplatform.cli.limits import limit_options, limits_of
from fedplatform.cli.progress import counting_bar
from fedplatform.cli.serving import RUN_OR_REGISTRY, say_fitting
from fedplatform.cli.terminal import SuggestingGroup, console, one_line_errors

FILE = click.Path(path_type=Path)
SERVER_TAKES_S = 10.0  # to see that its log was moved; it looks every two seconds
keys_option = click.option(
    "--keys", "path", type=FILE, default="keys.json", show_default=True, help="the file of keys, of mode 600"
)


@click.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.argument("folder", metavar="FOLDER", type=FILE)
@click.option("--hospital", required=True, metavar="ID", help="whose personal model and thresholds")
@click.option("--out", required=True, metavar="FILE", type=FILE, help="the table: a .csv or a .parquet file")
@click.option(
    "--secret", type=FILE, help="the secret of the purifier's noise [default: RUN/secrets/ID.secret, made if missing]"
)
@limit_options("bytes", "pixels", "picture", "scans", "slices", "header")
def diagnose(run_folder: Path, folder: Path, *, hospital: str, out: Path, secret: Path | None, **limits: int) -> None:
    """Diagnose a folder of scans without a server.

    RUN is a finished run with its defence. Its published champion answers, as behind 'fedplatform serve'; where nothing
    is published yet, a first version is. FOLDER holds PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI files, in subfolders
    too. The table has a row a scan: class, confidence, referral, anomaly score, whether it was flagged, how deep it was
    purified and how the copies voted. Of a file with several scans the row with study = true is its answer. A file that
    cannot be read is a row with the reason. The same command goes on where it was
    stopped, and takes up files that were added. This is no medical device.

    \b
    Example:
      fedplatform diagnose runs/br35h my_scans/ --hospital hospital_0 --out answers.csv
    """
    with one_line_errors():
        from fedplatform.defence import KeyedNoise
        from fedplatform.serving.diagnose import FolderDiagnosis
        from fedplatform.serving.publishing import published
        from fedplatform.serving.secret import open_secret, secret_path
        from fedplatform.serving.versions import bundle_of

        versions = published(run_folder, progress=say_fitting)
        version = versions.champion()
        bundle = bundle_of(versions.folder(version), hospital)
        noise = KeyedNoise(open_secret(secret or secret_path(run_folder, hospital)))
        work = FolderDiagnosis(
            bundle.accelerated(noise),
            card=bundle.card,
            hospital_id=hospital,
            model_version=version,
            limits=limits_of(limits),
        )
        with counting_bar("diagnosing", every=100, things="files") as progress:
            table = work.write(folder, out, progress=progress)
        refused = int((table["reason"] != "").sum())
        told = table[table["reason"] == ""]
        console.print(
            f"{len(told)} scans: {int(told['flagged'].sum())} flagged, {int((told['referral'] != '').sum())} referred "
            f"to a radiologist; {refused} files refused"
        )
        console.print(f"answers: {out}", soft_wrap=True)


@click.group(cls=SuggestingGroup)
def keys() -> None:
    """Give, list and revoke API keys. A key opens one hospital's model and nothing else."""


@keys.command(name="add")
@click.argument("hospital", metavar="HOSPITAL")
@keys_option
@click.option(
    "--expires", metavar="DATE|never", help="first day on which it opens nothing, as 2027-01-31 [default: in a year]"
)
def add_key(hospital: str, *, path: Path, expires: str | None) -> None:
    """Make a key for HOSPITAL and print its secret, once: only its hash is kept."""
    with one_line_errors():
        from fedplatform.serving.api_keys import Keys, expiry

        day = expiry(expires)
        click.echo(Keys.load(path).add(hospital, expires=day))
        ends = f"expires on {day}" if day else "never expires"
        click.echo(
            f"This secret is shown once and {ends}; clients send it as 'Authorization: Bearer SECRET'.", err=True
        )


@keys.command(name="list")
@keys_option
def list_keys(path: Path) -> None:
    """List all keys, revoked and expired ones too."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.serving.api_keys import Keys, today

        table = Table("key", "hospital", "state", "expires")
        for key in Keys.load(path):
            state = "revoked" if key.revoked else "open" if key.is_open(today()) else "expired"
            table.add_row(key.key_id, key.hospital_id, state, str(key.expires or "never"))
        console.print(table)


@keys.command(name="revoke")
@click.argument("key_id", metavar="KEY")
@keys_option
def revoke_key(key_id: str, *, path: Path) -> None:
    """Let KEY open nothing any more; a server that runs obeys with its next request."""
    with one_line_errors():
        from fedplatform.serving.api_keys import Keys

        Keys.load(path).revoke(key_id)
        click.echo(f"{key_id} opens nothing any more")


@click.group(cls=SuggestingGroup)
def audit() -> None:
    """Check the audit log of a server, and repeat its answers."""


@audit.command(name="verify")
@click.argument("log", metavar="LOG", type=FILE)
@click.option("--anchor", metavar="LINES:SHA256", help="an end of the log that was noted earlier, kept elsewhere")
def verify_log(log: Path, *, anchor: str | None) -> None:
    """Check that no line of LOG was changed, taken out, added or moved; status 1 where one was.

    A log that lost its last lines, or was written anew from its beginning, is whole by itself: only an anchor tells.
    What is printed at the end is the next one.
    """
    with one_line_errors():
        from fedplatform.serving.audit import Anchor, Broken, verify

        found = verify(log, anchor=Anchor.parse(anchor) if anchor is not None else None)
        if isinstance(found, Broken):
            click.echo(f"fedplatform: line {found.line} of {log} {found.reason}", err=True)
            sys.exit(1)
        for line in found.torn:
            click.echo(f"line {line} says that a crash cut a line short; its bytes were set aside")
        if found.before is not None:
            click.echo(f"it continues a log that ended with the anchor {found.before}")
        click.echo(f"{found.head.lines} lines, all whole")
        click.echo(f"anchor: {found.head}")


@audit.command(name="rotate")
@click.argument("log", metavar="LOG", type=FILE)
@click.option("--to", metavar="FILE", type=FILE, help="the old log's new name [default: LOG with the time in its name]")
def rotate_log(log: Path, *, to: Path | None) -> None:
    """Set LOG aside and begin a new one, chained to the last line of the old one.

    A server that writes to LOG goes on without losing an answer. A broken LOG, which no server opens, is set aside in
    the same way. Other tools may move or truncate the log as well, but only this prints the anchor of the old one.

    \b
    Example:
      fedplatform audit rotate runs/scan/serving/audit.jsonl --to november.jsonl
    """
    with one_line_errors():
        from fedplatform.serving.audit import AuditError, Verified, verify
        from fedplatform.serving.audit_log import rotate

        old = rotate(log, to=to)
        click.echo(f"old log: {old}")
        deadline = time.monotonic() + SERVER_TAKES_S
        while not log.exists() or log.stat().st_size == 0:
            if time.monotonic() > deadline:
                raise AuditError(f"{log} is not there yet; the server that writes to it begins it with its next answer")
            time.sleep(0.1)
        found = verify(log)
        if isinstance(found, Verified) and found.before is not None:
            click.echo(f"anchor: {found.before}")
        click.echo(f"new log: {log}")


@audit.command(name="replay")
@click.argument("log", metavar="LOG", type=FILE)
@click.argument("run_or_registry", metavar=RUN_OR_REGISTRY)
@click.option("--line", type=click.IntRange(min=1), required=True, metavar="N", help="the line of the log")
@click.option("--scan", type=FILE, required=True, metavar="FILE", help="the upload that it is about")
@click.option("--secret", type=FILE, required=True, metavar="FILE", help="the secret of the hospital's noise")
@limit_options("bytes", "pixels", "picture", "scans", "header")
def replay_line(log: Path, run_or_registry: str, *, line: int, scan: Path, secret: Path, **limits: int) -> None:
    """Work out once more what line N of LOG says of a scan, and compare; status 1 where it comes out otherwise.

    The line names the version of the model that answered; RUN, or models:/NAME of MLflow's registry, holds it.
    """
    with one_line_errors():
        from fedplatform.serving.audit import AuditEntry, AuditError, read_entry
        from fedplatform.serving.replay import replay
        from fedplatform.serving.secret import read_secret
        from fedplatform.serving.versions import bundle_of, registry_uri, versions_at

        entry = read_entry(log, line)
        if not isinstance(entry, AuditEntry):
            raise AuditError(f"line {line} of {log} is no diagnosis")
        versions = versions_at(run_or_registry, registry=registry_uri(Path("runs")), cache=log.parent / "cache")
        differences = replay(
            entry,
            scan.read_bytes(),
            bundle=bundle_of(versions.folder(entry.model_version), entry.hospital_id),
            secret=read_secret(secret),
            limits=limits_of(limits),
        )
        for difference in differences:
            click.echo(f"fedplatform: {difference}", err=True)
        if differences:
            sys.exit(1)
        click.echo(f"line {line}: the same answer")
