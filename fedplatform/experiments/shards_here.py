"""The hospitals' shards of a run whose scans lie together, as in a simulation; on a cluster they may lie elsewhere."""

from __future__ import annotations

from pathlib import Path

from fedplatform.data.shards import MANIFEST, Manifest, ShardSummary
from fedplatform.experiments.experiment import Experiment, ExperimentError


def shards_here(experiment: Experiment, folder: Path) -> dict[str, ShardSummary]:
    """:func:`shards_of` by the manifest in ``folder``. Raises :class:`ExperimentError` where there is none."""
    if not (folder / MANIFEST).is_file():
        raise ExperimentError(f"{folder} holds no shards: the scans of all hospitals have to lie together for this")
    return shards_of(experiment, Manifest.load(folder))


def shards_of(experiment: Experiment, manifest: Manifest) -> dict[str, ShardSummary]:
    """What a manifest says of the shard of each hospital in the cluster, in order.

    Raises :class:`ExperimentError` where it knows no shard of these hospitals, for each opens its own, on its own node.
    """
    if len(manifest.hospitals) != len(experiment.inside):
        raise ExperimentError(
            f"{experiment.inside[0]} and the others keep their scans on their own nodes: a run goes on there with "
            "--address, and all else works only where the scans of all hospitals lie together, as in a simulation"
        )
    return dict(zip(experiment.inside, manifest.hospitals, strict=True))
