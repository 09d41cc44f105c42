"""Commands of a cluster: node, certificate, doctor, submit, jobs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from fedplatform.cli.options import AS_JSON, RUNS, absence_options, experiment_options, given, words_of_options
from fedplatform.cli.outside import gateway_options, require_way_in
from fedplatform.cli.terminal import SuggestingGroup, as_json, console, one_line_errors, status_of_stop
from fedplatform.core.options import EXPERIMENT

ROSTER = "roster.yaml"  # as it is called in the folder that travels with a job
DASHBOARD = click.option(
    "--dashboard",
    default="http://127.0.0.1:8265",
    envvar="RAY_API_SERVER_ADDRESS",
    show_default=True,
    show_envvar=True,
    metavar="URL",
    help="the cluster's dashboard, where jobs are handed in; it listens on the head node alone",
)


@click.command()
@click.option("--head", is_flag=True, help="start a cluster, of which this machine is the head")
@click.option("--address", metavar="HOST:PORT", help="join the cluster there")
@click.option("--hospital", metavar="NAME", help="label this machine as that hospital's, and as nobody else's")
@click.option("--background", is_flag=True, help="return once the node runs, as 'ray up' wants it")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF 'ray start'...]")
def node(*, head: bool, address: str | None, hospital: str | None, background: bool, more: tuple[str, ...]) -> None:
    """Make this machine a node of a Ray cluster, until Ctrl-C.

    The cluster asks for a token: --head makes one where there is none, in ~/.ray/auth_token, and every other node needs
    a copy of that file. FEDPLATFORM_TLS=FOLDER turns TLS on (see 'fedplatform certificate'). The dashboard, where jobs
    are handed in, listens on the head's loopback address. Ray's other ports listen everywhere: put a firewall around
    the nodes, for whoever has the token can run any code on all of them.

    \b
    Examples:
      fedplatform node --head
      fedplatform node --address 10.0.0.1:6379 --hospital st-mary
      fedplatform node --head -- --port 6380 --num-cpus 0
    """
    with one_line_errors():
        from actors.cluster import security
        from actors.cluster.node import ray_start, run_node
        from fedplatform.core.settings import ExperimentError

        if head == (address is not None):
            raise ExperimentError("a node is the --head, or joins an --address HOST:PORT")
        security.secure()
        security.require_token(make=head)
        if address is None:
            from actors.http.start import prepare  # Serve is slow to import, and only a head needs it

            prepare()  # where the head stands, the endpoint or the gateway may be asked for
        else:
            security.knock(address)
        words = ray_start(address=address, hospital=hospital, in_background=background, more=more)
        # Jobs are shell commands on the head node: they are to find this 'fedplatform' and no other.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        sys.exit(run_node(words, click.echo))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def ray(words: tuple[str, ...]) -> None:
    """Give one of Ray's own commands, with the cluster's token and TLS.

    COMMAND is a word of 'ray', or 'serve' with what Ray Serve's command takes. FEDPLATFORM_TLS counts as everywhere.

    \b
    Examples:
      fedplatform ray status
      fedplatform ray list actors
      fedplatform ray serve deploy serve.yaml
    """
    with one_line_errors():
        from actors.cluster import security

        security.secure()
        security.require_token()
        if dashboard := os.environ.get("RAY_API_SERVER_ADDRESS"):  # 'serve' calls it by another name
            os.environ.setdefault("RAY_DASHBOARD_ADDRESS", dashboard)
        program = "serve" if words[0] == "serve" else "ray"
        path = str(Path(sys.executable).parent / program)
        sys.stdout.flush()
        os.execv(path, [path, *(words[1:] if program == "serve" else words)])


@click.command()
@click.argument("authority", type=click.Path(path_type=Path, file_okay=False), metavar="AUTHORITY")
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="the node's folder")
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST", help="IP address or name of the node; repeatable"
)
@click.option(
    "--days", type=click.IntRange(min=1), default=365, show_default=True, metavar="N", help="how long it is good for"
)
def certificate(authority: Path, *, to: Path | None, addresses: tuple[str, ...], days: int) -> None:
    """Make an authority, and certificates for the nodes of a cluster.

    AUTHORITY is a folder; where it holds no ca.crt and ca.key, they are made. With --to, FOLDER gets tls.crt, tls.key
    and ca.crt for a node: copy it there and start everything on it with FEDPLATFORM_TLS=FOLDER. ca.key stays where it
    is: whoever has it can let anybody in. The same command makes a new certificate before the old one ends; 'doctor'
    warns 30 days before.

    \b
    Example:
      fedplatform certificate authority/ --to tls-head/ --address 10.0.0.1 --address 127.0.0.1
    """
    with one_line_errors():
        from datetime import timedelta

        from actors.cluster.certificates import make_authority, make_certificate
        from fedplatform.core.settings import ExperimentError

        if (to is None) != (not addresses):
            raise ExperimentError("a certificate needs both --to FOLDER and --address HOST")
        make_authority(authority)
        if to is not None:
            make_certificate(authority, to, addresses=addresses, life=timedelta(days=days))
            console.print(f"certificate for {', '.join(addresses)}: FEDPLATFORM_TLS={to.resolve()}", soft_wrap=True)


@click.command()
@click.argument("recipe", metavar="[RECIPE|FILE.yaml]", required=False)
@click.option("--address", default="local", show_default=True, metavar="ADDRESS", envvar="RAY_ADDRESS",
              show_envvar=True, help="a running Ray cluster ('auto' finds it), or 'local' to try one here")  # fmt: skip
@RUNS
@click.option("--shards", type=click.Path(path_type=Path), metavar="FOLDER", help="as for 'fedplatform run'")
@AS_JSON
def doctor(recipe: str | None, *, address: str, runs: Path, shards: Path | None, json: bool) -> None:
    """Look for what would make a run fail, and say what to do about it.

    Versions, token, TLS, who gets in without a token, the dashboard, nodes and their labels, GPUs, clocks, disks,
    MLflow and, for FILE.yaml, every hospital's node and its shard, opened there. Nothing is changed.

    \b
    Examples:
      fedplatform doctor
      fedplatform doctor federation.yaml --address auto --shards server/

    \b
    Exit status: 0 nothing found that would stop a run, 1 something was.
    """
    with one_line_errors():
        from rich.table import Column, Table

        from actors.cluster.doctor import State, examine
        from fedplatform.experiments.experiment import Experiment, load_settings

        experiment = Experiment.from_settings(load_settings(recipe)) if recipe else None
        with console.status("looking"):
            findings = list(examine(experiment, address=address, runs=runs, shards=shards))
        faults = sum(finding.state is State.FAULT for finding in findings)
        if json:
            as_json(findings)
            sys.exit(1 if faults else 0)
        table = Table("check", "", *(Column(head, overflow="fold") for head in ("what was found", "what to do")))
        signs = {State.GOOD: "[green]good[/]", State.DOUBTFUL: "[yellow]doubtful[/]", State.FAULT: "[bold red]fault[/]"}
        for finding in findings:
            table.add_row(finding.check, signs[finding.state], finding.found, finding.remedy)
        console.print(table)
        console.print(f"{faults or 'no'} {'fault' if faults == 1 else 'faults'}")
        sys.exit(1 if faults else 0)


@click.command()
@click.argument("recipe", metavar="[RECIPE|FILE.yaml]", required=False)
@experiment_options
@DASHBOARD
@click.option("--name", metavar="NAME", help="name of the run [default: data-rule-attack-seed]")
@click.option("--resume", metavar="NAME", help="go on with a run that was handed in before")
@click.option("--runs", default="~/runs", show_default=True, metavar="FOLDER", help="all runs, on the head node")
@click.option("--shards", metavar="FOLDER", help="the server's part of the shards, on the head node (see 'run')")
@gateway_options
@absence_options
@click.option("--detach", is_flag=True, help="do not follow what it prints")
def submit(
    recipe: str | None,
    *,
    dashboard: str,
    name: str | None,
    resume: str | None,
    runs: str,
    shards: str | None,
    gateway: str | None,
    roster: Path | None,
    detach: bool,
    **options: object,
) -> None:
    """Hand a run to a cluster, where it goes on when this terminal is closed.

    It runs on the head node as 'fedplatform run' would, and leaves its folder there. What it prints is followed; Ctrl-C
    ends the following and not the run. Your own FILE.py:CLASS and the --roster travel with it; --tls-cert and --tls-key
    are files on the head node. With --resume, give again what the gateway needs; --rounds N goes on until round N.

    \b
    Examples:
      fedplatform submit federation.yaml --shards /srv/fedplatform/server --name first
      fedplatform jobs
      fedplatform jobs follow first
      fedplatform jobs cancel first
      fedplatform submit --resume first
      fedplatform submit federation.yaml --gateway 0.0.0.0:8443 --roster roster.yaml \\
        --tls-cert /srv/tls/cert.pem --tls-key /srv/tls/key.pem
    """
    with one_line_errors():
        from actors.cluster.jobs import Jobs, pack
        from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
        from fedplatform.experiments.run import default_name
        from fedplatform.outside.identity import Roster

        if (recipe is None) == (resume is None):
            raise ExperimentError("hand in a RECIPE or FILE.yaml, or --resume NAME")
        changes = {name: options[name] for name in options if name in EXPERIMENT}
        handed_on = ("gateway", *(name for name in options if name not in EXPERIMENT))
        again = words_of_options(click.get_current_context(), handed_on)
        again += ["--roster", ROSTER] if roster else []
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if roster is not None:
                Roster.load(roster)  # a mistake in it is told now, and not by the job
                shutil.copy(roster, folder / ROSTER)
            if resume is not None:
                longer = ["--rounds", str(changes["rounds"])] if changes["rounds"] is not None else []
                if set(given(changes)) - {"rounds"} or name or shards:
                    raise ExperimentError("a resumed run keeps its name and settings, all but --rounds")
                jobs = Jobs(dashboard)
                words = ["run", "--resume", resume, "--runs", runs, *longer, *again]
                jobs.submit(resume, words, folder=folder if roster else None, goes_on=True)
            else:
                experiment = Experiment.from_settings({**load_settings(str(recipe)), **given(changes)})
                require_way_in(experiment, gateway, roster)
                jobs = Jobs(dashboard)
                name = name or jobs.unused(default_name(experiment))
                where = ["--runs", runs, *(["--shards", shards] if shards else [])]
                pack(experiment, folder)
                jobs.submit(name, ["run", "experiment.yaml", "--name", name, *where, *again], folder=folder)
        run = resume or str(name)
        console.print(f"handed in: {run}", soft_wrap=True)
        if not detach:
            _follow(jobs, run)


def _follow(jobs: Any, run: str) -> None:
    try:
        jobs.follow(run, write=lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(
            f"\nthe run goes on: 'fedplatform jobs follow {run}' shows it, 'fedplatform jobs cancel {run}' ends it"
        )
        sys.exit(status_of_stop())


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@DASHBOARD
@AS_JSON
@click.pass_context
def jobs(context: click.Context, *, dashboard: str, json: bool) -> None:
    """List the runs that were handed to a cluster, follow one, cancel one."""
    context.obj = dashboard
    if context.invoked_subcommand is not None:
        return
    with one_line_errors():
        from rich.table import Table

        from actors.cluster.jobs import Jobs

        found = Jobs(dashboard).runs()
        if json:
            as_json(found)
            return
        table = Table("run", "status", "started", "what Ray says")
        for job in found:
            table.add_row(job.run, job.status.lower(), f"{job.started.astimezone():%Y-%m-%d %H:%M}", job.message)
        console.print(table)


@jobs.command()
@click.argument("name", metavar="NAME")
@click.pass_obj
def follow(dashboard: str, name: str) -> None:
    """Show what a run has printed and prints, until it ends."""
    with one_line_errors():
        from actors.cluster.jobs import Jobs

        _follow(Jobs(dashboard), name)


@jobs.command()
@click.argument("name", metavar="NAME")
@click.pass_obj
def cancel(dashboard: str, name: str) -> None:
    """Stop a run; the rounds that it finished are kept."""
    with one_line_errors():
        from actors.cluster.jobs import Jobs

        Jobs(dashboard).cancel(name)
        console.print(f"cancelled: {name}; 'fedplatform submit --resume {name}' goes on with it")
