"""What training makes small and on what: definitions written out, and networks that really learn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedplatform.core.messages import Predictions
from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.data.images import to_images
from fedplatform.data.shards import Manifest
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.report import write_report
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.learning.metrics import judge
from fedplatform.learning.models import Experts
from fedplatform.learning.training import (
    AdversarialTraining,
    Anatomy,
    Augmentation,
    Batch,
    CrossEntropy,
    FedAvg,
    Generative,
    LocalTraining,
    Mirror,
    Objective,
    Orientation,
    Scanner,
    Trades,
    Trainer,
)

SIZE = 16


class Recorder(nn.Module):
    """A linear classifier that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE**2, 3)
        self.shown: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images.detach().clone())
        return self.linear(images.flatten(1))


def batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, 1, SIZE, SIZE, generator=torch_generator(0, "images")), torch.arange(n) % 3


def recorder() -> Recorder:
    torch.manual_seed(0)
    return Recorder()


def loss_of(objective: Objective, network: nn.Module, *, progress: float = 1.0, seed: int = 0) -> torch.Tensor:
    return objective.loss(network, Batch(*batch(), torch_generator(seed), progress))


def test_label_smoothing_is_torchs() -> None:
    network, (images, labels) = recorder(), batch()
    expected = functional.cross_entropy(network(images), labels, label_smoothing=0.2)
    torch.testing.assert_close(loss_of(CrossEntropy(label_smoothing=0.2), network), expected)


REMEDIES = [
    CrossEntropy(class_weights="balanced"),
    CrossEntropy(logit_adjustment=1.5),
    CrossEntropy(focal=2.0),
    CrossEntropy(class_weights="balanced", logit_adjustment=0.5, focal=1.0),
]


