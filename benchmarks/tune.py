"""The guided search against chance: `python -m benchmarks.tune` writes docs/results/tune.csv, a row a search.

For each rule and seed two searches for the most harmful attack, of as many trials each, on the same split, with the
same early stopping: Optuna's TPE, beginning with the usual attacks, and uniform draws. Both winners meet the test scans
once. What is done is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from tune.phase import Budget
from tune.poisoning import Poisoning
from tune.runner import Resources, run, started
from tune.trial import Trial

RESULTS = Path(__file__).parents[1] / "docs/results/tune.csv"


class Lines:
    """Says which trial is over."""

    def begin(self, phase: object) -> None:
        pass

    def update(self, trial: Trial) -> None:
        if trial.is_over:
            print(
                f"  {trial.title} {trial.state} {dict(trial.choice)} {trial.figures} {trial.seconds:.0f} s", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", default="trimmed_mean,trust")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-tune"))
    options = parser.parse_args()
    rows = []
    with started(Resources()):
        for seed in map(int, options.seeds.split(",")):
            for rule in options.rules.split(","):
                for sampler in ("tpe", "random"):
                    study = Poisoning(rule=rule, rules=(), seed=seed)
                    name = f"{rule}-{sampler}-seed{seed}"
                    print(name, flush=True)
                    budget = Budget(options.trials, seed=seed, sampler=sampler)
                    ledger = run(study, budget, folder=options.runs / name, name=name, observers=(Lines(),))
                    rows.append(row_of(study, list(ledger), rule=rule, seed=seed, sampler=sampler))
                    pd.DataFrame(rows).round(4).to_csv(RESULTS, index=False)


def row_of(study: Poisoning, trials: list[Trial], *, rule: str, seed: int, sampler: str) -> dict[str, object]:
    searched = [trial for trial in trials if trial.phase == "search"]
    best = study.choose(searched)
    assert best is not None
    tested = {trial.label.partition(" ")[0]: trial.figures["accuracy"] for trial in trials if trial.phase == "test"}
    return {
        "rule": rule,
        "seed": seed,
        "sampler": sampler,
        "trials": len(searched),
        "stopped": sum(trial.state == "stopped" for trial in searched),
        **best.choice,
        "validation_accuracy": best.figures["accuracy"],
        "test_accuracy": tested["winner"],
        "no_attack": tested["no"],
        "usual_attack": tested["usual"],
        "trial_seconds": sum(trial.seconds for trial in searched),
    }


if __name__ == "__main__":
    main()
