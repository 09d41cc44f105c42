"""The tables for people: who does worst under which attack, and paired comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from fedplatform.core.messages import NAN
from fedplatform.experiments.report import comparison_markdown
from fedplatform.experiments.trust_benchmark.cells import OURS, REFERENCES, SETTING
from fedplatform.experiments.trust_benchmark.figures import DONE


def worst_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The attack under which each rule does worst, by mean accuracy over seeds; one row a setting and rule.

    Columns: those of the setting, rule, attack, accuracy. References are no defence and are left out.
    """
    keys = [*SETTING, "rule"]
    means = _defences(frame).groupby([*keys, "attack"], sort=False)["accuracy"].mean().reset_index()
    return means.loc[means.groupby(keys, sort=False)["accuracy"].idxmin()].reset_index(drop=True)


def paired_against(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    """How much better ``rule`` is than each other one where each does worst: paired by seed, Student's t.

    A seed's value is the lowest accuracy over all attacks; only seeds in which both rules met every attack count.
    Columns: those of the setting, rule (the other), difference (mean of ``rule`` minus other), half_width (of its 95 %
    interval), p (two-sided), seeds. One seed has no interval and no p, both are NaN then.
    """
    rows = []
    for setting, group in _defences(frame).groupby(SETTING, sort=False):
        table = group.pivot(index="seed", columns=["rule", "attack"], values="accuracy")
        attacks = group["attack"].unique()
        rules = group["rule"].unique()

        def worst(name: str, table: pd.DataFrame = table, attacks: np.ndarray = attacks) -> pd.Series[float]:
            return table.reindex(columns=[(name, attack) for attack in attacks]).min(axis=1, skipna=False)

        for other in rules if rule in rules else []:
            if other != rule:
                differences = (worst(rule) - worst(other)).dropna().to_numpy(np.float64)
                figures = dict(zip(("difference", "half_width", "p"), _paired_t(differences), strict=True))
                rows.append(
                    dict(zip(SETTING, setting, strict=True)) | {"rule": other, **figures, "seeds": len(differences)}
                )
    return pd.DataFrame(rows, columns=[*SETTING, "rule", "difference", "half_width", "p", "seeds"])


def _paired_t(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean, half-width of the 95 % interval, and two-sided p of differences (n,)."""
    n = len(differences)
    if n < 2:
        return float(differences.mean()) if n else NAN, NAN, NAN
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(n)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # no spread: p is 0, or NaN where there is no difference at all
        p = 2 * stats.t.sf(np.abs(mean / error), n - 1)
    return float(mean), float(stats.t.ppf(0.975, n - 1) * error), float(p)


def markdown(frame: pd.DataFrame) -> str:
    """The tables for people: accuracy of rules against attacks, what is missing and why, and the paired comparison."""
    parts = []
    done = frame[frame["status"] == DONE]
    if len(done):
        parts.append(comparison_markdown(done).rstrip())
    missing = frame[frame["status"] != DONE]
    if len(missing):
        lines = ["Missing:", ""]
        for (status, reason, rule), rows in missing.groupby(["status", "reason", "rule"], sort=False):
            attacks = ", ".join(rows["attack"].unique())
            lines.append(f"- {rule} against {attacks} ({len(rows)} cells): {status}, {reason}")
        parts.append("\n".join(lines))
    pairs = paired_against(frame, OURS)
    if len(pairs):
        parts.append(_paired_markdown(pairs))
    return "\n\n".join(parts) + "\n"


def _paired_markdown(pairs: pd.DataFrame) -> str:
    def points(share: float, pattern: str) -> str:
        return "–" if np.isnan(share) else pattern.format(100 * share)

    tables = []
    for (dataset, split), rows in pairs.groupby(["dataset", "split"], sort=False):
        lines = [
            f"{dataset}, {split}: {OURS} minus the other, accuracy under the worst attack of each, percentage points",
            "",
            f"| against | {OURS} is better by | 95 % interval | p (paired t) | seeds |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in rows.to_dict("records"):
            p = "–" if np.isnan(row["p"]) else f"{row['p']:.3f}"
            better, half_width = points(row["difference"], "{:+.1f}"), points(row["half_width"], "± {:.1f}")
            lines.append(f"| {row['rule']} | {better} | {half_width} | {p} | {row['seeds']} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _defences(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["status"] == DONE) & ~frame["rule"].isin(REFERENCES)]
