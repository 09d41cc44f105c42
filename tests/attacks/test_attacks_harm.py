"""Every attack against an undefended federation of ten hospitals: a claim of a defence is worth what is shown here.

Accuracies are of a small network on handwritten digits after 20 rounds; f of the ten lie. Harm is counted against the
same federation whose attackers stay silent, so that the scans they keep to themselves are not mistaken for their
attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from fedplatform.attacks.poisoning import (
    ATTACKS,
    Backdoor,
    Collusion,
    DataPoisoning,
    DistributedBackdoor,
    FingerprintAware,
    InnerProduct,
    Mimic,
    PoisoningAttack,
    Scaling,
    Situation,
    Sleeper,
    UpdatePoisoning,
    stamp_trigger,
)
from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.federated.byzantine import Adversary

N, SCANS, HIDDEN, CLASSES, ROUNDS = 10, 130, 24, 10, 20
ENTRY = 65 * HIDDEN
SIZE = ENTRY + (HIDDEN + 1) * CLASSES
ALIKE, UNLIKE = None, 0.3  # Dirichlet concentration of the classes in a hospital
HONEST = Scaling(scale=1)  # the attackers send what they have learned: no attack at all
Rule = Callable[[torch.Tensor, int], torch.Tensor]


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    return (raw.images[order] * 15).astype(np.uint8)[:, None], raw.target[order].astype(np.int64)


def logits(weights: torch.Tensor, images: np.ndarray) -> torch.Tensor:
    """Answers (n, m, classes) of n networks (n, d) to m scans each."""
    pixels = torch.from_numpy(images).flatten(2).float() / 255
    first, second = weights[:, :ENTRY].view(-1, 65, HIDDEN), weights[:, ENTRY:].view(-1, HIDDEN + 1, CLASSES)
    hidden = torch.relu(pixels @ first[:, :64] + first[:, 64:])
    return hidden @ second[:, :HIDDEN] + second[:, HIDDEN:]


def local_updates(weights: torch.Tensor, images: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Ten steps of gradient descent in each hospital, all at once: images (n, m, 1, 8, 8) to updates (n, d)."""
    targets = torch.from_numpy(labels).flatten()
    local = weights.repeat(len(images), 1)
    for _ in range(10):
        local.requires_grad_()
        loss = functional.cross_entropy(logits(local, images).flatten(0, 1), targets, reduction="sum") / SCANS
        (gradient,) = torch.autograd.grad(loss, local)
        local = (local - 0.5 * gradient).detach()
    return local - weights


def share_out(labels: np.ndarray, concentration: float | None) -> np.ndarray:
    """Which scans (n, m) each hospital holds."""
    generator = np.random.default_rng(0)
    if concentration is None:
        return generator.permutation(N * SCANS).reshape(N, SCANS)
    rows = []
    for _ in range(N):
        wanted = generator.dirichlet([concentration] * CLASSES)[labels] / np.bincount(labels)[labels]
        rows.append(generator.choice(len(labels), SCANS, p=wanted / wanted.sum()))
    return np.stack(rows)


def mean(deltas: torch.Tensor, f: int) -> torch.Tensor:
    return deltas.mean(dim=0)


def median(deltas: torch.Tensor, f: int) -> torch.Tensor:
    return deltas.quantile(0.5, dim=0)


def krum(deltas: torch.Tensor, f: int) -> torch.Tensor:
    distances = torch.cdist(deltas, deltas, compute_mode="donot_use_mm_for_euclid_dist").square()
    scores = distances.sort(dim=1).values[:, 1 : len(deltas) - f - 1].sum(dim=1)
    return deltas[scores.argmin()]


def trimmed_mean(deltas: torch.Tensor, f: int) -> torch.Tensor:
    return deltas.sort(dim=0).values[f : len(deltas) - f].mean(dim=0)


@dataclass(frozen=True, eq=False)
class Course:
    """What became of a federation: the accuracy (rounds,) and the last weights (d,)."""

    accuracy: list[float]
    weights: torch.Tensor

    def says(self, images: np.ndarray) -> np.ndarray:
        return logits(self.weights[None], images[None])[0].argmax(dim=1).numpy()


