"""A hospital leaves a federation: from the next round on it is not asked, and what is stored of it is deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedplatform.core.files import write_whole
from fedplatform.core.rounds import PREDICTIONS
from fedplatform.core.specification import nearest
from fedplatform.core.withdrawal import Withdrawal, write_withdrawals
from fedplatform.data.shards import MANIFEST, delete_scans
from fedplatform.experiments.checkpoint import Checkpoint, CheckpointFolder, Checkpoints
from fedplatform.experiments.cross_site_table import CROSS_SITE
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.shards_here import shards_here
from fedplatform.federated.cohort import ATTACKS
from fedplatform.federated.hospital_state import EARLIER

# What an evaluation leaves holds single scans of every hospital, and pictures of some.
EVALUATED = (
    *("scans.parquet", "evaluation.parquet", "evaluation.yaml", "evaluation.html"),
    *("certificates.parquet", "pictures.npz"),
)
STATISTICS = ("statistics.parquet", "statistics.html")
CANNOT = (
    "not deleted, because it is not of one hospital: the weights that it trained together with others, what the rule "
    "has learned from all updates, and the figures of finished rounds"
)


@dataclass(frozen=True)
class Withdrawn:
    """What a withdrawal did: ``elsewhere`` lies what this program does not delete, ``warnings`` say what ends by it."""

    withdrawal: Withdrawal
    elsewhere: tuple[str, ...]
    warnings: tuple[str, ...]


def withdraw(folder: RunFolder, hospital_id: str) -> Withdrawn:
    """Take a hospital out of a run that was stopped or is finished. Said twice, it finishes what was interrupted.

    Raises :class:`ExperimentError` where there is no such hospital, it is outside, or the run is going on.
    """
    experiment = Experiment.from_settings(folder.read_settings())
    names = experiment.hospital_ids()
    if hospital_id not in names:
        raise ExperimentError(f"no hospital is called {hospital_id!r}{nearest(hospital_id, names)}")
    if hospital_id in experiment.outside:
        raise ExperimentError(
            f"{hospital_id} is outside: it withdraws by stopping its own program and removing that program's folder; "
            "take its line out of the roster"
        )
    with folder.alone():
        checkpoints = _checkpoints(folder, experiment)
        found = checkpoints.found if checkpoints else None
        before = {one.hospital_id: one for one in folder.withdrawals}
        after = (
            found.state.round_number if found else folder.read_reports()[-1].round_number if _has_reports(folder) else 0
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        withdrawal = before.get(hospital_id) or Withdrawal(hospital_id, after, now)
        others = [one for name, one in before.items() if name != hospital_id]
        # First of all, so that whatever happens below it is never asked again.
        write_withdrawals(folder.path, [*others, withdrawal])
        removed, changed = list(withdrawal.removed), list(withdrawal.changed)
        if checkpoints and found:
            changed += _forget(checkpoints, found, experiment, hospital_id, folder)
        for path in _own_paths(folder.path, hospital_id, first=not withdrawal.removed):
            _remove(path)
            removed.append(str(path.relative_to(folder.path)))
        changed += _out_of_tables(folder.path, hospital_id)
        shard, elsewhere = _out_of_shards(folder, experiment, hospital_id)
        removed += shard
        withdrawal = replace(withdrawal, removed=tuple(dict.fromkeys(removed)), changed=tuple(dict.fromkeys(changed)))
        write_withdrawals(folder.path, [*others, withdrawal])
        if (folder.path / "report.html").is_file():
            from fedplatform.experiments.report import write_report

            write_report(folder.path)
    return Withdrawn(withdrawal, elsewhere, _warnings(experiment, [one.hospital_id for one in (*others, withdrawal)]))


def require_enough(experiment: Experiment, withdrawn: Sequence[str]) -> None:
    """Raise :class:`ExperimentError` where too few hospitals are left for any further round to have an effect."""
    if withdrawn and (why := too_few(experiment, withdrawn)):
        raise ExperimentError(why)


def too_few(experiment: Experiment, withdrawn: Sequence[str]) -> str:
    """Why no round could have an effect any more, in one sentence; "" where enough are left."""
    left = experiment.hospitals - len(withdrawn)
    told = f"{left} of {experiment.hospitals} hospitals are left"
    taking_part = min(experiment.participants, left)
    if not set(experiment.hospital_ids()) - set(withdrawn) - set(experiment.adversary().hospital_ids):
        return f"{told}, none of them honest: nobody could judge a model any more"
    if taking_part < experiment.quorum:
        return f"{told}, and the quorum is {experiment.quorum}: no further round could have an effect"
    try:
        seen = experiment.seen_by_rule(taking_part)
        experiment.rule.require(hospitals=seen, has_root=experiment.root_size > 0)
    except ValueError as error:
        return f"{told}, too few for the rule: {error}"
    return ""


def _warnings(experiment: Experiment, withdrawn: Sequence[str]) -> tuple[str, ...]:
    if why := too_few(experiment, withdrawn):
        return (f"{why}; the run cannot go on, and its model stays as it is",)
    left = experiment.hospitals - len(withdrawn)
    if 2 * experiment.f >= left:
        return (
            f"the rule is set for up to f={experiment.f} Byzantine hospitals, half or more of the {left} that are left",
        )
    return ()


def _has_reports(folder: RunFolder) -> bool:
    return (folder.path / "rounds.parquet").is_file()


def _checkpoints(folder: RunFolder, experiment: Experiment) -> Checkpoints | None:
    """The run's checkpoints, opened as a launch of their own, so that no server of before writes behind this."""
    if not folder.has_rounds:
        return None
    return Checkpoints.open(CheckpointFolder.of(folder.checkpoints, experiment), experiment.server_rule)


