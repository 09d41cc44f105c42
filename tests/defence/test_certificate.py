"""A certificate says no more than what randomised smoothing proves, and says all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedplatform.defence.certificate import (
    Answer,
    Certificate,
    certified_accuracy,
    certify,
    clopper_pearson,
    step_of,
)

IMAGE = torch.full((1, 4, 4), 0.5)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half_space(distance: float) -> Answer:
    """A linear classifier that answers 1 for IMAGE, whose decision border is ``distance`` away from it in L2."""
    normal = torch.randn(IMAGE.shape, generator=stream(1))
    normal /= torch.linalg.vector_norm(normal)
    border = float((normal * IMAGE).sum()) - distance

    def answer(images: torch.Tensor) -> torch.Tensor:
        return ((images * normal).sum(dim=(1, 2, 3)) > border).long()

    return answer


def brightest_quarter(images: torch.Tensor) -> torch.Tensor:
    """A classifier of four classes that answers all of them now and then."""
    weights = torch.tensor([1.0, 0.95, 0.9, 0.5])
    return (images.flatten(1).unflatten(1, (4, 4)).sum(dim=2) * weights).argmax(dim=1)


def always_2(images: torch.Tensor) -> torch.Tensor:
    return torch.full((len(images),), 2)


def slow_lower_bound(successes: int, trials: int, confidence: float) -> float:
    """By bisection: the probability under which so many successes or more have a chance of just 1 - confidence."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))
        low, high = (p, high) if tail < 1 - confidence else (low, p)
    return low


def slow_certify(
    answer: Answer, image: torch.Tensor, sigma: float, select: int, samples: int, confidence: float, seed: int
) -> tuple[int | None, float]:
    """One noisy copy after the other, nothing but lists and the definition."""
    generator = stream(seed)
    answers = []
    for _ in range(select + samples):
        noisy = image + sigma * torch.randn(image.shape, generator=generator)
        answers.append(int(answer(noisy[None])[0]))
    chosen = max(sorted(set(answers[:select])), key=answers[:select].count)
    bound = slow_lower_bound(answers[select:].count(chosen), samples, confidence)
    return (chosen, sigma * float(stats.norm.ppf(bound))) if bound > 0.5 else (None, 0.0)


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.4, 0.9])
def test_the_radius_exceeds_the_true_distance_no_more_often_than_the_confidence_allows(distance: float) -> None:
    answer, generator, confidence, runs = half_space(distance), stream(2), 0.9, 300
    certificates = [
        certify(answer, IMAGE, sigma=0.4, num_classes=2, samples=100, confidence=confidence, generator=generator)
        for _ in range(runs)
    ]
    reach = {1: distance, 0: -distance, None: math.inf}  # on the wrong side of the border any radius is too large
    violations = sum(certificate.radius > reach[certificate.label] for certificate in certificates)
    assert violations <= stats.binom.ppf(0.9999, runs, 1 - confidence)


def test_the_radius_comes_near_the_true_distance_and_a_tenth_of_the_runs_pass_it_where_a_tenth_may() -> None:
    answer, generator = half_space(0.4), stream(3)
    radii = [
        certify(answer, IMAGE, sigma=0.4, num_classes=2, samples=400, confidence=0.9, generator=generator).radius
        for _ in range(200)
    ]
    assert 0.33 < np.mean(radii) < 0.4
    assert 0.02 < np.mean(np.array(radii) > 0.4) < 0.2


@given(seed=st.integers(0, 2**31), sigma=st.floats(0.05, 1.0), confidence=st.floats(0.5, 0.9999))
@settings(max_examples=25, deadline=None)
def test_it_equals_a_slow_plain_implementation(seed: int, sigma: float, confidence: float) -> None:
    found = certify(
        brightest_quarter,
        IMAGE,
        sigma=sigma,
        num_classes=4,
        select=7,
        samples=40,
        confidence=confidence,
        batch=16,
        generator=stream(seed),
    )
    label, radius = slow_certify(brightest_quarter, IMAGE, sigma, 7, 40, confidence, seed)
    assert found.label == label
    assert found.radius == pytest.approx(radius, abs=1e-9)