def by_definition(objective: CrossEntropy, logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """The papers' formulas, one scan after another, in float64."""
    n, losses = counts.sum(), []
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        shifted = [z + objective.logit_adjustment * math.log(max(c, 0.5) / n) for z, c in zip(row, counts, strict=True)]
        p = math.exp(shifted[label]) / sum(map(math.exp, shifted))
        weight = n / ((counts > 0).sum() * counts[label]) if objective.class_weights == "balanced" else 1.0
        losses.append(-weight * (1 - p) ** objective.focal * math.log(p))
    return float(np.mean(losses))


@pytest.mark.parametrize("objective", REMEDIES, ids=str)
@pytest.mark.parametrize("counts", [(50, 30, 4), (20, 20, 20), (7, 1, 0)])
def test_remedies_against_imbalance_are_their_papers(objective: CrossEntropy, counts: tuple[int, ...]) -> None:
    network, (images, labels) = recorder(), batch()
    labels = labels.clamp(max=sum(count > 0 for count in counts) - 1)  # of a class that is not there nobody has a scan
    held = Batch(images, labels, torch_generator(0), counts=torch.tensor(counts, dtype=torch.float32))
    wanted = by_definition(objective, network(images).detach().numpy(), labels.numpy(), np.array(counts))
    assert objective.loss(network, held).item() == pytest.approx(wanted, rel=1e-5)


def test_balanced_weights_let_every_class_count_alike() -> None:
    network = recorder()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    labels = torch.tensor([0] * 9 + [1] * 3)
    held = Batch(torch.rand(12, 1, SIZE, SIZE), labels, torch_generator(0), counts=torch.tensor([9.0, 3.0, 0.0]))
    CrossEntropy(class_weights="balanced").loss(network, held).backward()
    slopes = network.linear.bias.grad
    assert slopes is not None
    assert slopes[0].item() == pytest.approx(slopes[1].item()), "neither of the two is preferred"


@pytest.mark.parametrize("words", ["class_weights=even", "logit_adjustment=-1", "focal=-0.5", "label_smoothing=1.0"])
def test_remedies_that_make_no_sense_are_refused(words: str) -> None:
    with pytest.raises(ExperimentError, match=words.partition("=")[0]):
        Experiment.from_settings({"objective": f"cross_entropy({words})"})


def test_a_bare_word_in_an_objective_is_text() -> None:
    written = Experiment.from_settings({"objective": "cross_entropy(class_weights=balanced)"})
    assert written.objective == CrossEntropy(class_weights="balanced")
    assert Experiment.from_settings(written.settings()) == written


@settings(max_examples=25, deadline=None)
@given(epsilon=st.floats(0, 0.5), steps=st.integers(1, 4), progress=st.floats(0, 1))
def test_an_attack_in_training_stays_within_epsilon_and_within_the_picture(
    epsilon: float, steps: int, progress: float
) -> None:
    images, _ = batch()
    for objective in (AdversarialTraining(epsilon, steps), Trades(epsilon, steps=steps)):
        network = recorder()
        loss_of(objective, network, progress=progress)
        for shown in network.shown:
            assert (shown - images).abs().max() <= epsilon + 1e-6
            assert shown.min() >= 0
            assert shown.max() <= 1


def test_one_step_from_a_random_start_is_fgsm_rs_written_out() -> None:
    epsilon, network, (images, labels) = 0.03, recorder(), batch()
    start = epsilon * (2 * torch.rand(images.shape, generator=torch_generator(0)) - 1)
    moved = (images + start).clamp(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(network(moved), labels), moved)
    attacked = moved.detach() + 1.25 * epsilon * slope.sign()
    attacked = torch.max(torch.min(attacked, images + epsilon), images - epsilon).clamp(0, 1)
    expected = functional.cross_entropy(network(attacked), labels)
    torch.testing.assert_close(loss_of(AdversarialTraining(epsilon), network), expected)


def test_epsilon_rises_over_the_warm_up_and_then_stays() -> None:
    images, _ = batch()
    reach = []
    for progress in (0.0, 0.1, 0.2, 0.3, 1.0):
        network = recorder()
        loss_of(AdversarialTraining(0.06, warm_up=0.3), network, progress=progress)
        reach.append(float((network.shown[-1] - images).abs().max()))
    np.testing.assert_allclose(reach, [0, 0.02, 0.04, 0.06, 0.06], atol=1e-6)


def test_more_steps_find_a_higher_loss() -> None:
    class Wavy(nn.Module):
        """The loss bends within epsilon, so that one long step overshoots."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            waves = torch.sin(60 * images.flatten(1))
            return torch.stack([waves.mean(1), -waves.mean(1), torch.zeros(len(images))], dim=1)

    one, many = (loss_of(AdversarialTraining(0.1, steps), Wavy()).item() for steps in (1, 20))
    assert many > one + 0.1


def test_trades_without_reach_is_cross_entropy_and_with_it_adds_beta_times_the_divergence() -> None:
    network, (images, labels) = recorder(), batch()
    plain = functional.cross_entropy(network(images), labels)
    torch.testing.assert_close(loss_of(Trades(0.0), network), plain)
    network.shown.clear()
    loss = loss_of(Trades(0.05, beta=3.0), network)
    calm, moved = (network(pictures).softmax(1) for pictures in network.shown[-2:])
    divergence = (calm * (calm / moved).log()).sum(1).mean()
    assert divergence > 1e-4
    torch.testing.assert_close(loss, plain + 3 * divergence)


def test_the_penalty_of_a_mixture_is_part_of_every_objective_of_classifiers() -> None:
    for objective in (CrossEntropy(), AdversarialTraining(0.0), Trades(0.0)):
        with_penalty, without = (
            loss_of(objective, classifier(objective, Experts(width=4, gamma=gamma, beta=0.0))).item()
            for gamma in (10.0, 0.0)
        )
        assert with_penalty - without == pytest.approx(10 * math.log(3), rel=0.05)  # a fresh gate is undecided


def classifier(objective: Objective, model: Experts) -> nn.Module:
    torch.manual_seed(0)
    return objective.network(model, channels=1, num_classes=3, size=SIZE).eval()


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"epsilon": 8.0}, {"epsilon": 0.1, "steps": 0}])
def test_an_attack_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    for objective in (AdversarialTraining, Trades):
        with pytest.raises(ValueError, match="0 <= epsilon <= 1 in pixel units"):
            objective(**wrong)


def checked_patterns(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright half that is sometimes on the wrong side, and a faint chequerboard that is always right."""
    draw = numpy_generator(seed, "patterns")
    labels = np.arange(n) % 2
    images = np.full((n, 1, SIZE, SIZE), 0.5) + draw.normal(0, 0.02, (n, 1, SIZE, SIZE))
    for number, label in enumerate(labels):
        side = label if draw.random() < 0.95 else 1 - label
        images[number, 0, :, 8 * side : 8 * side + 8] += 0.25
    board = np.indices((SIZE, SIZE)).sum(axis=0) % 2 - 0.5
    images += 0.06 * (2 * labels - 1)[:, None, None, None] * board
    return (images.clip(0, 1) * 255).round().astype(np.uint8), labels


def flat(*, channels: int, num_classes: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 16), nn.ReLU(), nn.Linear(16, num_classes))


