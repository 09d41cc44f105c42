"""The threat tiers against a full defence that was really trained, and against weak defences planted beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fedplatform.attacks.evasion import RandomNoise
from fedplatform.defence import BitDepth, DefendedClassifier, FreshNoise, GaussianBlur, KeyedNoise, Noise
from fedplatform.defence.presets import HospitalParts
from fedplatform.defence.threats import TIERS, Budget, Victim, attack_hospital
from fedplatform.experiments.defence.load import DefendedRun

BUDGET = Budget(steps=8, eot=2, queries=80)
LITTLE = replace(BUDGET, steps=2)  # where it does not matter how strong the attack is
EPSILON = 8 / 255
DRAWS = 32  # of the defence's noise: of fewer, chance would decide which of two attacks looks stronger


@pytest.fixture(scope="module")
def parts(defended: Path) -> tuple[HospitalParts, HospitalParts]:
    run = DefendedRun(defended)
    return run.hospital("hospital-00"), run.hospital("hospital-01")


@pytest.fixture(scope="module")
def whole(parts: tuple[HospitalParts, HospitalParts]) -> Victim:
    """A full defence that flags a quarter of clean scans, or so small a detector would hardly flag an attack."""
    watchful = parts[0].settings.model_copy(update={"false_positive_rate": 0.25})
    return Victim(replace(parts[0], settings=watchful).defended("full"), parts[1].tuned)


@pytest.fixture(scope="module")
def bare(parts: tuple[HospitalParts, HospitalParts]) -> Victim:
    return Victim(parts[0].defended("no_defence"), parts[1].classifier)


@pytest.fixture(scope="module")
def images(parts: tuple[HospitalParts, HospitalParts]) -> torch.Tensor:
    return parts[0].test[0][:24]


@pytest.fixture(scope="module")
def labels(parts: tuple[HospitalParts, HospitalParts]) -> torch.Tensor:
    return parts[0].test[1][:24]


@pytest.fixture(scope="module")
def every_scan(parts: tuple[HospitalParts, HospitalParts]) -> tuple[torch.Tensor, torch.Tensor]:
    """All test scans and labels, where few would leave the comparison of two attacks to chance."""
    return parts[0].test


def attack(
    tier: str,
    victim: Victim,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float = EPSILON,
    budget: Budget = BUDGET,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return attack_hospital(tier, victim, images, labels, epsilon=epsilon, budget=budget, generator=generator)


def right(defended: DefendedClassifier, images: torch.Tensor, labels: torch.Tensor) -> int:
    """How many of the scans the served defence answers rightly."""
    diagnoses = defended.diagnose(images)
    return sum(diagnosis.label == label for diagnosis, label in zip(diagnoses, labels.tolist(), strict=True))


def fresh(defended: DefendedClassifier, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Scans answered rightly and mean cross-entropy over fresh draws of the defence's noise."""
    with torch.no_grad():
        drawn = [
            defended.logits(images, noise=FreshNoise(torch.Generator().manual_seed(draw))) for draw in range(DRAWS)
        ]
    correct = sum(float((logits.argmax(dim=1) == labels).sum()) for logits in drawn)
    loss = sum(float(functional.cross_entropy(logits, labels)) for logits in drawn)
    return correct / DRAWS, loss / DRAWS


