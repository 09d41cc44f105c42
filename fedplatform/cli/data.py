"""Commands of data: data list, data audit, data partition, data statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedplatform.cli.options import AS_JSON, DATA_FOLDER, SHARDS, engine_options, experiment_options, given
from fedplatform.cli.own_data import resolved, telling_faults
from fedplatform.cli.progress import counting_bar
from fedplatform.cli.terminal import SuggestingGroup, as_json, console, one_line_errors


@click.group(cls=SuggestingGroup)
def data() -> None:
    """List data sets, audit them for leaks, and partition them over hospitals.

    Your own data needs no code: a folder with one subfolder a class (PNG, JPEG, TIFF, DICOM, NIfTI), an .npz in the
    layout of MedMNIST or Keras, or a Parquet file with the columns image and label, or label_NAME for each finding.
    """


@data.command(name="list")
@DATA_FOLDER
@AS_JSON
def list_data(data_folder: Path | None, *, json: bool) -> None:
    """List the data sets that have a name, and whether their files are here."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.data.error import DataError
        from fedplatform.data.sources import DATA_SETS, open_source

        def is_here(name: str) -> bool:
            try:
                open_source(name, folder=data_folder)
            except DataError:
                return False
            return True

        if json:
            as_json(
                [
                    {"name": name, "shows": one.description, "group": one.group_means, "published": one.published}
                    | {"here": is_here(name)}
                    for name, one in DATA_SETS.items()
                ]
            )
            return
        table = Table("name", "what it shows", "what a group is", "published", "here")
        for name, one in DATA_SETS.items():
            table.add_row(name, one.description, one.group_means, one.published, "yes" if is_here(name) else "no")
        console.print(table)
        console.print("Files are looked for in --data-folder, $FEDPLATFORM_DATA, ./data and ../shared/data.")


@data.command()
@click.argument("name", metavar="DATA")
@DATA_FOLDER
@click.option("--patients", metavar="SPEC", help="which scans are of one patient, as for 'run' [default: as found]")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the splits that are tried")
@AS_JSON
def audit(name: str, *, data_folder: Path | None, patients: str | None, seed: int, json: bool) -> None:
    """Find what would make a test on this data set lie.

    DATA is a name or a path. Reports class balance, exact copies, near-identical pictures and the groups they form,
    and what a nearest-neighbour look-up of raw pixels scores on a random and on a group-safe split. Where the two are
    far apart, a random split rewards memorising, and its figures say nothing about new patients. Where files cannot be
    read, all of them are named.
    """
    with one_line_errors():
        from fedplatform.cli.display import audit_table
        from fedplatform.data.leakage import audit as audit_source
        from fedplatform.data.patients import GIVEN

        with (
            telling_faults(name, lambda: opened_data(name, data_folder, patients or GIVEN), always=True),
            console.status(f"reading {name}"),
        ):
            source = opened_data(name, data_folder, patients)
            report = audit_source(source, seed=seed)
        if json:
            as_json(report)
            return
        for line in audit_table(report):
            console.print(line)


@data.command()
@click.argument("recipe", metavar="DATA|RECIPE|FILE.yaml")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@experiment_options
@DATA_FOLDER
def partition(recipe: str, folder: Path, *, data_folder: Path | None, **changes: object) -> None:
    """Write each hospital's shard, and the server's root set, into FOLDER, as 'run' would.

    Of your own DATA, settings that suit it are found and shown. One Parquet file a hospital, streamed: the data set is
    never held in memory whole. No group is ever cut.

    \b
    Example:
      fedplatform data partition my_scans/ shards/ --hospitals 5 --partition "dirichlet(concentration=0.5)"
    """
    with one_line_errors():
        from rich.table import Table

        from fedplatform.experiments.experiment import Experiment
        from fedplatform.experiments.run import partition_data

        experiment = Experiment.from_settings(resolved(recipe, given(changes)))
        data = str(experiment.data)
        with telling_faults(data, experiment.open_data), counting_bar("dealing scans to hospitals") as progress:
            manifest = partition_data(experiment, folder, data_folder=data_folder, progress=progress)
        roles = list(manifest.hospitals[0].counts)
        table = Table("shard", *roles, title=f"scans by class: {' / '.join(manifest.counted)}", title_justify="left")
        for shard in [*manifest.hospitals, *([manifest.root] if manifest.root else [])]:
            table.add_row(shard.file, *(" / ".join(map(str, shard.counts.get(role, ()))) for role in roles))
        console.print(table)


