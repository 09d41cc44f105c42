"""Run and compare federations from Python."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pandas as pd

from fedplatform.api.result import Result
from fedplatform.data.memory import InMemoryScans
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.comparison import Grid
from fedplatform.experiments.comparison import compare as fill
from fedplatform.experiments.engine import Engine, InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.own_data import resolve
from fedplatform.experiments.run import run as run_in_folder

log = logging.getLogger(__name__)

ROOT_SHARE = 10  # of scans in memory every tenth goes to the root set, up to 100, unless a size is given


def run(
    experiment: Experiment | str | None = None,
    *,
    engine: Engine | None = None,
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: object,
) -> Result:
    """Run one experiment and return its :class:`Result`.

    ``experiment`` is an :class:`Experiment`, the name of a recipe (``"br35h"``), the path of a YAML file or of your
    own data (``"my_scans/"``: settings that suit it are found, as by ``fedplatform run``); without, the defaults hold.
    ``settings`` change single settings, as the options of ``fedplatform run`` do: ``data`` (a name, a path, or scans in
    memory by :func:`from_arrays`), ``hospitals``, ``byzantine``, ``attack``, ``rule``, ``rounds``...

    All hospitals run in this process unless ``engine`` says otherwise (:class:`Ray`). The run lies in ``folder``, which
    must be new, or in a temporary folder that goes with the result. Raises :class:`ExperimentError` or
    :class:`DataError` in one line.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
    >>> result = fp.run(**small, byzantine=0, rule="mean", rounds=2)
    >>> len(result.rounds)
    2
    """
    wanted = experiment_of(experiment, settings)
    temporary = Path(mkdtemp(prefix="fedplatform-")) if folder is None else None
    place = temporary / "run" if temporary else Path(folder or "")
    try:
        run_folder, _ = run_in_folder(
            wanted,
            engine=engine or InProcessEngine(),
            runs=place.parent,
            name=place.name,
            callbacks=callbacks,
            resumable=temporary is None,
            tracked=False,
        )
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    result = Result(run_folder.path, temporary=temporary)
    result.experiment = wanted  # as it was given: scans in memory have no name in a file
    return result


def compare(
    experiment: Experiment | str | None = None,
    *,
    rules: Sequence[str],
    attacks: Sequence[str] = ("none",),
    seeds: Sequence[int] = (0,),
    engine: Engine | None = None,
    folder: str | Path | None = None,
    **settings: object,
) -> pd.DataFrame:
    """Run every rule against every attack for every seed; return accuracies, a row a rule and a column an attack.

    ``experiment`` and ``settings`` are of :func:`run`. Two rows are added to keep the table honest: nearest_neighbour
    (what memorising the training pictures is worth) and central (the same network and budget with all scans in one
    place). ``worst`` is the lowest mean over seeds under any of the attacks. A cell in which nothing was learned is
    NaN. Every single cell is in ``table.attrs["cells"]``, with its AUC and the success of a backdoor. With a ``folder``
    the table is kept there, and a second call resumes it.

    >>> import fedplatform as fp
    >>> table = fp.compare(data="lesions", size=16, scans=120, hospitals=3, byzantine=1, root_size=0, rounds=1,
    ...                    rules=["mean", "median"], attacks=["none", "sign_flip"])
    >>> list(table.columns), sorted(table.index)
    (['none', 'sign_flip', 'worst'], ['central', 'mean', 'median', 'nearest_neighbour'])
    """
    given = {"rule": "mean", "attack": "none", **settings}
    base = experiment_of(experiment, given, rules=rules, attacks=attacks).replace(rule="mean", attack="none")
    grid = Grid(base, tuple(rules), tuple(attacks), tuple(seeds))
    for _, cell in grid.rows():
        cell.settings()  # an infeasible cell is refused before the first one trains
    with TemporaryDirectory(prefix="fedplatform-") as temporary:
        place = Path(temporary) / "comparison" if folder is None else Path(folder)
        cells = fill(grid, engine=engine or InProcessEngine(), folder=place, tracked=False)
    # A cell in which nothing was learned for one of the seeds has no mean.
    means = cells.groupby(["rule", "attack"], sort=False)["accuracy"].agg(lambda values: values.mean(skipna=False))
    table = means.unstack(sort=False)
    names = list(dict.fromkeys(cells["attack"]))
    table = table[names]
    table["worst"] = table.min(axis=1, skipna=False).where(~table.index.isin([NEAREST_NEIGHBOUR, CENTRAL]))
    table.columns.name = None
    table.attrs["cells"] = cells.to_dict("records")
    return table


def experiment_of(
    experiment: Experiment | str | None,
    settings: dict[str, object],
    *,
    rules: Sequence[str] = (),
    attacks: Sequence[str] = (),
) -> Experiment:
    """An experiment from what :func:`run` takes; scans in memory bring their size, their task and a root set that fits.

    ``rules`` and ``attacks`` are what a comparison tries.
    """
    if isinstance(experiment, Experiment):
        return experiment.replace(**settings) if settings else experiment
    given = dict(settings)
    if experiment is not None:
        given, proposal = resolve(experiment, settings, rules=rules, attacks=attacks)
        for warning in proposal.warnings if proposal else ():
            log.warning("%s", warning)
    data = given.get("data")
    if isinstance(data, InMemoryScans):
        given.setdefault("size", max(8, data.side))
        given.setdefault("root_size", min(100, len(data.labels) // ROOT_SHARE))
        if data.is_multilabel:
            given.setdefault("task", "multilabel")
    return Experiment.from_settings(given)
