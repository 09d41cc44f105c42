"""Personal algorithms and the mixture of experts: what stays in a hospital, against slow definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.data.images import to_images
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine, cohort_plan
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.hospital import Hospital
from fedplatform.learning.models import Classifier, Experts, SmallCnn, SmallResNet, TimmModel
from fedplatform.learning.parameters import ParameterLayout
from fedplatform.learning.training import APFL, Algorithm, Ditto, FedAvg, FedPer, FedRep, LocalTraining, SiloBN, Trainer

EXPERTS = Experts(width=4, hidden=8)


def flat(*, channels: int, num_classes: int, size: int) -> nn.Module:
    """Two layers and no batch normalisation, so that weights are all there is."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 6), nn.Tanh(), nn.Linear(6, num_classes))


def trainer_for(algorithm: Algorithm, **changes: object) -> Trainer:
    values: dict[str, object] = {
        "model": SmallCnn(width=4),
        "algorithm": algorithm,
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
    return Trainer(LocalTraining(**{**values, **changes}))  # type: ignore[arg-type]


def scans(seed: int = 0, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    return numpy_generator(seed, "scans").integers(0, 256, (n, 1, 16, 16), dtype=np.uint8), np.arange(n) % 2


def work(seed: int = 0, round_number: int = 1) -> dict[str, object]:
    images, labels = scans(seed)
    return {
        "images": images,
        "labels": labels,
        "groups": np.arange(len(labels)),
        "round_number": round_number,
        "generator": torch_generator(seed, round_number),
        "should_stop": lambda: False,
    }


def batches(seed: int = 0, round_number: int = 1):
    images, labels = scans(seed)
    for batch in torch.randperm(12, generator=torch_generator(seed, round_number)).split(4):
        yield to_images(images[batch.numpy()]), torch.from_numpy(labels[batch.numpy()])


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        (FedPer(), SmallCnn(width=4)),
        (FedRep(), SmallResNet(width=4)),
        (SiloBN(), SmallCnn(width=4)),
        (FedPer(), EXPERTS),
        (FedAvg(), EXPERTS),
    ],
    ids=["fedper", "fedrep", "silo_bn", "fedper-experts", "fedavg-experts"],
)
def test_the_personal_part_never_travels_and_differs_between_hospitals(algorithm: Algorithm, model: object) -> None:
    trainer = trainer_for(algorithm, model=model)
    everything = ParameterLayout.of(trainer.model, personal=frozenset())
    stays = [name for name in trainer.layout.personal if name in everything.names]
    shapes = dict(zip(everything.names, everything.shapes, strict=True))
    assert stays
    assert trainer.layout.size == everything.size - sum(int(np.prod(shapes[name])) for name in stays)
    assert not set(stays) & set(trainer.layout.names)
    first, second = (trainer.fit(trainer.initial_weights, trainer.initial_personal, **work(seed))[1] for seed in (0, 1))
    assert all(not torch.equal(first[name], second[name]) for name in stays)
    trainer.load(trainer.initial_weights, second)
    np.testing.assert_array_equal(trainer.layout.flatten(trainer.model), trainer.initial_weights)
    assert all(torch.equal(trainer.model.state_dict()[name], second[name]) for name in stays)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (SmallCnn(width=4), "body.18."),
        (SmallResNet(width=4), "body.head."),
        (EXPERTS, "body.head."),
        (TimmModel("resnet18"), "body.fc."),
        (TimmModel("vit_tiny_patch16_224"), "body.head."),
    ],
    ids=["small_cnn", "small_resnet", "experts", "resnet18", "vit"],
)
def test_the_last_layer_is_found_in_every_kind_of_network(model: TimmModel, head: str) -> None:
    network = Classifier(model(channels=1, num_classes=2, size=32))
    names = network.head_names()
    assert names == {name for name in network.state_dict() if name.startswith(head)}
    assert len(names) >= 2


