"""An aggregation rule as one line of text and back: ``nnm+trimmed_mean(f=2)``, ``network+trust``."""

from __future__ import annotations

from dataclasses import replace

from fedplatform.core.specification import SpecificationError, build, describe, slug_of
from fedplatform.federated.aggregation import MIXERS, RULES, Aggregator, Mixed, as_rule
from fedplatform.federated.trust import SCORERS, OptiGradTrust, RobustScores

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
