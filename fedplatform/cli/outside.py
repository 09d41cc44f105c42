"""Commands of hospitals outside the cluster: join, keygen; and the options of the gateway that they come through."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedplatform.cli.options import compute_of, compute_options
from fedplatform.cli.terminal import console, one_line_errors, status_of_stop

if TYPE_CHECKING:
    from fedplatform.experiments.experiment import Experiment
    from fedplatform.outside.envelope import Header
    from fedplatform.outside.refusal import Refusal
    from fedplatform.outside.terms import Start
    from fedplatform.outside.work import Task


log = logging.getLogger(__name__)


def gateway_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a gateway."""
    file = click.Path(path_type=Path)
    for option in reversed(
        [
            click.option("--gateway", metavar="HOST:PORT", help="listen here for the hospitals outside"),
            click.option("--roster", type=file, metavar="FILE",
                         help="their public keys: 'hospital: ed25519:...' lines, from 'fedplatform keygen'"),
            click.option("--tls-cert", type=file, metavar="FILE", help="certificate of the gateway, for https"),
            click.option("--tls-key", type=file, metavar="FILE", help="its private key"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def gateway_of(
    experiment: Experiment, gateway: str | None, roster: Path | None, tls_cert: Path | None, tls_key: Path | None
) -> Any:
    """What these options ask for; None where nobody is outside. Raises :class:`ExperimentError`."""
    from fedplatform.experiments.experiment import ExperimentError

    require_way_in(experiment, gateway, roster)
    if gateway is None or roster is None:
        return None
    host, _, port = gateway.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ExperimentError(f"--gateway takes HOST:PORT, got {gateway!r}")
    from actors.gateway.application import GatewayOptions
    from fedplatform.cli.serving import is_loopback, tls_pair
    from fedplatform.outside.identity import Roster

    tls = tls_pair(tls_cert, tls_key)
    if tls is not None:
        _warn_of_end(Path(tls[0]))
    if tls is None and not is_loopback(host):
        raise ExperimentError(f"without --tls-cert only this machine may come: --gateway 127.0.0.1:{port}, got {host}")
    return GatewayOptions(host, int(port), Roster.load(roster).only(experiment.outside), tls)


def _warn_of_end(certificate: Path) -> None:
    from actors.cluster.certificates import SOON, expiry
    from fedplatform.experiments.experiment import ExperimentError

    try:
        left = expiry(certificate) - datetime.now(UTC)
    except ValueError as error:
        raise ExperimentError(f"{certificate} holds no certificate: {error}") from error
    if left < timedelta(0):
        raise ExperimentError(f"{certificate} has ended {-left.days} days ago; hospitals would not trust it")
    if left < SOON:
        log.warning("%s ends in %d days", certificate, left.days)


def require_way_in(experiment: Experiment, gateway: str | None, roster: Path | None) -> None:
    """Refuse hospitals outside without a gateway, and a gateway without them. Raises :class:`ExperimentError`."""
    from fedplatform.experiments.experiment import ExperimentError

    if not experiment.outside and (gateway is not None or roster is not None):
        raise ExperimentError("--gateway is for hospitals outside; --outside NAME,NAME says which they are")
    if experiment.outside and (gateway is None or roster is None):
        raise ExperimentError(
            f"outside: {', '.join(experiment.outside)}; --gateway HOST:PORT and --roster FILE let them in"
        )


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--show", is_flag=True, help="print the public half of the key that is in FILE already")
def keygen(file: Path, *, show: bool) -> None:
    """Make the key with which a hospital signs what it sends.

    FILE (mode 600) never leaves the hospital. What is printed goes, with the hospital's name in front, into the roster
    of whoever runs the federation; by a way on which nobody can exchange it, such as the telephone.

    \b
    Example:
      fedplatform keygen st-mary.key
      fedplatform keygen st-mary.key --show
    """
    with one_line_errors():
        from fedplatform.outside.identity import make_key, public_half, read_key

        click.echo(public_half(read_key(file)) if show else make_key(file))


@click.command()
@click.argument("url", metavar="URL")
@click.option("--hospital", required=True, metavar="NAME", help="this hospital's name in the roster")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="its scans: a folder with one subfolder a class, an .npz, a .parquet, or a finished shard",
)
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="its private key, from 'fedplatform keygen'",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="certificate of the authority behind the gateway's [default: those that this machine trusts]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("joined"),
    show_default=True,
    metavar="FOLDER",
    help="where the shard and the hospital's own part of the model are kept",
)
@compute_options
@click.option("--yes", is_flag=True, help="do not ask before anything leaves the house")
def join(
    url: str,
    *,
    hospital: str,
    data: Path,
    key: Path,
    ca: Path | None,
    state: Path,
    yes: bool,
    **computing: object,
) -> None:
    """Take part in a federation from this hospital's own network.

    All connections go out from here, to URL. Scans are made ready and stay on this machine; what leaves it is shown
    before and while it does: in every round one signed update and the predictions for its own test scans. A broken
    connection and a server that is started again cost nothing but time. Ctrl-C leaves; the same command comes back.

    \b
    Example:
      fedplatform join https://federation.example:8443 --hospital st-mary --data scans/ --key st-mary.key
    """
    with one_line_errors():
        from actors.gateway.http_transport import HttpTransport
        from fedplatform.cli.progress import counting_bar
        from fedplatform.core.files import alone_in
        from fedplatform.outside.agent import Agent
        from fedplatform.outside.identity import read_key
        from fedplatform.outside.membership import Membership
        from fedplatform.outside.own_shard import own_shard

        compute = compute_of(computing)
        folder = state / hospital
        folder.mkdir(parents=True, exist_ok=True)
        watcher = Teller()
        agent = Agent(
            HttpTransport(url, authority=ca), hospital_id=hospital, key=read_key(key), folder=folder, watcher=watcher
        )
        try:
            with alone_in(folder, what=f"'fedplatform join' of {hospital} with {folder}"):
                terms = agent.terms()
                start = agent.starting_weights(terms.start) if terms.start else None
                with counting_bar("dealing scans to hospitals") as progress:
                    shard = own_shard(data, terms, folder / "shard", progress=progress)
                membership = Membership(hospital, terms, shard, folder, start, compute=compute)
                for line in membership.what_leaves():
                    click.echo(line)
                if not yes:
                    click.confirm("Does this hospital agree?", abort=True)
                click.echo(f"computing on {compute}")
                watcher.rounds = terms.experiment().rounds
                agent.take_part(membership.admit, membership.transport)
        except KeyboardInterrupt:
            click.echo("\nleft; the same command comes back, and nothing is sent meanwhile", err=True)
            sys.exit(status_of_stop())
        if agent.weights is not None:
            click.echo(f"finished; the model: {membership.write_model(agent.weights)}")


class Teller:
    """Tells the hospital's person, line by line, what comes in and what leaves the house."""

    def __init__(self) -> None:
        self.rounds = 0
        self.round = 0
        self._first_round = 0
        self._began = time.monotonic()
        self._shown = ""

    def unreachable(self, error: OSError, pause_s: float) -> None:
        """The line is broken."""
        self._say(f"no connection ({error}); trying again in {pause_s:.0f} s")

    def fetching_start(self, start: Start, done: int) -> None:
        """The weights to start from come in."""
        self._bytes("in: the weights to start from", done, start.size)

    def fetching(self, task: Task, done: int) -> None:
        """Weights come in."""
        self._start(task.round)
        self._bytes(f"round {task.round} of {self.rounds}: in: weights", done, task.size)

    def working(self, task: Task) -> None:
        """This hospital trains or predicts."""
        what = "training on own scans" if task.kind == "update" else "trying the new model on own scans"
        self._say(f"round {task.round} of {self.rounds}: {what}{self._left()}")

    def sending(self, header: Header, done: int) -> None:
        """Something leaves the house."""
        self._bytes(
            f"round {header.round} of {self.rounds}: OUT: signed {header.kind}, SHA-256 {header.digest[:12]}",
            done,
            header.size,
        )

    def refused(self, refusal: Refusal) -> None:
        """The server did not take it."""
        self._say(f"the server refused it: {refusal}")

    def _start(self, number: int) -> None:
        if number != self.round:
            if not self._first_round:
                self._first_round, self._began = number, time.monotonic()
            self.round = number

    def _left(self) -> str:
        done = self.round - self._first_round
        if not done:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self.rounds - self.round + 1)
        return f"; about {timedelta(seconds=round(seconds))} left"

    def _bytes(self, what: str, done: int, total: int) -> None:
        if console.is_terminal and done < total:
            click.echo(f"\r{what} {done:,} of {total:,} bytes", nl=False)
            return
        if done == total or not done:
            self._say(f"{what}, {done:,} of {total:,} bytes")

    def _say(self, line: str) -> None:
        if line != self._shown:
            click.echo(f"\r{line}" if console.is_terminal else line)
        self._shown = line
