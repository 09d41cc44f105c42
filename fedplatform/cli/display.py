"""What a person sees on a terminal: the rounds as they come with the time left, and the answers of an audit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import isnan, nan
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedplatform.core.messages import HospitalState, RoundReport
from fedplatform.core.site_statistics import SiteStatistics
from fedplatform.core.wording import percent
from fedplatform.data.leakage import AuditReport
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.experiment import Experiment

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN_ROUNDS = 30
MOST_SITES = 12  # side by side


class RoundTable(Callback):
    """A live table of rounds on a terminal; on anything else, one plain line a round."""

    def __init__(self, title: str, *, rounds: int, console: Console) -> None:
        self._title = title
        self._rounds = rounds
        self._console = console
        self._reports: list[RoundReport] = []
        self._before = 0  # rounds of earlier launches
        self._started = time.monotonic()
        self._doing = "starting"
        self._live = Live(self._table(), console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def dealing(self, done: int, total: int) -> None:
        """Show how many scans are dealt to hospitals."""
        self._doing = f"dealing scans to hospitals, {done} of {total}" if done < total else "starting hospitals"
        if self._live:
            self._live.update(self._table())

    def weights_loaded(self, words: str) -> None:
        """Say what of the given weights was loaded."""
        self._console.print(words, soft_wrap=True, highlight=False)

    def started(self, experiment: Experiment, earlier: Sequence[RoundReport]) -> None:  # noqa: ARG002
        """Show the rounds that were finished before, where there are some."""
        if not earlier:
            return
        self._reports += earlier
        self._before = len(earlier)
        self._started = time.monotonic()
        if self._live:
            self._live.update(self._table())
        else:
            self._console.print(f"going on after round {self._before}/{self._rounds}", highlight=False)

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """Show one more round."""
        report = reports[-1]
        self._reports.append(report)
        if self._live:
            self._live.update(self._table())
        else:
            cells = self._cells(report)
            self._console.print(
                f"round {cells[0]}  accuracy {cells[1]}  F1 {cells[2]}  AUC {cells[3]}  loss {cells[4]}  "
                f"{cells[5] or 'nobody excluded'}  {cells[6]} s  left {self._left()}",
                soft_wrap=True,
                highlight=False,
            )

    def _left(self) -> str:
        done = len(self._reports)
        seconds = (time.monotonic() - self._started) / max(1, done - self._before) * (self._rounds - done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _cells(self, report: RoundReport) -> tuple[str, ...]:
        seconds = report.train_seconds + report.aggregate_seconds + report.evaluate_seconds
        return (
            f"{report.round_number}/{self._rounds}",
            f"{report.accuracy:.3f}",
            f"{report.macro_f1:.3f}",
            f"{report.auc:.3f}",
            f"{report.loss:.3f}",
            excluded(report),
            f"{seconds:.1f}",
        )

    def _table(self) -> Table:
        left = f"{self._left()} left" if len(self._reports) > self._before else self._doing
        table = Table(title=f"{self._title}, {left}", title_justify="left", expand=False)
        for column in ("round", "accuracy", "macro-F1", "AUC", "loss"):
            table.add_column(column, justify="right")
        table.add_column("excluded")
        table.add_column("seconds", justify="right")
        for report in self._reports[-SHOWN_ROUNDS:]:
            table.add_row(*self._cells(report))
        return table


def audit_table(report: AuditReport) -> list[RenderableType]:
    """An audit in the order in which a person would ask."""
    table = Table(show_header=False, box=None)
    classes = ", ".join(f"{name} {count}" for name, count in zip(report.classes, report.class_counts, strict=True))
    searched = "" if report.searched == report.scans else f" (in a sample of {report.searched})"
    given = "none given" if report.given_groups is None else f"{report.given_groups} given"
    for question, answer in (
        ("scans", f"{report.scans}: {classes}"),
        ("exact copies", f"{report.duplicates}, {report.conflicting} of them under another class{searched}"),
        ("near-identical pictures", f"{report.twins} of {report.searched} have a twin{searched}"),
        ("groups", f"{given}; {report.found_groups} found, the largest of {report.largest_group} scans"),
        ("nearest neighbour, random split", f"{report.random_accuracy:.3f}"),
        ("nearest neighbour, group-safe split", f"{report.group_safe_accuracy:.3f}"),
        ("always the largest class", f"{report.majority:.3f}"),
    ):
        table.add_row(question, answer)
    if report.published_accuracy is not None:
        table.add_row("nearest neighbour, published test set", f"{report.published_accuracy:.3f}")
    return [table, *(f"warning: {warning}" for warning in report.warnings)]


def hospital_table(reports: Sequence[RoundReport]) -> Table:
    """How much each hospital counted, and what the rule thought of it; Byzantine ones are marked with a star.

    Under a rule that scores nobody, how good the last model is on each hospital's own test scans stands there instead.
    The last reason that was found against any of them stands below, once for all hospitals that share it.
    """
    table = Table(title="hospitals (* Byzantine)", title_justify="left", caption_justify="left", box=None)
    scored = any(not isnan(record.trust) for report in reports for record in report.hospitals)
    last_columns = ("trust", "reputation") if scored else ("AUC", "balanced accuracy")
    for column in ("hospital", "mean weight", "rounds excluded", "scans judged", *last_columns):
        table.add_column(column, justify="left" if column == "hospital" else "right", no_wrap=column == "hospital")
    reasons: dict[str, list[str]] = {}
    for last in reports[-1].hospitals:
        own = [record for report in reports for record in report.hospitals if record.hospital_id == last.hospital_id]
        absent = (HospitalState.RESTING, HospitalState.WITHDRAWN)
        taking_part = [record for record in own if record.state not in absent]
        name = f"{last.hospital_id}{' *' if last.is_byzantine else ''}"
        table.add_row(
            name,
            percent(fmean(record.weight for record in own)),
            f"{sum(record.weight == 0 for record in taking_part)} of {len(taking_part)}",
            str(last.judged),
            _figure(_newest([record.trust for record in own]) if scored else last.auc),
            _figure(_newest([record.reputation for record in own]) if scored else last.balanced_accuracy),
        )
        if reason := next((record.reason for record in reversed(own) if record.reason), ""):
            reasons.setdefault(reason, []).append(name)
    if reasons:
        table.caption = "\n".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return table


def cross_site_tables(table: DataFrame) -> list[RenderableType]:
    """AUC and balanced accuracy of every model (rows) at every site (columns); of many sites, home and away only."""
    from fedplatform.experiments.report.site_matrix import TITLES, short_names

    shown: list[RenderableType] = []
    for name, title in TITLES.items():
        figures = table[name].unstack(sort=False)
        whole = len(figures.columns) <= MOST_SITES
        drawn = Table(title=f"{title}, models by sites", title_justify="left", box=None)
        drawn.add_column("model of", no_wrap=True)
        is_shared = list(figures.index) != list(figures.columns)
        columns = [*(short_names(list(figures.columns)) if whole else []), *([] if is_shared else ["own", "others"])]
        for column in [*columns, *(["mean", "lowest"] if is_shared else ["lowest"])]:
            drawn.add_column(column, justify="right")
        for place, (model, values) in enumerate(zip(figures.index, figures.to_numpy(float), strict=True)):
            others = [value for value in (values if is_shared else np.delete(values, place)) if not isnan(value)]
            cells = [*(values if whole else []), *([] if is_shared else [values[place]])]
            cells += [fmean(others), min(others)] if others else [nan, nan]
            drawn.add_row(str(model), *map(_figure, cells))
        shown.append(drawn)
    return shown


def statistics_lines(sites: Sequence[SiteStatistics], classes: Sequence[str]) -> list[RenderableType]:
    """What hospitals tell of their scans, a row each; a suppressed count is the number of patients it is less than."""
    table = Table(title=f"scans by class: {' / '.join(classes)}", title_justify="left", box=None)
    answered = [site for site in sites if not site.failure]
    roles = list(answered[0].counts) if answered else []
    table.add_column("hospital", no_wrap=True)
    for column in (*roles, "patients", "pixel mean", "deviation"):
        table.add_column(column, justify="right")
    for site in answered:
        counts = (
            " / ".join(f"<{site.least}" if count is None else str(count) for count in site.counts[role])
            for role in roles
        )
        pixels = [", ".join(f"{value:.3f}" for value in values) or "–" for values in (site.means, site.deviations)]
        table.add_row(site.hospital_id, *counts, str(site.patients), *pixels)
    lines: list[RenderableType] = [table]
    if suppressed := sum(site.suppressed for site in answered):
        lines.append(f"{suppressed} cells of fewer than {answered[0].least} patients: their scans are in no figure")
    return [*lines, *(f"no answer from {site.hospital_id}: {site.failure}" for site in sites if site.failure)]


def _newest(values: Sequence[float]) -> float:
    """The last of them that is a number; a hospital that rests has none in that round."""
    return next((value for value in reversed(values) if not isnan(value)), nan)


def _figure(value: float) -> str:
    return "–" if isnan(value) else f"{value:.2f}"


def excluded(report: RoundReport) -> str:
    """Who did not count in a round and in which state, e.g. ``hospital-03 hostile, hospital-07 late``."""
    return ", ".join(
        f"{record.hospital_id} {record.state}" for record in report.hospitals if not record.state.is_as_expected
    )


class StageTable:
    """The stages in which a defence is trained: a bar each on a terminal; on anything else, one plain line a round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, rounds: int, report: RoundReport) -> None:
        """Show one more round of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=rounds)
        said = f"{stage}  loss {report.loss:.3f}"
        if report.accuracy == report.accuracy:  # a network that names no class has none
            said += f"  accuracy {report.accuracy:.3f}"
        self._bars.update(self._tasks[stage], completed=report.round_number, description=said)
        if not self._console.is_terminal:
            self._console.print(f"{said}  round {report.round_number}/{rounds}")
