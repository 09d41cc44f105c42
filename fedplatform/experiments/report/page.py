"""The page of one run."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from fedplatform.core.messages import HospitalState, RoundReport
from fedplatform.core.tasks import answers_of, as_questions, is_multilabel, words_of
from fedplatform.core.template import load_template
from fedplatform.experiments.report.charts import draw_charts, draw_trust
from fedplatform.experiments.report.defence_page import under_attack, write_defence_report
from fedplatform.experiments.report.error import ReportError
from fedplatform.experiments.report.fingerprint_map import DARKEST, draw_fingerprints
from fedplatform.experiments.report.finished_run import FinishedRun, HospitalHistory, Samples, read_run
from fedplatform.experiments.report.headline import headline
from fedplatform.experiments.report.heat_map import draw_heat_map
from fedplatform.experiments.report.picture import png
from fedplatform.experiments.report.reliability import draw_reliability
from fedplatform.experiments.report.site_matrix import draw_cross_site
from fedplatform.learning.site_figures import SiteFigures, figures_by_site, figures_by_subgroup

MAX_EVENTS = 400
MOST_CLASSES = 40  # in a matrix that a person still reads
DEED = {
    HospitalState.REPORTED: "sent its update",
    HospitalState.LATE: "was late",
    HospitalState.CRASHED: "crashed",
    HospitalState.MALFORMED: "sent something that is not an update",
    HospitalState.HOSTILE: "was shut out by the rule",
    HospitalState.UNJUDGED: "sent its update but could not judge the new model",
    HospitalState.RESTING: "was not drawn for this round",
    HospitalState.WITHDRAWN: "had withdrawn",
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, one page that needs no other file and no network; returns its path.

    Where the run was evaluated under attack, ``evaluation.html`` is written beside it, which the page links. Raises
    :class:`ReportError` where the folder holds no finished run, or an evaluation that would mislead.
    """
    run = read_run(folder)
    attack = under_attack(folder)
    if attack:
        write_defence_report(folder)
    hospitals = run.hospitals
    events, num_classes = _events(hospitals, run), len(run.rounds[-1].confusion)
    page = load_template("report.html", "fedplatform.experiments.report").render(
        run=run,
        final=run.rounds[-1],
        headline=headline(run),
        hospitals=hospitals,
        num_byzantine=sum(history.is_byzantine for history in hospitals),
        byzantine_share=_byzantine_share(run.rounds),
        charts=draw_charts(run),
        trust=draw_trust(run),
        heat=draw_heat_map(run),
        fingerprints=draw_fingerprints(run),
        darkest=DARKEST,
        events=_foremost(events),
        num_events=len(events),
        confusion=_confusion(run),
        sites=(sites := figures_by_site(run.tests)),
        classes=_class_names(run, len(sites[0].class_counts)) if sites else (),
        reliability=draw_reliability(run.tests) if sites else None,
        cross_site=None
        if run.cross_site is None
        else draw_cross_site(run.cross_site, num_classes=2 if run.rounds[-1].label_auc else num_classes),
        num_classes=num_classes,
        findings=_findings(sites),
        subgroups=figures_by_subgroup(run.tests),
        attack=attack,
        scans=_scans(run.samples) if run.samples else (),
        phases=_phases(run.rounds),
        command=f"fedplatform run experiment.yaml --name {shlex.quote(run.name + '-again')}",
        states=list(HospitalState),
        deeds=DEED,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _byzantine_share(rounds: Sequence[RoundReport]) -> float:
    """The attackers' part of all weight given over the run, 0 to 1; NaN where no weight was given."""
    given = sum(record.weight for report in rounds for record in report.hospitals)
    lied = sum(record.weight for report in rounds for record in report.hospitals if record.is_byzantine)
    return lied / given if given else math.nan


@dataclass(frozen=True)
class _Event:
    """Consecutive rounds in which the same was said of a hospital; ``reason`` is the first round's."""

    first: int
    last: int
    hospital_id: str
    is_byzantine: bool
    state: HospitalState
    reason: str
    figures_differ: bool  # whether later rounds gave the same reason with other figures


def _events(hospitals: Sequence[HospitalHistory], run: FinishedRun) -> list[_Event]:
    """All that went wrong or was remarked upon, oldest first, and who withdrew after the last round."""
    events = []
    for history in hospitals:
        for (state, _), group in groupby(history.records, key=lambda record: (record.state, _words(record.reason))):
            records = list(group)
            first, last, reason = records[0].round_number, records[-1].round_number, records[0].reason
            if not state.is_as_expected or reason:
                differ = any(record.reason != reason for record in records)
                events.append(_Event(first, last, history.hospital_id, history.is_byzantine, state, reason, differ))
    lies = {history.hospital_id: history.is_byzantine for history in hospitals}
    told = {event.hospital_id for event in events if event.state == HospitalState.WITHDRAWN}
    for one in run.withdrawals:
        if one.hospital_id not in told:
            after, is_byzantine = one.after_round, lies.get(one.hospital_id, False)
            state = HospitalState.WITHDRAWN
            events.append(_Event(after, after, one.hospital_id, is_byzantine, state, one.reason, figures_differ=False))
    return sorted(events, key=lambda event: event.first)


def _words(reason: str) -> str:
    """A reason without its figures, which differ from round to round; the number in ``hospital-3`` is no figure."""
    return re.sub(r"(?<![\w-])-?\d+(\.\d+)?(e[+-]?\d+)?", "0", reason)


def _foremost(events: Sequence[_Event]) -> list[_Event]:
    """As many events as a page can hold, remarks on updates that came as they should left out first; oldest first."""
    ranked = sorted(events, key=lambda event: event.state == HospitalState.REPORTED)
    return sorted(ranked[:MAX_EVENTS], key=lambda event: event.first)


@dataclass(frozen=True)
class _Confusion:
    classes: tuple[str, ...]
    rows: tuple[tuple[tuple[int, float], ...], ...]  # (count, share of the row); NaN share where the class is empty


def _confusion(run: FinishedRun) -> _Confusion | None:
    matrix = run.rounds[-1].confusion
    if not matrix or len(matrix) > MOST_CLASSES or run.rounds[-1].label_auc:
        return None
    classes = _class_names(run, len(matrix))
    if len(classes) != len(matrix):
        raise ReportError(f"samples.npz names {len(classes)} classes, the confusion matrix has {len(matrix)}")
    rows = tuple(tuple((count, count / sum(row) if sum(row) else math.nan) for count in row) for row in matrix)
    return _Confusion(classes, rows)


def _class_names(run: FinishedRun, count: int) -> tuple[str, ...]:
    return run.classes or tuple(f"class {label}" for label in range(count))


@dataclass(frozen=True)
class _Findings:
    """The findings by site, that of all sites first, and the numbers of those that no mean counts."""

    sites: tuple[SiteFigures, ...]
    left_out: tuple[int, ...]


def _findings(sites: Sequence[SiteFigures]) -> _Findings | None:
    if not sites or not sites[0].findings:
        return None
    left_out = tuple(number for number, one in enumerate(sites[-1].findings) if not one.is_judged)
    return _Findings((sites[-1], *sites[:-1]), left_out)


@dataclass(frozen=True)
class _Scan:
    picture: str
    truth: str
    answer: str
    confidence: float


def _scans(samples: Samples) -> tuple[_Scan, ...]:
    if not samples.probabilities.size:  # a network that names no class has no answer to show
        return ()
    answers = answers_of(samples.probabilities, multilabel=is_multilabel(samples.labels))
    return tuple(
        _Scan(png(image), words_of(label, samples.classes), words_of(answer, samples.classes), _confidence(row, label))
        for image, label, answer, row in zip(
            samples.images, samples.labels, answers, samples.probabilities, strict=True
        )
    )


def _confidence(probabilities: np.ndarray, label: np.ndarray) -> float:
    """How sure an answer is; of several findings, the one that is least sure."""
    each, _ = as_questions(probabilities[None], label[None])
    return float(each.max(axis=1).min())


def _phases(rounds: Sequence[RoundReport]) -> list[tuple[str, float, float]]:
    """(phase, seconds in all, share of all seconds)."""
    seconds = {
        "training": sum(report.train_seconds for report in rounds),
        "aggregation": sum(report.aggregate_seconds for report in rounds),
        "evaluation": sum(report.evaluate_seconds for report in rounds),
    }
    whole = sum(seconds.values())
    return [(phase, spent, spent / whole if whole else 0.0) for phase, spent in seconds.items()]
