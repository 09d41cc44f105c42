"""The command of searches: tune."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import DATA_FOLDER, RUNS, duration, given
from fedplatform.cli.terminal import console, one_line_errors


@click.command()
@click.argument("study", metavar="STUDY")
@click.option("--rule", metavar="RULE", help="poisoning: the aggregation rule that is attacked [default: trimmed_mean]")
@click.option("--run", "run_folder", metavar="RUN", help="evasion, purification: a run's folder with a trained defence")
@click.option(
    "--base", metavar="RECIPE|FILE.yaml", help="poisoning, trust, duel: the federation [default: a small one]"
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="N",
    help="choices that the search tries; the winner, references and curves are measured on top",
)
@click.option("--time", "seconds", metavar="TIME", callback=duration, help="search no longer than this, e.g. 30m or 2h")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="seed of the search and of its trials",
)
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "random"]),
    default="tpe",
    show_default=True,
    help="who draws the choices: Optuna's TPE, or chance, to compare with",
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="trials at once")
@click.option(
    "--hosts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Ray actors that a trial's hospitals share; 0: all in the trial's own process",
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="GPUs of a trial; .25 lets four share one",
)
@click.option(
    "--address",
    default="local",
    show_default=True,
    metavar="ADDRESS",
    help="a running Ray cluster ('auto' finds it), or 'local' to start one here",
)
@RUNS
@click.option("--name", metavar="NAME", help="name of the study [default: tune-STUDY-RULE-seed]")
@DATA_FOLDER
def tune(
    study: str,
    *,
    rule: str | None,
    run_folder: str | None,
    base: str | None,
    trials: int,
    seconds: float | None,
    seed: int,
    sampler: str,
    jobs: int,
    hosts: int,
    gpus: float,
    address: str,
    runs: Path,
    name: str | None,
    data_folder: Path | None,
) -> None:  # fmt: skip
    """Search for the attack that hurts most, or the defence that suffers least.

    STUDY is poisoning (which attack on training harms a rule most), trust (settings of the trust rule with the best
    worst case), evasion (the strongest attack on a scan), purification (accuracy, robustness and time of a trained
    defence), duel (attacker and defender in turns), breakdown (curves of rules against attackers and strength), or your
    own class as FILE.py:CLASS. Settings go in brackets: "poisoning(attacks=('alie', 'ipm'))".

    Validation scans choose; the winner is measured on test scans once, beside the default, no attack or no defence.
    runs/NAME/ holds a file a trial, winner.yaml, which 'fedplatform run' takes, trials.csv and report.html; MLflow has
    a run for the study and one in it for each trial. The same command goes on where it stopped, and more --trials may
    be asked for.

    \b
    Examples:
      fedplatform tune poisoning --rule trimmed_mean
      fedplatform tune trust --base bench:br35h --time 2h
      fedplatform tune purification --run runs/br35h
      fedplatform tune my_study.py:MyStudy --trials 10
    """
    with one_line_errors():
        from tune.display import TrialTable
        from tune.phase import Budget
        from tune.result import conclude
        from tune.runner import Resources
        from tune.runner import run as run_study
        from tune.studies import describe_study, parse_study, slug_of_study
        from tune.tracker import StudyTracker

        asked: dict[str, object] = {"rule": rule, "run": run_folder, "base": base}
        chosen = parse_study(study, given(asked), seed=seed)
        text = describe_study(chosen)
        name = name or f"tune-{slug_of_study(chosen)}{'-random' if sampler == 'random' else ''}-seed{seed}"
        folder = runs / name
        budget = Budget(trials, seed=seed, sampler=sampler)  # type: ignore[arg-type]
        seconds = float("inf") if seconds is None else seconds
        resources = Resources(jobs=jobs, hosts=hosts, gpus=gpus, address=address)
        with (
            StudyTracker(folder, text, sorted(chosen.objectives)) as tracker,
            TrialTable(name, console=console, jobs=jobs, seconds=seconds) as table,
        ):
            try:
                ledger = run_study(
                    chosen,
                    budget,
                    folder=folder,
                    name=text,
                    resources=resources,
                    seconds=seconds,
                    data_folder=data_folder,
                    observers=(table, tracker),
                )
            except KeyboardInterrupt as stop:
                stop.add_note("the same command goes on from here")
                raise
            page = conclude(chosen, ledger, folder)
            tracker.log_artifact(page)
        for line in page.with_name("summary.txt").read_text().splitlines():
            console.print(line, soft_wrap=True)
        console.print(f"report: {page}", soft_wrap=True)