@pytest.mark.parametrize("tier", TIERS)
def test_no_tier_leaves_its_epsilon_or_the_pixels(
    tier: str, whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    edge = torch.cat([images[:2], images[2:4] * 0, images[4:6] * 0 + 1])
    attacked = attack(tier, whole, edge, labels[:6], budget=LITTLE)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert (attacked - edge).abs().max() <= EPSILON + 1e-6
    assert torch.equal(attacked, edge) == (tier == "T0")


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_seed_makes_the_same_attack(
    tier: str, whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    first, again = (attack(tier, whole, images[:2], labels[:2], budget=LITTLE) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "epsilon", [pytest.param(4 / 255, marks=pytest.mark.slow), 8 / 255, pytest.param(12 / 255, marks=pytest.mark.slow)]
)
def test_who_knows_the_whole_defence_does_at_least_what_the_grey_box_does(
    whole: Victim, every_scan: tuple[torch.Tensor, torch.Tensor], epsilon: float
) -> None:
    images, labels = every_scan
    grey, grey_loss = fresh(whole.defended, attack("T2", whole, images, labels, epsilon), labels)
    exact, exact_loss = fresh(whole.defended, attack("T4", whole, images, labels, epsilon), labels)
    assert exact <= grey + 0.5
    assert exact_loss >= 0.95 * grey_loss


def test_the_exact_gradient_finds_what_the_grey_box_misses(
    parts: tuple[HospitalParts, HospitalParts], images: torch.Tensor, labels: torch.Tensor
) -> None:
    always = Victim(parts[0].defended("purify_all_tuned"), parts[1].tuned)
    _, grey_loss = fresh(always.defended, attack("T2", always, images, labels), labels)
    _, exact_loss = fresh(always.defended, attack("T4", always, images, labels), labels)
    assert exact_loss > 1.03 * grey_loss


@pytest.mark.slow
def test_patience_costs_the_defence_at_least_what_haste_does(
    whole: Victim, every_scan: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = every_scan
    _, hasty = fresh(whole.defended, attack("T4", whole, images, labels, budget=Budget(steps=4, eot=2)), labels)
    _, patient = fresh(
        whole.defended, attack("T4_strong", whole, images, labels, budget=Budget(steps=4, eot=2)), labels
    )
    assert patient > 1.02 * hasty


@pytest.mark.parametrize("tier", ["T3", "T4"])
@pytest.mark.parametrize("planted", [BitDepth(3), GaussianBlur(0.6)], ids=["bit_depth", "blur"])
def test_who_knows_a_weak_defence_breaks_it(
    parts: tuple[HospitalParts, HospitalParts],
    images: torch.Tensor,
    labels: torch.Tensor,
    tier: str,
    planted: BitDepth | GaussianBlur,
) -> None:
    weak = parts[0].through(planted, depth=1, classifier=parts[0].classifier)
    assert right(weak, images, labels) >= 22
    attacked = attack(tier, Victim(weak, parts[1].classifier), images, labels, 16 / 255)
    assert right(weak, attacked, labels) <= 6


@pytest.mark.slow
def test_a_black_box_is_never_stronger_than_who_knows_everything(
    whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    black, _ = fresh(whole.defended, attack("T5", whole, images, labels), labels)
    exact, _ = fresh(whole.defended, attack("T4", whole, images, labels), labels)
    assert black >= exact - 2
    assert black < fresh(whole.defended, images, labels)[0], "a black box that harms nobody proves nothing"


@pytest.mark.slow
def test_an_attacker_who_wants_to_stay_unnoticed_stays_below_the_threshold(
    whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def flagged(scans: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return whole.defended.passage(scans).flagged

    noticed = flagged(attack("T4", whole, images, labels, 16 / 255)) & ~flagged(images)
    assert noticed.sum() >= 6
    patient = replace(BUDGET, steps=40)
    hidden = ~flagged(attack("T4_unnoticed", whole, images, labels, 16 / 255, patient))
    assert hidden[noticed].float().mean() >= 0.75


def test_an_attacker_who_floods_has_clean_scans_flagged(
    whole: Victim, bare: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    with torch.no_grad():
        before = whole.defended.passage(images).flagged
        after = whole.defended.passage(attack("T4_flood", whole, images, labels, 16 / 255)).flagged
    assert before.float().mean() <= 0.5
    assert after.float().mean() >= 0.9
    assert torch.equal(attack("T4_flood", bare, images, labels, 16 / 255), images), "nothing to flood there"


def test_without_a_detector_there_is_nothing_to_hide_from(
    bare: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    exact, unnoticed = (attack(tier, bare, images[:4], labels[:4]) for tier in ("T4", "T4_unnoticed"))
    assert torch.equal(exact, unnoticed)


@dataclass(frozen=True)
class Overheard:
    """The served noise, and how often somebody asked for it."""

    noise: Noise
    asked: list[int]

    def draw(self, images: torch.Tensor, copies: int) -> torch.Tensor:
        self.asked.append(copies)
        return self.noise.draw(images, copies)


@pytest.mark.parametrize("tier", TIERS)
def test_only_a_black_box_meets_the_served_noise(
    tier: str, whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    overheard = Overheard(KeyedNoise(b"secret"), [])
    victim = replace(whole, defended=replace(whole.defended, noise=overheard))
    attack(tier, victim, images[:2], labels[:2], budget=LITTLE)
    assert bool(overheard.asked) == (tier == "T5")


@pytest.mark.parametrize("tier", ["T3", "T4", "T4_unnoticed"])
def test_another_key_of_the_served_noise_changes_no_attack(
    tier: str, whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    other = replace(whole, defended=replace(whole.defended, noise=KeyedNoise(b"another")))
    first, second = (attack(tier, victim, images[:4], labels[:4], budget=LITTLE) for victim in (whole, other))
    assert torch.equal(first, second)


def test_without_a_defence_accuracy_falls_with_epsilon_to_almost_nothing(
    bare: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    counts = [right(bare.defended, attack("T2", bare, images, labels, level / 255), labels) for level in (0, 4, 8, 32)]
    assert counts[0] >= 23
    assert counts == sorted(counts, reverse=True)
    assert counts[2] <= 14
    assert counts[3] <= 2


def test_noise_of_the_same_size_costs_little(bare: Victim, images: torch.Tensor, labels: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = RandomNoise(EPSILON)(bare.defended.logits, images, labels, generator=generator)
    assert right(bare.defended, noisy, labels) >= right(bare.defended, images, labels) - 2


def test_each_tier_attacks_what_it_knows_and_nothing_else(
    parts: tuple[HospitalParts, HospitalParts], whole: Victim, images: torch.Tensor, labels: torch.Tensor
) -> None:
    scans, answers = images[:4], labels[:4]
    elsewhere = replace(whole, neighbour=parts[1].classifier)
    other_gate = replace(whole, defended=replace(whole.defended, gate=replace(whole.defended.gate, threshold=-1e9)))
    for tier in ("T0", "T1", "T2", "T2_paper", "T3", "T4"):
        usual = attack(tier, whole, scans, answers)
        assert torch.equal(usual, attack(tier, elsewhere, scans, answers)) == (tier != "T1")
        assert torch.equal(usual, attack(tier, other_gate, scans, answers)) == (tier not in ("T3", "T4"))
