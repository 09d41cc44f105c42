"""Attacks that cannot fail in silence: what each must do to a small network that nothing defends.

Pictures are grey, 16 pixels, and show a disc or a ring in noise; the network is right about all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fedplatform.attacks.evasion import (
    APGD,
    EVASION_ATTACKS,
    FAB,
    FGSM,
    PGD,
    CarliniWagner,
    DetectorAware,
    EvasionAttack,
    Flood,
    HopSkipJump,
    MomentumPGD,
    RandomNoise,
    Square,
    ascend,
    cross_entropy,
    margin,
    norm_of,
    project,
    straight_through,
)
from fedplatform.attacks.evasion.apgd import climb
from fedplatform.attacks.evasion.ascent import mean_slope
from fedplatform.attacks.evasion.fab import to_hyperplane
from fedplatform.attacks.evasion.projection import Norm
from fedplatform.learning.models.classifier import Classifier, SmallCnn

SIZE = 16
Function = Callable[[torch.Tensor], torch.Tensor]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = stream(seed)
    labels = torch.arange(n) % 2
    place = torch.arange(SIZE).float()
    centre = 5 + (SIZE - 10) * torch.rand(n, 2, generator=draw)
    square = (place[None, :, None] - centre[:, :1, None]) ** 2 + (place[None, None] - centre[:, 1:, None]) ** 2
    disc, ring = torch.exp(-square / 8), torch.exp(-((square.sqrt() - 3.5) ** 2) / 2)
    shape = torch.where(labels[:, None, None] == 1, ring, disc)
    noise = 0.08 * torch.randn(n, SIZE, SIZE, generator=draw)
    return (0.4 + 0.25 * shape + noise).clamp(0, 1)[:, None], labels


def train(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    adam = torch.optim.Adam(network.parameters(), lr=5e-3)
    for batch in torch.arange(len(labels)).split(32) * 6:
        adam.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        adam.step()
    network.zero_grad()
    return network.eval()


def untrained() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(SmallCnn(width=5)(channels=1, num_classes=2, size=SIZE))


@cache
def network() -> torch.nn.Module:
    return train(untrained(), *pictures(512, seed=1))


@cache
def scans() -> tuple[torch.Tensor, torch.Tensor]:
    return pictures(50, seed=2)


def accuracy(images: torch.Tensor, target: Function | None = None) -> float:
    with torch.no_grad():
        answers = (target or network())(images).argmax(dim=1)
    return (answers == scans()[1]).float().mean().item()


def decide(images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network()(images).argmax(dim=1)


def roughness(images: torch.Tensor) -> torch.Tensor:
    """An anomaly score: how much a pixel differs from the mean of its neighbours."""
    return (images - functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)).abs().mean(dim=(1, 2, 3))


def threshold() -> float:
    return torch.quantile(roughness(scans()[0]), 0.95).item()


def attack(how: EvasionAttack, target: Function | None = None, seed: int = 0) -> torch.Tensor:
    """The small scans attacked; HopSkipJump is told the answers only."""
    default = decide if isinstance(how, HopSkipJump) else network()
    return how(target or default, *scans(), generator=stream(seed))


@cache
def robust(how: EvasionAttack) -> float:
    return accuracy(attack(how))


def quick(name: str, epsilon: float) -> EvasionAttack:
    made: dict[str, Callable[[], EvasionAttack]] = {
        "noise": lambda: RandomNoise(epsilon),
        "fgsm": lambda: FGSM(epsilon),
        "pgd": lambda: PGD(epsilon, steps=4, restarts=2),
        "momentum_pgd": lambda: MomentumPGD(epsilon, steps=4),
        "apgd": lambda: APGD(epsilon, steps=8),
        "fab": lambda: FAB(epsilon, steps=5, restarts=2),
        "carlini_wagner": lambda: CarliniWagner(epsilon, steps=6, searches=2),
        "square": lambda: Square(epsilon, queries=20),
        "hop_skip_jump": lambda: HopSkipJump(epsilon, queries=80, probes=10),
        "detector_aware": lambda: DetectorAware(epsilon, roughness, threshold(), steps=4),
        "flood": lambda: Flood(epsilon, roughness, steps=4),
    }
    return made[name]()


def norm_used(how: EvasionAttack) -> Norm:
    return "l2" if isinstance(how, CarliniWagner) else getattr(how, "norm", "linf")


def assert_within(attacked: torch.Tensor, images: torch.Tensor, how: EvasionAttack) -> None:
    assert attacked.shape == images.shape
    assert attacked.dtype == images.dtype
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert norm_of(attacked - images, norm_used(how)).max() <= how.epsilon + 1e-6


# every attack


@settings(max_examples=4, deadline=None)
@given(epsilon=st.floats(0, 0.3))
@pytest.mark.parametrize("name", EVASION_ATTACKS)
def test_every_attack_stays_within_epsilon_and_in_range_on_each_scan(name: str, epsilon: float) -> None:
    how = quick(name, epsilon)
    assert isinstance(how, EVASION_ATTACKS[name])
    images, labels = (part[:8] for part in scans())
    images = images.clone()
    images[0], images[1, :, :8] = 0, 1  # scans have black borders and burnt-out spots
    before = images.clone()
    target = decide if isinstance(how, HopSkipJump) else network()
    attacked = how(target, images, labels, generator=stream())
    assert_within(attacked, images, how)
    assert torch.equal(images, before)


@settings(max_examples=10, deadline=None)
@given(epsilon=st.floats(0, 3))
@pytest.mark.parametrize("how", [APGD(1, norm="l2", steps=3), FAB(1, norm="l2", steps=3)])
def test_attacks_in_l2_stay_in_their_ball(how: APGD | FAB, epsilon: float) -> None:
    how = replace(how, epsilon=epsilon)
    images, labels = (part[:4] for part in scans())
    assert_within(how(network(), images, labels, generator=stream()), images, how)


@pytest.mark.parametrize("name", EVASION_ATTACKS)
def test_every_attack_moves_the_scans_it_is_given(name: str) -> None:
    how = replace(quick(name, 0.5), queries=800) if name == "hop_skip_jump" else quick(name, 0.1)
    assert (attack(how) != scans()[0]).flatten(1).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("name", EVASION_ATTACKS)
def test_the_same_stream_gives_the_same_bits_and_no_other_stream_is_touched(name: str) -> None:
    how = quick(name, 16 / 255)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = attack(how, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert torch.equal(attack(how, seed=3), first)


@pytest.mark.parametrize("name", EVASION_ATTACKS)
def test_the_parameters_of_the_target_gather_no_gradient(name: str) -> None:
    attack(quick(name, 0.01))
    assert all(parameter.grad is None for parameter in network().parameters())


@pytest.mark.parametrize("name", [name for name in EVASION_ATTACKS if name not in ("noise", "flood")])
def test_every_attack_fools_three_classes_in_colour(name: str) -> None:
    """The class is the brightest of three channels, and the network says so."""
    images = 0.3 + 0.4 * torch.rand(12, 3, SIZE, SIZE, generator=stream(1))
    labels = torch.arange(12) % 3
    images[torch.arange(12), labels] += 0.05

    def target(attacked: torch.Tensor) -> torch.Tensor:
        return 20 * attacked.mean(dim=(2, 3))

    def answers(attacked: torch.Tensor) -> torch.Tensor:
        return target(attacked).argmax(dim=1)

    how = quick(name, 4.0 if name == "carlini_wagner" else 0.15)  # in L2 the same makes 0.15 * 768 ** .5
    if isinstance(how, DetectorAware):
        how = replace(how, threshold=1.0)
    if isinstance(how, CarliniWagner):
        how = replace(how, steps=60)
    if isinstance(how, HopSkipJump | Square):
        how = replace(how, queries=600)
    assert (answers(images) == labels).all()
    attacked = how(answers if isinstance(how, HopSkipJump) else target, images, labels, generator=stream())
    assert_within(attacked, images, how)
    assert (answers(attacked) != labels).float().mean() > 0.9


@pytest.mark.parametrize("name", EVASION_ATTACKS)
def test_an_epsilon_in_grey_levels_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="pixels of"):
        quick(name, -1 if name == "carlini_wagner" else 8)


@pytest.mark.parametrize(
    "make",
    [lambda: PGD(0.1, steps=0), lambda: Square(0.1, queries=0), lambda: PGD(0.1, loss="dlr")],
)
def test_settings_that_attack_nothing_are_refused(make: Callable[[], EvasionAttack]) -> None:
    with pytest.raises(ValueError, match=r"steps >= 1|queries >= 1|'dlr'"):
        make()


# how strong they are


def test_the_undefended_network_is_right_about_clean_scans() -> None:
    assert accuracy(scans()[0]) >= 0.98


@pytest.mark.parametrize(
    "how", [FGSM(0), PGD(0, steps=10), APGD(0, steps=15), FAB(0, steps=10)], ids=lambda how: type(how).__name__
)
def test_accuracy_falls_with_epsilon_to_nothing(how: FGSM | PGD | APGD | FAB) -> None:
    accuracies = [robust(replace(how, epsilon=level / 255)) for level in (0, 2, 4, 8, 16, 32)]
    assert all(later <= earlier + 0.02 for earlier, later in pairwise(accuracies))
    assert accuracies[0] >= 0.98
    assert accuracies[-1] <= 0.02


def test_noise_of_the_same_size_costs_hardly_anything() -> None:
    moves = (attack(RandomNoise(8 / 255)) - scans()[0]).abs()
    assert (moves - 8 / 255).abs().quantile(0.99) < 1e-6  # but for the few pixels near black and white
    assert accuracy(scans()[0]) - robust(RandomNoise(8 / 255)) <= 0.05
    assert robust(PGD(8 / 255)) < 0.5


@pytest.mark.parametrize("level", [4, 6, 8])
def test_more_steps_never_help_the_defence(level: int) -> None:
    assert robust(PGD(level / 255, steps=40)) <= robust(PGD(level / 255, steps=10)) + 0.02


@pytest.mark.parametrize("level", [4, 6, 8])
def test_restarts_never_help_the_defence(level: int) -> None:
    assert robust(PGD(level / 255, steps=5, restarts=4)) <= robust(PGD(level / 255, steps=5)) + 0.02


@pytest.mark.parametrize("level", [4, 6, 8])
def test_apgd_with_either_loss_is_as_strong_as_pgd(level: int) -> None:
    assert robust(APGD(level / 255, steps=40)) <= robust(PGD(level / 255, steps=40)) + 0.02
    assert robust(APGD(level / 255, steps=40, loss="margin")) <= robust(PGD(level / 255, steps=40)) + 0.02


@pytest.mark.parametrize("level", [4, 6, 8])
def test_fab_finds_about_what_apgd_finds(level: int) -> None:
    assert -0.02 <= robust(FAB(level / 255, steps=40)) - robust(APGD(level / 255, steps=40)) <= 0.15


def test_attacks_without_gradient_are_never_stronger_than_the_white_box() -> None:
    level = 8
    white_box = robust(APGD(level / 255, steps=40))
    for blind in (Square(level / 255, queries=200), HopSkipJump(level / 255, queries=300, probes=40)):
        assert robust(blind) >= white_box - 0.02
        assert robust(replace(blind, epsilon=64 / 255)) <= 0.1  # and they do attack


def test_carlini_wagner_finds_the_distance_that_fab_finds() -> None:
    images, labels = (part[:12] for part in scans())
    carlini, fab = (
        norm_of(how(network(), images, labels, generator=stream()) - images, "l2")
        for how in (CarliniWagner(9.0, steps=60, searches=4), FAB(9.0, norm="l2", steps=25))
    )
    assert 0.9 < (carlini.median() / fab.median()).item() < 1.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hop_skip_jump_comes_near_the_distance_that_fab_finds(norm: Norm) -> None:
    images, labels = (part[:12] for part in scans())
    fab = FAB(1.0, norm=norm, steps=25)(network(), images, labels, generator=stream())
    near = 2.5 * norm_of(fab - images, norm).median().item()
    hops = HopSkipJump(near, norm, queries=900)(decide, images, labels, generator=stream())
    assert (decide(hops) != labels).float().mean() > 0.5


def test_the_l2_apgd_crosses_at_the_distance_that_fab_measures() -> None:
    images, labels = (part[:16] for part in scans())
    fab = norm_of(FAB(9.0, norm="l2", steps=25)(network(), images, labels, generator=stream()) - images, "l2")
    for reach, fooled in ((1.3, 0.8), (0.7, 0.2)):
        how = APGD(reach * fab.median().item(), norm="l2", steps=30)
        share = (decide(how(network(), images, labels, generator=stream())) != labels).float().mean().item()
        assert share >= 0.6 if fooled > 0.5 else share <= 0.4


# how they climb


def test_the_gradient_is_not_zero() -> None:
    images, labels = scans()
    for loss in (cross_entropy, margin):
        _, slope = mean_slope(lambda place, loss=loss: loss(network()(place), labels), images, 1)
        assert slope.flatten(1).any(dim=1).float().mean() > 0.99


def test_the_loss_grows_along_the_attack() -> None:
    images, labels = scans()

    def objective(attacked: torch.Tensor) -> torch.Tensor:
        return margin(network()(attacked), labels)

    def after(steps: int) -> float:
        attacked = ascend(
            objective, images, epsilon=0.03, stepsize=0.003, steps=steps, random_start=False, generator=stream()
        )
        return objective(attacked).mean().item()

    losses = [after(steps) for steps in (1, 2, 4, 8, 12)]
    assert all(later > earlier for earlier, later in pairwise(losses))
    assert losses[0] > objective(images).mean()


def test_pgd_is_the_obvious_loop_bit_for_bit() -> None:
    images, labels = scans()
    epsilon, steps = 8 / 255, 7
    draw = stream(5)
    attacked = images + epsilon * (2 * torch.rand(images.shape, generator=draw) - 1)
    attacked = attacked.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    for _ in range(steps):
        attacked = attacked.clone().requires_grad_()
        loss = margin(network()(attacked), labels).sum()
        slope = torch.autograd.grad(loss, attacked)[0]
        attacked = attacked.detach() + 2.5 * epsilon / steps * slope.sign()
        attacked = attacked.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    assert torch.equal(attack(PGD(epsilon, steps=steps, loss="margin"), seed=5), attacked)


def test_a_climb_keeps_its_start_where_nothing_is_higher() -> None:
    images = scans()[0]

    def misleading(place: torch.Tensor) -> torch.Tensor:
        """Highest at the scans, with a gradient that points away from them."""
        up = place.sum(dim=(1, 2, 3))
        return up - up.detach() - (place - images).abs().sum(dim=(1, 2, 3)).detach()

    run = climb(misleading, images, images, epsilon=0.1, norm="linf", length=0.1, steps=5, eot=1)
    assert torch.equal(run.images, images)


def test_one_step_without_a_random_start_is_fgsm() -> None:
    one = PGD(0.02, steps=1, stepsize=0.02, random_start=False)
    assert torch.equal(attack(one), attack(FGSM(0.02)))
    assert torch.equal(attack(MomentumPGD(0.02, steps=1)), attack(FGSM(0.02)))


def test_momentum_carries_an_attack_over_a_gradient_that_turns_round() -> None:
    """On a slope that points down at every second call, plain steps come back and momentum goes on."""

    def path(momentum: float) -> float:
        calls = iter((1.0, 1.0, -0.5, -0.5))
        moved = ascend(
            lambda place: next(calls) * place.sum(dim=(1, 2, 3)),
            torch.full((1, 1, 2, 2), 0.5),
            epsilon=0.4,
            stepsize=0.1,
            steps=4,
            momentum=momentum,
            random_start=False,
            generator=stream(),
        )
        return moved.mean().item()

    assert path(0.0) == pytest.approx(0.5)
    assert path(1.0) == pytest.approx(0.8)  # the directions sum to 1, 2, 1, 0: three steps up, and a halt


def test_a_gradient_that_is_not_finite_is_no_silent_failure() -> None:
    with pytest.raises(ValueError, match="not finite"):
        attack(PGD(0.1, random_start=False), lambda images: network()(images) * (images.sum() - images.sum()).sqrt())


def test_a_target_without_gradient_is_no_silent_failure() -> None:
    with pytest.raises(RuntimeError, match="grad"):
        attack(PGD(0.1), lambda images: network()(images).detach())


@settings(deadline=None)
@given(gap=st.floats(-80, 80))
def test_cross_entropy_is_the_usual_one_with_a_gradient_that_stays(gap: float) -> None:
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    ours = cross_entropy(logits, torch.tensor([0]))
    torch.testing.assert_close(
        ours, functional.cross_entropy(logits, torch.tensor([0]), reduction="none"), atol=1e-6, rtol=1e-5
    )
    (slope,) = torch.autograd.grad(ours.sum(), logits)
    assert slope[0, 1] > 0
    assert slope[0, 0] == -slope[0, 1]


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), epsilon=st.floats(0, 1), norm=st.sampled_from(["linf", "l2"]))
def test_a_projection_lands_in_the_ball_and_leaves_what_is_there_alone(seed: int, epsilon: float, norm: Norm) -> None:
    images = torch.rand(3, 1, 4, 4, generator=stream(seed))
    wild = images + torch.randn(3, 1, 4, 4, generator=stream(seed + 1))
    landed = project(wild, images, epsilon, norm)
    assert norm_of(landed - images, norm).max() <= epsilon + 1e-6
    assert landed.min() >= 0
    assert landed.max() <= 1
    torch.testing.assert_close(project(landed, images, epsilon, norm), landed)


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), gap=st.floats(-4, 4), norm=st.sampled_from(["linf", "l2"]))
def test_the_step_to_a_hyperplane_is_the_one_that_bisection_finds(seed: int, gap: float, norm: Norm) -> None:
    """Slow and obvious: every pixel moves for the same time at its speed, until the sum has closed the gap."""
    point = torch.rand(1, 1, 3, 4, generator=stream(seed)).round(decimals=1)
    slope = torch.randn(1, 1, 3, 4, generator=stream(seed + 1))
    slope[0, 0, 0, 0] = 0
    fast = to_hyperplane(point, torch.tensor([gap]), slope, norm)
    towards = -np.sign(gap) * slope.sign()
    room = torch.where(towards > 0, 1 - point, point)
    speed = torch.ones_like(slope) if norm == "linf" else slope.abs()
    low, high = 0.0, 1e4
    for _ in range(80):
        time = (low + high) / 2
        short = (slope.abs() * torch.minimum(time * speed, room)).sum() < abs(gap)
        low, high = (time, high) if short else (low, time)
    torch.testing.assert_close(fast, towards * torch.minimum(high * speed, room), atol=1e-4, rtol=1e-4)
    moved = gap + (slope * fast).sum().item()
    out_of_reach = abs(gap) - (slope.abs() * room).sum().item()
    assert abs(moved) <= max(out_of_reach, 0) + 1e-4


# targets that draw noise


def noisy(sigma: float, seed: int = 9) -> Function:
    """The network behind fresh noise in each call."""
    draw = stream(seed)
    return lambda images: network()(images + sigma * torch.randn(images.shape, generator=draw))


@pytest.mark.parametrize(
    "how", [PGD(5 / 255, steps=8, loss="margin"), APGD(5 / 255, steps=12, loss="margin")], ids=["pgd", "apgd"]
)
def test_averaging_over_the_noise_makes_an_attack_stronger(how: PGD | APGD) -> None:
    """Judged on draws of which the attack saw none."""

    def strength(eot: int) -> float:
        attacked = attack(replace(how, eot=eot), noisy(0.3))
        judge = noisy(0.3, seed=77)
        with torch.no_grad():
            return float(np.mean([margin(judge(attacked), scans()[1]).mean().item() for _ in range(20)]))

    assert strength(16) > strength(1) + 0.02


def test_square_is_not_content_with_a_lucky_draw() -> None:
    """Where the noise alone fools now and then, asking eight times keeps the search going."""
    _, once = Square(4 / 255, queries=120).search(noisy(0.4), *scans(), generator=stream())
    _, often = Square(4 / 255, queries=120, eot=8).search(noisy(0.4), *scans(), generator=stream())
    assert often.float().mean() > once.float().mean()
    assert often.max() <= 120


# defences that are none


def quantise(images: torch.Tensor) -> torch.Tensor:
    return torch.round(images * 16) / 16


def blur(images: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


def test_a_quantiser_stops_plain_pgd_and_not_the_straight_through_one() -> None:
    how = PGD(16 / 255, steps=10)
    behind = lambda images: network()(quantise(images))  # noqa: E731
    surrogate = straight_through(quantise)
    assert accuracy(scans()[0], behind) >= 0.95
    assert accuracy(attack(how, behind), behind) >= 0.8
    assert accuracy(attack(how, lambda images: network()(surrogate(images))), behind) <= 0.05


def test_a_straight_through_answer_is_the_defences_own_bit_for_bit() -> None:
    images = scans()[0].clone().requires_grad_()
    answer = straight_through(quantise, blur)(images)
    assert torch.equal(answer, quantise(images))
    weights = torch.rand(images.shape, generator=stream())
    (slope,) = torch.autograd.grad((weights * answer).sum(), images)
    (wanted,) = torch.autograd.grad((weights * blur(images)).sum(), images)
    assert torch.equal(slope, wanted)


def test_a_blur_is_broken_by_the_gradient_through_it() -> None:
    images, labels = pictures(512, seed=1)
    blurred = train(untrained(), blur(images), labels)
    behind = lambda images: blurred(blur(images))  # noqa: E731
    assert accuracy(scans()[0], behind) >= 0.95
    transferred = accuracy(attack(PGD(16 / 255, steps=20)), behind)
    exact = accuracy(attack(PGD(16 / 255, steps=20), behind), behind)
    assert exact <= 0.05
    assert exact <= transferred


# attackers who know the detector


def test_who_knows_the_detector_fools_unflagged_where_plain_pgd_is_flagged() -> None:
    plain = attack(PGD(16 / 255, steps=40))
    aware = attack(DetectorAware(16 / 255, roughness, threshold()))
    assert (roughness(plain) > threshold()).float().mean() >= 0.7
    assert (roughness(aware) > threshold()).float().mean() <= 0.1
    unnoticed = (decide(aware) != scans()[1]) & (roughness(aware) <= threshold())
    assert unnoticed.float().mean() >= 0.9
    no_penalty = attack(DetectorAware(16 / 255, roughness, threshold(), penalty=0, searches=1))
    wider = margin(network()(aware), scans()[1]) - margin(network()(no_penalty), scans()[1])
    assert wider.mean() > 0.1


def test_a_flood_has_clean_scans_flagged() -> None:
    assert (roughness(scans()[0]) > threshold()).float().mean() <= 0.07
    assert (roughness(attack(Flood(8 / 255, roughness))) > threshold()).float().mean() >= 0.9


# attackers who count their questions


class Counted:
    """How often each call was asked about how many scans."""

    def __init__(self, target: Function) -> None:
        self.target, self.calls, self.asked = target, 0, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls, self.asked = self.calls + 1, self.asked + len(images)
        return self.target(images)


@pytest.mark.parametrize("queries", [1, 7, 90])
@pytest.mark.parametrize("kind", [Square, HopSkipJump])
def test_no_scan_is_asked_about_more_often_than_allowed(kind: type[Square] | type[HopSkipJump], queries: int) -> None:
    target = Counted(decide if kind is HopSkipJump else network())
    attack(kind(1 / 255, queries=queries), target)
    assert 0 < target.calls <= queries


def test_hop_skip_jump_counts_the_questions_of_every_round() -> None:
    target = Counted(decide)
    attack(HopSkipJump(1 / 255, queries=200, probes=15), target)
    assert 150 < target.calls <= 200


def test_square_says_what_it_asked_and_leaves_fooled_scans_alone() -> None:
    target = Counted(network())
    attacked, asked = Square(12 / 255, queries=100).search(target, *scans(), generator=stream())
    assert asked.sum() == target.asked < 100 * len(asked)
    fooled = decide(attacked) != scans()[1]
    assert (asked[~fooled] == 100).all()
    assert asked[fooled].float().mean() < 100


def test_square_treats_a_scan_alike_whether_the_others_are_still_searched_or_not() -> None:
    images, labels = scans()
    hopeless = torch.where(torch.arange(len(labels)) == 0, labels, 1 - labels)  # all but the first count as fooled
    among = Square(4 / 255, queries=30)(network(), images, labels, generator=stream())
    alone = Square(4 / 255, queries=30)(network(), images, hopeless, generator=stream())
    assert torch.equal(among[0], alone[0])
    assert not torch.equal(among[1], alone[1])


def test_hop_skip_jump_takes_a_referral_for_no_success() -> None:
    def refers(images: torch.Tensor) -> torch.Tensor:
        return torch.where(roughness(images) > threshold(), -1, decide(images))

    attacked = attack(HopSkipJump(24 / 255, queries=600, probes=40), refers)
    moved = (attacked != scans()[0]).flatten(1).any(dim=1)
    fooled = (refers(attacked) != scans()[1]) & (refers(attacked) != -1)
    assert fooled.float().mean() > 0.2
    assert moved.float().mean() > 0.5


def test_hop_skip_jump_leaves_scans_alone_whose_wrong_answers_are_all_referred() -> None:
    def refers(images: torch.Tensor) -> torch.Tensor:
        return torch.where(decide(images) == 1, -1, 0)

    attacked = attack(HopSkipJump(0.1, queries=100), refers)
    same = (attacked == scans()[0]).flatten(1).all(dim=1)
    assert same[scans()[1] == 0].all()
    assert not same[scans()[1] == 1].any()