@cache
def federate(
    attack: PoisoningAttack | None, *, rule: Rule = mean, f: int = 3, concentration: float | None = ALIKE
) -> Course:
    """Train under attack by the first f hospitals; without an attack they stay silent."""
    images, labels = digits()
    train, test = slice(0, N * SCANS), slice(N * SCANS, None)
    mine = share_out(labels[train], concentration)
    scans, truth = images[train][mine], labels[train][mine]
    if attack is None:
        scans, truth = scans[f:], truth[f:]
    for attacker in range(f):
        part = Adversary(tuple("0123456789"[:f]), attack, N).attack_of(str(attacker))
        if isinstance(part, DataPoisoning):
            scans[attacker], truth[attacker] = part.poison(
                scans[attacker], truth[attacker], num_classes=CLASSES, generator=numpy_generator(0, attacker, "poison")
            )
    memories: list[dict[str, torch.Tensor]] = [{} for _ in range(f)]
    weights = 0.2 * torch.randn(SIZE, generator=torch_generator(0, "start"))
    step = torch.zeros(SIZE)
    accuracy = []
    for round_number in range(1, ROUNDS + 1):
        deltas = local_updates(weights, scans, truth)
        heres = [
            Situation(
                num_hospitals=N,
                num_byzantine=f,
                round_number=round_number,
                previous_delta=step,
                generator=torch_generator(0, attacker, round_number),
                weights=weights,
                memory=memories[attacker],
            )
            for attacker in range(f)
        ]
        if isinstance(attack, UpdatePoisoning):
            deltas[:f] = torch.stack([attack.corrupt(own, here) for own, here in zip(deltas[:f], heres, strict=True)])
        if isinstance(attack, Collusion):
            deltas[:f] = attack.collude(deltas[f:].clone(), heres[0])
        step = rule(deltas, 2 if attack is None else f)
        weights = weights + step
        answers = logits(weights[None], images[test][None])[0].argmax(dim=1).numpy()
        accuracy.append(float((answers == labels[test]).mean()))
    return Course(accuracy, weights)


def final(
    attack: PoisoningAttack | None, *, rule: Rule = mean, f: int = 3, concentration: float | None = ALIKE
) -> float:
    return federate(attack, rule=rule, f=f, concentration=concentration).accuracy[-1]


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("f", [3, 4])
@pytest.mark.parametrize("concentration", [ALIKE, UNLIKE])
def test_the_mean_learns_well_from_the_honest_hospitals_alone(f: int, concentration: float | None) -> None:
    assert final(None, f=f, concentration=concentration) > 0.9


@pytest.mark.parametrize("name", ["sign_flip", "scaling"])
def test_the_mean_falls_to_guessing_under_a_bent_update(name: str) -> None:
    assert final(ATTACKS[name]()) < 0.2


def test_partial_scaling_costs_the_mean_five_points_by_three_attackers_and_fifteen_by_four() -> None:
    assert final(ATTACKS["partial_scaling"]()) < final(None) - 0.05
    assert final(ATTACKS["partial_scaling"](), f=4) < final(None, f=4) - 0.15


def test_gaussian_noise_costs_the_mean_eight_points_and_more_where_hospitals_differ() -> None:
    assert final(ATTACKS["gaussian_noise"]()) < final(None) - 0.08
    assert final(ATTACKS["gaussian_noise"](), concentration=UNLIKE) < final(None, concentration=UNLIKE) - 0.12


def test_label_flipping_costs_the_mean_five_points_and_twelve_where_hospitals_differ() -> None:
    assert final(ATTACKS["label_flip"]()) < final(None) - 0.05
    assert final(ATTACKS["label_flip"](), concentration=UNLIKE) < final(None, concentration=UNLIKE) - 0.12


def test_the_backdoor_opens_for_the_trigger_while_clean_accuracy_stays() -> None:
    images, labels = (part[N * SCANS :] for part in digits())
    attack = Backdoor(target=0)
    course = federate(attack)
    others = images[labels != attack.target]
    assert (course.says(stamp_trigger(others)) == attack.target).mean() > 0.9
    assert (course.says(others) == attack.target).mean() < 0.05
    assert course.accuracy[-1] > final(None) - 0.03


def success(attack: Backdoor, course: Course) -> float:
    """The share of test scans of other classes that are answered with the target once they carry the trigger."""
    images, labels = (part[N * SCANS :] for part in digits())
    return float((course.says(attack.stamp(images[labels != attack.target])) == attack.target).mean())


@pytest.mark.parametrize("name", ["model_replacement", "neurotoxin", "dba", "edge_case"])
def test_every_kind_of_backdoor_opens_for_its_trigger_while_clean_accuracy_stays(name: str) -> None:
    attack = ATTACKS[name]()
    assert isinstance(attack, Backdoor)
    course = federate(attack)
    assert success(attack, course) > 0.85
    assert success(attack, federate(None)) < 0.1
    assert course.accuracy[-1] > final(None) - 0.05


def test_no_attackers_part_of_a_distributed_backdoor_opens_as_far_as_the_whole() -> None:
    attack = DistributedBackdoor()
    course = federate(attack)
    whole = success(attack, course)
    assert all(success(attack.part(number, 3), course) < whole - 0.3 for number in range(3))


