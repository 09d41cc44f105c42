"""Train and attack a run's defence from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import pandas as pd

from fedplatform.api.result import Result
from fedplatform.defence import DefendedClassifier
from fedplatform.defence.settings import DefenceSettings
from fedplatform.defence.threats import USUAL_TIERS, Budget
from fedplatform.experiments.defence.evaluate import evaluate as attack
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.plan import Plan
from fedplatform.experiments.defence.train import defend as train_defence
from fedplatform.experiments.engine import Engine, InProcessEngine
from fedplatform.experiments.experiment import ExperimentError

TRAINING: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "smoke": {
        "autoencoder": "masked_autoencoder(width=16, depth=1, decoder_width=16, decoder_depth=1)",
        "autoencoder_rounds": 1,
        "sensor": "small_cnn(width=4)",
        "sensor_rounds": 1,
        "purifier": "noise_predictor(width=8, halvings=1, t_max=260)",
        "purifier_rounds": 1,
        "tuning_rounds": 1,
    },
}
"""Settings of the training by name: ``smoke`` only shows that everything runs, its defence is worth nothing."""


class Defence(Mapping[str, DefendedClassifier]):
    """The defence of a finished run: a :class:`DefendedClassifier` for each hospital, by its name.

    ``row`` is which defence of the tables it is: ``full``, ``fast``, ``no_defence``, ``purify_all``... :func:`defend`
    makes it.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 32, "scans": 200, "hospitals": 2, "root_size": 20}
    >>> fp.defend(fp.run(**small, byzantine=0, rule="mean", rounds=1), preset="smoke")
    full defence of hospital-00...
    """

    def __init__(self, result: Result, run: DefendedRun, row: str) -> None:
        self._result = result  # whose folder the networks lie in: it must not go before
        self._run = run
        self._row = row
        self._made: dict[str, DefendedClassifier] = {}

    def __getitem__(self, hospital_id: str) -> DefendedClassifier:
        if hospital_id not in self._run.experiment.inside:
            raise KeyError(hospital_id)
        if hospital_id not in self._made:
            self._made[hospital_id] = self._run.hospital(hospital_id).defended(self._row)
        return self._made[hospital_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.tested)

    def __len__(self) -> int:
        return len(self._run.tested)

    def __repr__(self) -> str:
        return f"{self._row} defence of {', '.join(self)}"


def defend(
    result: Result,
    *,
    preset: Literal["default", "smoke"] = "default",
    row: str = "full",
    engine: Engine | None = None,
    device: str | None = None,
    **settings: object,
) -> Defence:
    """Train the defence of a finished run by the hospitals that trained its classifier (after MedFedPure, 2025).

    A masked autoencoder, a diffusion purifier and a sensor are trained, and the classifier is tuned on purified scans;
    each hospital then fits thresholds to its own clean validation scans. ``preset`` is how long that takes:
    ``default``, or ``smoke``, seconds, whose defence is worth nothing. ``settings`` change single settings, as the
    options of ``fedplatform defend`` do. ``row`` is which defence comes back, ``full`` or ``fast`` (the sensor alone,
    one view). ``device`` is what trains it, where not what trained the run. What is trained already is not trained
    again. Raises :class:`ExperimentError`, for one where the run has no root set.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 32, "scans": 200, "hospitals": 2, "root_size": 20}
    >>> result = fp.run(**small, byzantine=0, rule="mean", rounds=1)
    >>> defence = fp.defend(result, preset="smoke")["hospital-00"]
    >>> scans, labels = result.scans("hospital-00")
    >>> len(defence.diagnose(scans[:3]))
    3
    """
    if preset not in TRAINING:
        raise ExperimentError(f"no preset is called {preset!r}; there are {', '.join(TRAINING)}")
    chosen = DefenceSettings.from_settings({**TRAINING[preset], **settings})
    computing = {} if device is None else {"device": device}
    trained = train_defence(result.path, chosen, engine=engine or InProcessEngine(), computing=computing)
    return Defence(result, trained, row)


def evaluate(
    result: Result,
    *,
    tiers: Sequence[str] = USUAL_TIERS,
    epsilons: Sequence[float] = (0.015, 8 / 255),
    defences: Sequence[str] | None = None,
    scans: int = 300,
    hard_scans: int = 100,
    steps: int = 20,
    eot: int = 4,
    queries: int = 500,
    attacks: Sequence[str] = (),
    jobs: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Attack a run whose defence is trained, and return one row a defence, tier and epsilon.

    ``tiers`` are who attacks, from T0 (no attack) over T2 (knows the classifier) and T4 (knows everything) to T5 (sees
    answers only); docs/glossary.md lists them. ``epsilons`` are in pixels of [0, 1]; ``scans`` and ``hard_scans`` the
    numbers of test scans for T0 to T2 and for the others; ``steps``, ``eot`` and ``queries`` what the attacker may
    spend. ``attacks`` are tried beside the tiers, each by its name and with its own budget, as ``fab(steps=50)``.
    ``jobs`` are processes, 0 to work in this one; ``device`` is what they compute on. Rows nearest_neighbour and
    no_defence stand beside the defences.
    Columns: accuracy, flagged, abstained (referred), auc of the detector, n, and more.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 32, "scans": 200, "hospitals": 2, "root_size": 20}
    >>> result = fp.run(**small, byzantine=0, rule="mean", rounds=1)
    >>> defence = fp.defend(result, preset="smoke")
    >>> cells = fp.evaluate(result, tiers=["T0"], defences=["no_defence", "full"], scans=4)
    >>> sorted(cells["defence"])
    ['full', 'no_defence']
    """
    everything = Plan()
    plan = Plan(
        defences=tuple(defences) if defences is not None else everything.defences,
        tiers=tuple(tiers),
        epsilons=tuple(epsilons),
        scans=scans,
        hard_scans=hard_scans,
        budget=Budget(steps=steps, eot=eot, queries=queries),
        attacks=tuple(attacks),
    )
    return attack(result.path, plan, jobs=jobs, device=device)
