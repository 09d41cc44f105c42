"""The server rehearses: it plays federations on its own root scans, lies in them, and keeps what the lies look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np
import torch

from fedplatform.attacks.poisoning import ATTACKS
from fedplatform.attacks.poisoning.attack import Collusion, DataPoisoning, PoisoningAttack, Situation, UpdatePoisoning
from fedplatform.core.messages import Rehearsal
from fedplatform.federated.trust.fingerprint import measure, relative_sketches, take
from fedplatform.federated.trust.scorer import Lesson
from fedplatform.federated.trust.shapley import GuidedShapley
from fedplatform.federated.trust.update_vae import UpdateVae, VaeState
from fedplatform.federated.trust.worth import worth_of

HOSPITALS = 10
ROUNDS = 4
SHAPLEY = GuidedShapley(permutations=3)
# Not the others: they do no harm that root scans show, are too slow, need rounds, names or groups, or stay unseen so
# that the table tells how a taught scorer does against what nobody taught it.
PLAYED = (
    *("label_flip", "sign_flip", "scaling", "partial_scaling", "gaussian_noise", "alie", "ipm", "min_max", "min_sum"),
    "mimic",
)
MOST_BYZANTINE = 4


def honest_sketches(rounds: Sequence[Rehearsal]) -> np.ndarray:
    """The sketches of everything honest in some played rounds, the root updates with them: (m, SKETCH) float32."""
    return np.concatenate(
        [relative_sketches(measure(np.concatenate([r.honest, r.root_delta[None]]), r.root_delta)) for r in rounds]
    )


def lessons_from(
    rounds: Sequence[Rehearsal],
    *,
    sketches: np.ndarray,
    unseen: str,
    vae: UpdateVae,
    state: VaeState,
    generator: torch.Generator,
) -> list[Lesson]:
    """Every played round once without a lie and once under each attack but ``unseen``.

    Who lies, and how many, is drawn for each attack and stays the same over its rounds. The lessons of the last played
    rounds are kept in memory, known by their ``sketches`` (of :func:`honest_sketches`): a table asks for the same ones
    again for every attack that it leaves out.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    key = sha256(sketches.tobytes() + str(seed).encode()).digest()
    if key not in _kept:
        _kept.clear()
        _kept[key] = _all_lessons(rounds, vae=vae, state=state, generator=torch.Generator().manual_seed(seed))
    return [lesson for lesson in _kept[key] if lesson.attack != unseen]


_kept: dict[bytes, list[Lesson]] = {}


def _all_lessons(
    rounds: Sequence[Rehearsal], *, vae: UpdateVae, state: VaeState, generator: torch.Generator
) -> list[Lesson]:
    lessons = []
    for name in ("none", *PLAYED):
        n = len(rounds[0].honest)
        most = min(MOST_BYZANTINE, (n - 1) // 2)
        count = 0 if name == "none" else int(torch.randint(1, most + 1, (1,), generator=generator))
        attackers = torch.randperm(n, generator=generator)[:count]
        byzantine = np.zeros(n, dtype=bool)
        byzantine[attackers.numpy()] = True
        attack = ATTACKS[name]() if count else None
        for number, played in enumerate(rounds, start=1):
            sent = played.honest.copy()
            for attacker, forged in _forged(attack, played, attackers, number, generator):
                sent[attacker] = forged.numpy()
            measured = measure(sent, played.root_delta)
            worth = worth_of(sent, measured.norms, played.root)
            fingerprints = take(
                measured,
                hospital_ids=tuple(map(str, range(n))),
                errors=vae.errors(state, relative_sketches(measured)),
                shapley=SHAPLEY(worth, n, generator=generator).values,
            )
            lessons.append(Lesson(fingerprints, byzantine, name))
    return lessons


def _forged(
    attack: PoisoningAttack | None,
    played: Rehearsal,
    attackers: torch.Tensor,
    number: int,
    generator: torch.Generator,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(attacker, what it sends) for every attacker of a played round; attacks forge tensors."""
    if attack is None:
        return
    n, updates = len(played.honest), torch.from_numpy(played.honest)
    situation = Situation(n, len(attackers), number, torch.from_numpy(played.previous_delta), generator)
    if isinstance(attack, Collusion):
        honest = updates[[row for row in range(n) if row not in attackers]]
        together = attack.collude(honest, situation)
        yield from zip(attackers.tolist(), together.expand(len(attackers), -1), strict=True)
    for attacker in attackers.tolist():
        if isinstance(attack, UpdatePoisoning):
            yield attacker, attack.corrupt(updates[attacker], situation)
        elif isinstance(attack, DataPoisoning):
            yield attacker, torch.from_numpy(played.label_flipped[attacker])