@given(trials=st.integers(1, 60), data=st.data(), confidence=st.floats(0.5, 0.9999))
@settings(max_examples=50, deadline=None)
def test_the_lower_bound_is_exact_and_rises_with_the_count(trials: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials - 1))
    bound = clopper_pearson(successes, trials, confidence=confidence)
    assert bound == pytest.approx(slow_lower_bound(successes, trials, confidence), abs=1e-9)
    assert bound < clopper_pearson(successes + 1, trials, confidence=confidence)
    assert bound <= successes / trials


@given(fooled=st.integers(0, 60), more=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_the_more_copies_agree_the_larger_the_radius(fooled: int, more: int) -> None:
    def with_errors(number: int) -> Certificate:
        """Every copy is answered with 1, but for ``number`` of those that are counted."""
        seen = 0

        def answer(images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            places = torch.arange(seen, seen + len(images))
            seen += len(images)
            return (places < 32 + 256 - number).long()

        return certify(answer, IMAGE, sigma=0.25, num_classes=2, generator=stream(0))

    fewer_errors, more_errors = with_errors(fooled), with_errors(fooled + more)
    assert fewer_errors.counts == (fooled, 256 - fooled)
    assert fewer_errors.radius > more_errors.radius > 0


def test_a_constant_classifier_gets_the_largest_radius_that_so_many_copies_can_prove() -> None:
    certificate = certify(always_2, IMAGE, sigma=0.25, num_classes=3, confidence=0.999, generator=stream(0))
    assert certificate.label == 2
    assert certificate.counts == (0, 0, 256)
    assert certificate.radius == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 256)))


def test_a_coin_flip_abstains() -> None:
    coin = stream(5)

    def flip(images: torch.Tensor) -> torch.Tensor:
        return torch.randint(2, (len(images),), generator=coin)

    for seed in range(20):
        certificate = certify(flip, IMAGE, sigma=0.25, num_classes=2, generator=stream(seed))
        assert certificate.label is None
        assert certificate.radius == 0
        assert certificate.lower_bound <= 0.5


def test_a_class_that_wins_without_a_majority_abstains() -> None:
    def three_ways(images: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(images)) % 5 // 2  # 0 and 1 two times in five, 2 once

    assert certify(three_ways, IMAGE, sigma=0.25, num_classes=3, generator=stream(0)).label is None


def test_the_copies_that_choose_the_class_are_not_counted_and_the_number_of_copies_is_fixed_beforehand() -> None:
    calls: list[int] = []

    def one_first_then_zero(images: torch.Tensor) -> torch.Tensor:
        label = int(sum(calls) < 10)
        calls.append(len(images))
        return torch.full((len(images),), label)

    certificate = certify(
        one_first_then_zero, IMAGE, sigma=0.25, num_classes=2, select=10, samples=30, batch=8, generator=stream(0)
    )
    assert calls == [8, 2, 8, 8, 8, 6]
    assert certificate.counts == (30, 0)
    assert certificate.label is None


def test_the_noise_has_the_deviation_asked_for_and_is_not_clipped() -> None:
    seen: list[torch.Tensor] = []

    def remember(images: torch.Tensor) -> torch.Tensor:
        seen.append(images - IMAGE)
        return torch.zeros(len(images), dtype=torch.int64)

    certify(remember, IMAGE, sigma=0.5, num_classes=2, select=300, samples=700, generator=stream(0))
    noise = torch.cat(seen)
    assert len(noise) == 1000
    assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.max() > 1


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_batch_size_changes_nothing(batch: int) -> None:
    def at(size: int) -> Certificate:
        return certify(brightest_quarter, IMAGE, sigma=0.3, num_classes=4, batch=size, generator=stream(4))

    assert at(batch) == at(64)


