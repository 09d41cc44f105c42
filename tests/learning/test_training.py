"""Local training against slow definitions, and the vector that travels."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.data.images import to_images
from fedplatform.learning.models import SmallCnn, TimmModel
from fedplatform.learning.parameters import ParameterLayout, batch_norm_names
from fedplatform.learning.training import ALGORITHMS, LocalTraining, Stopped, Trainer
from fedplatform.learning.training.sgd import Sgd


def settings(kind: str = "fedbn_p", **changes: object) -> LocalTraining:
    values: dict[str, object] = {
        "model": SmallCnn(width=4),
        "algorithm": ALGORITHMS[kind](),
        "channels": 1,
        "num_classes": 2,
        "size": 16,
        "rounds": 10,
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "seed": 0,
    }
    return LocalTraining(**{**values, **changes})  # type: ignore[arg-type]


def scans(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = numpy_generator(0, "scans")
    return generator.integers(0, 256, (n, 1, 16, 16), dtype=np.uint8), np.arange(n) % 2


def fit(trainer: Trainer, weights: np.ndarray | None = None):
    images, labels = scans()
    return trainer.fit(
        trainer.initial_weights if weights is None else weights,
        trainer.initial_personal,
        images=images,
        labels=labels,
        groups=np.arange(len(labels)),
        round_number=1,
        generator=torch_generator(0, "batches"),
        should_stop=lambda: False,
    )


def test_trainers_that_threads_build_at_once_all_start_from_the_weights_of_their_own_seed() -> None:
    """An agent's thread beside the server's once gave one of them the weights of the other's seed."""
    seeds = [0, 1, 2, 3] * 10
    alone = {seed: Trainer(settings(seed=seed)).initial_weights for seed in set(seeds)}
    with ThreadPoolExecutor(8) as threads:
        built = list(threads.map(lambda seed: Trainer(settings(seed=seed)).initial_weights, seeds))
    for seed, weights in zip(seeds, built, strict=True):
        assert np.array_equal(weights, alone[seed])


def test_batch_normalisation_is_found_by_module_type_and_not_by_name() -> None:
    class Misleading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn_head = nn.Linear(3, 2)
            self.second = nn.BatchNorm1d(3)

    names = batch_norm_names(Misleading())
    assert names == {
        f"second.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_the_batch_normalisation_of_a_resnet_shortcut_stays_in_the_hospital() -> None:
    model = TimmModel("resnet18")(channels=1, num_classes=2, size=64)
    layout = ParameterLayout.of(model, personal=batch_norm_names(model))
    assert "layer2.0.downsample.1.weight" in layout.personal
    assert not any("bn" in name or "downsample.1" in name for name in layout.names)


def test_fedavg_sends_batch_normalisation_behind_the_shared_weights() -> None:
    model = SmallCnn(width=4)(channels=1, num_classes=2, size=16)
    fedavg = ParameterLayout.of(model, personal=frozenset())
    fedbn = ParameterLayout.of(model, personal=batch_norm_names(model))
    assert fedavg.num_shared == fedbn.num_shared == fedbn.size < fedavg.size
    assert fedavg.names[: len(fedbn.names)] == fedbn.names
    assert fedavg.shared_names == fedbn.names


def test_a_model_comes_back_from_its_vector() -> None:
    first, second = (SmallCnn(width=4)(channels=1, num_classes=2, size=16) for _ in range(2))
    layout = ParameterLayout.of(first, personal=frozenset())
    layout.load(layout.flatten(first), second)
    for name in layout.names:
        assert torch.equal(first.state_dict()[name], second.state_dict()[name])


def test_a_vector_of_the_wrong_length_is_refused_with_both_lengths() -> None:
    layout = Trainer(settings()).layout
    with pytest.raises(ValueError, match=rf"takes a vector of shape \({layout.size},\), got \(3,\)"):
        layout.unflatten(np.zeros(3, np.float32))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - {"fedrep", "scaffold"}))  # with tests of their own
def test_local_training_equals_its_definition_written_out(algorithm: str) -> None:
    """SGD on cross-entropy plus mu/2 ||w - w_t||^2 over the shared weights, by autograd on the whole loss."""
    trainer = Trainer(settings(algorithm))
    delta, _, _ = fit(trainer)

    slow = Trainer(settings(algorithm))
    slow.model.train()
    shared = set(slow.layout.shared_names)
    start = {name: p.detach().clone() for name, p in slow.model.named_parameters()}
    images, labels = scans()
    for batch in torch.randperm(12, generator=torch_generator(0, "batches")).split(4):
        loss = functional.cross_entropy(
            slow.model(to_images(images[batch.numpy()])), torch.from_numpy(labels[batch.numpy()])
        )
        for name, p in slow.model.named_parameters():
            if name in shared:
                loss = loss + slow.training.algorithm.mu / 2 * ((p - start[name]) ** 2).sum()
        slow.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in slow.model.parameters():
                p -= 0.1 * p.grad
    expected = slow.layout.flatten(slow.model) - slow.initial_weights
    np.testing.assert_allclose(delta, expected, atol=2e-6)


