"""SCAFFOLD and the steps of local training: against their slow definitions, step by step in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedplatform.core.messages import RoundReport
from fedplatform.core.seeding import torch_generator
from fedplatform.data.images import to_images
from fedplatform.experiments.callbacks import EachRound
from fedplatform.experiments.defence.load import read_classifier
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.learning.training import (
    SCHEDULES,
    Constant,
    Cosine,
    FedAvg,
    LocalTraining,
    Scaffold,
    Schedule,
    Step,
    Trainer,
)

RATE, EPOCHS = 0.1, 2


def flat(*, channels: int, num_classes: int, size: int) -> nn.Module:
    """No batch normalisation, so that weights are all there is."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 5), nn.Tanh(), nn.Linear(5, num_classes))


def trainer_for(**changes: object) -> Trainer:
    values: dict[str, object] = {
        "model": flat, "algorithm": Scaffold(), "channels": 1, "num_classes": 2, "size": 8, "rounds": 10,
        "epochs": EPOCHS, "batch_size": 4, "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, "seed": 0,
        "schedule": Constant(),
    }  # fmt: skip
    return Trainer(LocalTraining(**{**values, **changes}))  # type: ignore[arg-type]


def scans(hospital: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(hospital)
    return draw.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8), draw.integers(0, 2, 12)


def fitted(trainer: Trainer, weights: np.ndarray, personal: object, hospital: int, round_number: int):
    images, labels = scans(hospital)
    return trainer.fit(
        weights, personal, images=images, labels=labels, groups=np.arange(12), round_number=round_number,
        generator=torch_generator(hospital, round_number), should_stop=lambda: False,
    )  # fmt: skip


def by_definition(x: np.ndarray, c: np.ndarray, own: np.ndarray, hospital: int, round_number: int):
    """Algorithm 1 of the paper for one client, option II, in float64: y_i - x and c_i's change."""
    network = trainer_for().model.double()
    images, labels = scans(hospital)
    generator = torch_generator(hospital, round_number)
    y, steps = torch.from_numpy(x.astype(np.float64)), 0
    for _ in range(EPOCHS):
        for batch in torch.randperm(12, generator=generator).split(4):
            nn.utils.vector_to_parameters(y, network.parameters())
            network.zero_grad()
            answers = network(to_images(images[batch.numpy()]).double())
            functional.cross_entropy(answers, torch.from_numpy(labels[batch.numpy()])).backward()
            slope = torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])
            y, steps = y - RATE * (slope - torch.from_numpy(own) + torch.from_numpy(c)), steps + 1
    moved = y.numpy() - x
    return moved, -c - moved / (steps * RATE)


def test_rounds_of_scaffold_are_those_of_its_paper() -> None:
    trainer = trainer_for()
    d = trainer.layout.num_shared
    assert trainer.layout.size == 2 * d, "the control variate travels behind the weights"
    weights = trainer.initial_weights
    personal = [trainer.initial_personal] * 3
    x, c = weights[:d].astype(np.float64), np.zeros(d)
    own = [np.zeros(d) for _ in range(3)]
    for round_number in (1, 2, 3):
        drawn = [(round_number + n) % 3 for n in range(2)]  # two of three
        deltas, slow, changes = [], [], []
        for hospital in drawn:
            delta, personal[hospital], _ = fitted(trainer, weights, personal[hospital], hospital, round_number)
            moved, change = by_definition(x, c, own[hospital], hospital, round_number)
            np.testing.assert_allclose(delta[:d], moved, atol=2e-5)
            np.testing.assert_allclose(delta[d:], change, atol=2e-4)
            own[hospital] = own[hospital] + change
            deltas.append(delta)
            slow.append(moved)
            changes.append(change)
        x, c = x + np.mean(slow, axis=0), c + 2 / 3 * np.mean(changes, axis=0)
        step = np.mean(deltas, axis=0)
        step[d:] *= np.float32(2 / 3)
        weights = weights + step
    np.testing.assert_allclose(weights[:d], x, atol=1e-4)
    np.testing.assert_allclose(weights[d:], c, atol=1e-3)
    assert np.abs(c).max() > 0.01


def test_the_first_step_of_scaffold_is_fedavgs_and_later_rounds_differ() -> None:
    plain, corrected = trainer_for(algorithm=FedAvg()), trainer_for()
    d = plain.layout.num_shared
    first = fitted(plain, plain.initial_weights, plain.initial_personal, 0, 1)[0]
    same, personal, _ = fitted(corrected, corrected.initial_weights, corrected.initial_personal, 0, 1)
    np.testing.assert_array_equal(first, same[:d])
    weights = corrected.initial_weights + same
    weights[d:] *= 0.5
    later = fitted(corrected, weights, personal, 0, 2)[0][:d]
    assert not np.allclose(later, fitted(plain, weights[:d], {}, 0, 2)[0])


@pytest.mark.parametrize("changes", [{"optimiser": "adamw"}, {"momentum": 0.9}], ids=str)
def test_scaffold_refuses_steps_that_are_not_the_gradient(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="scaffold corrects plain gradient steps"):
        trainer_for(**changes)


