"""Commands about the sites of a run: cross-site, withdraw."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import device_option
from fedplatform.cli.progress import counting_bar
from fedplatform.cli.terminal import console, one_line_errors


@click.command(name="cross-site")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--shards",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="where the hospitals' scans lie [default: RUN/shards]",
)
@device_option
def cross_site(folder: Path, *, shards: Path | None, device: str) -> None:
    """Try every hospital's model on every hospital's test scans.

    RUN is the folder of a finished run, e.g. runs/lesions-mean-none-seed0. A hospital's model is the shared weights
    with that hospital's own part (batch normalisation, last layer, own copy). Balanced accuracy and AUC are printed,
    written to RUN/cross_site.parquet and drawn in RUN/report.html; a dash stands where a site lacks a class. Where
    nothing stays in a hospital, as under fedavg, there is one model and one row.

    The test scans must lie together, as in a simulation.

    \b
    Example:
      fedplatform cross-site runs/lesions-mean-none-seed0
    """
    with one_line_errors():
        from fedplatform.cli.display import cross_site_tables
        from fedplatform.experiments.cross_site import cross_site as evaluate
        from fedplatform.experiments.cross_site_table import CROSS_SITE
        from fedplatform.experiments.report import write_report

        with counting_bar("trying models on sites") as progress:
            table = evaluate(folder, shards=shards, device=device, progress=progress)
        for drawn in cross_site_tables(table):
            console.print(drawn)
        console.print(f"table: {folder / CROSS_SITE}", soft_wrap=True)
        console.print(f"report: {write_report(folder)}", soft_wrap=True)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("hospital", metavar="HOSPITAL")
def withdraw(folder: Path, *, hospital: str) -> None:
    """Take a hospital out of a run, and delete what is stored of it.

    RUN is the folder of a run that was stopped (Ctrl-C) or is finished. From the next round on HOSPITAL is not asked
    any more: 'fedplatform run --resume' goes on without it. Its personal state and the states before, an attacker's
    memory, its scans in the run's folder, the predictions on them, its reputation and all else that the rule holds by
    its name, its models in defence and versions, and evaluations that hold single scans are deleted. Withdrawals are in
    RUN/withdrawals.json, hospitals.parquet and the report.

    What cannot be deleted: the weights that it trained together with others, what the rule has learned from all
    updates, and the figures of finished rounds.

    \b
    Example:
      fedplatform withdraw runs/lesions-trust-none-seed0 hospital-03
      fedplatform run --resume lesions-trust-none-seed0
    """
    with one_line_errors():
        from fedplatform.experiments.experiment import ExperimentError
        from fedplatform.experiments.run_folder import SETTINGS, RunFolder
        from fedplatform.experiments.withdrawal import CANNOT
        from fedplatform.experiments.withdrawal import withdraw as take_out

        if not (folder / SETTINGS).is_file():
            raise ExperimentError(f"{folder} holds no run ({SETTINGS})")
        done = take_out(RunFolder(folder), hospital)
        left = done.withdrawal
        console.print(f"{hospital} has withdrawn after round {left.after_round}", soft_wrap=True)
        for said, what in (("deleted", left.removed), ("taken out of", left.changed)):
            if what:
                console.print(f"{said}: {', '.join(what)}", soft_wrap=True, markup=False)
        console.print(CANNOT, soft_wrap=True)
        for words in done.elsewhere:
            console.print(f"to be deleted there: {words}", soft_wrap=True, markup=False)
        for words in done.warnings:
            console.print(f"warning: {words}", soft_wrap=True, markup=False)
