"""Where the time of a run went: the rounds that took longer than usual, and what happened in them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pandas as pd

LONG = 2.0  # times the median round


def delays(run: Path) -> pd.DataFrame:
    """A row for each long round of a run: its seconds, how many of them beyond the median round, and why.

    Read from ``run.log`` and ``hospitals.parquet``; a round in which a launch of the server began has that as its
    reason, any other the hospitals that were away.
    """
    lines = [json.loads(line) for line in (run / "run.log").read_text().splitlines()]
    ends = {int(line["round"]): line["time"] for line in lines if "balanced accuracy" in line["message"]}
    starts = [datetime.fromisoformat(line["time"]) for line in lines if " hospitals, " in line["message"]]
    at = pd.Series({number: datetime.fromisoformat(time) for number, time in sorted(ends.items())})
    before = at.shift()  # a round that the server finished as its driver was stopped has no line
    seconds = (at - before).dt.total_seconds().dropna()
    usual = float(seconds.median())
    hospitals = pd.read_parquet(run / "hospitals.parquet")
    rows = []
    for number, took in seconds[seconds > LONG * usual].items():
        away = hospitals[(hospitals["round_number"] == number) & (hospitals["weight"] == 0)]
        began = any(before[number] < start < at[number] for start in starts)
        why = "the server was away and began anew" if began else ", ".join(away["hospital_id"] + " " + away["state"])
        rows.append({"round": number, "seconds": took, "beyond": took - usual, "why": why or "unknown"})
    found = pd.DataFrame(rows, columns=["round", "seconds", "beyond", "why"])
    found.attrs |= {"rounds": len(at), "usual": usual, "all": float(seconds.sum())}
    return found


def told(found: pd.DataFrame) -> str:
    """The same as text, with the whole: rounds, the usual one, what a run without long rounds would have taken."""
    whole, usual = found.attrs["all"], found.attrs["usual"]
    rest = whole - usual * (found.attrs["rounds"] - 1) - found["beyond"].sum()
    head = f"{found.attrs['rounds']} rounds in {whole:.0f} s; the median round {usual:.2f} s\n"
    foot = f"beyond that: {found['beyond'].sum():.0f} s in these rounds, {rest:.0f} s in all others"
    return f"{head}{found.to_string(index=False)}\n{foot}"