def trained(objective: Objective, **changes: object) -> tuple[nn.Module, list[float]]:
    """A network after ten rounds of one hospital alone, and the loss that each reports."""
    values: dict[str, object] = {
        "model": flat,
        "algorithm": FedAvg(),
        "channels": 1,
        "num_classes": 2,
        "size": SIZE,
        "rounds": 10,
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.03,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "seed": 0,
        "objective": objective,
    }
    trainer = Trainer(LocalTraining(**{**values, **changes}))  # type: ignore[arg-type]
    weights, losses = trainer.initial_weights, []
    images, labels = checked_patterns(200, seed=0)
    for number in range(1, 11):
        delta, _, loss = trainer.fit(
            weights,
            trainer.initial_personal,
            images=images,
            labels=labels,
            groups=np.arange(len(labels)),
            round_number=number,
            generator=torch_generator(0, number),
            should_stop=lambda: False,
        )
        weights = weights + delta
        losses.append(loss)
    return trainer.model_of(weights, trainer.initial_personal), losses


def accuracy(model: nn.Module, *, epsilon: float) -> float:
    """On fresh scans under PGD-20, written out here and not borrowed from training."""
    pixels, answers = checked_patterns(200, seed=1)
    images, labels = to_images(pixels), torch.from_numpy(answers)
    moved = images.clone()
    for _ in range(20 if epsilon else 0):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(functional.cross_entropy(model(moved), labels), moved)
        moved = (moved.detach() + epsilon / 5 * slope.sign()).clamp(images - epsilon, images + epsilon).clamp(0, 1)
    return float((model(moved).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(
    "objective",
    [AdversarialTraining(0.06), AdversarialTraining(0.06, steps=3), Trades(0.06)],
    ids=["fgsm_rs", "pgd", "trades"],
)
def test_adversarial_training_withstands_an_attack_under_which_plain_training_falls(objective: Objective) -> None:
    plain, _ = trained(CrossEntropy())
    robust, _ = trained(objective)
    assert accuracy(plain, epsilon=0) > 0.95
    assert accuracy(plain, epsilon=0.06) < 0.3
    assert accuracy(robust, epsilon=0.06) > 0.8


@dataclass(frozen=True)
class Memory:
    """A generative network of two layers: it learns to draw a noisy picture clean."""

    hidden: int = 16

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return Denoiser(channels * size**2, self.hidden)


class Denoiser(nn.Module):
    def __init__(self, pixels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pixels, hidden), nn.GELU(), nn.Linear(hidden, pixels))

    def loss(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        flat = images.flatten(1)
        return functional.mse_loss(self.layers(flat + 0.1 * torch.randn(flat.shape, generator=generator)), flat)


def test_a_generative_network_learns_by_its_own_loss_and_never_sees_a_label() -> None:
    _, losses = trained(Generative(), model=Memory(), learning_rate=0.01, optimiser="adamw")
    assert losses[-1] < 0.2 * losses[0]
    network, (images, labels) = Denoiser(SIZE**2, 4), batch()
    first, second = (
        Generative().loss(network, Batch(images, answers, torch_generator(0), progress=0.0))
        for answers in (labels, labels.flip(0))
    )
    assert first.item() == second.item()


def test_a_network_without_a_loss_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="takes a network with a loss, a Sequential has none"):
        Generative().network(flat, channels=1, num_classes=2, size=SIZE)


def test_a_federation_of_generative_networks_reports_its_loss_and_no_accuracy(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(
        model=f"{__name__}:Memory", objective="generative", optimiser="adamw", learning_rate=0.003, rule="mean",
        algorithm="fedavg",
    )  # fmt: skip
    folder = RunFolder.create(tmp_path, "drawn")
    with InProcessEngine().launch(experiment, shards, state_folder=folder.state_folder) as federation:
        reports = list(federation.reports())
        outcome = federation.outcome()
    assert all(math.isnan(report.accuracy) for report in reports)
    assert 0 < reports[-1].loss < reports[0].loss
    assert sum(math.isfinite(record.loss) for record in reports[-1].hospitals) == 4  # the attacker grades nobody
    folder.write_settings(experiment.settings())
    folder.write_reports(reports)
    assert outcome.samples is not None
    folder.write_samples(outcome.sample_images, outcome.samples, Manifest.load(shards).classes)
    assert write_report(folder.path).stat().st_size > 10_000


def test_of_answers_that_name_no_class_only_the_loss_is_judged() -> None:
    first = Predictions("a", "test", np.zeros((3, 0), np.float32), np.array([0, 1, 0]), 1.0)
    second = Predictions("b", "test", np.zeros((1, 0), np.float32), np.array([1]), 5.0)
    figures = judge([first, second], num_classes=2)
    assert figures.loss == 2.0
    assert math.isnan(figures.accuracy)
    assert figures.confusion.tolist() == [[0, 0], [0, 0]]


@settings(max_examples=25, deadline=None)
@given(
    augmentation=st.sampled_from([Anatomy(), Scanner(), Orientation(), Mirror()]),
    channels=st.sampled_from([1, 3]),
    size=st.integers(8, 20),
    seed=st.integers(0, 99),
)
def test_augmentation_keeps_shape_and_range_and_is_seeded(
    augmentation: Augmentation, channels: int, size: int, seed: int
) -> None:
    images = torch.rand(32, channels, size, size, generator=torch_generator(seed, "images"))
    first, again, other = (augmentation(images, torch_generator(draw)) for draw in (seed, seed, seed + 1))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("augmentation", [Anatomy(), Scanner()])
def test_every_scan_of_a_batch_is_changed_by_draws_of_its_own(augmentation: Augmentation) -> None:
    same = torch.rand(1, 1, SIZE, SIZE, generator=torch_generator(0)).expand(8, 1, SIZE, SIZE)
    changed = augmentation(same, torch_generator(0))
    assert len({scan.numpy().tobytes() for scan in changed}) == 8


def test_orientation_touches_no_pixel_value() -> None:
    same = torch.rand(1, 1, SIZE, SIZE, generator=torch_generator(0)).expand(64, 1, SIZE, SIZE)
    changed = Orientation()(same, torch_generator(0))
    assert torch.equal(changed.flatten(1).sort().values, same.flatten(1).sort().values)
    assert len({scan.numpy().tobytes() for scan in changed}) == 8


def test_a_mirrored_scan_stays_upright() -> None:
    same = torch.rand(1, 1, SIZE, SIZE, generator=torch_generator(0)).expand(64, 1, SIZE, SIZE)
    found = {scan.numpy().tobytes() for scan in Mirror()(same, torch_generator(0))}
    assert found == {same[0].numpy().tobytes(), same[0].flip(2).numpy().tobytes()}


def test_scans_have_a_hidden_part_of_one_grey_only_where_asked() -> None:
    hidden = Scanner(field=0.0, sharpness=0.0, hidden=1.0)(torch.rand(64, 1, 32, 32), torch_generator(0))
    never = Scanner(field=0.0, sharpness=0.0, hidden=0.0)(torch.rand(64, 1, 32, 32), torch_generator(0))

    def largest_alike(scan: torch.Tensor) -> int:
        inside = scan[(scan > 0.02) & (scan < 1)]  # where the scan was moved away, all is black
        return int(inside.unique(return_counts=True)[1].max())

    assert sum(largest_alike(scan) > 8 for scan in hidden) > 50
    assert max(largest_alike(scan) for scan in never) <= 8


def test_without_small_changes_a_scan_is_one_of_its_eight_flips_and_quarter_turns() -> None:
    images = torch.rand(64, 1, SIZE, SIZE, generator=torch_generator(0)).clamp(min=1e-3)
    changed = Anatomy(rotation=0, scale=0, shift=0, contrast=0, brightness=0)(images, torch_generator(1))
    found = set()
    for before, after in zip(images, changed, strict=True):
        ways = {
            (flip, turns): torch.rot90(before.flip(-1) if flip else before, turns, (-2, -1))
            for flip in (False, True)
            for turns in range(4)
        }
        near = [way for way, picture in ways.items() if torch.allclose(picture, after, atol=1e-3)]
        assert len(near) == 1
        found.add(near[0])
    assert len(found) == 8


@dataclass(frozen=True)
class Grey:
    """Takes everything away: what is left is zero behind the mean/std layer, and moves no weight that it meets."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.full_like(images, 0.5)


def test_training_sees_augmented_scans_and_prediction_does_not() -> None:
    seen, _ = trained(CrossEntropy())
    unseen, _ = trained(CrossEntropy(), augmentation=Grey())
    fresh, _ = trained(CrossEntropy(), learning_rate=1e-30)
    assert not torch.equal(seen.body[1].weight, fresh.body[1].weight)
    torch.testing.assert_close(unseen.body[1].weight, fresh.body[1].weight, atol=0, rtol=0)
    images = to_images(checked_patterns(2, seed=1)[0])
    assert not torch.allclose(unseen(images)[0], unseen(images)[1])


@pytest.mark.parametrize(
    "given",
    [
        {"objective": "adversarial(epsilon=0.015)"},
        {"objective": "trades(epsilon=0.03, beta=3.0, steps=2)"},
        {"objective": "cross_entropy(label_smoothing=0.1)", "augmentation": "anatomy"},
        {"objective": "generative", "optimiser": "adamw"},
        {"augmentation": "anatomy(rotation=5.0)"},
        {"augmentation": "scanner(hidden=0.2)"},
        {"model": "experts(k=2)", "algorithm": "ditto(lam=1.0)"},
        {"model": "small_resnet(width=8)", "algorithm": "apfl(alpha=0.25)"},
    ],
    ids=lambda given: " ".join(given.values()),
)
def test_how_a_hospital_trains_is_written_as_it_is_read(given: dict[str, str]) -> None:
    experiment = Experiment.from_settings(given)
    assert {key: experiment.settings()[key] for key in given} == given
    assert Experiment.from_settings(experiment.settings()) == experiment
    training = experiment.local_training(channels=1, num_classes=2)
    assert (training.objective, training.augmentation) == (experiment.objective, experiment.augmentation)
    assert training.optimiser == experiment.optimiser


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objective": "adversarial"}, "missing 1 required positional argument: 'epsilon'"),
        ({"objective": "adversrial(epsilon=0.1)"}, "did you mean 'adversarial'?"),
        ({"objective": "adversarial(epsilon=8)"}, "0 <= epsilon <= 1 in pixel units"),
        ({"augmentation": "anatmy"}, "unknown augmentation 'anatmy'; did you mean 'anatomy'?"),
        ({"optimiser": "adam"}, "optimiser"),
    ],
)
def test_training_that_cannot_be_is_refused_in_one_line(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.from_settings(wrong)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
