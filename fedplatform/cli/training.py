"""Commands that train: run, compare, report."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import (
    SHARDS,
    absence_options,
    experiment_options,
    given,
    where_options,
    whole_numbers,
    words,
    words_of_options,
)
from fedplatform.cli.outside import gateway_of, gateway_options
from fedplatform.cli.own_data import resolved, telling_faults
from fedplatform.cli.terminal import console, one_line_errors, opened

# Of the options of 'run', those that going on takes again: where to run, and who is let in.
NEEDED_AGAIN = (
    *("engine", "address", "hosts", "data_folder", "shards"),
    *("gateway", "roster", "tls_cert", "tls_key", "wait_s", "without"),
)


@click.command()
@click.argument("recipe", metavar="DATA|RECIPE|FILE.yaml", required=False)
@experiment_options
@where_options
@click.option("--name", metavar="NAME", help="name of the run [default: data-rule-attack-seed]")
@gateway_options
@absence_options
@SHARDS
@click.option(
    "--resume",
    "stopped",
    metavar="NAME",
    help="go on with the run NAME, in place of DATA or RECIPE and settings; a finished one until --rounds N; one that "
    "its patience ended with another --patience; with --device on another device",
)
def run(
    recipe: str | None,
    *,
    runs: Path,
    data_folder: Path | None,
    engine: str,
    address: str,
    hosts: int | None,
    name: str | None,
    shards: Path | None,
    gateway: str | None,
    roster: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    wait_s: float | None,
    without: str | None,
    stopped: str | None,
    **changes: object,
) -> None:
    """Run one experiment, from partition to report.

    DATA is your own: a folder with one subfolder a class, an .npz or a .parquet file. Settings that suit it are found
    from the data and shown in a table with the reasons; what you give as an option wins (docs/data.md).

    RECIPE is one that comes with the package (lesions, br35h, br35h_pretrained, br35h_robust, alzheimer, ham10000,
    lc25000, mnist, cifar10); FILE.yaml is your own, or the experiment.yaml that an earlier run left. Every setting in
    it can be changed by the option of its name; the defaults below hold where neither says anything. With your own
    --data a recipe says how to train, and size, hospitals, partition and the like are found from the data.

    The run leaves runs/NAME/: experiment.yaml (resolved; runs the same again), rounds.parquet, hospitals.parquet,
    global.safetensors (the last model), best.safetensors (that of an earlier round, where it did better on validation
    scans), hospitals/*.safetensors (each hospital's own part) and report.html. The same figures go to MLflow, in
    runs/mlflow.db unless MLFLOW_TRACKING_URI says otherwise.

    Every round ends in a checkpoint. An interrupted run resumes with --resume NAME after its last finished round, and
    ends with the weights of an uninterrupted run, bit for bit (docs/faults.md). A finished run goes on with --resume
    NAME --rounds N until round N; --weights runs/NAME starts a new one from what it learned.

    \b
    Examples:
      fedplatform run my_scans/
      fedplatform run my_scans/ --attack min_max --rule trust
      fedplatform run lesions --rounds 3
      fedplatform run br35h --attack min_max --rule "multi_krum(m=5)"
      fedplatform run lesions --data my_scans/ --partition "dirichlet(concentration=0.5)" --hospitals 5
      fedplatform run lesions --rule my_rules.py:MyRule
      fedplatform run lesions --rule trust --byzantine 2 --attack sign_flip --privacy "grouped(size=3)"
      fedplatform run runs/lesions-mean-none-seed0/experiment.yaml
      fedplatform run --resume lesions-mean-none-seed0
      fedplatform run --resume lesions-mean-none-seed0 --rounds 40
      fedplatform run br35h --model resnet18 --weights imagenet --freeze body
      fedplatform run federation.yaml --address auto --shards server/

    On a cluster (--address, or RAY_ADDRESS) each hospital that the file lists runs on the node that is labelled as its
    own, and nowhere else; without, the same file is simulated on this machine (docs/cluster.md).

    Hospitals that are no part of this cluster come through a gateway and bring their own data (docs/joining.md):

    \b
      fedplatform run lesions --outside hospital-08,hospital-09 --roster roster.yaml --gateway 0.0.0.0:8443 \\
        --tls-cert cert.pem --tls-key key.pem

    \b
    Exit status: 0 done, 1 could not be done (one line says why), 2 mistyped.
    """
    if (recipe is None) == (stopped is None):
        raise click.UsageError("give DATA, a RECIPE or --resume NAME", click.get_current_context())
    if stopped is not None and (name or set(given(changes)) - {"rounds", "patience", "device"}):
        raise click.UsageError(
            "a resumed run keeps its name and settings, all but --rounds, --patience and --device",
            click.get_current_context(),
        )
    with one_line_errors():
        from fedplatform.cli.display import RoundTable, hospital_table
        from fedplatform.core.messages import best_of
        from fedplatform.core.wording import count
        from fedplatform.experiments.experiment import Experiment, ExperimentError
        from fedplatform.experiments.run import resume
        from fedplatform.experiments.run import run as run_experiment
        from fedplatform.experiments.run_folder import RunFolder
        from fedplatform.experiments.weights import BEST
        from fedplatform.federated.secure import promise

        settings = given(changes)
        rounds, patience = (
            int(str(settings[name])) if stopped and name in settings else None for name in ("rounds", "patience")
        )
        folder = RunFolder.reopen(runs, stopped, rounds=rounds, patience=patience) if stopped else None
        settings = {**folder.read_settings(), **settings} if folder else resolved(str(recipe), settings)
        experiment = Experiment.from_settings(settings)
        on_a_cluster = engine == "ray" and address != "local"
        has_own_shards = any(place.shard for place in experiment.places)
        if on_a_cluster and shards is None and folder is None and has_own_shards:
            raise ExperimentError("hospitals open their own shards: --shards FOLDER with the server's manifest.json")
        outside = gateway_of(experiment, gateway, roster, tls_cert, tls_key)
        if outside is not None:
            console.print(f"{outside.words}; 'fedplatform gateway status' says who has joined", soft_wrap=True)
        needed_again = words_of_options(click.get_current_context(), NEEDED_AGAIN)
        title = (
            f"{experiment.data_slug}: {experiment.hospitals} hospitals, {experiment.byzantine} Byzantine, "
            f"attack {experiment.attack_slug}, rule {experiment.rule_slug}"
        )
        for one in folder.withdrawals if folder else ():
            console.print(f"without {one.hospital_id}, which withdrew after round {one.after_round}", soft_wrap=True)
        if experiment.privacy is not None:
            console.print(promise(experiment.privacy, rounds=experiment.rounds), soft_wrap=True)
        with (
            telling_faults(str(experiment.data), lambda: experiment.open_data(data_folder)),
            opened(
                engine,
                address,
                hosts,
                experiment,
                outside=outside,
                withdrawn=folder.withdrawals if folder else (),
                without=words(without or ""),
                wait_s=wait_s,
            ) as runner,
            RoundTable(title, rounds=experiment.rounds, console=console) as table,
        ):
            if folder:
                reports = resume(
                    folder,
                    engine=runner,
                    data_folder=data_folder,
                    shards=shards,
                    rounds=rounds,
                    device=str(settings["device"]) if "device" in given(changes) else None,
                    patience=patience,
                    callbacks=[table],
                    options=needed_again,
                )
            else:
                folder, reports = run_experiment(
                    experiment,
                    engine=runner,
                    runs=runs,
                    name=name,
                    data_folder=data_folder,
                    shards=shards,
                    callbacks=[table],
                    options=needed_again,
                )
        last = reports[-1]
        console.print(hospital_table(reports))
        console.print(
            f"balanced accuracy {last.balanced_accuracy:.3f}, AUC {last.auc:.3f}, accuracy {last.accuracy:.3f}, "
            f"macro-F1 {last.macro_f1:.3f}"
        )
        if last.attack_success == last.attack_success:
            console.print(
                f"attack success {last.attack_success:.3f}: stamped scans answered with the backdoor's target"
            )
        if not last.beats_majority:
            console.print(f"always answering the same would be right in {last.majority:.3f}: this model does no better")
        if last.round_number < experiment.rounds:
            console.print(
                f"ended after round {last.round_number} of {experiment.rounds}: "
                f"{count(experiment.patience, 'round')} without a better one on validation scans"
            )
        if (best := best_of(reports)) is not last:
            console.print(
                f"round {best.round_number} was best on validation scans: balanced accuracy "
                f"{best.balanced_accuracy:.3f}, AUC {best.auc:.3f} on test scans; {folder.path / BEST} is its model",
                soft_wrap=True,
            )
        console.print(f"report: {folder.path / 'report.html'}", soft_wrap=True)


@click.command()
@click.argument("recipe", metavar="DATA|RECIPE|FILE.yaml")
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
@click.option("--name", metavar="NAME", help="name of the comparison [default: compare-DATA or -RECIPE]")
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

    DATA, RECIPE and FILE.yaml are of 'fedplatform run'. Every rule meets every attack for every seed, on the same
    split, the same attackers and the same initial weights.
    Two rows are added to keep the table honest: nearest_neighbour (what memorising the training pictures is worth) and
    central (the same network and budget with all scans in one place).

    Results are written after every cell to runs/NAME/results.csv; a comparison that was stopped goes on from there
    when the same command is given again. runs/NAME/comparison.html shows the table.

    \b
    Example:
      fedplatform compare lesions --rules mean,median,nnm+trimmed_mean --attacks none,sign_flip,alie --seeds 0,1,2
    """
    with one_line_errors():
        from rich.markdown import Markdown

        from fedplatform.cli.display import RoundTable
        from fedplatform.experiments.comparison import Grid
        from fedplatform.experiments.comparison import compare as fill
        from fedplatform.experiments.experiment import Experiment
        from fedplatform.experiments.report import comparison_markdown

        settings = resolved(recipe, given(changes), rules=words(rules), attacks=words(attacks))
        base = Experiment.from_settings(settings)
        grid = Grid(base, words(rules), words(attacks), seeds)
        folder = runs / (name or f"compare-{Path(recipe).stem}")

        def announce(cell: str, number: int, total: int) -> RoundTable:
            return RoundTable(f"{number} of {total}: {cell}", rounds=base.rounds, console=console)

        with telling_faults(str(base.data), base.open_data), opened(engine, address, hosts) as runner:
            table = fill(grid, engine=runner, folder=folder, data_folder=data_folder, announce=announce)
        console.print(Markdown(comparison_markdown(table)))
        console.print(f"table: {folder / 'comparison.html'}", soft_wrap=True)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Show how much each hospital of a run counted, and write its report.html anew.

    RUN is the run's folder, e.g. runs/lesions-mean-none-seed0. The page is one file without outside assets.
    """
    with one_line_errors():
        from fedplatform.cli.display import hospital_table
        from fedplatform.experiments.report import write_report
        from fedplatform.experiments.run_folder import RunFolder

        console.print(hospital_table(RunFolder(folder).read_reports()))
        console.print(f"report: {write_report(folder)}", soft_wrap=True)