def test_an_attack_within_the_radius_never_changes_what_is_certified() -> None:
    answer, generator = half_space(0.5), stream(6)
    certificate = certify(answer, IMAGE, sigma=0.4, num_classes=2, generator=generator)
    assert certificate.label == 1
    towards_border = torch.autograd.functional.jacobian(
        lambda image: (image * torch.randn(IMAGE.shape, generator=stream(1))).sum(), IMAGE
    )
    step = towards_border / torch.linalg.vector_norm(towards_border)
    moved = certify(answer, IMAGE - 0.95 * certificate.radius * step, sigma=0.4, num_classes=2, generator=generator)
    far = certify(answer, IMAGE - 1.0 * step, sigma=0.4, num_classes=2, generator=generator)
    assert moved.counts[1] > moved.counts[0]
    assert far.label == 0


def test_certified_accuracy_counts_the_right_answers_whose_radius_reaches() -> None:
    def certificate(label: int | None, radius: float) -> Certificate:
        return Certificate(label, radius, 0.9, (0, 10), 10, 0.25, 0.999)

    certificates = [certificate(1, 0.5), certificate(1, 0.2), certificate(0, 0.9), certificate(None, 0.0)]
    shares = certified_accuracy(certificates, [1, 1, 1, 0], [0.0, 0.3, 0.5, 0.6])
    assert shares.tolist() == [0.5, 0.25, 0.25, 0.0]
    with pytest.raises(ValueError, match="4 certificates and 3 labels"):
        certified_accuracy(certificates, [1, 1, 1], [0.0])


SCHEDULE = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)  # of Ho et al.


@given(sigma=st.floats(0.01, 5.0))
@settings(max_examples=50, deadline=None)
def test_the_diffusion_step_is_the_one_with_the_nearest_noise(sigma: float) -> None:
    abar = (1 - SCHEDULE).cumprod(dim=0)
    noise = [math.sqrt((1 - float(a)) / float(a)) / 2 for a in abar]  # in [0, 1] pixel units
    assert step_of(sigma, abar) == min(range(1000), key=lambda t: abs(noise[t] - sigma))


@pytest.mark.parametrize("sigma", [0.1, 0.25, 0.5, 1.0])
def test_at_that_step_a_noisy_scan_looks_like_a_diffused_one(sigma: float) -> None:
    abar = (1 - SCHEDULE).cumprod(dim=0)
    t = step_of(sigma, abar)
    image, noise = torch.rand(200, 200, generator=stream(0)), torch.randn(200, 200, generator=stream(1))
    noisy = abar[t].sqrt() * (2 * (image + sigma * noise) - 1)
    spread = (noisy - abar[t].sqrt() * (2 * image - 1)).std()
    assert float(spread) == pytest.approx(math.sqrt(1 - float(abar[t])), rel=0.02)


def test_noise_that_the_diffusion_does_not_reach_is_refused() -> None:
    abar = (1 - SCHEDULE).cumprod(dim=0)[:200]
    last = math.sqrt((1 - float(abar[-1])) / float(abar[-1])) / 2
    assert step_of(last, abar) == 199
    with pytest.raises(ValueError, match="covers sigma above 0 and up to"):
        step_of(last * 1.01, abar)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"sigma": 0.0}, "sigma > 0"),
        ({"confidence": 1.0}, "confidence between 0 and 1"),
        ({"samples": 0}, "needs copies"),
        ({"num_classes": 2}, "labels from 0 to 1"),
    ],
)
def test_what_cannot_be_certified_is_refused(wrong: dict[str, float], complaint: str) -> None:
    settings: dict[str, float] = {"sigma": 0.25, "num_classes": 3, **wrong}
    with pytest.raises(ValueError, match=complaint):
        certify(always_2, IMAGE, generator=stream(0), **settings)  # type: ignore[arg-type]
