"""An attack on a scan as one line of text: ``fab(steps=50)``, beside the tiers that are always the same."""

from __future__ import annotations

from fedplatform.attacks.evasion import EVASION_ATTACKS, EvasionAttack, Score
from fedplatform.core.specification import SpecificationError, build


def parse_attack(text: str, *, epsilon: float, score: Score, threshold: float) -> EvasionAttack:
    """The attack that a text names, from :data:`EVASION_ATTACKS` or a user's own file.

    Score and threshold of the victim's detector go to attacks that ask for them. Raises :class:`SpecificationError`
    where the text names none, or sets an epsilon of its own.
    """
    given = {"epsilon": epsilon, "score": score, "threshold": threshold}
    attack = build(text, EVASION_ATTACKS, what="attack", given=given)
    if not isinstance(attack, EvasionAttack):
        raise SpecificationError(f"attack {text!r} must subclass fedplatform.attacks.evasion.EvasionAttack")
    if attack.epsilon != epsilon:
        raise SpecificationError(f"attack {text!r}: epsilon is what the evaluation says, got {attack.epsilon}")
    return attack


def aims_at_detector(text: str) -> bool:
    """Whether the attack asks for a detector's score, so that a defence without one is not tried.

    Raises :class:`SpecificationError` where the text names no attack.
    """
    attack = parse_attack(text, epsilon=0.125, score=lambda images: images.flatten(1).sum(dim=1), threshold=0.0)
    return hasattr(attack, "score")
