"""The federation that a study of poisoning, trust or their duel begins with."""

from __future__ import annotations

from collections.abc import Mapping

from fedplatform.core.specification import nearest
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
from fedplatform.experiments.trust_benchmark.cells import DATASETS, Benchmark

EMBEDDED: Mapping[str, object] = {  # small enough for thirty trials in minutes on two cores
    "data": "fedplatform.data.lesions:Lesions(patients_per_hospital=40)",
    "size": 32,
    "partition": "iid",
    "hospitals": 10,
    "byzantine": 3,
    "model": "small_cnn(width=8)",
    "algorithm": "fedbn_p",
    "rounds": 6,
    "local_epochs": 2,
    "batch_size": 8,
}
BENCH = "bench:"


def setting_of(base: str, *, seed: int) -> Experiment:
    """The federation without an attack, under the mean.

    ``base`` is a recipe or an experiment.yaml, ``bench:br35h`` for the cheap cells of 'fedplatform bench trust' on a
    data set, or empty for the embedded data and a small network. Raises :class:`ExperimentError` for anything else.
    """
    settings: Mapping[str, object] = EMBEDDED
    if base.startswith(BENCH):
        name = base.removeprefix(BENCH)
        if name not in DATASETS:
            raise ExperimentError(f"no cells for data set {name!r}{nearest(name, DATASETS)}")
        settings = Benchmark.settings_of(name, {})
    elif base:
        settings = load_settings(base)
    return Experiment.from_settings({**settings, "attack": "none", "rule": "mean", "seed": seed})
