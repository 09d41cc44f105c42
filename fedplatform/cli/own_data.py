"""A user's own data on the command line: the table of chosen settings, and all faulty files at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedplatform.cli.progress import counting_bar
from fedplatform.cli.terminal import console

if TYPE_CHECKING:
    from rich.table import Table

    from fedplatform.data.source import Source
    from fedplatform.experiments.own_data import Proposal


def resolved(
    recipe: str, given: Mapping[str, object], *, rules: Sequence[str] = (), attacks: Sequence[str] = ()
) -> dict[str, object]:
    """The settings of a recipe, a file or one's own data with what was given; shows what was found for own data."""
    from fedplatform.data.sources import is_own
    from fedplatform.experiments.own_data import resolve

    own = recipe if is_own(recipe) else str(given.get("data"))
    with telling_faults(own, lambda: _opened(own, given)), counting_bar("looking at the scans") as progress:
        settings, proposal = resolve(recipe, given, rules=rules, attacks=attacks, progress=progress)
    if proposal is not None:
        console.print(proposal_table(proposal))
        for warning in proposal.warnings:
            console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    return settings


def proposal_table(proposal: Proposal) -> Table:
    """Setting, value and reason, a row each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("setting", "value", "why", title="settings for these data; options change them", title_justify="left")
    for choice in proposal.choices:
        table.add_row(choice.setting, escape(choice.value), escape(choice.why))
    return table


@contextmanager
def telling_faults(name: str, opened: Callable[[], Source], *, always: bool = False) -> Iterator[None]:
    """Where a file cannot be read, name all such files of the source, and say how to go on.

    Without ``always`` only for an error that names a file below ``name``: the search reads everything.
    """
    from fedplatform.data.error import DataError
    from fedplatform.data.faults import faults_of

    try:
        yield
    except DataError as error:
        if not (always or str(Path(name).expanduser()) in str(error)):
            raise
        with console.status("looking for all files that cannot be read"):
            faults = faults_of(opened())
        if not faults:
            raise
        how = "mend them or take them out, then give the same command again"
        if len(faults) == 1:
            raise DataError(f"{faults[0]}; {how.replace('them', 'it')}") from error
        for fault in faults:
            console.print(fault, soft_wrap=True, markup=False)
        raise DataError(f"{name}: {len(faults)} files cannot be read; {how}") from error


def _opened(path: str, given: Mapping[str, object]) -> Source:
    from fedplatform.data.patients import GIVEN
    from fedplatform.data.sources import open_source

    return open_source(path, patients=str(given.get("patients", GIVEN)))
