"""Options that several commands share, and how their words are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from fedplatform.core.options import COMPUTE, DEFENCE, EXPERIMENT, Option
from fedplatform.core.specification import nearest

RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="FOLDER",
    help="folder that holds all runs",
)
SHARDS = click.option(
    "--shards",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="shards that 'fedplatform data partition' wrote; where hospitals open their own, the server's part of them",
)
DATA_FOLDER = click.option(
    "--data-folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="where named data sets are looked for first",
)
AS_JSON = click.option("--json", is_flag=True, help="print JSON, for programs")
JOBS = click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=lambda: os.cpu_count() or 1,
    show_default="one a CPU",
    metavar="N",
    help="worker processes; 0 to work in this one",
)


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting of an experiment."""
    for name, option in reversed(EXPERIMENT.items()):
        if name != "places":  # a list of hospitals belongs in a file
            command = _setting_option(name, option)(command)
    return command


def _setting_option(name: str, option: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kinds: dict[object, tuple[click.ParamType[Any], str | None]] = {
        int: (click.INT, "N"),
        float: (click.FLOAT, "X"),
        str: (click.STRING, "SPEC"),
    }
    kind, metavar = kinds.get(option.kind) or (click.Choice(option.kind), None)  # type: ignore[arg-type]
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=kind,
        metavar=metavar,
        help=f"{option.help} [default: {option.shown or option.default}]",
    )


def compute_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what networks compute with; one that is not given is None."""
    for name, option in reversed(COMPUTE.items()):
        command = _setting_option(name, option)(command)
    return command


def compute_of(options: dict[str, object]) -> Any:
    """What :func:`compute_options` ask for on this machine. Raises :class:`ComputeError` where it is not there."""
    from fedplatform.core.compute import Compute

    return Compute.of(**{"device": "auto", **given(options)})  # type: ignore[arg-type]


def device_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that trains nothing the option of a device: its thresholds were fitted in float32."""
    words = COMPUTE["device"].help.partition(";")[0]
    return click.option("--device", default="auto", show_default=True, metavar="SPEC", help=words)(command)


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where to run and where to write."""
    return RUNS(DATA_FOLDER(engine_options(command)))


UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(_: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """``90``, ``90s``, ``30m``, ``1.5h`` in seconds; None where nothing is given."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text)
    if found is None:
        raise click.BadParameter(f"a time such as 90s, 30m or 2h, got {text!r}", param=option)
    return float(found[1]) * UNITS[found[2]]


def absence_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say without whom a run may begin."""
    for option in reversed(
        [
            click.option("--wait", "wait_s", metavar="TIME", callback=duration,
                         help="on a cluster: wait so long (90s, 30m) for hospitals whose node is away, then begin "
                         "without them if --quorum are there; they join when their node comes"),
            click.option("--without", metavar="NAME,...",
                         help="on a cluster: begin without these at once; they join when their node comes"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where hospitals run."""
    for option in reversed(
        [
            click.option("--engine", type=click.Choice(["ray", "local"]), default="ray", show_default=True,
                         help="hospitals as Ray actors, or all in this process (the same weights, bit for bit)"),
            click.option("--address", default="local", show_default=True, metavar="ADDRESS", envvar="RAY_ADDRESS",
                         show_envvar=True,
                         help="a running Ray cluster ('auto' finds it), or 'local' to start one here"),
            click.option("--hosts", type=click.IntRange(min=1), metavar="N",
                         help="actors that the hospitals share [default: one a CPU]"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def defence_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting of a defence."""
    for name, option in reversed(DEFENCE.items()):
        command = _setting_option(name, option)(command)
    return command


def attack_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what is attacked, and how hard."""
    for option in reversed(
        [
            click.option("--defences", metavar="NAME,...", help="rows of the table [default: all]"),
            click.option("--tiers", "--tier", "tiers", metavar="TIER,...",
                         help="threat tiers, T0 to T5 [default: all but T4_strong and T4_flood]"),
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
            click.option("--attack", "attacks", multiple=True, metavar="SPEC",
                         help="one more attack on the whole defence, by its name and with its own budget, as "
                         "'fab(steps=50)'; may be repeated"),
            JOBS,
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
    attacks: tuple[str, ...],
) -> Any:
    """What :func:`attack_options` asks for; an unknown word is an error that names the nearest."""
    from fedplatform.defence.threats import TIERS, Budget
    from fedplatform.experiments.defence.plan import Plan
    from fedplatform.experiments.experiment import ExperimentError

    budget = Budget(steps=steps, eot=eot, queries=queries)
    everything = Plan()
    chosen = {"defences": words(defences or "") or everything.defences, "tiers": words(tiers or "") or everything.tiers}
    for what, known in (("defences", everything.defences), ("tiers", tuple(TIERS))):
        for name in chosen[what]:
            if name not in known:
                raise ExperimentError(
                    f"no {what.rstrip('s')} is called {name!r}{nearest(name, known)}; known: {', '.join(known)}"
                )
    return Plan(**chosen, epsilons=epsilons, scans=scans, hard_scans=hard_scans, budget=budget, attacks=attacks)


def whole_numbers(_: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """A comma-separated list of seeds."""
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise click.BadParameter(f"seeds are whole numbers, got {text!r}", param=option) from None


def numbers(_: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers, fractions such as 8/255 among them."""
    try:
        return tuple(float(Fraction(word)) for word in words(text))
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"numbers such as 0.015 or 8/255, got {text!r}", param=option) from None


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


def words_of_options(context: click.Context, names: Sequence[str]) -> list[str]:
    """Those of the options that were given on the command line, as they would be written again."""
    told: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        typed = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if name in names and typed and context.params[name] is not None:
            value = context.params[name]
            told += [parameter.opts[0], f"{value:g}" if isinstance(value, float) else str(value)]
    return told


def given(options: dict[str, object]) -> dict[str, object]:
    """The settings that were really given on the command line."""
    return {key: value for key, value in options.items() if value is not None}
