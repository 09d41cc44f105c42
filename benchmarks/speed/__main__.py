"""The command: measures works, ours and the peers' in turns, and leaves table, picture and goals behind."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.speed import (
    fingerprint,
    goals,
    limits,
    peers,
    picture,
    purification,
    rounds,
    rules,
    serving,
    tables,
    training,
    weights,
)
from benchmarks.speed.arena import NO_PEERS, ROOT, Arena, Result
from benchmarks.speed.bench import Bench
from benchmarks.speed.table import Table

WORKS: dict[str, Callable[[Bench], None]] = {
    "rules": rules.measure,
    "rounds": rounds.measure,
    "fingerprint": fingerprint.measure,
    "weights": weights.measure,
    "purification": purification.measure,
    "serving": serving.measure,
    "training": training.measure,
}
QUICK_WORKS = ("rules", "rounds", "fingerprint", "weights", "purification")  # the others have no small size to speak of
# Seconds that each takes, for the time that is left: quick, whole.
EXPECTED = {
    "rules": (60.0, 700.0),
    "rounds": (60.0, 330.0),
    "fingerprint": (10.0, 60.0),
    "weights": (30.0, 90.0),
    "purification": (40.0, 90.0),
    "serving": (60.0, 120.0),
    "training": (40.0, 100.0),
}


REPEATS, QUICK_REPEATS = 5, 3


@click.command(context_settings={"max_content_width": 120})
@click.option(
    "--work", "chosen", show_default=f"all; with --quick {','.join(QUICK_WORKS)}", help=f"NAME,... of {','.join(WORKS)}"
)
@click.option("--quick", is_flag=True, help="the small sizes only: under 5 minutes instead of 30")
@click.option("--resume", is_flag=True, help="leave alone what the table has rows of already")
@click.option("--repeats", type=int, show_default="5; 3 with --quick", help="turns that every system takes")
@click.option("--without-peers", is_flag=True, help="measure this project alone and install nothing")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="docs/results/speed.csv; runs/speed/quick.csv with --quick",
    help="the table",
)
@click.option(
    "--picture",
    "drawn",
    type=click.Path(path_type=Path),
    show_default="docs/pictures/speed.png; runs/speed/quick.png with --quick",
)
@click.option("--tiny", is_flag=True, hidden=True, help="sizes for tests: the figures mean nothing")
def main(
    chosen: str | None,
    quick: bool,
    resume: bool,
    repeats: int | None,
    without_peers: bool,
    out: Path | None,
    drawn: Path | None,
    tiny: bool,
) -> None:
    """Measure this project and its peers on the same work, in turns, on one thread each.

    Rows go into the table as they come, by work and size; what is measured again replaces its rows. The peers are
    installed into .venv-peers first. Ends with every goal, met or missed.
    """
    names = [name.strip() for name in chosen.split(",")] if chosen else [*(QUICK_WORKS if quick else WORKS)]
    if unknown := [name for name in names if name not in WORKS]:
        raise click.BadParameter(f"{unknown[0]!r}; known: {', '.join(WORKS)}", param_hint="--work")
    pythons: dict[str, Path | str] = {name: Path(sys.executable) for name in NO_PEERS}
    if not without_peers:
        pythons |= dict.fromkeys(peers.PEERS, peers.environment(click.echo))
    out = out or ROOT / ("runs/speed/quick.csv" if quick else "docs/results/speed.csv")
    drawn = drawn or ROOT / ("runs/speed/quick.png" if quick else "docs/pictures/speed.png")
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        click.echo("measuring the machine")
        machine = limits.measured()
        click.echo(
            f"one thread reads {machine.read / 1e9:.1f} GB/s, copies {machine.copied / 1e9:.1f} GB/s (both ways), "
            f"multiplies {machine.matrix / 1e9:.0f} GFLOP/s"
        )
        with Arena(Path(folder), pythons, click.echo).opened() as arena:
            bench = Bench(
                arena=arena,
                machine=machine,
                table=Table(out),
                folder=Path(folder),
                repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
                quick=quick or tiny,
                tiny=tiny,
                resumed=resume,
                say=click.echo,
                expected={name: EXPECTED[name][0 if quick or tiny else 1] for name in names},
            )
            for what, figure, unit in (
                ("reads", machine.read / 1e9, "GB/s"),
                ("copies", machine.copied / 1e9, "GB/s"),
                ("multiplies", machine.matrix / 1e9, "GFLOP/s"),
            ):
                bench.table.add(f"machine/{what}", [Result("machine", {"figure": [figure]})], unit=unit)
            for name in names:
                WORKS[name](bench)
    picture.draw(bench.table.rows, drawn)
    click.echo(f"\n{tables.markdown(bench.table.rows)}\n\n{goals.markdown(bench.table.rows)}\n\n{out}\n{drawn}")


if __name__ == "__main__":
    main()