@data.command()
@click.argument("recipe", metavar="DATA|RECIPE|RUN")
@experiment_options
@DATA_FOLDER
@engine_options
@click.option(
    "--least",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="suppress a count of fewer than N patients; 1 suppresses none",
)
@SHARDS
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="where statistics.parquet and statistics.html go [default: the run's folder, else statistics-DATA]",
)
def statistics(
    recipe: str,
    *,
    data_folder: Path | None,
    engine: str,
    address: str,
    hosts: int | None,
    least: int,
    shards: Path | None,
    out: Path | None,
    **changes: object,
) -> None:
    """Ask every hospital what its scans are in numbers, before anybody trains.

    Counts by class and role, scans a patient, size and channels, histograms of pixel values with mean and standard
    deviation, and what is missing. Each hospital counts its own scans; only these numbers leave it. A count of fewer
    than --least patients is suppressed, and the scans behind it are left out of every other figure.

    RUN is a run's folder, whose shards are counted. DATA and RECIPE are of 'fedplatform run': their scans are dealt to
    hospitals as a run would. With hospitals that have places (--address, --shards) each counts on its own node.

    \b
    Examples:
      fedplatform data statistics runs/lesions-mean-none-seed0
      fedplatform data statistics my_scans/ --engine local
      fedplatform data statistics federation.yaml --address auto --shards server/
    """
    with one_line_errors():
        from tempfile import TemporaryDirectory

        from fedplatform.cli.display import statistics_lines
        from fedplatform.cli.terminal import opened
        from fedplatform.data.shards import Manifest
        from fedplatform.experiments.experiment import Experiment, ExperimentError
        from fedplatform.experiments.run import partition_data
        from fedplatform.experiments.run_folder import SETTINGS, RunFolder
        from fedplatform.experiments.site_statistics import write_statistics

        run = RunFolder(Path(recipe)) if (Path(recipe) / SETTINGS).is_file() else None
        if run is not None and given(changes):
            raise ExperimentError(f"{recipe} is a run, and its scans are dealt already; leave the settings out")
        settings = run.read_settings() if run else resolved(recipe, given(changes))
        experiment = Experiment.from_settings(settings)
        withdrawn = run.withdrawals if run else ()
        with TemporaryDirectory(prefix="fedplatform-") as temporary:
            if shards is None and run is not None:
                shards = run.path / "shards"
            if shards is None:
                if any(place.shard for place in experiment.places) and address != "local":
                    raise ExperimentError(
                        "hospitals open their own shards: --shards FOLDER with the server's manifest.json"
                    )
                shards = Path(temporary) / "shards"
                name = str(experiment.data)
                with telling_faults(name, experiment.open_data), counting_bar("dealing scans to hospitals") as progress:
                    partition_data(experiment, shards, data_folder=data_folder, progress=progress)
            classes = Manifest.load(shards).counted
            with opened(engine, address, hosts, experiment, withdrawn=withdrawn) as runner:
                sites = runner.statistics(experiment, shards, least=least, withdrawn=withdrawn)
        folder = out or (run.path if run else Path(f"statistics-{experiment.data_slug}"))
        title = run.path.name if run else experiment.data_slug
        page = write_statistics(folder, sites, classes, title=title)
        for line in statistics_lines(sites, classes):
            console.print(line)
        console.print(f"table: {folder / 'statistics.parquet'}", soft_wrap=True)
        console.print(f"page: {page}", soft_wrap=True)


def opened_data(name: str, folder: Path | None, patients: str | None) -> Any:
    """A data set by name, path or import; says which patients it found in the names of files."""
    from fedplatform.data.sources import is_own, open_with_patients
    from fedplatform.experiments.experiment import Experiment

    if patients is None and is_own(name):
        source, _, found = open_with_patients(name)
        if found is not None:
            console.print(f"patients: {found.pattern}, {found.words}", soft_wrap=True, markup=False)
        return source
    settings = {"data": name} if patients is None else {"data": name, "patients": patients}
    return Experiment.from_settings(settings).open_data(folder)
