"""An experiment: one typed, frozen object that says everything a run depends on, to and from text."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fedplatform.attacks.poisoning import ATTACKS
from fedplatform.attacks.poisoning.attack import PoisoningAttack
from fedplatform.core.seeding import BYZANTINE, numpy_generator
from fedplatform.core.settings import ExperimentError as ExperimentError
from fedplatform.core.settings import Settings, parsed_by, written_by
from fedplatform.core.specification import SpecificationError, build, describe, nearest, slug_of
from fedplatform.data.partition import PARTITIONS, Partition
from fedplatform.data.source import Source
from fedplatform.data.sources import open_source
from fedplatform.experiments.places import Place, require_distinct
from fedplatform.federated.aggregation import MIXERS, RULES, Aggregator, Mixed, as_rule
from fedplatform.federated.byzantine import Adversary
from fedplatform.federated.secure import PRIVACY, Grouped, GroupTested
from fedplatform.federated.transport import TransportName
from fedplatform.federated.trust import SCORERS, OptiGradTrust, RobustScores
from fedplatform.learning.models import MODELS, ModelBuilder, TimmModel
from fedplatform.learning.models.torchvision_ops import import_timm
from fedplatform.learning.training import (
    ALGORITHMS,
    AUGMENTATIONS,
    OBJECTIVES,
    Algorithm,
    Augmentation,
    LocalTraining,
    Objective,
    SamplingName,
)

ALL_RULES: dict[str, type[Aggregator]] = {**RULES, "trust": OptiGradTrust}


def parse_rule(text: str, *, f: int) -> Aggregator:
    """An aggregation rule from its name, what stands in front joined by ``+``.

    In front of ``trust`` stands its scorer (``network+trust``), in front of other rules their mixers
    (``nnm+trimmed_mean``).
    """
    *mixers, rule = (part.strip() for part in text.split("+"))
    given = {"f": f}
    built = as_rule(build(rule, ALL_RULES, what="aggregation rule", given=given))
    if isinstance(built, OptiGradTrust) and mixers:
        if len(mixers) > 1:
            raise SpecificationError(f"trust takes one scorer in front of it, got {text!r}")
        return replace(built, scorer=build(mixers[0], SCORERS, what="trust scorer", given={}))
    if not mixers:
        return built
    return Mixed(tuple(build(mixer, MIXERS, what="mixing step", given=given) for mixer in mixers), built)


def describe_rule(rule: Aggregator) -> str:
    """The text that :func:`parse_rule` reads back."""
    if isinstance(rule, Mixed):
        return "+".join([*(describe(mixer, MIXERS) for mixer in rule.mixers), describe(rule.rule, ALL_RULES)])
    if isinstance(rule, OptiGradTrust) and rule.scorer != RobustScores():
        plain = describe(replace(rule, scorer=RobustScores()), ALL_RULES)
        return f"{describe(rule.scorer, SCORERS)}+{plain}"
    return describe(rule, ALL_RULES)


def slug_of_rule(rule: Aggregator) -> str:
    """The rule's command-line name without settings, as it stands in result tables."""
    if isinstance(rule, Mixed):
        return "+".join([*(slug_of(mixer, MIXERS) for mixer in rule.mixers), slug_of(rule.rule, ALL_RULES)])
    if isinstance(rule, OptiGradTrust) and rule.scorer != RobustScores():
        return f"{slug_of(rule.scorer, SCORERS)}+trust"
    return slug_of(rule, ALL_RULES)


