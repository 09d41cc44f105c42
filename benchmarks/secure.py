"""What secure aggregation costs in one group: python -m benchmarks.secure [MEMBERS [ENTRIES]]."""

from __future__ import annotations

import sys
import time
from statistics import median

import numpy as np

from fedplatform.federated.secure.masked_hospital import FIXED_POINT
from fedplatform.federated.secure.masked_messages import Group
from fedplatform.federated.secure.masking import Masker, least_threshold
from fedplatform.federated.secure.unmasking import unmask


def main(members: int = 10, entries: int = 1_000_000) -> None:
    update = (0.01 * np.random.default_rng(0).standard_normal(entries)).astype(np.float32)
    names = [f"hospital-{number:02d}" for number in range(members)]
    spent = {"keys and shares": [], "masking": [], "opening": []}

    def timed(what: str, call, *arguments, **named):
        started = time.process_time()
        result = call(*arguments, **named)
        spent[what].append(time.process_time() - started)
        return result

    maskers = {name: Masker(name, 1, least_members=2) for name in names}
    group = Group(tuple(masker.advertise() for masker in maskers.values()), least_threshold(members))
    letters = {name: timed("keys and shares", masker.share, group) for name, masker in maskers.items()}
    arriving = names[: group.threshold]
    masked = []
    for name in arriving:
        mine = [letter for sent in letters.values() for letter in sent if letter.recipient == name]
        masked.append(timed("masking", maskers[name].mask, update, mine, fixed_point=FIXED_POINT))
    revealed = [timed("opening", maskers[name].reveal, tuple(arriving)) for name in arriving]
    started = time.process_time()
    total = masked[0].values.copy()
    for vector in masked[1:]:
        total += vector.values
    unmask(total, group, sharing=names, arrived=arriving, revealed=revealed)
    server = time.process_time() - started
    assert np.abs(FIXED_POINT.decode(total) - len(arriving) * update.astype(np.float64)).max() <= FIXED_POINT.step * 5
    print(f"{members} hospitals, {entries} entries, {members - len(arriving)} dropped out; CPU seconds on one core")
    for what, seconds in spent.items():
        print(f"  a hospital, {what}: {median(seconds):.4f}")
    print(f"  the server: {server:.3f}")
    print(
        f"  a hospital sends {masked[0].values.nbytes / 2**20:.1f} MiB and {members - 1} letters of "
        f"{len(letters[names[0]][0].letter)} bytes; in the clear it would be {update.nbytes / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
