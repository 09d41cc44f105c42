"""What all commands share: the console, the group that names the nearest word, one-line errors, the engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from fedplatform.core.errors import FedplatformError
from fedplatform.core.extras import advice
from fedplatform.core.specification import nearest

if TYPE_CHECKING:
    from fedplatform.experiments.experiment import Experiment

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


@contextmanager
def opened(
    engine: str,
    address: str,
    hosts: int | None,
    experiment: Experiment | None = None,
    *,
    outside: Any = None,
    withdrawn: Any = (),
    without: tuple[str, ...] = (),
    wait_s: float | None = None,
) -> Iterator[Any]:
    """The engine that was asked for, closed at the end; a cluster on which the experiment cannot run is told of now."""
    if engine == "local":
        from fedplatform.experiments.engine import InProcessEngine

        yield InProcessEngine()
        return
    from actors.engine import RayEngine
    from actors.placement import Absences

    absences = Absences(without=without, wait_s=wait_s)
    ray_engine = RayEngine(address=address, num_hosts=hosts, outside=outside, absences=absences)
    try:
        if experiment is not None:
            ray_engine.places(experiment, withdrawn)
        yield ray_engine
    finally:
        ray_engine.close()


_stopped_by: list[int] = []  # signals that this process got; Ray's C++ code forgets which it was


def status_of_stop() -> int:
    """The exit status of a command that was stopped, as shells have it: 143 by SIGTERM, 130 by Ctrl-C."""
    return 128 + (_stopped_by[-1] if _stopped_by else signal.SIGINT)


def _terminate(*_: object) -> NoReturn:
    """SIGTERM, from systemd, Kubernetes or ``kill``, ends a command as Ctrl-C does."""
    _stopped_by.append(signal.SIGTERM)
    raise KeyboardInterrupt


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show what went wrong in one line and leave with status 1; ``FEDPLATFORM_TRACEBACK=1`` shows where, too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        click.echo(f"fedplatform: {'; '.join(['stopped; finished rounds are kept', *notes(stop)])}", err=True)
        sys.exit(status_of_stop())
    except ModuleNotFoundError as error:
        missing = advice(error)
        if missing is None:
            raise
        click.echo(f"fedplatform: {missing}", err=True)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("FEDPLATFORM_TRACEBACK") or not isinstance(error, FedplatformError | OSError):
            raise
        click.echo(f"fedplatform: {'; '.join([' '.join(str(error).split()), *notes(error)])}", err=True)
        sys.exit(1)


def as_json(found: Any) -> None:
    """Print dataclasses as JSON, for programs."""
    click.echo(json.dumps(_plain(found), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def notes(error: BaseException) -> list[str]:
    """What can be done about an error, where whoever passed it on has said so."""
    return list(getattr(error, "__notes__", []))


def complain(message: str, context: click.Context | None) -> NoReturn:
    """One line to standard error, with the command whose --help says more."""
    click.echo(f"fedplatform: {message} (see '{context.command_path if context else 'fedplatform'} --help')", err=True)
    sys.exit(2)