def _parse_attack(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value == "none" else build(value, {"none": type(None), **ATTACKS}, what="attack", given={})


def _describe_attack(attack: PoisoningAttack | None) -> str:
    return "none" if attack is None else describe(attack, ATTACKS)


def _parse_model(value: object) -> object:
    if not isinstance(value, str):
        return value
    if ":" in value or value.partition("(")[0] in MODELS:
        return build(value, MODELS, what="model", given={})
    timm = import_timm()
    if not timm.is_model(value):
        raise SpecificationError(f"unknown model {value!r}{nearest(value, [*MODELS, *timm.list_models()])}")
    return TimmModel(value)


def _describe_model(model: ModelBuilder) -> str:
    return model.name if isinstance(model, TimmModel) else describe(model, MODELS)


def _parse_augmentation(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    return build(value, {"none": type(None), **AUGMENTATIONS}, what="augmentation", given={})


def _describe_augmentation(augmentation: Augmentation | None) -> str:
    return "none" if augmentation is None else describe(augmentation, AUGMENTATIONS)


def _parse_privacy(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value == "none" else build(value, {"none": type(None), **PRIVACY}, what="privacy", given={})


def _describe_privacy(privacy: Grouped | None) -> str:
    return "none" if privacy is None else describe(privacy, PRIVACY)


def _parse_names(value: object) -> object:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class Experiment(Settings):
    """Everything that a federated training run depends on; equal experiments give equal weights, bit for bit."""

    data: Annotated[
        str | Source, PlainSerializer(lambda value: value if isinstance(value, str) else describe(value, {}))
    ] = Field(
        "lesions",
        description="data set: a name (see 'fedplatform data list'), a path to a folder, .npz or .parquet file, "
        "or your own class as FILE.py:CLASS",
    )
    size: int = Field(64, ge=8, description="pixels a side that every scan is resized to")
    scans: int = Field(
        0,
        ge=0,
        description="use at most so many scans of the data set, drawn by the seed in whole groups, roles kept in "
        "proportion (0: all)",
    )
    split: Literal["group_safe", "random"] = Field(
        "group_safe",
        description="how the test set is split: group_safe keeps a patient's scans together; random does not, and "
        "overestimates accuracy",
    )
    partition: Annotated[Partition, parsed_by(PARTITIONS, "partition"), written_by(PARTITIONS)] = Field(
        "iid",  # type: ignore[assignment]
        description="how scans fall to hospitals: iid, dirichlet(concentration=0.5), label_skew(share=0.7), "
        "quantity_skew(sigma=1.0), site",
    )
    hospitals: int = Field(
        10, ge=1, description="number of hospitals, Byzantine ones included; in a file, or a list of them"
    )
    places: tuple[Place, ...] = Field(
        (), description="where each hospital lives; a file lists them under 'hospitals' (docs/cluster.md)"
    )
    outside: Annotated[tuple[str, ...], BeforeValidator(_parse_names), PlainSerializer(list)] = Field(
        (),
        description="hospitals outside the cluster, NAME,NAME...: they bring their own data and come through the "
        "gateway, see docs/joining.md (default: none)",
    )
    byzantine: int = Field(3, ge=0, description="how many of them are Byzantine, chosen by the seed")
    attack: Annotated[PoisoningAttack | None, BeforeValidator(_parse_attack), PlainSerializer(_describe_attack)] = (
        Field(
            "none", description=f"what Byzantine hospitals do: none, {', '.join(ATTACKS)}, or your own as FILE.py:CLASS"
        )  # type: ignore[assignment]
    )
    rule: Annotated[Aggregator, BeforeValidator(as_rule), PlainSerializer(describe_rule)] = Field(
        "nnm+trimmed_mean",  # type: ignore[assignment]
        validate_default=False,
        description=f"aggregation rule: {', '.join(RULES)}, with {', '.join(MIXERS)} in front joined by '+'; "
        f"trust, with its scorer ({', '.join(SCORERS)}) in front; or your own as FILE.py:CLASS",
    )
    privacy: Annotated[Grouped | None, BeforeValidator(_parse_privacy), PlainSerializer(_describe_privacy)] = Field(
        "none",  # type: ignore[assignment]
        description="what the server sees of the updates: none (every single one), or grouped(size=3), by secure "
        "aggregation only means of groups of at least so many hospitals, drawn anew each round; grouped(size=5, "
        "clip=1.0, noise=2.0) adds differential privacy of whole hospitals",
    )
    transport: TransportName = Field(
        "exact",
        description="how updates travel to the server: exact, as float32, the fastest on one machine; lossless, the "
        "same bits in two thirds to four fifths of the bytes; half, rounded to half precision, in half of them, for a "
        "hospital's line. Weights always go out exact",
    )
    f: int = Field(
        3,
        ge=0,
        description="how many Byzantine hospitals the rule is built to withstand (default: as many as there are)",
    )
    model: Annotated[ModelBuilder, BeforeValidator(_parse_model), PlainSerializer(_describe_model)] = Field(
        "small_cnn",  # type: ignore[assignment]
        description=f"classifier: {', '.join(MODELS)}, any timm model by its name (resnet18), or FILE.py:CLASS",
    )
    algorithm: Annotated[Algorithm, parsed_by(ALGORITHMS, "algorithm"), written_by(ALGORITHMS)] = Field(
        "fedbn_p",  # type: ignore[assignment]
        description=f"local training: {', '.join(ALGORITHMS)}",
    )
    objective: Annotated[Objective, parsed_by(OBJECTIVES, "objective"), written_by(OBJECTIVES)] = Field(
        "cross_entropy",  # type: ignore[assignment]
        description="what local training makes small: cross_entropy(label_smoothing=0.0), "
        "adversarial(epsilon=0.015, steps=1), trades(epsilon=0.015, beta=6.0), or generative (the network's own loss)",
    )
    augmentation: Annotated[
        Augmentation | None, BeforeValidator(_parse_augmentation), PlainSerializer(_describe_augmentation)
    ] = Field(
        "none",  # type: ignore[assignment]
        description=f"how scans are changed every time they are trained on: none, {', '.join(AUGMENTATIONS)}, "
        "or your own as FILE.py:CLASS",
    )
    sampling: SamplingName = Field(
        "scans",
        description="what an epoch of training shows: scans, every one once; groups, as many drawn so that every group "
        "of a class (a patient, near-identical pictures) counts alike, however many scans it has",
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd", description="local optimiser: sgd, or adamw with gradients clipped to norm 1"
    )
    rounds: int = Field(10, ge=1, description="rounds of broadcast, training and aggregation")
    local_epochs: int = Field(1, ge=1, description="epochs that a hospital trains in one round")
    batch_size: int = Field(32, ge=2, description="scans a training step")
    learning_rate: float = Field(
        0.05, gt=0, description="step size of local training in the first round; it falls along a half cosine"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD, fresh in every round")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of local training")
    root_size: int = Field(100, ge=0, description="scans in the server's own clean root set (0: none)")
    quorum: int = Field(0, ge=0, description="least usable updates for a round to count (default: a majority)")
    deadline_s: float = Field(1800.0, gt=0, description="seconds that a round waits for hospitals")
    seed: int = Field(
        0, ge=0, description="seed of everything random: split, Byzantine hospitals, initial weights, batches, attack"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Derive what is left open from what is given: f, the quorum, a rule's f."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        filled = dict(values)
        if isinstance(filled.get("hospitals"), list | tuple):
            filled["places"] = tuple(map(Place.of, filled["hospitals"]))
            filled["hospitals"] = len(filled["places"])
        try:
            filled["f"] = int(filled.get("f", filled.get("byzantine", fields["byzantine"].default)))
            filled["quorum"] = int(
                filled.get("quorum") or int(filled.get("hospitals", fields["hospitals"].default)) // 2 + 1
            )
        except (TypeError, ValueError):
            return values  # the field's own check says it better
        rule = filled.get("rule", fields["rule"].default)
        if isinstance(rule, str):
            filled["rule"] = parse_rule(rule, f=filled["f"])
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.byzantine >= self.hospitals:
            raise ValueError(
                f"at least one hospital must be honest, got {self.byzantine} Byzantine of {self.hospitals} hospitals"
            )
        if unknown := set(self.outside) - set(self.hospital_ids()):
            raise ValueError(
                f"outside names hospitals, got {min(unknown)!r}{nearest(min(unknown), self.hospital_ids())}"
            )
        if self.byzantine >= len(self.inside) and self.outside:
            raise ValueError(
                "Byzantine hospitals are simulated and must be inside, "
                f"got {self.byzantine} of {len(self.inside)} hospitals inside"
            )
        if self.attack is not None and self.byzantine == 0:
            raise ValueError(
                f"attack {_describe_attack(self.attack)} needs at least one Byzantine hospital, got byzantine=0"
            )
        if self.quorum > self.hospitals:
            raise ValueError(f"the quorum is at most the number of hospitals, got {self.quorum} of {self.hospitals}")
        if self.outside and self.privacy is not None:
            raise ValueError("hospitals outside send single updates; privacy needs all of them inside")
        if self.privacy is not None and self.transport != "exact":
            raise ValueError(f"masks hide whole numbers: privacy takes transport exact, got {self.transport}")
        if self.places:
            require_distinct(self.places, count=self.hospitals)
        self.rule.require(hospitals=self._seen_by_rule(), has_root=self.root_size > 0)
        return self

    def settings(self) -> dict[str, object]:
        """All fields as plain values; hospitals that have places as their list, as a file has it."""
        settings = super().settings()
        settings.pop("places")
        return settings | {"hospitals": [place.settings() for place in self.places] or self.hospitals}

    def _seen_by_rule(self) -> int:
        """How many updates a rule gets in a round: one a hospital, or one a group."""
        if self.privacy is None:
            return self.hospitals
        groups = self.privacy.groups_of(self.hospitals)
        if groups < 2:
            raise ValueError(
                f"groups are compared with each other: privacy {_describe_privacy(self.privacy)} needs at least "
                f"{2 * self.privacy.size} hospitals, got {self.hospitals}"
            )
        # Trust compares groups with those of earlier rounds, too, and so makes do with two of them.
        return max(groups, 3) if isinstance(self.rule, OptiGradTrust) else groups

    @property
    def server_rule(self) -> Aggregator:
        """The rule as the server runs it: over hospitals, or over groups with the reputation of hospitals inferred."""
        return self.rule if self.privacy is None else GroupTested(self.rule)

    def replace(self, **changes: object) -> Self:
        """The same experiment with some settings changed and everything derived from them derived again."""
        return self.from_settings({**self.settings(), **changes})

    @property
    def rule_slug(self) -> str:
        """The rule's name in result tables."""
        return slug_of_rule(self.rule)

    @property
    def attack_slug(self) -> str:
        """The attack's name in result tables."""
        return "none" if self.attack is None else slug_of(self.attack, ATTACKS)

    @property
    def split_slug(self) -> str:
        """Split and partition in result tables: ``group_safe``, ``group_safe+dirichlet_0.5``."""
        name, _, settings = describe(self.partition, PARTITIONS).partition("(")
        values = "".join(f"_{part.partition('=')[2]}" for part in settings.rstrip(")").split(", ") if part)
        return self.split if name == "iid" else f"{self.split}+{name}{values}"

    @property
    def data_slug(self) -> str:
        """The data set's name in result tables."""
        text = self.data if isinstance(self.data, str) else describe(self.data, {})
        return Path(text).stem if Path(text).exists() else text.rpartition(":")[2].partition("(")[0]

    def hospital_ids(self) -> tuple[str, ...]:
        """The names of the hospitals, in order."""
        if self.places:
            return tuple(place.name for place in self.places)
        return tuple(f"hospital-{number:02d}" for number in range(self.hospitals))

    @property
    def inside(self) -> tuple[str, ...]:
        """The hospitals whose scans are dealt out of the data set, in order."""
        return tuple(name for name in self.hospital_ids() if name not in self.outside)

    def adversary(self) -> Adversary:
        """The Byzantine hospitals that the seed picks, whatever the attack, so that runs can be paired."""
        ids = self.inside
        drawn = numpy_generator(self.seed, BYZANTINE).choice(len(ids), size=self.byzantine, replace=False)
        return Adversary(tuple(ids[number] for number in sorted(drawn)), self.attack, self.hospitals)

    def open_data(self, folder: Path | None = None) -> Source:
        """The data set itself; ``folder`` is where named sets are looked for first."""
        if not isinstance(self.data, str):
            return self.data
        if ":" in self.data and not Path(self.data).exists():
            source: Source = build(self.data, {}, what="data set", given={})
            return source
        return open_source(self.data, folder=folder)

    def local_training(self, *, channels: int, num_classes: int) -> LocalTraining:
        """What a hospital must know to train."""
        return LocalTraining(
            model=self.model,
            algorithm=self.algorithm,
            channels=channels,
            num_classes=num_classes,
            size=self.size,
            rounds=self.rounds,
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            seed=self.seed,
            objective=self.objective,
            augmentation=self.augmentation,
            optimiser=self.optimiser,
            sampling=self.sampling,
        )


RECIPES = resources.files("fedplatform.experiments") / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(Path(entry.name).stem for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def load_settings(recipe: str) -> dict[str, object]:
    """The settings in a recipe, by its name, or in a YAML file, by its path. Raises :class:`ExperimentError`."""
    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    if is_path and not Path(recipe).is_file():
        raise ExperimentError(f"no experiment file {recipe}")
    if not is_path and recipe not in recipe_names():
        raise ExperimentError(
            f"unknown recipe {recipe!r}{nearest(recipe, recipe_names()) or '; known: ' + ', '.join(recipe_names())}"
        )
    text = Path(recipe).read_text() if is_path else (RECIPES / f"{recipe}.yaml").read_text()
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{recipe} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ExperimentError(f"{recipe} must hold settings as 'name: value' lines")
    return settings