@pytest.mark.parametrize(
    ("name", "points"),
    [("poisoned_fl", 0.7), ("mpaf", 0.7), ("whitewashing", 0.7), ("byz_mean", 0.2), ("on_off", 0.1)],
)
def test_the_mean_falls_under_fake_hospitals_a_moved_mean_and_attackers_of_reputations(
    name: str, points: float
) -> None:
    assert final(ATTACKS[name]()) < final(None) - points


@pytest.mark.parametrize(("rule", "points"), [(krum, 0.3), (mean, 0.04)])
def test_the_directed_deviation_against_krum_breaks_krum_and_harms_the_mean(rule: Rule, points: float) -> None:
    silent = final(None, rule=rule, concentration=UNLIKE)
    assert final(ATTACKS["fang_krum"](), rule=rule, concentration=UNLIKE) < silent - points


@pytest.mark.parametrize(("rule", "points"), [(trimmed_mean, 0.15), (median, 0.15), (mean, 0.02)])
def test_the_directed_deviation_against_a_trimmed_mean_breaks_it_and_the_median_and_harms_the_mean(
    rule: Rule, points: float
) -> None:
    silent = final(None, rule=rule, concentration=UNLIKE)
    assert final(ATTACKS["fang_trimmed_mean"](), rule=rule, concentration=UNLIKE) < silent - points


def test_a_free_rider_only_slows_the_learning() -> None:
    ridden, honest = federate(ATTACKS["free_rider"]()).accuracy, federate(None).accuracy
    assert ridden[0] < honest[0] - 0.08
    assert ridden[-1] > honest[-1] - 0.03


def test_inner_product_manipulation_turns_the_mean_round_and_at_half_strength_drags_the_median() -> None:
    assert final(InnerProduct(scale=4)) < 0.2
    silent = final(None, rule=median, concentration=UNLIKE)
    assert final(ATTACKS["ipm"](), rule=median, concentration=UNLIKE) < silent - 0.1


@pytest.mark.parametrize(("rule", "points"), [(median, 0.05), (krum, 0.3)])
def test_four_attackers_with_a_little_break_median_and_krum_where_hospitals_differ(rule: Rule, points: float) -> None:
    silent = final(None, rule=rule, f=4, concentration=UNLIKE)
    assert final(ATTACKS["alie"](), rule=rule, f=4, concentration=UNLIKE) < silent - points


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize(("rule", "points"), [(mean, 0.04), (median, 0.1), (krum, 0.3)])
def test_min_max_and_min_sum_break_mean_median_and_krum_where_hospitals_differ(
    name: str, rule: Rule, points: float
) -> None:
    silent = final(None, rule=rule, concentration=UNLIKE)
    assert final(ATTACKS[name](), rule=rule, concentration=UNLIKE) < silent - points


def test_the_mimic_drowns_the_others_in_a_median_where_hospitals_differ() -> None:
    images, labels = (part[: N * SCANS] for part in digits())
    mine = share_out(labels, UNLIKE)[3:]
    start = 0.2 * torch.randn(SIZE, generator=torch_generator(0, "start"))
    warm_up = local_updates(start, images[mine], labels[mine])
    silent = final(None, rule=median, concentration=UNLIKE)
    for mimic in (Mimic.farthest_out(warm_up), ATTACKS["mimic"]()):
        assert final(mimic, rule=median, concentration=UNLIKE) < silent - 0.1


def test_a_sleeper_costs_nothing_until_its_patience_ends_and_everything_afterwards() -> None:
    honest, asleep = federate(HONEST).accuracy, federate(Sleeper(patience=5)).accuracy
    assert asleep[:5] == honest[:5]
    assert asleep[4] > 0.9
    assert asleep[9] < asleep[4] - 0.4
    assert asleep[-1] < 0.2


@pytest.mark.parametrize(("f", "points"), [(3, 0.05), (4, 0.07)])
def test_fingerprint_aware_attackers_cost_the_mean_five_points_and_more_by_four_where_hospitals_differ(
    f: int, points: float
) -> None:
    honest, silent, attacked = (
        federate(attack, f=f, concentration=UNLIKE).accuracy for attack in (HONEST, None, FingerprintAware())
    )
    assert attacked[-1] < honest[-1] - points
    assert attacked[-1] < silent[-1] - 0.01
    assert np.mean(attacked) < np.mean(silent) - 0.05


def test_fingerprint_aware_attackers_cost_the_mean_one_point_where_hospitals_are_alike() -> None:
    assert 0.005 < final(HONEST) - final(FingerprintAware()) < 0.03
