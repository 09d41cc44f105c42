"""The gate that refers pictures of another kind than the hospitals' scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.data.images import to_images
from fedplatform.data.lesions import Lesions
from fedplatform.defence.kind import (
    FOREIGN_RATE,
    KindGate,
    fit_gates,
    group_quantile,
    kind_gate,
    measure,
    picture_statistics,
)

Scans = dict[str, tuple[torch.Tensor, np.ndarray]]


@pytest.fixture(scope="module")
def scans() -> Scans:
    """Synthetic brain scans of four hospitals and one that holds none of the training scans, with their patients."""
    source = Lesions(hospitals=5, patients_per_hospital=60)
    index = source.index()
    images = to_images(np.concatenate(list(source.images(size=32, channels=1))))
    sites, groups = (index.column(name).to_numpy(zero_copy_only=False) for name in ("site", "group"))
    return {str(site): (images[torch.from_numpy(sites == site)], groups[sites == site]) for site in np.unique(sites)}


def foreign_pictures() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(50, 1, 1, 1, generator=generator)
    return {
        "blank": plain.expand(50, 1, 32, 32),
        "noise": torch.rand(50, 1, 32, 32, generator=generator),
        "stripes": (torch.arange(32) // 4 % 2).float().expand(50, 1, 32, 32) * plain,
        "gradient": torch.linspace(0, 1, 32).expand(50, 1, 32, 32) * plain,
    }


def test_pictures_of_another_kind_are_foreign_and_few_scans_of_a_hospital_that_was_not_asked_are(scans: Scans) -> None:
    *known, left_out = scans
    gates = fit_gates({name: scans[name] for name in known})
    for gate in gates.values():
        for kind, pictures in foreign_pictures().items():
            assert gate.is_foreign(pictures).float().mean() >= 0.95, kind
    clean = [float(gate.is_foreign(scans[left_out][0]).float().mean()) for gate in gates.values()]
    assert np.mean(clean) <= 0.15, "another hospital's scanner is stranger than one's own, but no other kind"


def test_of_its_own_clean_scans_a_hospital_refers_about_as_many_as_was_asked_for(scans: Scans) -> None:
    generator = np.random.default_rng(0)
    halves: Scans = {}
    rest: Scans = {}
    for name, (images, groups) in scans.items():
        names = generator.permutation(np.unique(groups))
        first = np.isin(groups, names[: len(names) // 2])
        halves[name] = images[torch.from_numpy(first)], groups[first]
        rest[name] = images[torch.from_numpy(~first)], groups[~first]
    gates = fit_gates(halves)
    referred = [float(gates[name].is_foreign(rest[name][0]).float().mean()) for name in gates]
    assert np.mean(referred) <= 2 * FOREIGN_RATE


def test_a_minority_of_lying_hospitals_opens_and_closes_no_gate(scans: Scans) -> None:
    names = list(scans)
    honest = fit_gates(scans)[names[0]]
    told = [measure(*scans[name])[0] for name in names]
    lies = {"everything is usual": 1e12, "nothing is usual": 1e-12, "no numbers": float("nan")}
    for lie, factor in lies.items():
        spreads = [each.spreads * factor if number >= 3 else each.spreads for number, each in enumerate(told)]
        gate = KindGate.of(told)
        gate.spreads.copy_(torch.stack(spreads))
        gate.threshold.copy_(honest.threshold)
        foreign = torch.cat(list(foreign_pictures().values()))
        assert gate.is_foreign(foreign).float().mean() >= 0.9, lie
        assert gate.is_foreign(scans[names[0]][0]).float().mean() <= 0.3, lie


def test_the_score_is_the_mahalanobis_distance_of_the_strangest_block(scans: Scans) -> None:
    name = next(iter(scans))
    images, groups = scans[name]
    gate = fit_gates({name: (images, groups)})[name]
    slow = []
    for block, (median, spread) in zip(picture_statistics(images), zip(*gate_scales(gate), strict=True), strict=True):
        rows = block.double().numpy()
        covariance = np.cov(rows.T)
        shrunk = 0.7 * covariance + 0.3 * np.diag(np.diag(covariance) + 1e-6)
        away = rows - rows.mean(axis=0)
        distance = [np.sqrt(row @ np.linalg.solve(shrunk, row)) for row in away]
        slow.append((np.array(distance) - median) / spread)
    assert gate(images).numpy() == pytest.approx(np.max(slow, axis=0), rel=1e-2, abs=1e-2)


def gate_scales(gate: KindGate) -> tuple[list[float], list[float]]:
    return gate.medians[0].tolist(), gate.spreads[0].tolist()


def test_a_gate_is_read_back_as_it_was(scans: Scans) -> None:
    gate = next(iter(fit_gates(scans).values()))
    images = next(iter(scans.values()))[0][:20]
    assert torch.equal(kind_gate(gate.state_dict())(images), gate(images))


def test_colour_counts_where_there_is_some() -> None:
    grey = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(1)).expand(60, 3, 16, 16)
    gate = fit_gates({"a": (grey, np.arange(60))})["a"]
    tinted = grey * torch.tensor([1.0, 0.5, 0.5])[:, None, None]
    assert not gate.is_foreign(grey).float().mean() > 0.2
    assert gate.is_foreign(tinted).all()


def test_hospitals_of_few_patients_borrow_a_threshold_and_none_at_all_have_no_gate() -> None:
    images = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    many, few, one = np.arange(40), np.arange(40) % 6, np.zeros(40, int)
    gates = fit_gates({"many": (images, many), "few": (images, few), "one": (images, one)})
    assert set(gates) == {"many", "few", "one"}
    assert torch.isfinite(gates["one"].threshold)
    assert gates["few"].threshold == gates["one"].threshold
    assert gates["many"].threshold >= gates["one"].threshold
    assert fit_gates({"one": (images, one)}) == {}
    with pytest.raises(ValueError, match="at least 5 groups, got 1"):
        measure(images, one)


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 5)), min_size=1, max_size=40),
    st.floats(0.05, 1),
)
@settings(deadline=None)
def test_a_group_quantile_is_reached_by_that_share_of_the_groups(rows: list[tuple[float, int]], level: float) -> None:
    values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    groups = np.array([group for _, group in rows])
    found = float(group_quantile(values, groups, level))
    weights = np.array([1 / (groups == group).sum() / len(np.unique(groups)) for group in groups])
    assert weights[values.numpy() <= found].sum() >= level - 1e-5
    below = weights[values.numpy() < found].sum()
    assert below < level + 1e-9
