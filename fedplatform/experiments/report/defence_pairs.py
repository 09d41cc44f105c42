"""The full defence beside every other row, scan by scan: what the difference is, and whether it is chance."""

from __future__ import annotations

import pandas as pd

from fedplatform.core.statistics import sign_flips
from fedplatform.experiments.report.defence_grid import FULL
from fedplatform.experiments.report.threat_wording import DEFENCES, epsilon_words

SCAN = ["adversarial_training", "tier", "epsilon", "seed", "row"]


def defence_pairs(scans: pd.DataFrame, *, ours: str = FULL) -> pd.DataFrame:
    """How many scans ``ours`` answers rightly that another defence does not, and the other way round.

    ``scans`` has the columns of scans.parquet, of one run or of many. A row for each other defence, tier and epsilon:
    ``n`` scans of ``groups`` groups that both were tried on, ``gained`` and ``lost`` by ours, ``seeds_better`` of
    ``seeds``, and ``p`` that gains and losses are equally likely, a group being the unit over all seeds: scans of one
    patient are no independent witnesses, and a test that takes them for such finds everything significant.
    """
    right = scans.assign(right=scans["answer"] == scans["label"])
    own = right[right["defence"] == ours][[*SCAN, "right"]]
    both = right[right["defence"] != ours].merge(own, on=SCAN, suffixes=("_other", "_own"))
    rows = []
    for keys, group in both.groupby(["adversarial_training", "epsilon", "tier", "defence"], sort=False):
        gained = int((group["right_own"] & ~group["right_other"]).sum())
        lost = int((~group["right_own"] & group["right_other"]).sum())
        by_group = (group["right_own"].astype(int) - group["right_other"]).groupby(group["group"]).sum()
        by_seed = group.groupby("seed")[["right_own", "right_other"]].mean()
        rows.append(
            {
                **dict(zip(("adversarial_training", "epsilon", "tier", "defence"), keys, strict=True)),
                "n": len(group),
                "groups": len(by_group),
                "gained": gained,
                "lost": lost,
                "seeds": len(by_seed),
                "seeds_better": int((by_seed["right_own"] > by_seed["right_other"]).sum()),
                "p": sign_flips(by_group.to_numpy()),
            }
        )
    return pd.DataFrame(rows)


def paired_markdown(scans: pd.DataFrame) -> str:
    """The same as a Markdown table, percentage points of the full defence over each other row; "" without pairs."""
    pairs = defence_pairs(scans)
    if pairs.empty:
        return ""
    lines = [
        "full defence minus the other on the same scans, percentage points; p of the sign-flip test over groups",
        "",
        "| against | adversarial training | epsilon | tier | better by | n | groups | seeds better | p |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in pairs.to_dict("records"):
        name = DEFENCES.get(row["defence"], row["defence"])
        trained = "yes" if row["adversarial_training"] else "no"
        better = f"{100 * (row['gained'] - row['lost']) / row['n']:+.1f}"
        strength = epsilon_words(row["epsilon"])
        lines.append(
            f"| {name} | {trained} | {strength} | {row['tier']} | {better} | {row['n']} | {row['groups']} "
            f"| {row['seeds_better']} of {row['seeds']} | {row['p']:.3f} |"
        )
    return "\n".join(lines) + "\n"
