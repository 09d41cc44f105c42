"""Every hospital's model on every hospital's test scans: how far a model carries beyond its own site."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fedplatform.core.compute import one_thread
from fedplatform.core.messages import Predictions
from fedplatform.data.device_pixels import placed
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.cross_site_table import write_cross_site
from fedplatform.experiments.defence.load import read_experiment, read_personal, read_weights
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.shards_here import shards_here
from fedplatform.learning.metrics import judge
from fedplatform.learning.training import Trainer

EVERYBODY = "all hospitals"  # whose model it is where nothing stays in a hospital


def cross_site(
    path: Path,
    *,
    shards: Path | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> pd.DataFrame:
    """Try the last model of each honest hospital on the test scans of each, and leave ``cross_site.parquet``.

    A row for each model and site: ``scans``, ``balanced_accuracy`` and ``auc``, NaN where the site lacks a class. A
    hospital's model is the shared weights with its own part; where nothing stays in a hospital, all have the same
    model, which is called :data:`EVERYBODY`. Byzantine hospitals have neither a row nor a column: they have no test
    scans, and their own part was never measured on the last weights. Raises :class:`ExperimentError` where the run is
    not finished or its hospitals' scans are not all on this machine.
    """
    experiment = read_experiment(path).model_copy(update={"device": device})
    folder = shards or path / "shards"
    files = _shard_files(experiment, path, folder)
    manifest = Manifest.load(folder)
    trainer = Trainer(local_training(experiment, manifest))
    weights = read_weights(trainer, path)
    personal = {name: read_personal(trainer, path, name) for name in files} if trainer.has_own_part else {EVERYBODY: {}}
    last = RunFolder(path).read_reports()[-1].round_number
    rows: list[dict[str, object]] = []
    with one_thread():  # the same bits as in the run
        for done, (site, file) in enumerate(files.items()):
            shard = Shard.open(file)
            labels, images = shard.labels(Role.TEST), placed(shard.pictures(Role.TEST), trainer.compute)
            for model, own in personal.items():
                answers = Predictions(site, Role.TEST, trainer.predict(weights, own, images), labels, float("nan"))
                figures = judge([answers], num_classes=len(manifest.classes), task=experiment.task)
                rows.append(
                    {
                        "round": last,
                        "model": model,
                        "site": site,
                        "scans": len(labels),
                        "balanced_accuracy": figures.balanced_accuracy,
                        "auc": figures.auc,
                    }
                )
            progress(done + 1, len(files))
    table = pd.DataFrame(rows).sort_values("model", key=lambda names: names.map(list(personal).index), kind="stable")
    write_cross_site(path, table.reset_index(drop=True))
    return table.drop(columns="round").set_index(["model", "site"])


def _shard_files(experiment: Experiment, path: Path, folder: Path) -> dict[str, Path]:
    """The shard of each honest hospital of a simulation, in order."""
    if experiment.outside:
        who = ", ".join(experiment.outside)
        raise ExperimentError(f"{who}: outside this machine; no model and no test scan crosses from site to site there")
    gone = {*experiment.adversary().hospital_ids, *RunFolder(path).withdrawn}
    dealt = shards_here(experiment, folder)
    honest = {name: folder / shard.file for name, shard in dealt.items() if name not in gone}
    if missing := [name for name, file in honest.items() if not file.is_file()]:
        raise ExperimentError(
            f"{missing[0]} keeps its scans where it is: across sites is evaluated where all test scans lie together, "
            "as in a simulation"
        )
    return honest
