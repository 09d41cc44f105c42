"""An experiment: one typed, frozen object that says everything a run depends on, to and from text."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from fedplatform.attacks.poisoning import ATTACKS
from fedplatform.attacks.poisoning.attack import PoisoningAttack
from fedplatform.core.compute import Compute, Kernels, Precision, known_device
from fedplatform.core.seeding import BYZANTINE, numpy_generator
from fedplatform.core.settings import ExperimentError as ExperimentError
from fedplatform.core.settings import Settings, parsed_by, written_by
from fedplatform.core.specification import SpecificationError, build, describe, nearest, slug_of
from fedplatform.core.tasks import TASKS, TaskName
from fedplatform.data.partition import PARTITIONS, Iid, Partition
from fedplatform.data.patients import GIVEN
from fedplatform.data.source import Source
from fedplatform.data.sources import open_source
from fedplatform.experiments.places import Place, require_distinct
from fedplatform.experiments.rule_text import describe_rule, parse_rule, slug_of_rule
from fedplatform.experiments.weights import IMAGENET, Weights, describe_weights, parse_weights
from fedplatform.federated.aggregation import Aggregator, as_rule
from fedplatform.federated.byzantine import Adversary
from fedplatform.federated.secure import PRIVACY, Grouped, GroupTested
from fedplatform.federated.server_optimiser import SERVER_OPTIMISERS, Average, ServerOptimiser
from fedplatform.federated.transport import TransportName
from fedplatform.federated.trust import OptiGradTrust
from fedplatform.learning.models import MODELS, ModelBuilder, SmallCnn, TimmModel
from fedplatform.learning.models.torchvision_ops import import_timm
from fedplatform.learning.training import (
    ALGORITHMS,
    AUGMENTATIONS,
    OBJECTIVES,
    SCHEDULES,
    Algorithm,
    Augmentation,
    Cosine,
    CrossEntropy,
    FedBNP,
    LocalTraining,
    Objective,
    SamplingName,
    Schedule,
    body_outputs,
    require_task,
)


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
    return model.name if isinstance(model, TimmModel) and model.pixels == "plain" else describe(model, MODELS)


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


def _describe_data(data: str | Source) -> str:
    return data if isinstance(data, str) else str(getattr(data, "name", "")) or describe(data, {})


def _parse_names(value: object) -> object:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _parse_names_or_none(value: object) -> object:
    return () if value == "none" else _parse_names(value)


def _describe_names(parts: tuple[str, ...]) -> str:
    return ",".join(parts) or "none"


ADAMW_CLIP = 1.0  # as transformers need
WHOLE, FRACTION = TypeAdapter(int), TypeAdapter(float)


def _share_of(hospitals: int, participation: float) -> int:
    """How many hospitals a share of them is, rounded up."""
    return math.ceil(round(participation * hospitals, 9))


class Experiment(Settings):
    """Everything that a federated training run depends on; equal experiments give equal weights.

    On a CPU they are equal bit for bit, and with deterministic kernels on equal GPUs.

    Each field takes an object or its text, as on the command line; :data:`fedplatform.core.options.EXPERIMENT` says
    what each means. Raises :class:`ExperimentError` in one line, by :meth:`from_settings`, for what cannot be run.

    >>> import fedplatform as fp
    >>> experiment = fp.Experiment.from_settings({"data": "mnist", "rule": "nnm+krum", "byzantine": 2})
    >>> experiment.rule_slug, experiment.f, experiment.replace(byzantine=1).f
    ('nnm+krum', 2, 2)
    """

    data: Annotated[str | Source, PlainSerializer(_describe_data)] = Field("lesions")
    size: int = Field(64, ge=8)
    scans: int = Field(0, ge=0)
    split: Literal["group_safe", "redrawn", "random"] = Field("group_safe")
    patients: str = Field(GIVEN, min_length=1)
    subgroups: Annotated[tuple[str, ...], BeforeValidator(_parse_names_or_none), PlainSerializer(_describe_names)] = (
        Field(())
    )
    partition: Annotated[Partition, parsed_by(PARTITIONS, "partition"), written_by(PARTITIONS)] = Field(Iid())
    hospitals: int = Field(10, ge=1)
    places: tuple[Place, ...] = Field(())
    outside: Annotated[tuple[str, ...], BeforeValidator(_parse_names), PlainSerializer(list)] = Field(())
    byzantine: int = Field(3, ge=0)
    attack: Annotated[PoisoningAttack | None, BeforeValidator(_parse_attack), PlainSerializer(_describe_attack)] = (
        Field(None)
    )
    rule: Annotated[Aggregator, BeforeValidator(as_rule), PlainSerializer(describe_rule)] = Field(OptiGradTrust())
    privacy: Annotated[Grouped | None, BeforeValidator(_parse_privacy), PlainSerializer(_describe_privacy)] = Field(
        None
    )
    transport: TransportName = Field("exact")
    f: int = Field(3, ge=0)
    participation: float = Field(1.0, gt=0, le=1)
    server_optimiser: Annotated[
        ServerOptimiser, parsed_by(SERVER_OPTIMISERS, "server optimiser"), written_by(SERVER_OPTIMISERS)
    ] = Field(Average())
    model: Annotated[ModelBuilder, BeforeValidator(_parse_model), PlainSerializer(_describe_model)] = Field(SmallCnn())
    weights: Annotated[Weights | None, BeforeValidator(parse_weights), PlainSerializer(describe_weights)] = Field(None)
    freeze: Annotated[tuple[str, ...], BeforeValidator(_parse_names_or_none), PlainSerializer(_describe_names)] = Field(
        ()
    )
    algorithm: Annotated[Algorithm, parsed_by(ALGORITHMS, "algorithm"), written_by(ALGORITHMS)] = Field(FedBNP())
    task: TaskName = Field("multiclass")
    objective: Annotated[Objective, parsed_by(OBJECTIVES, "objective"), written_by(OBJECTIVES)] = Field(CrossEntropy())
    augmentation: Annotated[
        Augmentation | None, BeforeValidator(_parse_augmentation), PlainSerializer(_describe_augmentation)
    ] = Field(None)
    sampling: SamplingName = Field("scans")
    optimiser: Literal["sgd", "adamw"] = Field("sgd")
    rounds: int = Field(10, ge=1)
    patience: int = Field(0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    local_epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    schedule: Annotated[Schedule, parsed_by(SCHEDULES, "schedule"), written_by(SCHEDULES)] = Field(Cosine())
    clip: Literal["auto"] | Annotated[float, Field(ge=0)] = Field("auto")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    root_size: int = Field(100, ge=0)
    quorum: int = Field(0, ge=0)
    deadline_s: float = Field(0.0, ge=0)
    device: Annotated[str, AfterValidator(known_device)] = Field("auto")
    precision: Precision = Field("float32")
    kernels: Kernels = Field("fast")
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Derive what is left open from what is given: f, quorum, a rule's f, the objective, the pixels of weights."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        filled = dict(values)
        if isinstance(filled.get("hospitals"), list | tuple):
            filled["places"] = tuple(map(Place.of, filled["hospitals"]))
            filled["hospitals"] = len(filled["places"])
        try:
            share = FRACTION.validate_python(filled.get("participation", fields["participation"].default))
            byzantine = WHOLE.validate_python(filled.get("byzantine", fields["byzantine"].default))
            filled["f"] = WHOLE.validate_python(filled.get("f", _share_of(byzantine, share)))
            hospitals = WHOLE.validate_python(filled.get("hospitals", fields["hospitals"].default))
        except ValidationError:
            return values  # the field's own check says it better
        if filled.get("task") in TASKS:
            filled.setdefault("objective", TASKS[filled["task"]].objective)
        filled["quorum"] = filled.get("quorum") or _share_of(hospitals, share) // 2 + 1
        if isinstance(rule := filled.get("rule"), str):
            filled["rule"] = parse_rule(rule, f=filled["f"])
        if filled.get("weights") in (IMAGENET, Weights(IMAGENET)) and "model" in filled:
            model = _parse_model(filled.get("model"))
            filled["model"] = replace(model, pixels="timm") if isinstance(model, TimmModel) else model
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.byzantine >= self.hospitals:
            raise ValueError(
                f"at least one hospital must be honest, got {self.byzantine} Byzantine of {self.hospitals} hospitals"
            )
        if unknown := set(self.outside) - set(self.hospital_ids()):
            ids = self.hospital_ids()
            called = f"they are {ids[0]} to {ids[-1]}; 'hospitals: [NAME, ...]' in a file gives other names"
            known = f"known: {', '.join(ids)}" if self.places else called
            raise ValueError(f"outside names hospitals, got {min(unknown)!r}{nearest(min(unknown), ids)}; {known}")
        if self.byzantine >= len(self.inside) and self.outside:
            raise ValueError(
                "Byzantine hospitals are simulated and must be inside, "
                f"got {self.byzantine} of {len(self.inside)} hospitals inside"
            )
        if self.attack is not None and self.byzantine == 0:
            raise ValueError(
                f"attack {_describe_attack(self.attack)} needs at least one Byzantine hospital, got byzantine=0"
            )
        if self.quorum > self.participants:
            raise ValueError(
                f"the quorum is at most the number of hospitals in a round, got {self.quorum} of {self.participants}"
            )
        if self.outside and self.privacy is not None:
            raise ValueError("hospitals outside send single updates; privacy needs all of them inside")
        if self.privacy is not None and self.transport != "exact":
            raise ValueError(f"masks hide whole numbers: privacy takes transport exact, got {self.transport}")
        if self.freeze and self.weights is None:
            raise ValueError(f"freeze {','.join(self.freeze)} needs weights: random layers that never learn are no use")
        require_task(self.task, self.objective, self.model)
        if self.places:
            require_distinct(self.places, count=self.hospitals)
        self.rule.require(hospitals=self.seen_by_rule(self.participants), has_root=self.root_size > 0)
        return self

    def settings(self) -> dict[str, object]:
        """All fields as plain values; hospitals that have places as their list, as a file has it."""
        settings = super().settings()
        settings.pop("places")
        return settings | {"hospitals": [place.settings() for place in self.places] or self.hospitals}

    def seen_by_rule(self, participants: int) -> int:
        """How many updates a rule gets in a round of so many hospitals: one a hospital, or one a group."""
        if self.privacy is None:
            return participants
        groups = self.privacy.groups_of(participants)
        if groups < 2:
            raise ValueError(
                f"groups are compared with each other: privacy {_describe_privacy(self.privacy)} needs at least "
                f"{2 * self.privacy.size} hospitals in a round, got {participants}"
            )
        # Trust compares groups with those of earlier rounds, too, and so makes do with two of them.
        return max(groups, 3) if isinstance(self.rule, OptiGradTrust) else groups

    @property
    def server_rule(self) -> Aggregator:
        """The rule as the server runs it: over hospitals, or over groups with the reputation of hospitals inferred."""
        return self.rule if self.privacy is None else GroupTested(self.rule)

    def replace(self, **changes: object) -> Self:
        """The same experiment with some settings changed and everything derived from them derived again."""
        return self.from_settings({**self.settings(), "data": self.data, "weights": self.weights, **changes})

    def from_start(self, kept: Path) -> Self:
        """The same experiment with its first weights read from the run's own copy of them."""
        assert self.weights is not None
        return self.model_copy(update={"weights": replace(self.weights, kept=kept)})

    @property
    def compute(self) -> Compute:
        """What its networks compute with, as it was asked for."""
        return Compute(self.device, self.precision, self.kernels)

    @property
    def rule_slug(self) -> str:
        """The rule's name in result tables."""
        return slug_of_rule(self.rule)

    @property
    def attack_slug(self) -> str:
        """The attack's name in result tables."""
        return "none" if self.attack is None else slug_of(self.attack, ATTACKS)

    @property
    def rule_text(self) -> str:
        """The rule with all of its settings, as text that makes an equal one."""
        return describe_rule(self.rule)

    @property
    def attack_text(self) -> str:
        """The attack with all of its settings, as text that makes an equal one."""
        return _describe_attack(self.attack)

    @property
    def split_slug(self) -> str:
        """Split and partition in result tables: ``group_safe``, ``group_safe+dirichlet_0.5``."""
        name, _, settings = describe(self.partition, PARTITIONS).partition("(")
        values = "".join(f"_{part.partition('=')[2]}" for part in settings.rstrip(")").split(", ") if part)
        return self.split if name == "iid" else f"{self.split}+{name}{values}"

    @property
    def data_slug(self) -> str:
        """The data set's name in result tables."""
        text = _describe_data(self.data)
        return Path(text).stem if Path(text).exists() else text.rpartition(":")[2].partition("(")[0]

    def hospital_ids(self) -> tuple[str, ...]:
        """The names of the hospitals, in order."""
        if self.places:
            return tuple(place.name for place in self.places)
        return tuple(f"hospital-{number:02d}" for number in range(self.hospitals))

    @property
    def participants(self) -> int:
        """How many hospitals take part in a round."""
        return _share_of(self.hospitals, self.participation)

    @property
    def inside(self) -> tuple[str, ...]:
        """The hospitals whose scans are dealt out of the data set, in order."""
        return tuple(name for name in self.hospital_ids() if name not in self.outside)

    def adversary(self) -> Adversary:
        """The Byzantine hospitals that the seed picks, whatever the attack, so that runs can be paired."""
        ids = self.inside
        drawn = numpy_generator(self.seed, BYZANTINE).choice(len(ids), size=self.byzantine, replace=False)
        byzantine = tuple(ids[number] for number in sorted(drawn))
        honest = tuple(name for name in self.hospital_ids() if name not in byzantine)
        return Adversary(byzantine, self.attack, self.participants, honest)

    def open_data(self, folder: Path | None = None) -> Source:
        """The data set itself; ``folder`` is where named sets are looked for first."""
        if isinstance(self.data, str) and not (":" in self.data and not Path(self.data).exists()):
            return open_source(self.data, folder=folder, patients=self.patients, subgroups=self.subgroups)
        if self.patients != GIVEN:
            raise ExperimentError(f"data of your own class names its groups itself, got patients={self.patients!r}")
        if not isinstance(self.data, str):
            return self.data
        source: Source = build(self.data, {}, what="data set", given={})
        return source

    def local_training(self, *, channels: int, num_classes: int) -> LocalTraining:
        """What a hospital must know to train, and the weights that it starts from.

        Raises :class:`ExperimentError` where these cannot be had, or do not fit.
        """
        model = self.model
        usual = ADAMW_CLIP if self.optimiser == "adamw" else 0.0
        if self.weights is not None:
            outputs = body_outputs(self.objective, num_classes)
            model = self.weights.start(model, self.freeze, channels=channels, num_classes=outputs, size=self.size)
        return LocalTraining(
            model=model,
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
            schedule=self.schedule,
            clip=usual if self.clip == "auto" else self.clip,
            task=self.task,
            compute=self.compute,
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
