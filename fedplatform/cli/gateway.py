"""Commands of a gateway while its run goes on: gateway status, gateway add, gateway revoke."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import AS_JSON
from fedplatform.cli.terminal import SuggestingGroup, as_json, console, one_line_errors

RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))


@click.group(cls=SuggestingGroup)
def gateway() -> None:
    """See who has come through a run's gateway, and change who may.

    RUN is the run's folder, on the machine of the server; the run may be under way.
    """


@gateway.command()
@RUN
@AS_JSON
def status(run: Path, *, json: bool) -> None:
    """Show who is registered, who has joined, when each was heard last, and who is awaited."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.outside.gateway_status import GatewayStatus

        found = GatewayStatus.read(run)
        if json:
            as_json(found)
            return
        title = f"round {found.round_number}: {found.order}" if found.order else "nothing was asked yet"
        table = Table("hospital", "joined", "heard last (UTC)", "awaited", title=title, title_justify="left")
        for one in found.hospitals:
            heard = one.heard[:19].replace("T", " ") or "never"
            table.add_row(one.hospital, "yes" if one.joined else "no", heard, "yes" if one.awaited else "no")
        console.print(table)
        console.print(f"as of {found.written}")


@gateway.command()
@RUN
@click.argument("hospital", metavar="NAME")
def revoke(run: Path, hospital: str) -> None:
    """Refuse a hospital from now on: its key leaves the roster of this run for good.

    What it sent in earlier rounds stays in the model; 'fedplatform withdraw' also deletes what is kept of it.
    """
    with one_line_errors():
        from fedplatform.outside.gateway_status import revoke as revoked

        left = revoked(run, hospital)
        console.print(f"revoked {hospital}; the roster has {', '.join(left.keys) or 'nobody'}", soft_wrap=True)


@gateway.command()
@RUN
@click.argument("hospital", metavar="NAME")
@click.argument("key", metavar="KEY")
def add(run: Path, hospital: str, key: str) -> None:
    """Let a hospital in by its public key, or exchange the key that it has.

    NAME is one of the hospitals that the run has outside; KEY is what 'fedplatform keygen' printed.

    \b
    Example:
      fedplatform gateway add runs/first st-mary ed25519:...
    """
    with one_line_errors():
        from fedplatform.experiments.experiment import Experiment
        from fedplatform.experiments.run_folder import RunFolder
        from fedplatform.outside.gateway_status import add as added

        outside = Experiment.from_settings(RunFolder(run).read_settings()).outside
        roster = added(run, hospital, key, may_come=outside)
        console.print(f"the roster has {', '.join(roster.keys)}", soft_wrap=True)
