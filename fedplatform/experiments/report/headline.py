"""A run in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from fedplatform.core.messages import best_of
from fedplatform.core.wording import count, listing, percent
from fedplatform.experiments.report.finished_run import FinishedRun, HospitalHistory


def headline(run: FinishedRun) -> str:
    """Who trained what, under which attack and rule, how well it ended, and who was shut out."""
    hospitals, final, settings = run.hospitals, run.rounds[-1], run.settings
    byzantine = sum(history.is_byzantine for history in hospitals)
    attack = settings.get("attack", "an unnamed attack")
    crowd = (
        f"{len(hospitals)} hospitals, {f'{byzantine} of them Byzantine ({attack}),' if byzantine else 'all honest,'}"
    )
    trained = f"trained {settings.get('model', 'a model')} on {settings.get('data', 'their scans')}"
    span = f"for {count(len(run.rounds), 'round')} under the rule {settings.get('rule', 'of the server')}"
    score = (
        f"an accuracy of {percent(final.over_hospitals('accuracy'))} in the mean over hospitals "
        f"(all test scans pooled: balanced accuracy {percent(final.balanced_accuracy)}, AUC {percent(final.auc)} and "
        f"accuracy {percent(final.accuracy)})"
    )
    if not final.beats_majority:
        score += f", no more than the {percent(final.majority)} of always answering the same"
    if final.attack_success == final.attack_success:
        score += f", and the backdoor opened for {percent(final.attack_success)} of stamped scans"
    said = f"{crowd} {trained} {span} and ended with {score}; {_verdict(hospitals)}."
    best = best_of(run.rounds)
    if best is not final:
        said += (
            f" Round {best.round_number} was best on validation scans, with balanced accuracy "
            f"{percent(best.balanced_accuracy)} and AUC {percent(best.auc)} on test scans; its model is "
            "best.safetensors."
        )
    return said


def _verdict(hospitals: Sequence[HospitalHistory]) -> str:
    """Who was shut out, and whether they were the attackers."""
    byzantine = [history.hospital_id for history in hospitals if history.is_byzantine]
    out = [history.hospital_id for history in hospitals if history.shut_out]
    caught = [hospital_id for hospital_id in out if hospital_id in byzantine]
    if not byzantine:
        return f"the rule shut out {listing(out)}, though nobody lied" if out else "the rule shut nobody out"
    if not out:
        return f"the rule shut nobody out, so {count(len(byzantine), 'attacker')} took part"
    if out == byzantine:
        return f"the rule shut out {listing(out)}, exactly the {count(len(byzantine), 'attacker')}"
    honest = count(len(out) - len(caught), "honest hospital") if len(out) > len(caught) else "nobody else"
    return f"the rule shut out {listing(out)}: {len(caught)} of the {count(len(byzantine), 'attacker')} and {honest}"
