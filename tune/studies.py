"""The studies that have a name, and a user's own by its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedplatform.core.specification import build, describe, slug_of
from fedplatform.experiments.experiment import ExperimentError
from tune.breakdown import Breakdown
from tune.duel import Duel
from tune.evasion import Evasion
from tune.poisoning import Poisoning
from tune.purification import Purification
from tune.study import Study
from tune.trust import Trust

STUDIES: Mapping[str, type[Study]] = {
    "poisoning": Poisoning,
    "trust": Trust,
    "evasion": Evasion,
    "purification": Purification,
    "duel": Duel,
    "breakdown": Breakdown,
}


def parse_study(text: str, settings: Mapping[str, object], *, seed: int) -> Study:
    """A study from its text, as ``poisoning``, ``trust(base='br35h')`` or ``my_study.py:MyStudy``.

    ``settings`` come on top; ``seed`` is its own where it has such a setting and the text does not say. Raises
    :class:`SpecificationError` for a setting that the study has not, :class:`ExperimentError` where it is no study.
    """
    head, _, rest = text.partition("(")
    inner = rest.rstrip().removesuffix(")").rstrip().rstrip(",")
    told = ", ".join(filter(None, [inner, *(f"{name}={value!r}" for name, value in settings.items())]))
    study: object = build(f"{head}({told})" if told else head, STUDIES, what="study", given={})
    fields = getattr(study, "__dataclass_fields__", None)
    if not isinstance(study, Study) or fields is None:
        raise ExperimentError(f"{text!r} is no study: a frozen dataclass that extends tune.study.Study")
    if "seed" in fields and "seed=" not in text and "seed" not in settings:
        return parse_study(text, {**settings, "seed": seed}, seed=seed)
    return study


def describe_study(study: Study) -> str:
    """The text from which :func:`parse_study` makes an equal study."""
    return describe(study, STUDIES)


def slug_of_study(study: Study) -> str:
    """A short name for folders: the study's, and the rule's or the run's where it is of one."""
    run = Path(getattr(study, "run", "")).name
    parts = [slug_of(study, STUDIES).lower(), str(getattr(study, "rule", "")), run]
    return "-".join("".join(c if c.isalnum() or c in "+_.-" else "_" for c in part) for part in parts if part)
