"""Commands of the defence of a scan: defend, evaluate, certify."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import (
    JOBS,
    attack_options,
    attack_plan,
    compute_options,
    defence_options,
    device_option,
    given,
    numbers,
)
from fedplatform.cli.progress import attack_bar, counting_bar
from fedplatform.cli.terminal import console, one_line_errors, opened


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@defence_options
@compute_options
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
    run_folder: Path,
    *,
    engine: str,
    address: str,
    hosts: int | None,
    device: str | None,
    precision: str | None,
    kernels: str | None,
    **changes: object,
) -> None:
    """Train the defence of a finished run, in its own federation.

    RUN is a folder that 'fedplatform run' left. The hospitals that trained its classifier train, in this order: a
    masked autoencoder and a purifier on clean scans; the classifier again, on purified scans; a sensor, on scans
    attacked through that classifier. Thresholds are not trained: every hospital fits them on held-out clean scans
    when the defence is used, its own or, where those are of too few patients, those of all hospitals. RUN/defence/
    holds the networks. A stage that is finished is not trained again, so a call that was stopped goes on with the stage
    it was in.

    \b
    Examples:
      fedplatform run br35h_robust --name br35h
      fedplatform defend runs/br35h
      fedplatform evaluate runs/br35h
    """
    with one_line_errors():
        from fedplatform.cli.display import StageTable
        from fedplatform.defence.settings import DefenceSettings
        from fedplatform.experiments.defence.load import read_experiment, require_defensible
        from fedplatform.experiments.defence.train import defend as train_defence

        settings = DefenceSettings.from_settings(given(changes))
        computing = given({"device": device, "precision": precision, "kernels": kernels})
        require_defensible(read_experiment(run_folder))  # before Ray starts
        with opened(engine, address, hosts) as runner, StageTable(console) as table:
            train_defence(run_folder, settings, engine=runner, observer=table, computing=computing)
        console.print(f"defence: {run_folder / 'defence'}", soft_wrap=True)


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@attack_options
@device_option
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
    attacks: tuple[str, ...],
    jobs: int,
    device: str,
) -> None:
    """Attack a finished run whose defence is trained, and print the table.

    Every row (defence) meets attackers who know more and more: T0 nobody attacks; T1 another hospital attacks through
    its own model; T2 the gradient of the classifier is known (T2_paper: with the budget of MedFedPure's paper); T3 the
    full defence is known and its purifier taken for the identity; T4 the exact gradient of the whole (T4_unnoticed:
    staying below the detector's threshold; T4_strong: with 2.5 times the steps and gradients; T4_flood: wants scans
    flagged, whatever the answer); T5 only answers are seen. The headline of a row is its lowest figure from T1 to T5.
    nearest_neighbour and no_defence stand beside the others. --attack adds any other attack by its name: noise, fgsm,
    pgd, momentum_pgd, apgd, fab, carlini_wagner, square, hop_skip_jump, detector_aware, flood, or a class of your own
    (mine.py:Attack).

    Written after every task: RUN/scans.parquet (a row a scan); now and then RUN/evaluation.parquet (a row a cell); at
    the end RUN/evaluation.html. The same command goes on where it stopped.

    \b
    Examples:
      fedplatform evaluate runs/br35h --tiers T0,T2 --epsilons 2/255,4/255
      fedplatform evaluate runs/br35h --defences full --tiers T4,T4_strong
      fedplatform evaluate runs/br35h --defences full --tiers T0 --attack "fab(steps=50)" --attack hop_skip_jump
    """
    with one_line_errors():
        from rich.markdown import Markdown

        from fedplatform.experiments.defence.evaluate import evaluate as attack
        from fedplatform.experiments.defence.pictures import write_example_pictures
        from fedplatform.experiments.report import defence_markdown, write_report

        plan = attack_plan(defences, tiers, epsilons, scans, hard_scans, steps, eot, queries, attacks)
        with attack_bar() as progress:
            cells = attack(run_folder, plan, jobs=jobs, device=device, observer=progress)
        shown = "T2" if "T2" in plan.tiers else plan.tiers[-1]
        if "full" in plan.defences and shown != "T0":
            write_example_pictures(
                run_folder, defence="full", tier=shown, epsilon=max(epsilons), budget=plan.budget, device=device
            )
        console.print(Markdown(defence_markdown(cells)))
        page = write_report(run_folder).with_name("evaluation.html")
        console.print(f"report: {page}", soft_wrap=True)


@click.command()
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
@JOBS
@device_option
def certify(
    run_folder: Path, *, sigmas: tuple[float, ...], scans: int, samples: int, jobs: int, device: str
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
        from rich.table import Table

        from fedplatform.experiments.defence.certify import certified_accuracy, certify_scans

        with counting_bar("certifying") as progress:
            found = certify_scans(
                run_folder,
                sigmas=sigmas,
                scans=scans,
                samples=samples,
                jobs=jobs,
                device=device,
                observer=progress,
            )
        shares = certified_accuracy(found, [0, 0.25, 0.5, 0.75, 1.0])
        table = Table(*shares.columns, title="share of scans certified with the right class to an L2 radius of")
        for row in shares.itertuples(index=False):
            table.add_row(*(f"{value:g}" for value in row))
        console.print(table)