def test_a_strong_proximal_term_keeps_the_weights_near_the_broadcast() -> None:
    loose, _, _ = fit(Trainer(settings("fedprox", algorithm=ALGORITHMS["fedprox"](mu=0.0))))
    tight, _, _ = fit(Trainer(settings("fedprox", algorithm=ALGORITHMS["fedprox"](mu=5.0))))
    shared = Trainer(settings("fedprox")).layout.num_shared
    assert np.linalg.norm(tight[:shared]) < 0.9 * np.linalg.norm(loose[:shared])


def test_the_update_is_weights_after_minus_before() -> None:
    trainer = Trainer(settings("fedavg"))
    before = trainer.initial_weights.copy()
    delta, _, _ = fit(trainer)
    np.testing.assert_allclose(before + delta, trainer.layout.flatten(trainer.model), atol=1e-7)


def test_training_again_from_the_same_state_gives_the_same_bits() -> None:
    trainer = Trainer(settings())
    first = fit(trainer)
    second = fit(trainer)
    assert first[0].tobytes() == second[0].tobytes()
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_two_trainers_of_one_seed_start_from_the_same_weights() -> None:
    assert Trainer(settings()).initial_weights.tobytes() == Trainer(settings()).initial_weights.tobytes()
    assert Trainer(settings(seed=1)).initial_weights.tobytes() != Trainer(settings()).initial_weights.tobytes()


def test_training_stops_when_told() -> None:
    trainer = Trainer(settings())
    images, labels = scans()
    with pytest.raises(Stopped):
        trainer.fit(
            trainer.initial_weights,
            trainer.initial_personal,
            images=images,
            labels=labels,
            groups=np.arange(len(labels)),
            round_number=1,
            generator=torch_generator(0),
            should_stop=lambda: True,
        )


def test_one_left_over_scan_does_not_break_batch_normalisation() -> None:
    trainer = Trainer(settings(batch_size=11))
    delta, _, _ = fit(trainer)
    assert np.isfinite(delta).all()


def test_adamw_equals_its_definition_written_out() -> None:
    """Gradients clipped to norm 1, then torch's AdamW."""
    trainer = Trainer(settings("fedavg", optimiser="adamw", weight_decay=0.1, learning_rate=0.01, clip=1.0))
    delta, _, _ = fit(trainer)
    slow = Trainer(trainer.training)
    slow.model.train()
    optimiser = torch.optim.AdamW(slow.model.parameters(), lr=0.01, weight_decay=0.1)
    images, labels = scans()
    for batch in torch.randperm(12, generator=torch_generator(0, "batches")).split(4):
        optimiser.zero_grad()
        functional.cross_entropy(
            slow.model(to_images(images[batch.numpy()])), torch.from_numpy(labels[batch.numpy()])
        ).backward()
        size = torch.cat([p.grad.reshape(-1) for p in slow.model.parameters()]).norm()
        for p in slow.model.parameters():
            p.grad /= max(float(size), 1.0)
        optimiser.step()
    np.testing.assert_allclose(delta, slow.layout.flatten(slow.model) - slow.initial_weights, atol=2e-5)


def test_the_model_that_is_handed_out_is_frozen_and_answers_as_the_trainer_does() -> None:
    trainer = Trainer(settings())
    delta, personal, _ = fit(trainer)
    images, _ = scans()
    weights = trainer.initial_weights + delta
    model = trainer.model_of(weights, personal)
    answers = trainer.predict(weights, personal, images)
    trainer.load(trainer.initial_weights, trainer.initial_personal)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    np.testing.assert_array_equal(functional.softmax(model(to_images(images)), dim=1).numpy(), answers)


