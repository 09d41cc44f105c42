"""Commands of the day's work: diagnose a folder, keep the keys, check the audit log."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedplatform.cli.progress import folder_bar
from fedplatform.cli.terminal import SuggestingGroup, console, one_line_errors

FILE = click.Path(path_type=Path)
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
def diagnose(run_folder: Path, folder: Path, *, hospital: str, out: Path, secret: Path | None) -> None:
    """Diagnose a folder of scans without a server.

    RUN is a finished run with its defence, FOLDER holds PNG, JPEG, DICOM or NIfTI files, in subfolders as well. The
    table has a row a scan: class, confidence, referral, anomaly score, whether it was flagged, how deep it was purified
    and how the copies voted. A file that cannot be read is a row with the reason. The same command goes on where it was
    stopped, and takes up files that were added. This is no medical device.

    \b
    Example:
      fedplatform diagnose runs/br35h my_scans/ --hospital hospital_0 --out answers.csv
    """
    with one_line_errors():
        from dataclasses import replace

        from fedplatform.defence import KeyedNoise
        from fedplatform.defended_run import DefendedRun
        from fedplatform.serving.diagnose import FolderDiagnosis
        from fedplatform.serving.intake import Limits
        from fedplatform.serving.secret import open_secret, secret_path

        run = DefendedRun(run_folder)
        one_of(hospital, run.tested)
        noise = KeyedNoise(open_secret(secret or secret_path(run_folder, hospital)))
        work = FolderDiagnosis(
            replace(run.hospital(hospital).defended("whole"), noise=noise),
            classes=run.manifest.classes,
            size=run.manifest.settings.size,
            channels=run.manifest.settings.channels,
            hospital_id=hospital,
            model_version=run_folder.resolve().name,
            limits=Limits(),
        )
        with folder_bar() as progress:
            table = work.write(folder, out, progress=progress)
        refused = int((table["reason"] != "").sum())
        told = table[table["reason"] == ""]
        console.print(
            f"{len(told)} scans: {int(told['flagged'].sum())} flagged, {int(told['referred'].sum())} referred to a "
            f"radiologist; {refused} files refused"
        )
        console.print(f"answers: {out}", soft_wrap=True)


@click.group(cls=SuggestingGroup)
def keys() -> None:
    """Give, list and revoke API keys. A key opens one hospital's model and nothing else."""


@keys.command(name="add")
@click.argument("hospital", metavar="HOSPITAL")
@keys_option
def add_key(hospital: str, *, path: Path) -> None:
    """Make a key for HOSPITAL and print its secret, once: only its hash is kept."""
    with one_line_errors():
        from fedplatform.serving.keys import Keys

        click.echo(Keys.load(path).add(hospital))
        click.echo("This secret is shown once; clients send it as 'Authorization: Bearer SECRET'.", err=True)


@keys.command(name="list")
@keys_option
def list_keys(path: Path) -> None:
    """List all keys, revoked ones too."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.serving.keys import Keys

        table = Table("key", "hospital", "state")
        for key in Keys.load(path):
            table.add_row(key.key_id, key.hospital_id, "revoked" if key.revoked else "open")
        console.print(table)


@keys.command(name="revoke")
@click.argument("key_id", metavar="KEY")
@keys_option
def revoke_key(key_id: str, *, path: Path) -> None:
    """Let KEY open nothing any more; a server that runs obeys with its next request."""
    with one_line_errors():
        from fedplatform.serving.keys import Keys

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
        click.echo(f"{found.head.lines} lines, all whole")
        click.echo(f"anchor: {found.head}")


@audit.command(name="replay")
@click.argument("log", metavar="LOG", type=FILE)
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.option("--line", type=click.IntRange(min=1), required=True, metavar="N", help="the line of the log")
@click.option("--scan", type=FILE, required=True, metavar="FILE", help="the upload that it is about")
@click.option("--secret", type=FILE, required=True, metavar="FILE", help="the secret of the hospital's noise")
def replay_line(log: Path, run_folder: Path, *, line: int, scan: Path, secret: Path) -> None:
    """Work out once more what line N of LOG says of a scan, and compare; status 1 where it comes out otherwise."""
    with one_line_errors():
        from fedplatform.defended_run import DefendedRun
        from fedplatform.serving.audit import AuditEntry, AuditError, read_entry
        from fedplatform.serving.intake import Limits
        from fedplatform.serving.replay import replay
        from fedplatform.serving.secret import read_secret

        entry = read_entry(log, line)
        if not isinstance(entry, AuditEntry):
            raise AuditError(f"line {line} of {log} is no diagnosis")
        run = DefendedRun(run_folder)
        one_of(entry.hospital_id, run.tested)
        differences = replay(
            entry,
            scan.read_bytes(),
            defended=run.hospital(entry.hospital_id).defended("whole"),
            secret=read_secret(secret),
            size=run.manifest.settings.size,
            channels=run.manifest.settings.channels,
            limits=Limits(),
        )
        for difference in differences:
            click.echo(f"fedplatform: {difference}", err=True)
        if differences:
            sys.exit(1)
        click.echo(f"line {line}: the same answer")


def one_of(hospital: str, hospitals: tuple[str, ...]) -> None:
    """Refuse a hospital that the run does not have, naming the nearest."""
    from fedplatform.experiment import ExperimentError
    from fedplatform.specification import nearest

    if hospital not in hospitals:
        raise ExperimentError(f"no hospital {hospital!r}{nearest(hospital, hospitals)}")
