"""Commands of the large tables: bench defence, bench trust."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import DATA_FOLDER, JOBS, RUNS, attack_options, attack_plan, given, whole_numbers, words
from fedplatform.cli.progress import attack_bar, benchmark_bar
from fedplatform.cli.terminal import SuggestingGroup, console, one_line_errors
from fedplatform.core.specification import nearest


@click.group(cls=SuggestingGroup)
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
    help="how the test set is split: group_safe keeps a patient's scans together; random overestimates accuracy",
)
@click.option("--size", type=click.INT, metavar="N", help="pixels a side [default: 64]")
@click.option(
    "--kinds",
    default="plain,adversarial",
    show_default=True,
    metavar="KIND,...",
    help="trainings of the classifier, each with a defence of its own",
)
@attack_options
@RUNS
@click.option("--name", metavar="NAME", help="name of the benchmark [default: defence-DATASET]")
@DATA_FOLDER
def defence(
    dataset: str,
    *,
    seeds: tuple[int, ...],
    split: str,
    size: int | None,
    kinds: str,
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
    runs: Path,
    name: str | None,
    data_folder: Path | None,
) -> None:  # fmt: skip
    """Train and attack the inference-time defence: every row against every tier, with and without adversarial training.

    For each seed two federations are trained on the same split, one plainly and one adversarially, each with its own
    defence, and then attacked as 'fedplatform evaluate' does. runs/NAME/ holds a run folder of each, resumable,
    defence.csv, one row a cell, and pairs.csv, the full defence beside every other row. The same command goes on where
    it stopped; more tiers, rows, epsilons and seeds may be asked for in the same NAME.

    \b
    Examples:
      fedplatform bench defence --dataset br35h
      fedplatform bench defence --dataset br35h --seeds 0 --tiers T0,T2 --defences no_defence,full
    """
    with one_line_errors():
        from fedplatform.experiments.defence.benchmark import DefenceBenchmark
        from fedplatform.experiments.defence.benchmark import fill as fill_table
        from fedplatform.experiments.report import defence_markdown, paired_markdown

        benchmark = DefenceBenchmark(
            dataset,
            seeds=seeds,
            kinds=words(kinds),
            changes=given({"split": split, "size": size}),
            plan=attack_plan(defences, tiers, epsilons, scans, hard_scans, steps, eot, queries, attacks),
        )
        folder = runs / (name or f"defence-{dataset}")
        with attack_bar() as progress:
            table, scans_seen = fill_table(
                benchmark,
                folder=folder,
                jobs=jobs,
                data_folder=data_folder,
                announce=console.print,
                observer=progress,
            )
        click.echo(defence_markdown(table))
        click.echo(paired_markdown(scans_seen))
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
@click.option(
    "--hospitals", type=click.INT, metavar="N", help="number of hospitals, Byzantine ones included [default: 10]"
)
@click.option("--byzantine", type=click.INT, metavar="N", help="how many of them are Byzantine [default: 3]")
@click.option("--rounds", type=click.INT, metavar="N", help="rounds [default: the data set's]")
@click.option("--model", metavar="SPEC", help="classifier [default: small_cnn(width=8)]")
@click.option("--size", type=click.INT, metavar="N", help="pixels a side [default: the data set's]")
@click.option("--scans", type=click.INT, metavar="N", help="scans used, 0 for all [default: the data set's]")
@JOBS
@RUNS
@click.option("--name", metavar="NAME", help="name of the benchmark [default: trust-DATASET]")
@DATA_FOLDER
def trust(
    dataset: str,
    *,
    rules: str | None,
    attacks: str | None,
    splits: str | None,
    seeds: tuple[int, ...],
    jobs: int,
    runs: Path,
    name: str | None,
    data_folder: Path | None,
    **changes: object,
) -> None:
    """Fill one large table: every defence against every attack, on every split, for every seed.

    All rules get the same hospitals, attackers, initial weights, optimiser (FedBN-P), rounds and root set. A rule that
    rehearses attacks never rehearses the one under test. Two references stand beside them: nearest_neighbour (what
    memorising is worth) and central (the same network and budget on all scans in one place); mean is no defence.

    By default the rules are mean, median, trimmed_mean, krum, multi_krum, bulyan, geometric_median, centered_clipping,
    fltrust, dnc, signguard, flame, five of them behind nnm, and the trust rules; the attacks are none, scaling,
    partial_scaling, sign_flip, gaussian_noise, label_flip, alie, min_max, min_sum, ipm, mimic, fingerprint_aware and
    sleeper.

    Every other rule and attack of 'fedplatform run --help' can be asked for by name. Beside the accuracy under a
    backdoor stands its success (attack_success): the share of stamped test scans answered with its target.

    A rule with @N behind it sees only means of groups of N hospitals, by secure aggregation: trust@3.

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
      fedplatform bench trust --dataset lesions --splits iid --byzantine 2 --rules mean,trust,trust@2,trust@3
      fedplatform bench trust --dataset br35h --splits iid,label_skew_0.9 --byzantine 4 --seeds 0,1,2,3,4 --name br35h-4
    """
    with one_line_errors():
        from fedplatform.experiments.experiment import ExperimentError
        from fedplatform.experiments.trust_benchmark.cells import ATTACKS, DATASETS, RULES, SPLITS, Benchmark
        from fedplatform.experiments.trust_benchmark.fill import fill
        from fedplatform.experiments.trust_benchmark.table import markdown

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
        with benchmark_bar() as progress:
            table = fill(benchmark, folder=folder, jobs=jobs, data_folder=data_folder, observer=progress)
        text = markdown(table)
        (folder / "trust.md").write_text(text, encoding="utf-8")
        click.echo(text)
        console.print(f"table: {folder / 'trust.md'}", soft_wrap=True)
