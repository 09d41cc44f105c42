"""The page of what hospitals tell of their scans before anybody trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedplatform.core.site_statistics import BINS, SiteStatistics
from fedplatform.core.template import load_template
from fedplatform.core.wording import count, listing, percent
from fedplatform.experiments.report.plot import Curve, Plot, path_through, scale, style_of, ticks

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
MOST_CURVES = 16  # that colours and dashes tell apart


@dataclass(frozen=True)
class CountCell:
    """One role and class of a hospital: what is shown, and its share of what is shown in the role."""

    text: str
    share: float


@dataclass(frozen=True)
class SiteRow:
    """One hospital in the tables."""

    name: str
    cells: tuple[CountCell, ...]
    total: str
    patients: str
    per_patient: str
    missing: str
    pixels: tuple[str, ...]  # by channel: mean, deviation


def statistics_page(sites: Sequence[SiteStatistics], classes: Sequence[str], *, title: str) -> str:
    """The page as HTML, one file that needs no other file and no network."""
    answered = [site for site in sites if not site.failure]
    roles = list(answered[0].counts) if answered else []
    channels = (
        CHANNELS.get(answered[0].channels, tuple(f"channel {n}" for n in range(answered[0].channels)))
        if answered
        else ()
    )
    return load_template("statistics.html", "fedplatform.experiments.report").render(
        title=title,
        headline=_headline(answered, classes),
        sites=sites,
        answered=answered,
        failed=[site for site in sites if site.failure],
        classes=classes,
        roles=roles,
        channels=channels,
        rows=[_row(site, classes) for site in answered],
        sums=_sums(answered, roles, classes),
        least=answered[0].least if answered else 0,
        suppressed=sum(site.suppressed for site in answered),
        shown=sum(site.shown for site in answered),
        patients=sum(site.patients for site in answered),
        charts=[_histogram(answered, channel, name) for channel, name in enumerate(channels)],
    )


def _headline(sites: Sequence[SiteStatistics], classes: Sequence[str]) -> str:
    """What there is, and what will make training hard, in words."""
    if not sites:
        return "No hospital has answered."
    some = "at least " if any(site.suppressed for site in sites) else ""
    scans = f"{some}{sum(site.shown for site in sites):,} scans"
    said = f"{count(len(sites), 'hospital')} with {scans} of the classes {listing(classes)}"
    lacking = [site.hospital_id for site in sites if site.lacking]
    if lacking:
        said += f"; {listing(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} a class"
    told = [site for site in sites if site.means]
    if len(told) > 1:
        means = {site.hospital_id: sum(site.means) / len(site.means) for site in told}
        darkest, brightest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        said += (
            f"; the mean pixel goes from {percent(means[darkest])} of white in {darkest} to "
            f"{percent(means[brightest])} in {brightest}"
        )
    return f"{said}."


def _row(site: SiteStatistics, classes: Sequence[str]) -> SiteRow:
    cells = []
    for counts in site.counts.values():
        together = sum(number or 0 for number in counts)
        for number in counts:
            text = f"< {site.least} patients" if number is None else f"{number:,}"
            cells.append(CountCell(text, (number or 0) / together if together else math.nan))
    missing = [f"no {classes[label]}" for label in site.lacking]
    if site.without_patient:
        missing.append("no scan names its patient: near-identical pictures stand for one")
    elif site.without_patient is None:
        missing.append("the shard does not say whether patients were named")
    return SiteRow(
        name=site.hospital_id,
        cells=tuple(cells),
        total=f"{'≥ ' if site.suppressed else ''}{site.shown:,}",
        patients=f"{site.patients:,}",
        per_patient="; ".join(f"{one.words}: {one.patients:,}" for one in site.scans_per_patient) or "–",
        missing="; ".join(missing) or "–",
        pixels=tuple(
            f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(site.means, site.deviations, strict=True)
        ),
    )


def _sums(sites: Sequence[SiteStatistics], roles: Sequence[str], classes: Sequence[str]) -> list[str]:
    """What is shown of all hospitals together, by role and class: sums of the cells above and of nothing else."""
    sums = []
    for role in roles:
        for label in range(len(classes)):
            of_all = [site.counts[role][label] for site in sites]
            told = sum(number or 0 for number in of_all)
            sums.append("–" if None in of_all and not told else f"{'≥ ' if None in of_all else ''}{told:,}")
    return sums


def _histogram(sites: Sequence[SiteStatistics], channel: int, name: str) -> Plot:
    """The histograms of one channel, a curve a hospital, laid over each other."""
    told = [site for site in sites if site.histogram]
    highest = max((max(site.histogram[channel]) for site in told), default=1.0)
    shown = _cut(told, channel, highest)
    y_ticks = ticks(0.0, shown)
    x_of, y_of = scale(0.0, 1.0, Plot.left, WIDTH - 20), scale(y_ticks[0], y_ticks[-1], Plot.bottom, Plot.top)
    crowd = len(told) > MOST_CURVES
    curves = []
    for place, site in enumerate(told):
        points = [
            (x_of((place_of + 0.5) / BINS), y_of(min(share, y_ticks[-1])), "")
            for place_of, share in enumerate(site.histogram[channel])
        ]
        style = "s-none" if crowd else style_of(place)
        curves.append(Curve(site.hospital_id, style, path_through(points), (), key="a hospital" if crowd else ""))
    cut = f" The top of the darkest bins is cut off, at {percent(y_ticks[-1])}." if shown < highest else ""
    return Plot(
        title="Pixel values" if name == "grey" else f"Pixel values, {name}",
        x_label="pixel value, from black to white",
        y_label="share of the pixels",
        curves=tuple(curves),
        x_ticks=tuple((x_of(tick), f"{tick:g}") for tick in (0.0, 0.25, 0.5, 0.75, 1.0)),
        y_ticks=tuple((y_of(tick), f"{100 * tick:g}%") for tick in y_ticks),
        caption=f"{BINS} bins, each of eight grey levels, of the scans in cells that are shown.{cut}",
        width=WIDTH,
        right=WIDTH - 20,
    )


WIDTH = 640


def _cut(sites: Sequence[SiteStatistics], channel: int, highest: float) -> float:
    """Where the axis ends: a background that fills most pixels would press all other bins flat."""
    others = max((sorted(site.histogram[channel])[-3] for site in sites), default=highest)
    return min(highest, 1.3 * others) if highest > 3 * others > 0 else highest