def test_a_network_without_a_last_layer_is_refused() -> None:
    def convolutional(*, channels: int, num_classes: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(ValueError, match="a Sequential has no last layer"):
        trainer_for(FedPer(), model=convolutional)


def test_fedrep_trains_the_last_layer_with_the_body_frozen_and_then_the_body_alone() -> None:
    trainer = trainer_for(FedRep(head_epochs=1), model=flat)
    delta, personal, _ = trainer.fit(trainer.initial_weights, trainer.initial_personal, **work())

    slow = trainer_for(FedRep(), model=flat)
    head = [p for name, p in slow.model.named_parameters() if name in slow.model.head_names()]
    body = [p for name, p in slow.model.named_parameters() if name not in slow.model.head_names()]
    generator = torch_generator(0, 1)
    images, labels = scans()
    for part in (head, body):
        for batch in torch.randperm(12, generator=generator).split(4):
            loss = functional.cross_entropy(
                slow.model(to_images(images[batch.numpy()])), torch.from_numpy(labels[batch.numpy()])
            )
            with torch.no_grad():
                for parameter, slope in zip(part, torch.autograd.grad(loss, part), strict=True):
                    parameter -= 0.1 * slope
    np.testing.assert_allclose(delta, slow.layout.flatten(slow.model) - slow.initial_weights, atol=1e-6)
    for name in slow.model.head_names():
        torch.testing.assert_close(personal[name], slow.model.state_dict()[name])


def test_after_fedrep_everything_can_be_trained_again() -> None:
    trainer = trainer_for(FedRep())
    trainer.fit(trainer.initial_weights, trainer.initial_personal, **work())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize("algorithm", [Ditto(), APFL()], ids=["ditto", "apfl"])
def test_what_travels_beside_an_own_model_is_the_update_of_fedavg_bit_for_bit(algorithm: Algorithm) -> None:
    shared, plain = trainer_for(algorithm), trainer_for(FedAvg())
    assert shared.layout == plain.layout
    sent, personal, _ = shared.fit(shared.initial_weights, shared.initial_personal, **work())
    expected, _, _ = plain.fit(plain.initial_weights, plain.initial_personal, **work())
    assert sent.tobytes() == expected.tobytes()
    assert all(torch.equal(personal[name], shared.initial_personal[name]) for name in personal)


def own_weights(trainer: Trainer, personal) -> np.ndarray:
    return np.concatenate([personal[f"own:{name}"].numpy().ravel() for name in trainer.layout.names])


def test_ditto_without_a_pull_is_training_alone() -> None:
    trainer, alone = trainer_for(Ditto(lam=0.0), model=flat), trainer_for(FedAvg(), model=flat)
    broadcast = [trainer.initial_weights, trainer.initial_weights + 0.1, trainer.initial_weights - 0.2]
    personal, weights = trainer.initial_personal, alone.initial_weights
    for number, sent in enumerate(broadcast, start=1):
        personal = trainer.fit_own(sent, personal, **work(round_number=number))
        weights = weights + alone.fit(weights, {}, **work(round_number=number))[0]
    np.testing.assert_allclose(own_weights(trainer, personal), weights, atol=1e-6)


def test_dittos_own_model_comes_to_the_shared_one_as_the_pull_grows() -> None:
    sent = trainer_for(Ditto(), model=flat).initial_weights + 0.3
    distances = []
    for lam in (0.0, 1.0, 10.0, 1e6):
        trainer = trainer_for(Ditto(lam=lam), model=flat)
        own = own_weights(trainer, trainer.fit_own(sent, trainer.initial_personal, **work()))
        distances.append(float(np.linalg.norm(own - sent)))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 < distances[0]


def test_a_step_of_ditto_equals_its_definition_written_out() -> None:
    """Gradient step, then the exact minimiser of ||u - v||^2 / (2 rate) + lam/2 ||u - w||^2."""
    trainer, slow = (trainer_for(Ditto(lam=2.0), model=flat) for _ in range(2))
    sent = trainer.initial_weights + 0.1
    own = own_weights(trainer, trainer.fit_own(sent, trainer.initial_personal, **work()))
    parameters = list(slow.model.parameters())
    for images, labels in batches():
        slopes = torch.autograd.grad(functional.cross_entropy(slow.model(images), labels), parameters)
        stepped = slow.layout.flatten(slow.model) - 0.1 * torch.cat([slope.reshape(-1) for slope in slopes]).numpy()
        slow.layout.load(((stepped / 0.1 + 2.0 * sent) / (1 / 0.1 + 2.0)).astype(np.float32), slow.model)
    np.testing.assert_allclose(own, slow.layout.flatten(slow.model), atol=1e-5)


def test_apfl_equals_its_definition_written_out() -> None:
    """Gradients in v and alpha by autograd through the mixture itself, over two rounds with another broadcast each."""
    trainer = trainer_for(APFL(alpha=0.3), model=flat)
    personal = trainer.initial_personal
    network = trainer_for(FedAvg(), model=flat).model
    v = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    alpha = torch.tensor(0.3, requires_grad=True)
    for number, sent in enumerate([trainer.initial_weights - 0.2, trainer.initial_weights + 0.2], start=1):
        personal = trainer.fit_own(sent, personal, **work(round_number=number))
        w = {name: torch.from_numpy(value) for name, value in trainer.layout.unflatten(sent).items()}
        rate = trainer.training.learning_rate_in(number)
        for images, labels in batches(round_number=number):
            mixed = {name: alpha * v[name] + (1 - alpha) * w[name] for name in v}
            loss = functional.cross_entropy(functional_call(network, mixed, (images,)), labels)
            slopes = torch.autograd.grad(loss, [alpha, *v.values()])
            with torch.no_grad():
                alpha.copy_((alpha - rate * slopes[0]).clamp(0, 1))
                for value, slope in zip(v.values(), slopes[1:], strict=True):
                    value -= rate * slope
    assert abs(alpha.item() - 0.3) > 1e-3
    assert float(personal["share of own"]) == pytest.approx(alpha.item(), abs=1e-5)
    expected = np.concatenate([value.detach().numpy().ravel() for value in v.values()])
    np.testing.assert_allclose(own_weights(trainer, personal), expected, atol=1e-5)


def test_apfl_with_no_share_of_its_own_answers_as_the_shared_model_and_with_all_as_its_own() -> None:
    images, _ = scans()
    plain = trainer_for(FedAvg(), model=flat)
    sent = plain.initial_weights + 0.1
    for alpha in (0.0, 1.0):
        trainer = trainer_for(APFL(alpha=alpha, learns_alpha=False), model=flat)
        personal = trainer.fit_own(sent, trainer.initial_personal, **work())
        own = plain.initial_weights + plain.fit(plain.initial_weights, {}, **work())[0]
        expected = plain.predict(own if alpha else sent, {}, images)
        np.testing.assert_allclose(trainer.predict(sent, personal, images), expected, atol=1e-6)


def test_silo_bn_keeps_the_statistics_and_shares_the_affine_part_and_settles_what_it_keeps() -> None:
    trainer = trainer_for(SiloBN())
    assert all(name.rpartition(".")[2].startswith(("running", "num_batches")) for name in trainer.layout.personal)
    affine = [name for name, module in trainer.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert {f"{name}.{part}" for name in affine for part in ("weight", "bias")} <= set(trainer.layout.names)
    settled = trainer.settle(trainer.initial_weights, trainer.initial_personal, *scans())
    assert settled.keys() == trainer.initial_personal.keys()
    (first,) = (name for name in settled if name.endswith("body.1.running_mean"))
    assert not torch.equal(settled[first], trainer.initial_personal[first])


def test_settling_measures_the_statistics_of_the_mixture_and_leaves_the_shared_ones_alone() -> None:
    trainer = trainer_for(APFL(alpha=0.5, learns_alpha=False))
    images, labels = scans()
    sent = trainer.initial_weights * 1.5
    personal = trainer.settle(sent, trainer.fit_own(sent, trainer.initial_personal, **work()), images, labels)
    trainer.load_served(sent, personal)
    first = trainer.model.body[0]((to_images(images) - 0.5) / 0.25)
    torch.testing.assert_close(
        trainer.model.state_dict()["body.1.running_mean"], first.mean((0, 2, 3)).detach(), atol=1e-5, rtol=1e-4
    )
    trainer.load(sent, personal)
    np.testing.assert_array_equal(trainer.layout.flatten(trainer.model), sent)


def test_a_network_without_batch_normalisation_has_nothing_to_settle() -> None:
    trainer = trainer_for(Ditto(), model=flat)
    assert trainer.settle(trainer.initial_weights, trainer.initial_personal, *scans()) is trainer.initial_personal


@pytest.mark.parametrize("wrong", [lambda: Ditto(lam=-1.0), lambda: APFL(alpha=1.5)], ids=["ditto", "apfl"])
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"lam >= 0|0 <= alpha <= 1"):
        wrong()


@pytest.mark.parametrize("algorithm", ["fedper", "fedrep", "ditto(lam=0.5)", "apfl"])
def test_a_federation_of_personal_hospitals_runs_and_each_goes_on_from_its_file(
    algorithm: str, small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(algorithm=algorithm, rule="mean", rounds=2)
    with InProcessEngine().launch(experiment, shards, state_folder=tmp_path) as federation:
        reports = list(federation.reports())
        weights = federation.outcome().weights
    assert all(np.isfinite([report.accuracy, report.loss]).all() for report in reports)
    plan: CohortPlan = cohort_plan(experiment, shards, state_folder=tmp_path)
    trainer = Trainer(plan.training)
    first, second = (plan.admit(name, trainer) for name in plan.honest[:2])
    assert isinstance(first, Hospital)
    assert isinstance(second, Hospital)
    assert first.personal.keys() == trainer.initial_personal.keys()
    learned = [name for name in first.personal if name.endswith("weight")]
    assert learned
    assert all(not torch.equal(first.personal[name], second.personal[name]) for name in learned)
    answers = first.evaluate(weights, [Role.TEST])[0]
    assert (answers.probabilities.argmax(axis=1) == answers.labels).mean() == pytest.approx(
        next(record.accuracy for record in reports[-1].hospitals if record.hospital_id == first.hospital_id)
    )


def test_a_mixture_is_the_gates_sum_of_the_experts_probabilities() -> None:
    torch.manual_seed(0)
    network = EXPERTS(channels=1, num_classes=3, size=16).eval()
    images = torch.rand(5, 1, 16, 16)
    features = network.features(images)
    shares = network.shares(images)
    expected = sum(shares[:, [k]] * network.head[k](features).softmax(dim=1) for k in range(3))
    torch.testing.assert_close(network(images).exp(), expected)
    torch.testing.assert_close(network.penalised(images)[0], network(images))


def test_a_mixture_of_one_expert_is_that_expert() -> None:
    torch.manual_seed(0)
    network = Experts(k=1, width=4)(channels=1, num_classes=2, size=16).eval()
    images = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(network(images).softmax(1), network.head[0](network.features(images)).softmax(1))


def test_the_penalty_is_beta_times_the_gates_size_plus_gamma_times_its_entropy() -> None:
    torch.manual_seed(0)
    network = Experts(width=4, beta=0.01, gamma=0.5)(channels=1, num_classes=2, size=16).eval()
    images = torch.rand(5, 1, 16, 16)
    shares = network.shares(images)
    size = sum((p**2).sum().item() for p in network.gate.parameters())
    entropy = torch.distributions.Categorical(probs=shares).entropy().mean().item()
    assert network.penalised(images)[1].item() == pytest.approx(0.01 * size + 0.5 * entropy, rel=1e-5)


def test_gate_and_experts_all_learn_and_only_the_gate_stays() -> None:
    trainer = trainer_for(FedAvg(), model=EXPERTS)
    assert all(name.startswith("body.gate.") for name in trainer.layout.personal)
    delta, personal, _ = trainer.fit(trainer.initial_weights, trainer.initial_personal, **work())
    assert all(not torch.equal(personal[name], trainer.initial_personal[name]) for name in personal)
    moved = trainer.layout.unflatten(delta)
    assert all(moved[name].any() for name in moved if name.startswith("body.head."))


def test_a_positive_gamma_makes_gates_decide_and_a_negative_one_spreads_them() -> None:
    entropies = []
    for gamma in (-1.0, 1.0):
        trainer = trainer_for(FedAvg(), model=Experts(width=4, gamma=gamma), epochs=20)
        delta, personal, _ = trainer.fit(trainer.initial_weights, trainer.initial_personal, **work())
        model = trainer.model_of(trainer.initial_weights + delta, personal)
        shares = model.body.shares((to_images(scans()[0]) - 0.5) / 0.25)
        entropies.append(torch.distributions.Categorical(probs=shares).entropy().mean().item())
    assert entropies[1] < 0.5 * entropies[0]


@pytest.mark.parametrize("size", [16, 28, 30])
def test_the_small_residual_network_takes_any_size_and_colours(size: int) -> None:
    network = SmallResNet(width=4)(channels=3, num_classes=4, size=size)
    assert network(torch.rand(2, 3, size, size)).shape == (2, 4)


def test_a_picture_too_small_for_the_residual_network_is_refused() -> None:
    with pytest.raises(ValueError, match="needs size >= 16"):
        SmallResNet()(channels=1, num_classes=2, size=14)
    with pytest.raises(ValueError, match="need size >= 16"):
        Experts()(channels=1, num_classes=2, size=14)
    with pytest.raises(ValueError, match="at least one expert"):
        Experts(k=0)(channels=1, num_classes=2, size=16)