def _forget(
    checkpoints: Checkpoints, found: Checkpoint, experiment: Experiment, hospital_id: str, folder: RunFolder
) -> Iterator[str]:
    """Take the hospital out of what the rule remembers, and remove the checkpoints that still have it."""
    memory = experiment.server_rule.forgetting(found.state.memory, hospital_id)
    number = found.state.round_number
    announced = {key: scans for key, scans in found.state.announced.items() if key.rpartition("/")[0] != hospital_id}
    checkpoints.save(Checkpoint(replace(found.state, memory=memory, announced=announced), found.reports))
    for old in folder.checkpoints.glob("*-*"):
        if old.name != f"round-{number:06d}":
            shutil.rmtree(old, ignore_errors=True)
    yield f"{folder.checkpoints.name}/round-{number:06d}"


def _own_paths(run: Path, hospital_id: str, *, first: bool) -> list[Path]:
    """All that is there of this hospital alone, and, the ``first`` time, what shows single scans of every hospital."""
    states = [run / "hospitals", *run.glob("defence/*/hospitals")]
    homes = [home for state in states for home in (state, state / ATTACKS)]
    found = [
        *(home / f"{hospital_id}.safetensors" for home in homes),
        *(home / EARLIER / hospital_id for home in homes),
        *run.glob(f"serving/versions/*/{hospital_id}"),
        *run.glob(f"serving/versions/*/examples/{hospital_id}"),
        *(run / name for name in (*EVALUATED, *STATISTICS) if first),
    ]
    return [path for path in found if path.exists()]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _out_of_tables(run: Path, hospital_id: str) -> Iterator[str]:
    """Take out the rows of its scans and of its model."""
    for name, columns in ((PREDICTIONS, ("hospital",)), (CROSS_SITE, ("model", "site"))):
        file = run / name
        if not file.is_file():
            continue
        table = pq.read_table(file)
        kept = table
        for column in columns:
            kept = kept.filter(pc.not_equal(kept.column(column), hospital_id))
        if len(kept) < len(table):
            write_whole(file, partial(pq.write_table, kept))
            yield name


def _out_of_shards(folder: RunFolder, experiment: Experiment, hospital_id: str) -> tuple[list[str], tuple[str, ...]]:
    """Delete its scans where this run dealt them; say where others lie."""
    shards = folder.path / "shards"
    if not (shards / MANIFEST).is_file():
        return [], ()
    place = next((place for place in experiment.places if place.name == hospital_id), None)
    elsewhere = []
    if place is not None:
        state = folder.state_folder.resolve() / f"{hospital_id}.safetensors"
        elsewhere.append(f"on the node {place.node}, where there is one: {place.shard or 'its shard'} and {state}")
    if place is not None and place.shard:  # then the server's folder has none of the hospitals' scans
        return [], tuple(elsewhere)
    file = shards_here(experiment, shards)[hospital_id].file
    if shards.is_symlink():
        if (shards / file).is_file():
            elsewhere.append(f"{shards.resolve() / file}: its scans, which other runs may use too")
        return [], tuple(elsewhere)
    if not (shards / file).is_file():
        return [], tuple(elsewhere)
    delete_scans(shards, file)
    return [f"shards/{file}"], tuple(elsewhere)
