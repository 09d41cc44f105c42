"""A hospital's own scans, made ready where they are: resized, split by patient, in one shard that stays there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedplatform.core.tasks import misfit
from fedplatform.data.error import DataError
from fedplatform.data.named_classes import NamedClasses
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Shard, partition
from fedplatform.data.source import Source
from fedplatform.data.sources import open_source
from fedplatform.outside.terms import Terms


def own_shard(data: Path, terms: Terms, folder: Path, *, progress: Callable[[int, int], None]) -> Shard:
    """The shard of the scans in ``data``: that file itself where it is one, else one written into ``folder``.

    ``data`` is what :func:`fedplatform.data.sources.open_source` takes, its classes some or all of the federation's, by
    their names. A shard that was written before is used again. Raises :class:`DataError`.
    """
    try:
        shard = Shard.open(data)
    except DataError:
        shard = _written(open_source(str(data)), terms, folder, progress=progress)
    size, task = terms.experiment().size, terms.experiment().task
    if complaint := misfit(task, multilabel=shard.is_multilabel):
        raise DataError(f"{data}: {complaint}")
    wanted, got = (terms.classes, terms.channels, size), (shard.classes, shard.channels, shard.size)
    if wanted != got:
        raise DataError(f"{data}: the federation trains on classes, channels, size {wanted}, got {got}")
    return shard


def _written(source: Source, terms: Terms, folder: Path, *, progress: Callable[[int, int], None]) -> Shard:
    experiment = terms.experiment()
    if not set(source.classes) <= set(terms.classes):
        told = f"the federation's classes are {', '.join(terms.classes)}, this data's {', '.join(source.classes)}"
        raise DataError(told)
    source = NamedClasses(source, terms.classes)
    name = f"{experiment.size}-{experiment.split}-{experiment.seed}"
    if not (folder / name).exists():
        partition(
            source,
            name=terms.data,
            how=Iid(),
            num_hospitals=1,
            seed=experiment.seed,
            size=experiment.size,
            channels=terms.channels,
            folder=folder / name,
            split=experiment.split,
            root_size=0,
            task=experiment.task,
            may_lack=True,
            progress=progress,
        )
    return Shard.open(folder / name / "hospital-00.parquet")