def test_prediction_does_not_depend_on_who_is_in_the_batch() -> None:
    trainer = Trainer(settings())
    _, personal, _ = fit(trainer)
    images, _ = scans()
    together = trainer.predict(trainer.initial_weights, personal, images)
    alone = np.concatenate([trainer.predict(trainer.initial_weights, personal, images[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_settling_measures_the_statistics_of_the_broadcast_weights() -> None:
    """Against the definition: the mean and variance of the first layer's output over the hospital's scans."""
    trainer = Trainer(settings())
    images, labels = scans()
    settled = trainer.settle(trainer.initial_weights, trainer.initial_personal, images, labels)
    trainer.load(trainer.initial_weights, trainer.initial_personal)
    first = trainer.model.body[0]((to_images(images) - 0.5) / 0.25)
    np.testing.assert_allclose(settled["body.1.running_mean"], first.mean((0, 2, 3)).detach(), atol=1e-5)
    np.testing.assert_allclose(settled["body.1.running_var"], first.var((0, 2, 3)).detach(), rtol=1e-2)
    assert torch.equal(settled["body.1.weight"], trainer.initial_personal["body.1.weight"])


@pytest.mark.parametrize(("of_dark", "of_bright"), [(400, 400), (790, 10), (3, 500), (1, 1)])
def test_settling_counts_every_class_alike_however_many_scans_it_has(of_dark: int, of_bright: int) -> None:
    trainer = Trainer(settings())
    shade = np.repeat(np.array([0, 255], np.uint8), [of_dark, of_bright])
    images = np.broadcast_to(shade[:, None, None, None], (len(shade), 1, 32, 32)).copy()
    labels = np.repeat([0, 1], [of_dark, of_bright])
    settled = trainer.settle(trainer.initial_weights, trainer.initial_personal, images, labels)
    trainer.load(trainer.initial_weights, trainer.initial_personal)
    means = [
        trainer.model.body[0]((to_images(images[labels == label][:1]) - 0.5) / 0.25).mean((0, 2, 3)).detach()
        for label in (0, 1)
    ]
    np.testing.assert_allclose(settled["body.1.running_mean"], (means[0] + means[1]) / 2, atol=1e-4)


def test_settling_on_no_scan_keeps_the_statistics() -> None:
    trainer = Trainer(settings())
    images, labels = scans()
    settled = trainer.settle(trainer.initial_weights, trainer.initial_personal, images[:0], labels[:0])
    assert all(torch.equal(settled[name], value) for name, value in trainer.initial_personal.items())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_networks_of_timm_take_any_size_and_grey_pictures(name: str) -> None:
    model = TimmModel(name)(channels=1, num_classes=3, size=64)
    model.eval()
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_the_learning_rate_falls_from_the_first_round_to_the_last() -> None:
    rates = [settings().learning_rate_in(number) for number in range(1, 11)]
    assert rates[0] == 0.1
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert rates[-1] > 0


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_sgd_takes_the_steps_of_pytorchs_class_bit_for_bit(momentum: float, weight_decay: float) -> None:
    generator = torch_generator(0, "weights")
    start = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 3))]
    ours, theirs = ([weights.clone().requires_grad_() for weights in start] for _ in range(2))
    light = Sgd(ours, learning_rate=0.1, momentum=momentum, weight_decay=weight_decay)
    heavy = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for step in range(6):
        light.zero_grad()
        heavy.zero_grad()
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            if number != step % 4:  # now and then one of them stays out
                slope = torch.randn(pair[0].shape, generator=generator)
                for parameter in pair:
                    parameter.grad = slope.clone()
        light.step()
        heavy.step()
    for mine, its, first in zip(ours, theirs, start, strict=True):
        assert torch.equal(mine, its)
        assert not torch.equal(mine, first)


def test_a_hospital_that_trains_does_not_load_pytorchs_compiler() -> None:
    script = """
import sys
import numpy as np
import actors.hospital  # all that the process of a Ray actor imports
from fedplatform.learning.models import SmallCnn
from fedplatform.core.seeding import torch_generator
from fedplatform.learning.training import ALGORITHMS, LocalTraining, Trainer
sizes = {"channels": 1, "num_classes": 2, "size": 16, "rounds": 1, "epochs": 1, "batch_size": 4, "seed": 0}
steps = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.001}
trainer = Trainer(LocalTraining(model=SmallCnn(width=4), algorithm=ALGORITHMS["fedbn_p"](), **sizes, **steps))
scans = {"images": np.zeros((8, 1, 16, 16), np.uint8), "labels": np.arange(8) % 2, "groups": np.arange(8)}
when = {"round_number": 1, "generator": torch_generator(0), "should_stop": lambda: False}
delta, _, _ = trainer.fit(trainer.initial_weights, trainer.initial_personal, **scans, **when)
assert np.abs(delta).max() > 0
heavy = ("torch._dynamo", "sympy", "scipy.stats", "sklearn", "pandas", "mlflow")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
