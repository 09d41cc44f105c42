"""The parts of a search without Ray: spaces, schedules, fronts, curves, and what a second process remembers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune as ray_tune
from ray.tune.schedulers import TrialScheduler

from fedplatform.attacks.poisoning import ATTACKS
from fedplatform.core.specification import SpecificationError
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.experiments.rule_text import describe_rule, parse_rule
from tune.curve import Curve, breakdowns, curves_of
from tune.page import front_of
from tune.phase import Budget, Listing, Search
from tune.poisoning import STRENGTHS, Poisoning, attacked
from tune.setting import setting_of
from tune.studies import describe_study, parse_study, slug_of_study
from tune.study import SCORE, StopIfBeaten
from tune.trial import Ledger, State, Trial
from tune.trust import TRUST, trust_rule, trust_space

SPACE = {"x": ray_tune.uniform(0.0, 1.0), "kind": ray_tune.choice(["a", "b"])}


def search(trials: int, *, seed: int = 0, sampler: str = "tpe", starts: Sequence[dict[str, object]] = ()) -> Search:
    budget = Budget(trials, seed=seed, sampler=sampler)  # type: ignore[arg-type]
    return Search("search", SPACE, {"height": "max"}, budget, starts=starts)


def ended(trial: Trial, height: float) -> Trial:
    return Trial(**{**vars(trial), "state": State.FINISHED, "steps": ({"height": height},)})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_goes_on_draws_nothing_twice(sampler: str) -> None:
    first = search(4, sampler=sampler)
    first.recall([])
    known = []
    while (trial := first.ask()) is not None:
        known.append(ended(trial, trial.choice["x"]))
        first.tell(known[-1])
    second = search(8, sampler=sampler)
    second.recall(known)
    more = [second.ask() for _ in range(5)]
    assert [trial.number for trial in more if trial] == [4, 5, 6, 7]
    assert more[-1] is None
    assert len({trial.choice["x"] for trial in [*known, *more] if trial}) == 8


def test_what_was_under_way_is_run_again_with_the_same_choice() -> None:
    begun = Trial("search", 1, {"x": 0.25, "kind": "b"})
    again = search(3)
    again.recall([ended(Trial("search", 0, {"x": 0.5, "kind": "a"}), 1.0), begun])
    assert again.ask() == begun
    new = again.ask()
    assert new is not None
    assert new.number == 2
    assert again.ask() is None


def test_a_search_begins_with_what_the_literature_takes_unless_chance_draws() -> None:
    start = {"x": 0.125, "kind": "b"}
    for sampler, meets in (("tpe", True), ("random", False)):
        begun = search(2, sampler=sampler, starts=[start])
        begun.recall([])
        trial = begun.ask()
        assert trial is not None
        assert (dict(trial.choice) == start) is meets


def test_a_search_whose_every_trial_fails_gives_up() -> None:
    hopeless = search(100)
    hopeless.recall([])
    asked = 0
    while (trial := hopeless.ask()) is not None:
        asked += 1
        hopeless.tell(Trial(**{**vars(trial), "state": State.FAILED, "error": "always"}))
    assert asked == 20


@pytest.mark.parametrize(("before", "left"), [(1.0, 0), (2.0, 1)])
def test_a_list_runs_again_only_what_stands_for_another_choice_now(before: float, left: int) -> None:
    listing = Listing("test", {"default": {"x": 1.0}}, role=Role.TEST)
    listing.recall([ended(Trial("test", 0, {"x": before}, Role.TEST, "default"), 1.0)])
    assert sum(1 for _ in iter(listing.ask, None)) == left
    assert len(listing.trials) == 1 - left


def test_a_ledger_reads_back_what_it_wrote(tmp_path: Path) -> None:
    trial = Trial("search", 3, {"x": 0.1, "kind": "a"}, state=State.STOPPED, steps=({"height": math.inf},), seconds=2.5)
    Ledger(tmp_path).keep(trial)
    assert list(Ledger(tmp_path)) == [trial]
    (tmp_path / "search-0003.json").write_text("{")
    with pytest.raises(ExperimentError, match="is no trial"):
        Ledger(tmp_path)


@given(st.sampled_from(list(STRENGTHS)), st.floats(0, 1), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_every_attack_of_every_strength_can_be_run(attack: str, strength: float, byzantine: int) -> None:
    choice = {"attack": attack, "strength": strength, "byzantine": byzantine}
    experiment = attacked(setting_of("", seed=0), choice, rule="trimmed_mean")
    assert experiment.byzantine == byzantine
    assert experiment.f == 3  # the server does not know how many lie
    assert experiment.attack_slug == attack.partition("(")[0]


@given(st.sampled_from([name for name, strength in STRENGTHS.items() if strength.setting]), st.floats(0, 1))
def test_strength_runs_from_end_to_end_of_its_setting(attack: str, strength: float) -> None:
    known = STRENGTHS[attack]

    def value(share: float) -> float:
        text = known.of(attack, share)
        return float(text.partition(f"{known.setting}=")[2].partition(",")[0].rstrip(")"))

    assert (value(0.0), value(1.0)) == pytest.approx((known.low, known.high), rel=1e-3)
    assert known.low * 0.999 <= value(strength) <= known.high * 1.001
    assert value(strength) <= value(1.0)


def test_the_usual_strength_is_the_attacks_own_default() -> None:
    for attack, strength in STRENGTHS.items():
        if strength.setting and attack != "sleeper(patience=2)":
            built = parse_attack(strength.of(attack, strength.usual))
            default = getattr(ATTACKS[attack.partition("(")[0]](), strength.setting)
            assert getattr(built, strength.setting) == pytest.approx(default, rel=0.05), attack


def parse_attack(text: str) -> object:
    return setting_of("", seed=0).replace(attack=text).attack


def test_the_defaults_of_trust_are_where_its_search_begins() -> None:
    assert parse_rule(trust_rule(TRUST), f=3) == parse_rule("trust", f=3)
    assert set(TRUST) == set(trust_space(["robust"]))


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_whatever_is_drawn_for_trust_is_a_rule_that_run_takes(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    random.seed(seed)
    drawn = {name: domain.sample() for name, domain in trust_space(["robust", "network", "policy", "hybrid"]).items()}
    rule = parse_rule(trust_rule(drawn), f=3)
    assert parse_rule(describe_rule(rule), f=3) == rule


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=12))
def test_who_is_outdone_could_not_have_won(runs: list[list[float]]) -> None:
    scheduler, best_of_all, best_of_whole = StopIfBeaten(), -math.inf, -math.inf
    for number, scores in enumerate(runs):
        falling = [min(scores[: step + 1]) for step in range(len(scores))]
        trial = SimpleNamespace(trial_id=str(number))
        best_of_all = max(best_of_all, falling[-1])
        for score in falling:
            if scheduler.on_trial_result(None, trial, {SCORE: score}) == TrialScheduler.STOP:  # type: ignore[arg-type]
                break
        else:
            scheduler.on_trial_complete(None, trial, {"is_whole": True})  # type: ignore[arg-type]
            best_of_whole = max(best_of_whole, falling[-1])
    assert best_of_whole == best_of_all


class Two:
    @property
    def objectives(self) -> dict[str, str]:
        return {"good": "max", "slow": "min"}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats_in_everything(places: list[tuple[int, int]]) -> None:
    trials = [
        Trial("search", n, {}, state=State.FINISHED, steps=({"good": good, "slow": slow},))
        for n, (good, slow) in enumerate(places)
    ]
    front = {trial.number for trial in front_of(Two(), trials)}  # type: ignore[arg-type]

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    assert front == {n for n, place in enumerate(places) if not any(beats(other, place) for other in places)}


def test_a_rule_breaks_down_where_half_of_what_it_had_is_gone() -> None:
    assert Curve("mean", "a", "byzantine", (0, 1, 2, 3), (0.9, 0.8, 0.69, 0.5)).breaks_at == 2
    assert math.isnan(Curve("mean", "a", "byzantine", (0, 1), (0.9, 0.71)).breaks_at)


def test_curves_are_means_over_seeds_of_cells_by_rule_and_attack() -> None:
    cells = [
        Trial("curve", n,
              {"rule": "mean", "byzantine": byzantine, "attack": "ipm" if byzantine else "none", "strength": 0.5},
              Role.TEST, f"mean, ipm by {byzantine}, seed {seed}", State.FINISHED, ({"accuracy": accuracy},))
        for n, (byzantine, seed, accuracy) in enumerate([(0, 0, 0.8), (0, 1, 0.9), (1, 0, 0.6), (1, 1, 0.5)])
    ]  # fmt: skip
    assert curves_of(cells) == [
        Curve("mean", "ipm", "byzantine", (0.0, 1.0), (pytest.approx(0.85), pytest.approx(0.55)))
    ]


def test_strength_and_attackers_each_say_where_a_rule_breaks_down() -> None:
    def cell(label: str, strength: float, byzantine: int, accuracy: float) -> Trial:
        choice = {"rule": "mean", "attack": "ipm", "strength": strength, "byzantine": byzantine}
        return Trial("curve", 0, choice, Role.TEST, label, State.FINISHED, ({"accuracy": accuracy},))

    by_strength = [
        cell(f"mean, ipm at {strength:g}", strength, 3, accuracy) for strength, accuracy in [(0, 0.9), (1, 0.6)]
    ]
    by_attackers = [
        cell(f"mean, ipm by {byzantine}", 1, byzantine, accuracy) for byzantine, accuracy in [(0, 0.9), (1, 0.8)]
    ]
    assert breakdowns([*by_strength, *by_attackers]) == {
        "mean under ipm, against strength": "breaks down at 1",
        "mean under ipm, against Byzantine hospitals": "holds up to 1",
    }


def test_a_study_is_text_and_text_is_a_study() -> None:
    study = parse_study("poisoning(attacks=('alie', 'ipm'))", {"rule": "median"}, seed=7)
    assert study == Poisoning(rule="median", attacks=("alie", "ipm"), seed=7)
    assert parse_study(describe_study(study), {}, seed=0) == study
    assert slug_of_study(study) == "poisoning-median"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poisonin", "did you mean 'poisoning'"),
        ("trust(rule='mean')", "has no setting 'rule'"),
        ("evasion", "needs a finished run"),
        ("poisoning(base='bench:br35')", "did you mean 'br35h'"),
        ("fedplatform.federated.aggregation:Mean", "is no study"),
    ],
)
def test_a_mistyped_study_costs_one_line(text: str, says: str) -> None:
    with pytest.raises((ExperimentError, SpecificationError), match=says):
        parse_study(text, {}, seed=0).space()