SCAFFOLD = {"algorithm": "scaffold", "momentum": 0.0, "byzantine": 0, "attack": "none", "rule": "mean", "rounds": 3}


def test_the_server_moves_its_control_variate_by_the_share_of_hospitals(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    """After a round in which all c_i were zero, c is the mean over all hospitals of what those in the round have."""
    experiment = small.replace(**{**SCAFFOLD, "participation": 0.4, "quorum": 2, "rounds": 1})
    with InProcessEngine().launch(experiment, shards, state_folder=tmp_path) as federation:
        list(federation.reports())
        weights = federation.outcome().weights
    from safetensors.numpy import load_file

    own = [load_file(file)["control_variate"] for file in sorted(tmp_path.glob("hospital-*.safetensors"))]
    trained = [control for control in own if control.any()]
    assert len(trained) == 2
    np.testing.assert_allclose(weights[-len(trained[0]) :], sum(trained) / 5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rule": "trust", "byzantine": 1, "attack": "sign_flip", "f": 1}, marks=pytest.mark.slow),
        pytest.param({"privacy": "grouped(size=2)"}, marks=pytest.mark.slow),
        {"participation": 0.6},
    ],
    ids=["trust under attack", "secure aggregation", "participation"],
)
def test_a_stopped_run_of_scaffold_goes_on_bit_for_bit(
    small: Experiment, shards: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    class StoppedError(Exception):
        pass

    def stop(report: RoundReport) -> None:
        if report.round_number == 2:
            raise StoppedError

    experiment = small.replace(**{**SCAFFOLD, **changes})
    engine = InProcessEngine()
    run(experiment, engine=engine, runs=tmp_path, name="unbroken", shards=shards)
    with pytest.raises(StoppedError):
        run(experiment, engine=engine, runs=tmp_path, name="broken", shards=shards, callbacks=[EachRound(stop)])
    resume(RunFolder.reopen(tmp_path, "broken"), engine=engine)
    models = [(tmp_path / name / "global.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert models[0] == models[1]


def test_the_model_of_a_scaffold_run_is_served_without_its_control_variates(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(**{**SCAFFOLD, "rounds": 2})
    folder, reports = run(experiment, engine=InProcessEngine(), runs=tmp_path, name="r", shards=shards)
    trainer = Trainer(experiment.local_training(channels=1, num_classes=2))
    network = read_classifier(trainer, folder.path, "hospital-00")
    assert sum(value.numel() for value in network.parameters()) == trainer.layout.num_controls + sum(
        value.numel() for name, value in network.named_parameters() if name not in trainer.layout.shared_names
    )
    assert np.isfinite(reports[-1].accuracy)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for() -> None:
    """One step along a clipped gradient is as long as the norm times the learning rate."""
    for norm in (0.01, 0.05):
        trainer = trainer_for(algorithm=FedAvg(), clip=norm, batch_size=12, epochs=1)
        delta = fitted(trainer, trainer.initial_weights, {}, 0, 1)[0]
        assert np.linalg.norm(delta) == pytest.approx(RATE * norm, rel=1e-4)
    free = trainer_for(algorithm=FedAvg(), batch_size=12, epochs=1)
    assert np.linalg.norm(fitted(free, free.initial_weights, {}, 0, 1)[0]) > RATE * 0.05


@pytest.mark.parametrize(("optimiser", "clip", "wanted"), [
    ("sgd", "auto", 0.0), ("adamw", "auto", 1.0), ("sgd", 2.5, 2.5), ("adamw", 0, 0.0),
])  # fmt: skip
def test_clipping_is_the_optimisers_unless_it_is_given(optimiser: str, clip: object, wanted: float) -> None:
    experiment = Experiment.from_settings({"optimiser": optimiser, "clip": clip})
    assert experiment.local_training(channels=1, num_classes=2).clip == wanted


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (Cosine(), [1, 0.8536, 0.5, 0.1464]),
        (Constant(), [1, 1, 1, 1]),
        (Step(every=2, factor=0.5), [1, 1, 0.5, 0.5]),
        (Cosine(warmup=2), [1 / 3, 2 / 3, 1, 0.5]),
        (Step(warmup=1, every=1, factor=0.1), [0.5, 1, 0.1, 0.01]),
        (Constant(warmup=9), [0.1, 0.2, 0.3, 0.4]),
    ],
    ids=str,
)
def test_every_schedule_is_its_formula(schedule: Schedule, shares: list[float]) -> None:
    assert [schedule.share(number, rounds=4) for number in (1, 2, 3, 4)] == pytest.approx(shares, abs=1e-4)
    training = trainer_for(schedule=schedule, rounds=4).training
    assert training.learning_rate_in(2) == pytest.approx(RATE * shares[1], abs=1e-5)


@pytest.mark.parametrize("text", ["cosine(warmup=-1)", "step(every=0)", "step(factor=0)", "linear"])
def test_a_schedule_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.from_settings({"schedule": text})
    assert "\n" not in str(caught.value)
    assert set(SCHEDULES) == {"cosine", "constant", "step"}
