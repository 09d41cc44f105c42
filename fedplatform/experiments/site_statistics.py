"""The statistics of all hospitals of an experiment before it trains: asked, as a table, and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedplatform.core.files import write_whole
from fedplatform.core.site_statistics import BINS, SiteStatistics

TABLE, PAGE = "statistics.parquet", "statistics.html"
COLUMNS = {
    "hospital": pa.string(),
    "statistic": pa.string(),
    "role": pa.string(),
    "class": pa.string(),
    "channel": pa.int64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "value": pa.float64(),
    "suppressed": pa.bool_(),
}


def statistics_table(sites: Sequence[SiteStatistics], classes: Sequence[str]) -> pd.DataFrame:
    """One row a figure; ``value`` is NaN where it is suppressed or unknown.

    ``statistic`` is ``scans`` (by role and class), ``patients``, ``scans_per_patient`` (patients that have from ``low``
    to ``high`` scans each), ``size``, ``channels``, ``pixel_share`` (of pixels from ``low`` to ``high``, by channel),
    ``pixel_mean``, ``pixel_deviation`` or ``without_patient``. A hospital that did not answer has no row.
    """
    rows: list[dict[str, object]] = []
    for site in sites:
        if site.failure:
            continue

        def row(statistic: str, value: float | None, name: str = site.hospital_id, **more: object) -> None:
            rows.append({"hospital": name, "statistic": statistic, "value": value, "suppressed": False, **more})

        for role, counts in site.counts.items():
            for label, count in zip(classes, counts, strict=True):
                row("scans", count, role=role, suppressed=count is None, **{"class": label})
        row("patients", site.patients)
        for one in site.scans_per_patient:
            row("scans_per_patient", one.patients, low=one.low, high=one.high)
        row("size", site.size)
        row("channels", site.channels)
        row("without_patient", site.without_patient)
        for channel, shares in enumerate(site.histogram):
            for place, share in enumerate(shares):
                row("pixel_share", share, channel=channel, low=place / BINS, high=(place + 1) / BINS)
            row("pixel_mean", site.means[channel], channel=channel)
            row("pixel_deviation", site.deviations[channel], channel=channel)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_statistics(folder: Path, sites: Sequence[SiteStatistics], classes: Sequence[str], *, title: str) -> Path:
    """Leave ``statistics.parquet`` and the page ``statistics.html`` in a folder; returns the page's path."""
    from fedplatform.experiments.report.statistics_page import statistics_page

    table = pa.Table.from_pandas(statistics_table(sites, classes), schema=pa.schema(COLUMNS), preserve_index=False)
    write_whole(folder / TABLE, lambda path: pq.write_table(table, path))
    page = statistics_page(sites, classes, title=title)
    write_whole(folder / PAGE, lambda path: path.write_text(page, encoding="utf-8"))
    return folder / PAGE
