"""Random faults for as long as it takes: ``python -m benchmarks.soak`` (``make soak``). This machine alone.

Every schedule is a run of ``fedplatform run`` on one Ray cluster of three nodes, in whose rounds a seed draws what is
hurt: a process of hospitals, a node of them, the server, the driver, the driver and then the newest checkpoint. In the
end the model must be, bit for bit, what one process comes to from the updates that are recorded as arrived, every round
must be recorded once, and no process of the run may be left. ``docs/results/soak.csv`` has a row a schedule.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from benchmarks.faults import Driver, Machines, Run, until
from fedplatform.core.seeding import numpy_generator

ROUNDS = 6
CHANCE = 0.6  # of a fault in a round that may have one
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "soak.csv"


@dataclass(frozen=True)
class Outcome:
    """What came of one schedule."""

    seed: int
    faults: str
    algorithm: str
    right_model: bool
    rounds_recorded: int
    updates_missed: int
    processes_left: int
    seconds: int


def kill_hospital(run: Run, machines: Machines, driver: Driver, number: int) -> Driver:
    machines.kill_actor("HospitalHost", which=number % 2)
    return driver


def kill_node(run: Run, machines: Machines, driver: Driver, number: int) -> Driver:
    """A fresh one joins in the next round."""
    machines.kill_node(number % 2)
    try:
        run.in_round(number + 1, driver)
    finally:
        machines.join(number % 2)
    return driver


def kill_server(run: Run, machines: Machines, driver: Driver, number: int) -> Driver:
    machines.kill_actor("Server")
    return driver


def kill_driver(run: Run, machines: Machines, driver: Driver, number: int) -> Driver:
    """It is resumed once the orphans are gone."""
    driver.kill()
    no_actors(machines)
    return run.resume("--address", machines.address)


def spoil_checkpoint(run: Run, machines: Machines, driver: Driver, number: int) -> Driver:
    """Of a run whose driver was killed: a bit of the newest checkpoint flips."""
    driver.kill()
    no_actors(machines)
    newest = max((run.path / "checkpoints").glob("round-*")) / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    return run.resume("--address", machines.address)


Fault = Callable[[Run, Machines, Driver, int], Driver]
OF_HOSPITALS: dict[str, Fault] = {"hospital": kill_hospital, "node": kill_node}
OF_THE_SERVER: dict[str, Fault] = {"server": kill_server, "driver": kill_driver, "checkpoint": spoil_checkpoint}


def no_actors(machines: Machines) -> None:
    """Wait until none is left."""
    until(lambda: not machines.actors("Server") and not machines.actors("HospitalHost"), "the end of the actors")


def drawn(seed: int) -> dict[int, str]:
    """The faults of a schedule by their rounds, at least one; the first round and the last are left alone.

    A spoilt checkpoint needs one before it to fall back on.
    """
    draw = numpy_generator(seed, "soak")
    names = [*OF_HOSPITALS, *OF_THE_SERVER]
    while True:
        hit = {number: str(draw.choice(names)) for number in range(2, ROUNDS) if draw.random() < CHANCE}
        if hit and all(name != "checkpoint" or number > 2 for number, name in hit.items()):
            return hit


def soak(seed: int, machines: Machines, folder: Path) -> Outcome:
    """One schedule. Raises where the run does not come to its end."""
    started = time.monotonic()
    faults = drawn(seed)
    # What a hospital keeps for itself may or may not include a round in which it died: there only what is sent counts.
    hurts_hospitals = any(name in OF_HOSPITALS for name in faults.values())
    algorithm, attack = ("fedavg", "sign_flip") if hurts_hospitals else ("fedbn_p", "free_rider")
    run = Run(folder, rounds=ROUNDS, algorithm=algorithm, attack=attack, rule="median", seed=seed)
    driver = run.start(machines.address)
    for number, name in faults.items():
        run.in_round(number, driver)
        driver = {**OF_HOSPITALS, **OF_THE_SERVER}[name](run, machines, driver, number)
    said = driver.end()
    if driver.process.returncode:
        raise RuntimeError(f"seed {seed}: {said}")
    no_actors(machines)
    states = run.states()
    return Outcome(
        seed=seed,
        faults=", ".join(f"{name} in {number}" for number, name in faults.items()),
        algorithm=algorithm,
        right_model=run.weights() == run.replayed(),
        rounds_recorded=len(states) // states.index.get_level_values("hospital_id").nunique(),
        updates_missed=int((~states["state"].isin(["reported", "hostile"])).sum()),
        processes_left=len(machines.actors("Server")) + len(machines.actors("HospitalHost")),
        seconds=round(time.monotonic() - started),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=20, metavar="N", help="how many [default: 20]")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="seed of the first [default: 0]")
    parser.add_argument("--minutes", type=float, default=90.0, metavar="X", help="none starts after so many")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    started = time.monotonic()
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print("starting a cluster of three nodes", flush=True)
    machines = Machines(nodes=2)
    try:
        for number in range(arguments.schedules):
            if time.monotonic() - started > 60 * arguments.minutes:
                print(f"{arguments.minutes:g} minutes are over")
                break
            seed = arguments.first_seed + number
            place = folder / f"seed-{seed}"
            place.mkdir()
            outcome = soak(seed, machines, place)
            shutil.rmtree(place)
            outcomes.append(outcome)
            pd.DataFrame(map(asdict, outcomes)).to_csv(arguments.results, index=False)
            spent = time.monotonic() - started
            left = timedelta(seconds=round(spent / len(outcomes) * (arguments.schedules - len(outcomes))))
            verdict = "right model" if outcome.right_model else "WRONG MODEL"
            print(
                f"{len(outcomes)}/{arguments.schedules}  seed {seed}: {outcome.faults}; {verdict}, "
                f"{outcome.updates_missed} updates missed, {outcome.seconds} s; {left} left",
                flush=True,
            )
    finally:
        machines.stop()
    until(lambda: not machines.left(), "the end of every process of the cluster", patience_s=60)
    shutil.rmtree(folder)
    wrong = [o.seed for o in outcomes if not o.right_model or o.rounds_recorded != ROUNDS or o.processes_left]
    print(f"{len(outcomes)} schedules, {len(wrong)} wrong{f': seeds {wrong}' if wrong else ''}, no process left")
    sys.exit(bool(wrong) or not outcomes)


if __name__ == "__main__":
    main()
