"""The command line: it reads words, calls the library and prints; it decides nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
from rich.console import Console

from fedplatform.specification import nearest

console = Console(highlight=False)


class SuggestingGroup(click.Group):
    """A group of commands that names the nearest one for a mistyped word, and keeps them in the order of use."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(f"no command {args[0]!r}{nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Commands in the order in which they are written below."""
        return list(self.commands)


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every field of an experiment, explained by the field itself."""
    from fedplatform.experiment import Experiment

    for name, field in reversed(Experiment.model_fields.items()):
        choices = get_args(field.annotation)
        kind: click.ParamType[Any] = click.STRING
        if field.annotation is int:
            kind = click.INT
        elif field.annotation is float:
            kind = click.FLOAT
        elif choices and all(isinstance(choice, str) for choice in choices):
            kind = click.Choice(choices)
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=kind,
            metavar={click.INT: "N", click.FLOAT: "X", click.STRING: "SPEC"}.get(kind),
            help=field.description
            if "(default" in str(field.description)
            else f"{field.description} [default: {field.default}]",
        )(command)
    return command


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where to run and where to write."""
    for option in reversed(
        [
            click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                         metavar="FOLDER", help="folder that holds all runs"),
            click.option("--data-folder", type=click.Path(path_type=Path), metavar="FOLDER",
                         help="where named data sets are looked for first"),
            click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True,
                         help="hospitals as Ray actors, or all in this process (the same weights, bit for bit)"),
            click.option("--address", default="local", show_default=True, metavar="ADDRESS",
                         help="a running Ray cluster ('auto' finds it), or 'local' to start one here"),
            click.option("--hosts", type=click.IntRange(min=1), metavar="N",
                         help="actors that the hospitals share [default: one a CPU]"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def whole_numbers(_: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """A comma-separated list of seeds."""
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise click.BadParameter(f"seeds are whole numbers, got {text!r}", param=option) from None


@click.group(
    cls=SuggestingGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)
@click.version_option(package_name="fedplatform")
def fedplatform() -> None:
    """Trustworthy federated learning for medical imaging.

    Hospitals train one diagnostic model without showing each other their scans, while some of them lie. This program
    runs such a federation on Ray, compares aggregation rules against attacks, and audits data for the leaks that make
    published figures lie.

    \b
    First steps:
      fedplatform run lesions                        one run on the embedded data
      fedplatform run lesions --attack alie --rule multi_krum
      fedplatform compare lesions --rules mean,median --attacks none,sign_flip
      fedplatform data audit my_scans/               can this data be split safely?
    """


@fedplatform.command()
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@experiment_options
@where_options
@click.option("--name", metavar="NAME", help="name of the run [default: data-rule-attack-seed]")
def run(
    recipe: str,
    *,
    runs: Path,
    data_folder: Path | None,
    engine: str,
    address: str,
    hosts: int | None,
    name: str | None,
    **changes: object,
) -> None:
    """Run one experiment, from partition to report.

    RECIPE is one that comes with the package (lesions, br35h, br35h_robust, alzheimer,
    lc25000, mnist, cifar10); FILE.yaml is your
    own, or the experiment.yaml that an earlier run left. Every setting in it can be changed by the option of its name;
    the defaults below hold where neither says anything.

    The run leaves runs/NAME/: experiment.yaml (resolved; runs the same again), rounds.parquet, hospitals.parquet,
    global.safetensors, hospitals/*.safetensors (each hospital's own part) and report.html. The same figures go to
    MLflow, in runs/mlflow.db unless MLFLOW_TRACKING_URI says otherwise.

    \b
    Examples:
      fedplatform run lesions --rounds 3
      fedplatform run br35h --attack min_max --rule "multi_krum(m=5)"
      fedplatform run lesions --data my_scans/ --partition "dirichlet(concentration=0.5)"
      fedplatform run lesions --rule my_rules.py:MyRule
      fedplatform run runs/lesions-mean-none-seed0/experiment.yaml

    \b
    Exit status: 0 done, 1 could not be done (one line says why), 2 mistyped.
    """
    with one_line_errors():
        from fedplatform.experiment import Experiment, load_settings
        from fedplatform.live import RoundTable
        from fedplatform.run import run as run_experiment

        experiment = Experiment.from_settings({**load_settings(recipe), **given(changes)})
        title = (
            f"{experiment.data_slug}: {experiment.hospitals} hospitals, {experiment.liars} liars, "
            f"attack {experiment.attack_slug}, rule {experiment.rule_slug}"
        )
        with (
            opened(engine, address, hosts) as runner,
            RoundTable(title, rounds=experiment.rounds, console=console) as table,
        ):
            folder, reports = run_experiment(
                experiment,
                engine=runner,
                runs=runs,
                name=name,
                data_folder=data_folder,
                partitioning=table.partitioning,
                observer=table,
            )
        last = reports[-1]
        console.print(f"accuracy {last.accuracy:.3f}, macro-F1 {last.macro_f1:.3f}, AUC {last.auc:.3f}")
        console.print(f"report: {folder.path / 'report.html'}", soft_wrap=True)


def numbers(_: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers, fractions such as 8/255 among them."""
    try:
        return tuple(float(Fraction(word)) for word in words(text))
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"numbers such as 0.015 or 8/255, got {text!r}", param=option) from None


def defence_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting of a defence, explained by the setting itself."""
    from fedplatform.defended_run import DefenceSettings

    for name, setting in reversed(DefenceSettings.model_fields.items()):
        kind = {int: click.INT, float: click.FLOAT}.get(setting.annotation, click.STRING)  # type: ignore[arg-type]
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=kind,
            metavar={click.INT: "N", click.FLOAT: "X"}.get(kind, "SPEC"),
            help=f"{setting.description} [default: {setting.default}]",
        )(command)
    return command


def attack_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what is attacked, and how hard."""
    for option in reversed(
        [
            click.option("--defences", metavar="NAME,...", help="rows of the table [default: all]"),
            click.option("--tiers", "--tier", "tiers", metavar="TIER,...",
                         help="threat tiers, T0 to T5 [default: all]"),
            click.option("--epsilons", "--epsilon", "epsilons", default="0.015,8/255", show_default=True,
                         metavar="X,...", callback=numbers, help="perturbation of every pixel, of [0, 1]"),
            click.option("--scans", type=click.IntRange(min=1), default=300, show_default=True, metavar="N",
                         help="test scans, of all hospitals together, for the tiers T0 to T2"),
            click.option("--hard-scans", type=click.IntRange(min=1), default=100, show_default=True, metavar="N",
                         help="test scans for the tiers T3 to T5"),
            click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
                         help="PGD steps"),
            click.option("--eot", type=click.IntRange(min=1), default=4, show_default=True, metavar="N",
                         help="gradients averaged in each step of T3 and T4"),
            click.option("--queries", type=click.IntRange(min=1), default=500, show_default=True, metavar="N",
                         help="questions a scan in T5"),
            click.option("--jobs", type=click.IntRange(min=1), metavar="N",
                         help="worker processes [default: one a CPU]"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def attack_plan(
    defences: str | None,
    tiers: str | None,
    epsilons: tuple[float, ...],
    scans: int,
    hard_scans: int,
    steps: int,
    eot: int,
    queries: int,
) -> Any:
    """What :func:`attack_options` asks for; an unknown word is an error that names the nearest."""
    from fedplatform.experiment import ExperimentError
    from fedplatform.robustness import Plan
    from fedplatform.threats import Budget

    budget = Budget(steps=steps, eot=eot, queries=queries)
    everything = Plan()
    chosen = {"defences": words(defences or "") or everything.defences, "tiers": words(tiers or "") or everything.tiers}
    for what, names in chosen.items():
        known = getattr(everything, what)
        for name in names:
            if name not in known:
                raise ExperimentError(
                    f"no {what.rstrip('s')} is called {name!r}{nearest(name, known)}; known: {', '.join(known)}"
                )
    return Plan(**chosen, epsilons=epsilons, scans=scans, hard_scans=hard_scans, budget=budget)


@fedplatform.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@defence_options
@click.option(
    "--engine",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help="hospitals as Ray actors, or all in this process (the same weights, bit for bit)",
)
@click.option(
    "--address",
    default="local",
    show_default=True,
    metavar="ADDRESS",
    help="a running Ray cluster ('auto' finds it), or 'local' to start one here",
)
@click.option(
    "--hosts", type=click.IntRange(min=1), metavar="N", help="actors that the hospitals share [default: one a CPU]"
)
def defend(
    run_folder: Path, *, engine: str, address: str, hosts: int | None, **changes: object
) -> None:  # fmt: skip
    """Train the defence of a finished run, in its own federation.

    RUN is a folder that 'fedplatform run' left. The hospitals that trained its classifier train, in this order: a
    masked autoencoder and a purifier on clean scans; the classifier again, on purified scans; a sensor, on scans
    attacked through that classifier. Thresholds are not trained: every hospital fits them on its own held-out clean
    scans when the defence is used. RUN/defence/ holds the networks. A stage that is finished is not trained again, so a
    call that was stopped goes on with the stage it was in.

    \b
    Examples:
      fedplatform run br35h_robust --name br35h
      fedplatform defend runs/br35h
      fedplatform evaluate runs/br35h
    """
    with one_line_errors():
        from fedplatform.defend import defend as train_defence
        from fedplatform.defended_run import DefenceSettings
        from fedplatform.live import StageTable

        settings = DefenceSettings.from_settings(given(changes))
        with opened(engine, address, hosts) as runner, StageTable(console) as table:
            train_defence(run_folder, settings, engine=runner, observer=table)
        console.print(f"defence: {run_folder / 'defence'}", soft_wrap=True)


@fedplatform.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@attack_options
def evaluate(
    run_folder: Path,
    *,
    defences: str | None,
    tiers: str | None,
    epsilons: tuple[float, ...],
    scans: int,
    hard_scans: int,
    steps: int,
    eot: int,
    queries: int,
    jobs: int | None,
) -> None:
    """Attack a finished run whose defence is trained, and print the table.

    Every row (defence) meets attackers who know more and more: T0 nobody attacks; T1 another hospital attacks through
    its own model; T2 the gradient of the classifier is known (T2_paper: with the budget of MedFedPure's paper); T3 the
    whole defence is known and its purifier taken for the identity; T4 the exact gradient of the whole; T4_unnoticed the
    same, staying below the detector's threshold; T5 only answers are seen. The headline of a row is its lowest figure
    from T1 to T5. nearest_neighbour and no_defence stand beside the others.

    Written after every task: RUN/scans.parquet (a row a scan), RUN/evaluation.parquet (a row a cell), and at the end
    RUN/evaluation.html. The same command goes on where it stopped.

    \b
    Examples:
      fedplatform evaluate runs/br35h --tiers T0,T2 --epsilons 2/255,4/255
      fedplatform evaluate runs/br35h --defences no_defence,whole --tiers T4 --steps 50 --eot 10
    """
    with one_line_errors():
        from rich.markdown import Markdown

        from fedplatform.exhibits import write_exhibits
        from fedplatform.report import defence_markdown, write_report
        from fedplatform.robustness import evaluate as attack

        plan = attack_plan(defences, tiers, epsilons, scans, hard_scans, steps, eot, queries)
        with attack_bar() as progress:
            cells = attack(run_folder, plan, jobs=jobs or os.cpu_count() or 1, observer=progress)
        shown = "T2" if "T2" in plan.tiers else plan.tiers[-1]
        if "whole" in plan.defences and shown != "T0":
            write_exhibits(run_folder, defence="whole", tier=shown, epsilon=max(epsilons), budget=plan.budget)
        console.print(Markdown(defence_markdown(cells)))
        page = write_report(run_folder).with_name("evaluation.html")
        console.print(f"report: {page}", soft_wrap=True)


@fedplatform.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--sigmas",
    default="0.25,0.5",
    show_default=True,
    metavar="X,...",
    callback=numbers,
    help="noise under which the answer is certified, in pixels of [0, 1]",
)
@click.option(
    "--scans",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="test scans, of all hospitals together",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="noisy copies a scan; the radius cannot exceed sigma times what so many copies can prove",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="worker processes [default: one a CPU]")
def certify(
    run_folder: Path, *, sigmas: tuple[float, ...], scans: int, samples: int, jobs: int | None
) -> None:  # fmt: skip
    """Prove, for test scans, that no perturbation within a radius can change the answer.

    Denoised smoothing with the run's own purifier and classifiers: a statement about every perturbation of that L2
    length, and not about the attacks that somebody thought of. RUN/certificates.parquet holds a row a scan; the share
    of scans whose right class is certified to each radius is printed.

    \b
    Example:
      fedplatform certify runs/br35h --sigmas 0.25 --scans 20 --samples 500
    """
    with one_line_errors():
        from rich.progress import Progress
        from rich.table import Table

        from fedplatform.robustness import certified_accuracy, certify_scans

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("certifying", total=None)
            found = certify_scans(
                run_folder,
                sigmas=sigmas,
                scans=scans,
                samples=samples,
                jobs=jobs or os.cpu_count() or 1,
                observer=lambda done, total: bar.update(task, completed=done, total=total),
            )
        shares = certified_accuracy(found, [0, 0.25, 0.5, 0.75, 1.0])
        table = Table(*shares.columns, title="share of scans certified with the right class to an L2 radius of")
        for row in shares.itertuples(index=False):
            table.add_row(*(f"{value:g}" for value in row))
        console.print(table)


@fedplatform.command()
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@click.option("--rules", required=True, metavar="RULE,RULE...", help="aggregation rules, one a row")
@click.option("--attacks", default="none", show_default=True, metavar="ATTACK,...", help="attacks, one a column")
@click.option(
    "--seeds",
    default="0",
    show_default=True,
    metavar="N,N...",
    callback=whole_numbers,
    help="seeds; cells show mean and spread",
)
@experiment_options
@where_options
@click.option("--name", metavar="NAME", help="name of the comparison [default: compare-RECIPE]")
def compare(
    recipe: str,
    *,
    rules: str,
    attacks: str,
    seeds: tuple[int, ...],
    runs: Path,
    data_folder: Path | None,
    engine: str,
    address: str,
    hosts: int | None,
    name: str | None,
    **changes: object,
) -> None:
    """Compare aggregation rules against attacks, and print the table.

    Every rule meets every attack for every seed, on the same split, the same liars and the same initial weights. Two
    rows are added to keep the table honest: nearest_neighbour (what memorising the training pictures is worth) and
    central (the same network and budget with all scans in one place).

    Results are written after every cell to runs/NAME/results.csv; a comparison that was stopped goes on from there
    when the same command is given again. runs/NAME/comparison.html shows the table.

    \b
    Example:
      fedplatform compare lesions --rules mean,median,nnm+trimmed_mean --attacks none,sign_flip,alie --seeds 0,1,2
    """
    with one_line_errors():
        from rich.markdown import Markdown

        from fedplatform.comparison import Grid
        from fedplatform.comparison import compare as fill
        from fedplatform.experiment import Experiment, load_settings
        from fedplatform.live import RoundTable
        from fedplatform.report import comparison_markdown

        base = Experiment.from_settings({**load_settings(recipe), **given(changes)})
        grid = Grid(base, words(rules), words(attacks), seeds)
        folder = runs / (name or f"compare-{Path(recipe).stem}")

        def announce(cell: str, number: int, total: int) -> RoundTable:
            return RoundTable(f"{number} of {total}: {cell}", rounds=base.rounds, console=console)

        with opened(engine, address, hosts) as runner:
            table = fill(grid, engine=runner, folder=folder, data_folder=data_folder, announce=announce)
        console.print(Markdown(comparison_markdown(table)))
        console.print(f"table: {folder / 'comparison.html'}", soft_wrap=True)


@fedplatform.group(cls=SuggestingGroup)
def data() -> None:
    """List data sets, audit them for leaks, and partition them over hospitals.

    Your own data needs no code: a folder with one subfolder a class (PNG, JPEG, TIFF, DICOM, NIfTI), an .npz in the
    layout of MedMNIST or Keras, or a Parquet file with the columns image and label.
    """


@data.command(name="list")
@click.option("--data-folder", type=click.Path(path_type=Path), help="where named data sets are looked for first")
def list_data(data_folder: Path | None) -> None:
    """List the data sets that have a name, and whether their files are here."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.data.error import DataError
        from fedplatform.data.sources import DATA_SETS, open_source

        table = Table("name", "what it shows", "what a group is", "published", "here")
        for name, data_set in DATA_SETS.items():
            try:
                open_source(name, folder=data_folder)
                here = "yes"
            except DataError:
                here = "no"
            table.add_row(name, data_set.description, data_set.group_means, data_set.published, here)
        console.print(table)
        console.print("Files are looked for in --data-folder, $FEDPLATFORM_DATA, ./data and ../shared/data.")


@data.command()
@click.argument("name", metavar="DATA")
@click.option("--data-folder", type=click.Path(path_type=Path), help="where named data sets are looked for first")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the splits that are tried")
def audit(name: str, *, data_folder: Path | None, seed: int) -> None:
    """Find what would make a test on this data set lie.

    DATA is a name or a path. Reports class balance, exact copies, near-identical pictures and the groups they form,
    and what a nearest-neighbour look-up of raw pixels scores on a random and on a group-safe split. Where the two are
    far apart, a random split rewards memorising, and its figures say nothing about new patients.
    """
    with one_line_errors():
        from fedplatform.data.leakage import audit as audit_source
        from fedplatform.live import audit_table

        with console.status(f"reading {name}"):
            report = audit_source(opened_data(name, data_folder), seed=seed)
        for line in audit_table(report):
            console.print(line)


@data.command()
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@experiment_options
@click.option("--data-folder", type=click.Path(path_type=Path), help="where named data sets are looked for first")
def partition(recipe: str, folder: Path, *, data_folder: Path | None, **changes: object) -> None:
    """Write each hospital's shard, and the server's root set, into FOLDER, as 'run' would.

    One Parquet file a hospital, streamed: the data set is never held in memory whole. No group is ever cut.

    \b
    Example:
      fedplatform data partition lesions shards/ --data my_scans/ --partition "dirichlet(concentration=0.5)"
    """
    with one_line_errors():
        from rich.table import Table

        from fedplatform.experiment import Experiment, load_settings
        from fedplatform.run import partition_data

        experiment = Experiment.from_settings({**load_settings(recipe), **given(changes)})
        with partitioning_bar() as progress:
            manifest = partition_data(experiment, folder, data_folder=data_folder, progress=progress)
        roles = list(manifest.hospitals[0].counts)
        table = Table("shard", *roles, title=f"scans by class: {' / '.join(manifest.classes)}", title_justify="left")
        for shard in [*manifest.hospitals, *([manifest.root] if manifest.root else [])]:
            table.add_row(shard.file, *(" / ".join(map(str, shard.counts.get(role, ()))) for role in roles))
        console.print(table)


@fedplatform.group(cls=SuggestingGroup)
def bench() -> None:
    """Measure the defences in large tables of cheap cells, all cores of this machine busy.

    A cell is a whole federation, made small: a small network, few scans, no run folder. See 'compare' for few and full
    runs on a cluster.
    """


@bench.command()
@click.option("--dataset", required=True, metavar="NAME", help="br35h, alzheimer, lc25000 or lesions")
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    metavar="N,...",
    callback=whole_numbers,
    help="seeds; each has its own split, hospitals and training",
)
@click.option(
    "--split",
    type=click.Choice(["group_safe", "random"]),
    default="group_safe",
    show_default=True,
    help="how test scans are set apart; random cuts patients, and lies",
)
@click.option("--size", type=click.INT, metavar="N", help="pixels a side [default: 64]")
@attack_options
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="FOLDER",
    help="folder that holds all runs",
)
@click.option("--name", metavar="NAME", help="name of the benchmark [default: defence-DATASET]")
@click.option(
    "--data-folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="where named data sets are looked for first",
)
def defence(
    dataset: str,
    *,
    seeds: tuple[int, ...],
    split: str,
    size: int | None,
    defences: str | None,
    tiers: str | None,
    epsilons: tuple[float, ...],
    scans: int,
    hard_scans: int,
    steps: int,
    eot: int,
    queries: int,
    jobs: int | None,
    runs: Path,
    name: str | None,
    data_folder: Path | None,
) -> None:  # fmt: skip
    """Train and attack the inference-time defence: every row against every tier, with and without adversarial training.

    For each seed two federations are trained on the same split, one plainly and one adversarially, each with its own
    defence, and then attacked as 'fedplatform evaluate' does. runs/NAME/ holds a run folder of each, resumable, and
    defence.csv, one row a cell. The same command goes on where it stopped; more tiers, rows, epsilons and seeds may be
    asked for in the same NAME.

    \b
    Examples:
      fedplatform bench defence --dataset br35h
      fedplatform bench defence --dataset br35h --seeds 0 --tiers T0,T2 --defences no_defence,whole
    """
    with one_line_errors():
        from fedplatform.defence_benchmark import DefenceBenchmark
        from fedplatform.defence_benchmark import fill as fill_table
        from fedplatform.report import defence_markdown

        benchmark = DefenceBenchmark(
            dataset,
            seeds=seeds,
            changes=given({"split": split, "size": size}),
            plan=attack_plan(defences, tiers, epsilons, scans, hard_scans, steps, eot, queries),
        )
        folder = runs / (name or f"defence-{dataset}")
        with attack_bar() as progress:
            table = fill_table(
                benchmark,
                folder=folder,
                jobs=jobs or os.cpu_count() or 1,
                data_folder=data_folder,
                announce=console.print,
                observer=progress,
            )
        click.echo(defence_markdown(table))
        console.print(f"table: {folder / 'defence.csv'}", soft_wrap=True)


@bench.command()
@click.option(
    "--dataset",
    required=True,
    metavar="NAME",
    help="mnist, br35h, alzheimer, lc25000, lesions or cifar10, each with settings of its own",
)
@click.option("--rules", metavar="RULE,...", help="aggregation rules, one a row [default: those above]")
@click.option("--attacks", metavar="ATTACK,...", help="attacks, one a column [default: those above]")
@click.option(
    "--splits",
    metavar="SPLIT,...",
    help="how scans fall to hospitals: iid, dirichlet_0.5, label_skew_0.9, quantity_skew_1, site "
    "[default: iid,dirichlet_0.1]",
)
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    metavar="N,...",
    callback=whole_numbers,
    help="seeds; cells show mean and spread",
)
@click.option("--hospitals", type=click.INT, metavar="N", help="number of hospitals, liars among them [default: 10]")
@click.option("--liars", type=click.INT, metavar="N", help="how many of them lie [default: 3]")
@click.option("--rounds", type=click.INT, metavar="N", help="rounds [default: the data set's]")
@click.option("--model", metavar="SPEC", help="classifier [default: small_cnn(width=8)]")
@click.option("--size", type=click.INT, metavar="N", help="pixels a side [default: the data set's]")
@click.option("--scans", type=click.INT, metavar="N", help="scans used, 0 for all [default: the data set's]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="worker processes [default: one a CPU]")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="FOLDER",
    help="folder that holds all runs",
)
@click.option("--name", metavar="NAME", help="name of the benchmark [default: trust-DATASET]")
@click.option(
    "--data-folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="where named data sets are looked for first",
)
def trust(
    dataset: str,
    *,
    rules: str | None,
    attacks: str | None,
    splits: str | None,
    seeds: tuple[int, ...],
    jobs: int | None,
    runs: Path,
    name: str | None,
    data_folder: Path | None,
    **changes: object,
) -> None:
    """Fill one large table: every defence against every attack, on every split, for every seed.

    All rules get the same hospitals, liars, initial weights, optimiser (FedBN-P), rounds and root set. A rule that
    rehearses attacks never rehearses the one under test. Two references stand beside them: nearest_neighbour (what
    memorising is worth) and central (the same network and budget on all scans in one place); mean is no defence.

    By default the rules are mean, median, trimmed_mean, krum, multi_krum, bulyan, geometric_median, centered_clipping,
    fltrust, dnc, signguard, flame, five of them behind nnm, and the trust rules; the attacks are none, scaling,
    partial_scaling, sign_flip, gaussian_noise, label_flip, alie, min_max, min_sum, ipm, mimic, fingerprint_aware and
    sleeper.

    Cells are filled seed by seed, split by split and attack by attack, so that a table that is cut off is a smaller
    table. Each finished cell goes to runs/NAME/trust.parquet (all figures) and trust.csv, its hospitals in every round
    to runs/NAME/hospitals/. The same command goes on where it stopped; more rules, attacks, splits and seeds may be
    asked for in the same NAME. What cannot be run, or fails, is a row that says why, and is tried again next time. At
    the end the table is printed, with the paired comparison of the rule 'trust' with every other, and kept in
    runs/NAME/trust.md.

    \b
    Examples:
      fedplatform bench trust --dataset mnist
      fedplatform bench trust --dataset lesions --splits site --rules mean,nnm+median --attacks none,alie --seeds 0
      fedplatform bench trust --dataset br35h --splits iid,label_skew_0.9 --liars 4 --seeds 0,1,2,3,4 --name br35h-4
    """
    with one_line_errors():
        from fedplatform.benchmark import ATTACKS, DATASETS, RULES, SPLITS, Benchmark, fill, markdown
        from fedplatform.experiment import ExperimentError

        if dataset not in DATASETS:
            raise ExperimentError(f"no settings for data set {dataset!r}{nearest(dataset, DATASETS)}")
        benchmark = Benchmark(
            dataset,
            Benchmark.settings_of(dataset, given(changes)),
            rules=words(rules or "") or RULES,
            attacks=words(attacks or "") or ATTACKS,
            splits=words(splits or "") or SPLITS,
            seeds=seeds,
        )
        folder = runs / (name or f"trust-{dataset}")
        workers = jobs or os.cpu_count() or 1
        with benchmark_bar() as progress:
            table = fill(benchmark, folder=folder, jobs=workers, data_folder=data_folder, observer=progress)
        text = markdown(table)
        (folder / "trust.md").write_text(text, encoding="utf-8")
        click.echo(text)
        console.print(f"table: {folder / 'trust.md'}", soft_wrap=True)


@fedplatform.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html of a run anew, from what the run left.

    RUN is the run's folder, e.g. runs/lesions-mean-none-seed0. The page is one file without outside assets.
    """
    with one_line_errors():
        from fedplatform.report import write_report

        console.print(f"report: {write_report(folder)}", soft_wrap=True)


def given(options: dict[str, object]) -> dict[str, object]:
    """The settings that were really given on the command line."""
    return {key: value for key, value in options.items() if value is not None}


def opened_data(name: str, folder: Path | None) -> Any:
    """A data set by name, path or import."""
    from fedplatform.experiment import Experiment

    return Experiment.from_settings({"data": name}).open_data(folder)


@contextmanager
def partitioning_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time left, for one pass over a data set."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("dealing scans to hospitals", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def benchmark_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of cells on a terminal; on anything else, one plain line a finished cell."""
    from datetime import timedelta

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    def left(seconds: float) -> str:
        return "time left unknown" if seconds != seconds else f"{timedelta(seconds=round(seconds))} left"

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Any) -> None:
            if console.is_terminal:
                description = f"{left(progress.seconds_left)}; {progress.running}"
                bar.update(task, completed=progress.done, total=progress.total, description=description)
            elif progress.last is not None:
                click.echo(f"{progress.done}/{progress.total}  {progress.last}; {left(progress.seconds_left)}")

        yield show


@contextmanager
def attack_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of attacks with the time left on a terminal; on anything else, one plain line an attack."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Any) -> None:
            said = "" if progress.last is None else f"{progress.last}: accuracy {progress.accuracy:.3f}"
            if console.is_terminal:
                bar.update(task, completed=progress.done, total=progress.total, description=said)
            elif said:
                click.echo(f"{progress.done}/{progress.total}  {said}")

        yield show


def words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list; commas inside brackets do not cut."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts if part.strip())


@contextmanager
def opened(engine: str, address: str, hosts: int | None) -> Iterator[Any]:
    """The engine that was asked for, closed at the end."""
    from actors.engine import RayEngine
    from fedplatform.engine import InProcessEngine

    if engine == "local":
        yield InProcessEngine()
        return
    ray_engine = RayEngine(address=address, num_hosts=hosts)
    try:
        yield ray_engine
    finally:
        ray_engine.close()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show what went wrong in one line and leave with status 1; ``FEDPLATFORM_TRACEBACK=1`` shows where, too."""
    from actors.cohort import CohortError
    from fedplatform.data.error import DataError
    from fedplatform.experiment import ExperimentError
    from fedplatform.report import ReportError
    from fedplatform.specification import SpecificationError

    try:
        yield
    except (CohortError, DataError, ExperimentError, ReportError, SpecificationError, OSError) as error:
        if os.environ.get("FEDPLATFORM_TRACEBACK"):
            raise
        click.echo(f"fedplatform: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("fedplatform: stopped; finished rounds are kept", err=True)
        sys.exit(130)


def main() -> None:
    """The console command: a mistyped word costs one line and status 2."""
    try:
        sys.exit(fedplatform(prog_name="fedplatform", standalone_mode=False))
    except click.NoSuchOption as error:
        complain(f"no option {error.option_name}{nearest(error.option_name, error.possibilities or ())}", error.ctx)
    except click.UsageError as error:
        complain(error.format_message(), error.ctx)
    except click.Abort:
        sys.exit(130)


def complain(message: str, context: click.Context | None) -> NoReturn:
    """One line to standard error, with the command whose --help says more."""
    click.echo(f"fedplatform: {message} (see '{context.command_path if context else 'fedplatform'} --help')", err=True)
    sys.exit(2)
