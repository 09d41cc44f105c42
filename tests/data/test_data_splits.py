from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.data.error import DataError
from fedplatform.data.index import Index
from fedplatform.data.partition import PARTITIONS, BySite, Dirichlet, Iid, LabelSkew, Partition, QuantitySkew, spread
from fedplatform.data.splits import Groups, Role, assign_roles, deal_into_parts, largest_first

QUICK = settings(deadline=None, max_examples=30)
PARTITION_OBJECTS = (Iid(), Dirichlet(0.3), LabelSkew(0.8), QuantitySkew(1.0), BySite())


def an_index(
    *, num_groups: int, num_classes: int, seed: int, largest: int = 6, sites: int = 0, mixed: bool = False
) -> Index:
    """Groups of 1 to ``largest`` scans; a group is of one class unless ``mixed``, and at one site."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, largest + 1, num_groups)
    groups = generator.permutation(np.repeat(np.arange(num_groups) * 7 - 3, sizes))
    number = (groups + 3) // 7
    labels = number % num_classes
    if mixed:
        labels = np.where(generator.random(len(labels)) < 0.1, (labels + 1) % num_classes, labels)
    at = np.array([f"site-{n // num_classes % sites}" for n in number]) if sites else None
    return Index(tuple("abcdef"[:num_classes]), labels, groups=groups, sites=at)


indices = st.builds(
    an_index,
    num_groups=st.integers(60, 150),
    num_classes=st.integers(2, 3),
    seed=st.integers(0, 10_000),
    largest=st.integers(1, 8),
    sites=st.sampled_from([0, 4]),
    mixed=st.booleans(),
)


def never_cut(groups: np.ndarray, parts: np.ndarray) -> bool:
    return len(set(zip(groups.tolist(), parts.tolist(), strict=True))) == len(set(groups.tolist()))


@QUICK
@given(indices, st.integers(0, 99))
def test_a_group_safe_split_never_cuts_a_group_and_every_role_has_every_class(index: Index, seed: int) -> None:
    roles = assign_roles(index, seed=seed, root_size=8)
    assert index.groups is not None
    assert never_cut(index.groups, roles)
    assert set(roles) == set(Role)
    for role in Role:
        assert len(np.unique(index.labels[roles == role])) == len(index.classes)
    assert (roles == assign_roles(index, seed=seed, root_size=8)).all()


@QUICK
@given(indices, st.integers(0, 99), st.sampled_from(PARTITION_OBJECTS), st.sampled_from([2, 4]))
def test_a_partition_never_cuts_a_group_and_places_every_scan_once(
    index: Index, seed: int, how: Partition, num_hospitals: int
) -> None:
    if isinstance(how, BySite) and index.sites is None:
        return
    roles = assign_roles(index, seed=seed, root_size=8)
    hospital_of = spread(index, roles, how, num_hospitals=num_hospitals, seed=seed)
    assert index.groups is not None
    assert never_cut(index.groups, hospital_of)
    assert ((hospital_of == -1) == (roles == Role.ROOT)).all()
    assert set(hospital_of[roles == Role.TRAIN]) == set(range(num_hospitals))
    assert (hospital_of == spread(index, roles, how, num_hospitals=num_hospitals, seed=seed)).all()


@QUICK
@given(indices, st.integers(0, 99))
def test_an_attacker_grades_nothing(index: Index, seed: int) -> None:
    roles = assign_roles(index, seed=seed, root_size=0)
    hospital_of = spread(index, roles, Dirichlet(0.1), num_hospitals=5, seed=seed, graders=[1, 3])
    assert set(hospital_of[roles == Role.TEST]) <= {1, 3}


@pytest.mark.parametrize("sites", [0, 4])
def test_the_fractions_are_met_in_every_class_and_site(sites: int) -> None:
    index = an_index(num_groups=2000, num_classes=2, seed=0, sites=sites)
    roles = assign_roles(index, seed=1, root_size=100)
    for site in range(max(sites, 1)):
        here = np.ones(len(index), bool) if index.sites is None else index.sites == f"site-{site}"
        for label in range(2):
            inside = here & (index.labels == label)
            assert (roles[inside] == Role.TEST).mean() == pytest.approx(0.2, abs=0.01)
            assert (roles[inside] == Role.VALIDATION).mean() == pytest.approx(0.1, abs=0.01)
    root = np.bincount(index.labels[roles == Role.ROOT])
    assert root.tolist() == pytest.approx([50, 50], abs=3 * max(sites, 1))


def test_folds_are_kept_whole_and_drawn_by_the_seed() -> None:
    generator = np.random.default_rng(0)
    folds = np.repeat(np.arange(10), 40)
    groups = folds * 100 + generator.integers(0, 20, 400)
    index = Index(("a", "b"), groups % 2, groups=groups, folds=folds)
    chosen = set()
    for seed in range(5):
        roles = assign_roles(index, seed=seed, root_size=10)
        test = np.unique(folds[roles == Role.TEST])
        assert len(test) == 2
        assert len(np.unique(folds[roles == Role.VALIDATION])) == 1
        assert not np.isin(folds[roles != Role.TEST], test).any()
        chosen.add(tuple(test))
    assert len(chosen) > 1


def test_a_published_test_set_stays_the_test_set() -> None:
    labels = np.arange(200) % 2
    splits = np.where(np.arange(200) < 150, "train", "test")
    roles = assign_roles(Index(("a", "b"), labels, splits=splits), seed=0, root_size=10)
    assert ((roles == Role.TEST) == (splits == "test")).all()
    assert (roles == Role.VALIDATION).sum() == pytest.approx(15, abs=2)
    assert np.bincount(labels[roles == Role.ROOT]).tolist() == [5, 5]


def test_a_random_split_cuts_groups_and_a_group_safe_one_does_not() -> None:
    index = an_index(num_groups=50, num_classes=2, seed=0, largest=20)
    assert index.groups is not None
    assert not never_cut(index.groups, assign_roles(index, split="random", seed=0, root_size=10))
    assert never_cut(index.groups, assign_roles(index, seed=0, root_size=10))


def test_a_small_concentration_is_more_skewed_than_a_large_one() -> None:
    index = an_index(num_groups=3000, num_classes=3, seed=0)
    roles = np.full(len(index), Role.TRAIN.value)

    def skew(how: Partition) -> float:
        """Mean total variation between a hospital's mix of classes and everybody's."""
        hospital_of = spread(index, roles, how, num_hospitals=10, seed=0)
        mixes = [np.bincount(index.labels[hospital_of == hospital], minlength=3) for hospital in range(10)]
        return float(np.mean([np.abs(mix / mix.sum() - 1 / 3).sum() / 2 for mix in mixes]))

    skews = [skew(Dirichlet(concentration)) for concentration in (0.05, 0.5, 5.0, 500.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.4
    assert skews[-1] < 0.05
    assert skew(Iid()) < 0.01


def test_the_main_class_has_its_share_of_every_hospital() -> None:
    index = an_index(num_groups=4000, num_classes=2, seed=0)
    roles = np.full(len(index), Role.TRAIN.value)
    hospital_of = spread(index, roles, LabelSkew(0.9), num_hospitals=10, seed=0)
    for hospital in range(10):
        labels = index.labels[hospital_of == hospital]
        assert (labels == hospital % 2).mean() == pytest.approx(0.9, abs=0.02)


def test_quantity_skew_changes_sizes_and_not_the_mix() -> None:
    index = an_index(num_groups=4000, num_classes=2, seed=0)
    roles = np.full(len(index), Role.TRAIN.value)
    hospital_of = spread(index, roles, QuantitySkew(1.0), num_hospitals=10, seed=0)
    sizes = np.bincount(hospital_of)
    assert sizes.max() > 4 * sizes.min()
    for hospital in np.flatnonzero(sizes > 200):
        assert index.labels[hospital_of == hospital].mean() == pytest.approx(0.5, abs=0.05)
    even = np.bincount(spread(index, roles, QuantitySkew(0.0), num_hospitals=10, seed=0))
    assert even.max() - even.min() < 12


@pytest.mark.parametrize("num_hospitals", [4, 2])
def test_by_site_keeps_every_scan_at_its_site(num_hospitals: int) -> None:
    index = an_index(num_groups=200, num_classes=2, seed=0, sites=4)
    assert index.sites is not None
    roles = assign_roles(index, seed=0, root_size=16)
    hospital_of = spread(index, roles, BySite(), num_hospitals=num_hospitals, seed=0, graders=[0])
    kept = hospital_of >= 0
    assert len(set(zip(index.sites[kept], hospital_of[kept], strict=True))) == 4
    assert np.bincount(hospital_of[kept]).min() > 0


def test_a_hospital_with_almost_no_share_still_gets_a_group() -> None:
    index = an_index(num_groups=60, num_classes=2, seed=0)
    roles = np.full(len(index), Role.TRAIN.value)
    for seed in range(10):
        hospital_of = spread(index, roles, Dirichlet(0.01), num_hospitals=30, seed=seed)
        assert np.bincount(hospital_of, minlength=30).min() > 0


def test_every_partition_has_a_name_and_is_one() -> None:
    assert set(PARTITIONS) == {"iid", "dirichlet", "label_skew", "quantity_skew", "site"}
    for make in PARTITIONS.values():
        assert isinstance(make(), Partition)


def test_infeasible_splits_are_refused_with_their_numbers() -> None:
    labels = np.array([0] * 30 + [1] * 30)
    two_people = Index(("healthy", "ill"), labels, groups=np.where(labels == 0, np.arange(60), 100 + np.arange(60) % 2))
    with pytest.raises(DataError, match="class 'ill' has 2 groups, too few for a part in each of train, test"):
        assign_roles(two_people, seed=0, root_size=10)
    with pytest.raises(DataError, match=r"got test=0\.9, validation=0\.2"):
        assign_roles(two_people, seed=0, test_fraction=0.9, validation_fraction=0.2)
    with pytest.raises(DataError, match="a split is one of group_safe, redrawn, random, got 'by patient'"):
        assign_roles(two_people, split="by patient", seed=0)  # type: ignore[arg-type]
    cut = Index(("a", "b"), labels, groups=np.arange(60) // 2, splits=np.array(["train", "test"] * 30))
    with pytest.raises(DataError, match="the published split cuts 30 of 30 groups"):
        assign_roles(cut, seed=0)


def test_infeasible_partitions_are_refused_with_their_numbers() -> None:
    index = an_index(num_groups=20, num_classes=2, seed=0, sites=4)
    roles = np.full(len(index), Role.TRAIN.value)
    with pytest.raises(DataError, match="30 hospitals need at least as many training groups, got 20"):
        spread(index, roles, Iid(), num_hospitals=30, seed=0)
    with pytest.raises(DataError, match="as many sites as hospitals or a multiple, got 4 sites, 3 hospitals"):
        spread(index, roles, BySite(), num_hospitals=3, seed=0)
    with pytest.raises(DataError, match="graders are hospitals 0 to 2, got 3"):
        spread(index, roles, Iid(), num_hospitals=3, seed=0, graders=[3])
    with pytest.raises(DataError, match=r"concentration > 0, got 0\.0"):
        Dirichlet(0.0)
    with pytest.raises(DataError, match="0 < share <= 1, got 2"):
        LabelSkew(2)
    with pytest.raises(DataError, match="sigma >= 0, got -1"):
        QuantitySkew(-1)


def of_sizes(*sizes: tuple[int, ...]) -> Index:
    """For every class, groups of these sizes; a group is of one class."""
    labels = np.repeat(np.arange(len(sizes)), [sum(of_class) for of_class in sizes])
    groups = np.repeat(np.arange(sum(map(len, sizes))), [size for of_class in sizes for size in of_class])
    return Index(tuple("abcdef"[: len(sizes)]), labels, groups=groups)


def groups_in(index: Index, roles: np.ndarray, role: Role, label: int) -> set[int]:
    assert index.groups is not None
    return set(index.groups[(roles == role) & (index.labels == label)].tolist())


@QUICK
@given(st.integers(1, 30), st.integers(0, 99))
def test_of_a_class_with_as_many_groups_as_roles_every_role_gets_one(size: int, seed: int) -> None:
    index = of_sizes((2,) * 10, (size,) * 4)
    roles = assign_roles(index, seed=seed, root_size=8)
    assert [len(groups_in(index, roles, role, 1)) for role in Role] == [1, 1, 1, 1]


def test_four_groups_of_unlike_size_are_enough_for_four_roles() -> None:
    index = of_sizes((2,) * 10, (1, 1, 1, 5))
    for seed in range(10):
        roles = assign_roles(index, seed=seed, root_size=8)
        assert [len(groups_in(index, roles, role, 1)) for role in Role] == [1, 1, 1, 1]


@QUICK
@given(st.integers(1, 30), st.integers(0, 99))
def test_the_last_group_of_a_class_stays_in_training_and_a_role_without_one_is_named(size: int, seed: int) -> None:
    index = of_sizes((2,) * 10, (size,) * 3)
    says = "class 'b' has 3 groups, too few for a part in each of train, test, validation, root: none is left for root"
    with pytest.raises(DataError, match=f"^{says}$"):
        assign_roles(index, seed=seed, root_size=8)
    roles = assign_roles(index, seed=seed, root_size=0)
    assert [len(groups_in(index, roles, role, 1)) for role in Role] == [1, 1, 1, 0]
    without = assign_roles(index, seed=seed, root_size=0, validation_fraction=0.0)
    assert [len(groups_in(index, without, role, 1)) for role in Role] == [2, 0, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_where_every_group_is_larger_than_its_share_the_smallest_is_taken(seed: int) -> None:
    index = of_sizes((30, 20, 40, 25, 50), (45, 35, 15, 60, 28))
    roles = assign_roles(index, seed=seed, test_fraction=0.04, validation_fraction=0.0, root_size=0)
    assert groups_in(index, roles, Role.TEST, 0) == {1}
    assert groups_in(index, roles, Role.TEST, 1) == {7}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_that_comes_no_nearer_to_the_share_is_not_taken(seed: int) -> None:
    index = of_sizes((2,) * 10, (2,) * 10)  # a quarter are five scans a class: two groups are one short, three one over
    roles = assign_roles(index, seed=seed, test_fraction=0.25, validation_fraction=0.0, root_size=0)
    assert np.bincount(index.labels[roles == Role.TEST]).tolist() == [4, 4]


@pytest.mark.parametrize("parts", [("train", "validation", "test"), ("train", "validation"), ("train", "test")])
def test_of_a_published_split_every_part_stays_and_only_what_is_missing_is_drawn(parts: tuple[str, ...]) -> None:
    labels, number = np.arange(300) % 2, np.arange(300)
    splits = np.full(300, "train", "<U10")
    if "validation" in parts:
        splits[200:240] = "validation"
    if "test" in parts:
        splits[240:] = "test"
    index = Index(("a", "b"), labels, groups=number // 2, folds=number // 2 % 10, splits=splits)
    roles = assign_roles(index, seed=0, root_size=20)
    for name, role, drawn in (("validation", Role.VALIDATION, 0.1), ("test", Role.TEST, 0.2)):
        if name in parts:
            assert ((roles == role) == (splits == name)).all()
        else:
            assert (splits[roles == role] == "train").all()
            assert (roles == role).sum() == pytest.approx(drawn * (splits == "train").sum(), abs=2)
    assert (splits[roles == Role.ROOT] == "train").all()
    assert index.groups is not None
    assert never_cut(index.groups, roles)


def test_a_random_split_looks_neither_at_a_published_split_nor_at_folds() -> None:
    number = np.arange(400)
    labels = number // 2 % 2
    splits = np.where(number < 300, "train", "test")
    index = Index(("a", "b"), labels, groups=number // 2, folds=number // 2 % 10, splits=splits)
    roles = assign_roles(index, split="random", seed=0, root_size=20)
    assert (roles == Role.TEST).sum() == pytest.approx(80, abs=2)
    assert (splits[roles == Role.TEST] == "train").any()
    assert (splits[roles != Role.TEST] == "test").any()
    folds = Index(("a", "b"), labels, groups=number // 2, folds=number // 40)
    assert len(np.unique(number[assign_roles(folds, split="random", seed=0, root_size=20) == Role.TEST] // 40)) == 10


def test_of_few_folds_one_is_for_the_test_and_one_for_validation() -> None:
    number = np.arange(300)
    index = Index(("a", "b"), number % 2, groups=number // 2, folds=number // 100)
    roles = assign_roles(index, seed=0, test_fraction=0.3, validation_fraction=0.1, root_size=10)
    assert (roles == Role.TEST).sum() == 100
    assert (roles == Role.VALIDATION).sum() == 100
    without = assign_roles(index, seed=0, test_fraction=0.3, validation_fraction=0.0, root_size=10)
    assert not (without == Role.VALIDATION).any()


def test_of_two_folds_validation_scans_are_drawn_in_groups() -> None:
    number = np.arange(200)
    index = Index(("a", "b"), number % 2, groups=number // 2, folds=number // 100)
    roles = assign_roles(index, seed=0, root_size=10)
    assert (roles == Role.TEST).sum() == 100
    assert (roles == Role.VALIDATION).sum() == 10
    assert index.groups is not None
    assert never_cut(index.groups, roles)


def test_where_groups_and_sites_are_known_folds_are_not_needed() -> None:
    number = np.arange(800)
    sites = np.where(number < 400, "north", "south")
    index = Index(("a", "b"), number // 2 % 2, groups=number // 2, folds=number // 80, sites=sites)
    roles = assign_roles(index, seed=0, root_size=20)
    assert len(np.unique(number[roles == Role.TEST] // 80)) == 10, "drawn out of all folds"
    for site in ("north", "south"):
        assert (roles[sites == site] == Role.TEST).mean() == pytest.approx(0.2, abs=0.01)
    by_fold = assign_roles(Index(index.classes, index.labels, folds=index.folds, sites=sites), seed=0, root_size=20)
    assert len(np.unique(number[by_fold == Role.TEST] // 80)) == 2


def test_fractions_and_root_sizes_that_make_no_split_are_refused_and_the_last_that_do_are_not() -> None:
    index = an_index(num_groups=60, num_classes=2, seed=0)
    for test, validation in ((0.0, 0.1), (-0.1, 0.1), (0.5, 0.5), (0.2, -0.1)):
        with pytest.raises(DataError, match=rf"0 < test, .* got test={test}, validation={validation}"):
            assign_roles(index, seed=0, test_fraction=test, validation_fraction=validation)
    with pytest.raises(DataError, match="root_size must be at least 0, got -1"):
        assign_roles(index, seed=0, root_size=-1)
    roles = assign_roles(index, seed=0, test_fraction=0.5, validation_fraction=0.0, root_size=0)
    assert set(roles) == {Role.TRAIN, Role.TEST}


def test_a_fold_that_cuts_a_group_is_refused() -> None:
    cut = Index(("a", "b"), np.arange(60) % 2, groups=np.arange(60) // 6, folds=np.arange(60) // 9)
    with pytest.raises(DataError, match="a fold cuts 3 of 10 groups: the same patient on both sides"):
        assign_roles(cut, seed=0)


def test_a_group_that_is_cut_twice_is_one_group() -> None:
    splits = np.array(["train", "validation", "test"] * 20)
    cut = Index(("a", "b"), np.arange(60) % 2, groups=np.arange(60) // 3, splits=splits)
    with pytest.raises(DataError, match="the published split cuts 20 of 20 groups"):
        assign_roles(cut, seed=0)


@QUICK
@given(indices, st.integers(2, 6), st.integers(0, 99))
def test_parts_never_cut_a_group_and_are_of_about_equal_size_and_mix(index: Index, parts: int, seed: int) -> None:
    assert index.groups is not None
    part_of = deal_into_parts(index.groups, index.labels, parts=parts, generator=np.random.default_rng(seed))
    assert never_cut(index.groups, part_of)
    assert set(part_of) == set(range(parts))
    largest = np.unique(index.groups, return_counts=True)[1].max()
    for label in range(len(index.classes)):
        sizes = np.bincount(part_of[index.labels == label], minlength=parts)
        assert sizes.max() - sizes.min() <= 2 * largest


@QUICK
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20), st.integers(0, 99))
def test_the_largest_group_comes_first_and_equals_are_shuffled(counts: list[tuple[int, int]], seed: int) -> None:
    order = largest_first(np.array(counts), np.random.default_rng(seed))
    assert sorted(order) == list(range(len(counts)))
    sizes = [sum(counts[group]) for group in order]
    assert sizes == sorted(sizes, reverse=True)
    equals = {tuple(largest_first(np.ones((6, 2), np.int64), np.random.default_rng(n))) for n in range(10)}
    assert len(equals) > 5


def test_groups_count_their_scans_by_stratum() -> None:
    groups = Groups.of(np.array([7, -1, 7, 7, 40]), np.array([0, 2, 2, 2, 1]), num_strata=4)
    assert groups.of_scan.tolist() == [1, 0, 1, 1, 2]
    assert groups.counts.tolist() == [[0, 0, 1, 0], [1, 0, 2, 0], [0, 1, 0, 0]]
    assert Groups.of(np.array([], np.int64), np.array([], np.int64), num_strata=2).counts.shape == (0, 2)


@QUICK
@given(
    st.integers(1, 4), st.integers(2, 3), st.integers(1, 6), st.integers(0, 99), st.sampled_from(PARTITION_OBJECTS[:-1])
)
def test_the_shares_of_every_class_are_those_of_every_site_and_add_up_to_one(
    sites: int, classes: int, num_hospitals: int, seed: int, how: Partition
) -> None:
    counts = np.full((sites, classes), 50)
    shares = how(counts, np.random.default_rng(seed), num_hospitals=num_hospitals)
    assert shares.shape == (num_hospitals, sites, classes)
    assert np.allclose(shares.sum(axis=0), 1)
    assert (shares > 0).all(), "nobody is shut out of a class for good"
    assert np.array_equal(shares, np.repeat(shares[:, :1], sites, axis=1))


def test_shares_are_as_they_are_written_down() -> None:
    counts, draw = np.full((1, 3), 30), np.random.default_rng(0)
    assert np.allclose(Iid()(counts, draw, num_hospitals=5), 1 / 5)
    # Three hospitals, each with seven tenths of its own class and 15 hundredths of each of the two others.
    expected = np.array([[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]])
    assert np.allclose(LabelSkew(0.7)(counts, draw, num_hospitals=3)[:, 0], expected)
    assert np.allclose(LabelSkew(1.0)(counts, draw, num_hospitals=3)[:, 0], np.eye(3), atol=1e-8)
    sizes = QuantitySkew(0.8)(counts, np.random.default_rng(3), num_hospitals=4)[:, 0]
    drawn = np.exp(0.8 * np.random.default_rng(3).standard_normal(4))
    assert np.allclose(sizes, (drawn / drawn.sum())[:, None])
    classes = Dirichlet(0.3)(counts, np.random.default_rng(4), num_hospitals=4)[:, 0]
    assert len(np.unique(classes)) == 12, "each class by a draw of its own"


def test_sites_keep_their_order_where_each_is_a_hospital_and_are_dealt_by_the_seed_else() -> None:
    counts = np.full((4, 2), 10)
    own = BySite()(counts, np.random.default_rng(0), num_hospitals=4)
    assert np.array_equal(own, np.repeat(np.eye(4)[:, :, None], 2, axis=2))
    dealt = [BySite()(counts, np.random.default_rng(seed), num_hospitals=2) for seed in range(12)]
    assert all((shares.sum(axis=0) == 1).all() and (shares.sum(axis=1) == 2).all() for shares in dealt)
    assert len({shares.tobytes() for shares in dealt}) > 2


def test_scans_without_groups_are_spread_one_by_one() -> None:
    index = Index(("a", "b"), np.arange(103) % 2)
    hospital_of = spread(index, np.full(103, Role.TRAIN.value), Iid(), num_hospitals=4, seed=0)
    sizes = np.bincount(hospital_of)
    assert len(sizes) == 4
    assert sizes.max() - sizes.min() <= 2


def test_as_many_training_groups_as_hospitals_are_enough() -> None:
    index = of_sizes((3, 1, 4), (1, 5))
    hospital_of = spread(index, np.full(len(index), Role.TRAIN.value), Dirichlet(0.1), num_hospitals=5, seed=0)
    assert sorted(np.bincount(hospital_of)) == [1, 1, 3, 4, 5]
    with pytest.raises(DataError, match="6 hospitals need at least as many training groups, got 5"):
        spread(index, np.full(len(index), Role.TRAIN.value), Dirichlet(0.1), num_hospitals=6, seed=0)


def test_federations_of_nobody_and_sites_that_cannot_be_kept_are_refused() -> None:
    number = np.arange(40)
    index = Index(("a", "b"), number % 2, groups=number // 4, sites=np.where(number < 20, "x", "y"))
    train = np.full(40, Role.TRAIN.value)
    for num_hospitals, graders, says in (
        (0, None, "at least 1 hospital, got 0"),
        (2, [], "somebody must grade: the graders are empty"),
        (2, [-1], "graders are hospitals 0 to 1, got -1"),
        (2, [0, 2], "graders are hospitals 0 to 1, got 2"),
    ):
        with pytest.raises(DataError, match=says):
            spread(index, train, Iid(), num_hospitals=num_hospitals, seed=0, graders=graders)
    assert set(spread(index, train, Iid(), num_hospitals=1, seed=0, graders=[0])) == {0}
    nobody_at_y = np.where(number < 20, Role.TRAIN, Role.TEST)
    with pytest.raises(DataError, match="hospital 1 has no training group at its site"):
        spread(index, nobody_at_y, BySite(), num_hospitals=2, seed=0)
    travelled = Index(("a", "b"), number % 2, groups=number // 4, sites=np.where(number < 18, "x", "y"))
    with pytest.raises(DataError, match="a group has scans at two sites that are not of one hospital"):
        spread(travelled, train, BySite(), num_hospitals=2, seed=0)


def test_test_scans_go_to_the_graders_by_their_shares_and_stay_at_a_site_that_has_no_grader() -> None:
    index = an_index(num_groups=600, num_classes=2, seed=0, sites=2)
    assert index.sites is not None
    roles = assign_roles(index, seed=0, root_size=0)
    by_site = spread(index, roles, BySite(), num_hospitals=2, seed=0, graders=[0])
    assert set(by_site[(roles == Role.TEST) & (index.sites == "site-0")]) == {0}
    assert set(by_site[(roles == Role.TEST) & (index.sites == "site-1")]) == {1}
    skewed = spread(index, roles, QuantitySkew(1.0), num_hospitals=4, seed=1, graders=[1, 2])
    sizes = np.bincount(skewed[roles == Role.TRAIN], minlength=4)
    graded = np.bincount(skewed[roles == Role.TEST], minlength=4)
    assert graded[[0, 3]].tolist() == [0, 0]
    assert graded[1] / graded.sum() == pytest.approx(sizes[1] / (sizes[1] + sizes[2]), abs=0.03)


@dataclass(frozen=True)
class NearlyAll:
    """The first hospital has nearly everything."""

    def __call__(self, counts: np.ndarray, generator: np.random.Generator, *, num_hospitals: int) -> np.ndarray:
        shares = np.full((num_hospitals, *counts.shape), 1e-9)
        shares[0] = 1 - 1e-9 * (num_hospitals - 1)
        return shares


@pytest.mark.parametrize("seed", range(4))
def test_who_has_next_to_no_share_gets_the_smallest_group_and_nothing_more(seed: int) -> None:
    index = of_sizes((30, 20, 3), (40, 2, 25))
    hospital_of = spread(index, np.full(len(index), Role.TRAIN.value), NearlyAll(), num_hospitals=3, seed=seed)
    assert np.bincount(hospital_of).tolist() == [115, 2, 3]


def test_the_root_set_is_drawn_at_every_site_as_its_training_scans_are_spread() -> None:
    number = np.arange(1000)
    sites = np.where(
        number % 250 < 180, "north", "south"
    )  # of the training scans, and the other way round for the test
    published = np.where(number < 500, "train", "test")
    sites = np.where(number < 500, sites, np.where(sites == "north", "south", "north"))
    index = Index(("a", "b"), number % 2, sites=sites, splits=published)
    roles = assign_roles(index, seed=0, validation_fraction=0.0, root_size=100)
    assert (roles == Role.ROOT).sum() == pytest.approx(100, abs=2)
    assert (sites[roles == Role.ROOT] == "north").sum() == pytest.approx(72, abs=1)
