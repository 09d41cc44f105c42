"""What a federation is worth to each of its real sites: out-of-fold answers for every scan, judged by site.

    python -m benchmarks.by_site run ham10000 --rows fedavg,own --seeds 0,1,2 --cells runs/by_site
    python -m benchmarks.by_site table --cells runs/by_site

The groups of a data set with sites are dealt into five parts by the seed. Each part is the test once, and the other
four train, so that every scan is judged once a seed by a model that never saw its group. One cell is a row, a seed and
a part; it is written when it is done, and a second call goes on with the next. The table pairs each row with the linear
probe on the site's own scans: the mean over seeds of the AUC inside each site, and the 95 % interval of the difference
from a bootstrap over scans.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.linear_probe import INVERSE_PENALTIES
from fedplatform.core.compute import one_thread
from fedplatform.core.files import write_whole
from fedplatform.core.seeding import numpy_generator
from fedplatform.data.images import to_images
from fedplatform.data.index import Index
from fedplatform.data.shards import Manifest
from fedplatform.data.source import Source
from fedplatform.data.sources import open_source
from fedplatform.data.splits import deal_into_parts
from fedplatform.experiments.defence.load import read_classifier
from fedplatform.experiments.engine import InProcessEngine, local_training
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import run
from fedplatform.experiments.weights import BEST, GLOBAL
from fedplatform.learning.models.symmetries import SYMMETRIES, SeenFrom
from fedplatform.learning.training import Trainer

PARTS = 5
DRAWS = 2000
PROBE = "probe_own"  # what every row is compared with


@dataclass(frozen=True, eq=False)
class Fold:
    """A source with the scans in ``test`` (n,) as published test set, and only those in ``kept`` (n,) there at all."""

    source: Source
    test: np.ndarray
    kept: np.ndarray

    name = "fold"

    @property
    def classes(self) -> tuple[str, ...]:
        """As in the source."""
        return self.source.classes

    @property
    def channels(self) -> int:
        """As in the source."""
        return self.source.channels

    def index(self) -> pa.Table:
        """The source's index of the scans that are there, with the split in place of the folds."""
        table = self.source.index()
        table = table.drop_columns([name for name in ("fold", "split") if name in table.column_names])
        table = table.append_column("split", pa.array(np.where(self.test, "test", "train")))
        return table.filter(pa.array(self.kept))

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The scans that are there."""
        start = 0
        for batch in self.source.images(size=size, channels=channels):
            here = self.kept[start : start + len(batch)]
            start += len(batch)
            if here.any():
                yield batch[here]


@dataclass(frozen=True, eq=False)
class Scans:
    """A data set with sites, whole: what a cell is cut from."""

    source: Source
    index: Index
    part: np.ndarray  # (n,) 0 to PARTS - 1
    pictures: np.ndarray  # (n, c, h, w) uint8
    features: list[np.ndarray] = field(default_factory=list)  # (n, f) of the network as it starts, once it is asked for

    @classmethod
    def read(cls, data: str, *, seed: int, size: int) -> Scans:
        """All pictures of a data set, and its parts by the seed."""
        source = open_source(data)
        index = Index.of(source)
        assert index.sites is not None, f"{data} has no sites"
        units = np.arange(len(index)) if index.groups is None else index.groups
        site = np.unique(index.sites, return_inverse=True)[1]
        draw = numpy_generator(seed, "parts")
        part = deal_into_parts(units, site * len(index.classes) + index.labels, parts=PARTS, generator=draw)
        return cls(source, index, part, np.concatenate(list(source.images(size=size, channels=source.channels))))

    @property
    def sites(self) -> list[str]:
        """In order, as hospitals are numbered."""
        return sorted(set(map(str, self.index.sites)))  # type: ignore[arg-type]

    def of_site(self, site: str) -> np.ndarray:
        """Which scans are of a site, (n,)."""
        here: np.ndarray = self.index.sites == site
        return here


Answers = np.ndarray  # (n, num_classes): probabilities of the scans of the part, NaN elsewhere


def trained(scans: Scans, settings: dict[str, object], *, part: int, seed: int, kept: np.ndarray, folder: Path) -> Any:
    """Train on the other parts; returns (trainer, folder of the run)."""
    data = Fold(scans.source, scans.part == part, kept)
    experiment = Experiment.from_settings({**settings, "data": data, "seed": seed})
    made, _ = run(experiment, engine=InProcessEngine(), runs=folder, name="run", resumable=False, tracked=False)
    manifest = Manifest.load(made.path / "shards")
    start = experiment if experiment.weights is None else experiment.from_start(made.start)
    return Trainer(local_training(start, manifest)), made.path


def answered(trainer: Trainer, path: Path, hospital: str, pictures: np.ndarray) -> np.ndarray:
    """What a hospital's model of a run says, averaged over the eight symmetries of a picture, which has no upright.

    The model is that of the best round by validation where nothing stays in the hospitals, else the last.
    """
    best = (path / BEST).exists() and not trainer.has_own_part
    network = SeenFrom(read_classifier(trainer, path, hospital, file=BEST if best else GLOBAL), SYMMETRIES)
    with one_thread(), torch.inference_mode():
        return np.concatenate([network(part).exp().numpy() for part in to_images(pictures).split(8)])


def federated(scans: Scans, settings: dict[str, object], *, part: int, seed: int, **changes: object) -> Answers:
    """Every site is a hospital; each is judged by its own model."""
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    with TemporaryDirectory() as folder:
        every = np.ones(len(scans.index), bool)
        given = {**settings, "partition": "site", "hospitals": len(scans.sites), **changes}
        trainer, path = trained(scans, given, part=part, seed=seed, kept=every, folder=Path(folder))
        for number, site in enumerate(scans.sites):
            rows = scans.of_site(site) & (scans.part == part)
            found[rows] = answered(trainer, path, f"hospital-{number:02d}", scans.pictures[rows])
    return found


def central(scans: Scans, settings: dict[str, object], *, part: int, seed: int) -> Answers:
    """All scans in one place."""
    return _alone(
        scans, settings, part=part, seed=seed, train=np.ones(len(scans.index), bool), judged=scans.part == part
    )


def own(scans: Scans, settings: dict[str, object], *, part: int, seed: int) -> Answers:
    """Each site trains by itself, with as many steps as it has in the federation."""
    return _site_by_site(scans, settings, part=part, seed=seed, train=scans.of_site)


def leave_site_out(scans: Scans, settings: dict[str, object], *, part: int, seed: int) -> Answers:
    """Each site is judged by a model of the other sites."""
    sites = scans.sites
    given = {**settings, "partition": "site", "hospitals": len(sites) - 1}
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    for site in sites:
        rows = scans.of_site(site) & (scans.part == part)
        with TemporaryDirectory() as folder:
            kept = ~scans.of_site(site)
            trainer, path = trained(scans, given, part=part, seed=seed, kept=kept, folder=Path(folder))
            found[rows] = answered(trainer, path, "hospital-00", scans.pictures[rows])
    return found


def _site_by_site(
    scans: Scans, settings: dict[str, object], *, part: int, seed: int, train: Callable[[str], np.ndarray]
) -> Answers:
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    for site in scans.sites:
        rows = scans.of_site(site) & (scans.part == part)
        answers = _alone(scans, settings, part=part, seed=seed, train=train(site), judged=rows)
        found[rows] = answers[rows]
    return found


def _alone(
    scans: Scans, settings: dict[str, object], *, part: int, seed: int, train: np.ndarray, judged: np.ndarray
) -> Answers:
    """One model of the scans in ``train`` (n,), for those in ``judged`` (n,)."""
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    given = {**settings, "partition": "iid", "hospitals": 1, "quorum": 1, "algorithm": "fedavg"}
    with TemporaryDirectory() as folder:
        trainer, path = trained(scans, given, part=part, seed=seed, kept=train, folder=Path(folder))
        found[judged] = answered(trainer, path, "hospital-00", scans.pictures[judged])
    return found


def probe(scans: Scans, settings: dict[str, object], *, part: int, seed: int, pooled: bool) -> Answers:  # noqa: ARG001
    """A logistic regression on frozen ImageNet features; its penalty is chosen by a split of its own training scans."""
    features = _features(scans, settings)
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    for site in scans.sites:
        here = np.ones(len(scans.index), bool) if pooled else scans.of_site(site)
        rows, train = scans.of_site(site) & (scans.part == part), np.flatnonzero(here & (scans.part != part))
        validation = scans.part[train] == (part + 1) % PARTS
        mean, deviation = features[train].mean(0), features[train].std(0) + 1e-6
        labels = scans.index.labels[train]
        model = _fitted((features[train] - mean) / deviation, labels, validation)
        found[np.ix_(rows, model.classes_)] = model.predict_proba((features[rows] - mean) / deviation)
    return np.where(np.isnan(found) & ~np.isnan(found).all(1, keepdims=True), 0, found)


def _fitted(seen: np.ndarray, labels: np.ndarray, validation: np.ndarray) -> Any:
    """A logistic regression of all scans, with the penalty of the least loss on those in ``validation`` (n,) bool."""

    def regression(penalty: float, rows: np.ndarray) -> Any:
        return LogisticRegression(C=penalty, max_iter=2000).fit(seen[rows], labels[rows])

    def loss(penalty: float) -> float:
        model = regression(penalty, ~validation)
        places = np.searchsorted(model.classes_, labels[validation])
        chosen = model.predict_proba(seen[validation])[np.arange(len(places)), places]
        return float(-np.log(np.clip(chosen, 1e-9, 1)).mean())

    return regression(min(INVERSE_PENALTIES, key=loss), np.ones(len(labels), bool))


def _features(scans: Scans, settings: dict[str, object]) -> np.ndarray:
    """Features (n, f) of the network of the settings as it starts, without its last layer."""
    if scans.features:
        return scans.features[0]
    experiment = Experiment.from_settings({**settings, "partition": "site", "hospitals": len(scans.sites)})
    training = experiment.local_training(channels=scans.source.channels, num_classes=len(scans.index.classes))
    network: Any = Trainer(training).model.eval()
    network.body.head = network.body.head[:2]
    with one_thread(), torch.inference_mode():
        scans.features.append(np.concatenate([network(part).numpy() for part in to_images(scans.pictures).split(64)]))
    return scans.features[0]


def nearest_neighbour(scans: Scans, settings: dict[str, object], *, part: int, seed: int) -> Answers:  # noqa: ARG001
    """The class of the training picture at the smallest angle, both small and grey; all sites in one place."""
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(scans.pictures).float().mean(1, keepdim=True), 24)
    rows = small.flatten(1).numpy()
    rows = rows - rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    test, train = np.flatnonzero(scans.part == part), np.flatnonzero(scans.part != part)
    nearest = train[(rows[test] @ rows[train].T).argmax(1)]
    found = np.full((len(scans.index), len(scans.index.classes)), np.nan)
    found[test] = np.eye(len(scans.index.classes))[scans.index.labels[nearest]]
    return found


ROWS: dict[str, Callable[..., Answers]] = {
    "nearest_neighbour": nearest_neighbour,
    PROBE: lambda scans, settings, **cell: probe(scans, settings, pooled=False, **cell),
    "probe_pooled": lambda scans, settings, **cell: probe(scans, settings, pooled=True, **cell),
    "own": own,
    "central": central,
    "leave_site_out": leave_site_out,
    "fedavg": lambda scans, settings, **cell: federated(scans, settings, algorithm="fedavg", **cell),
    "fedbn_p": lambda scans, settings, **cell: federated(scans, settings, algorithm="fedbn_p", **cell),
    "fedper": lambda scans, settings, **cell: federated(scans, settings, algorithm="fedper", **cell),
    "ditto": lambda scans, settings, **cell: federated(scans, settings, algorithm="ditto", **cell),
    "balanced": lambda scans, settings, **cell: federated(
        scans, settings, objective="cross_entropy(class_weights=balanced)", **cell
    ),
    "logit_adjustment": lambda scans, settings, **cell: federated(
        scans, settings, objective="cross_entropy(logit_adjustment=1.0)", **cell
    ),
    "focal": lambda scans, settings, **cell: federated(scans, settings, objective="cross_entropy(focal=2.0)", **cell),
    "sampling_classes": lambda scans, settings, **cell: federated(scans, settings, sampling="classes", **cell),
}


def fill(
    data: str, *, recipe: str, rows: Sequence[str], seeds: Sequence[int], parts: Sequence[int], cells: Path
) -> None:
    """Compute the cells that are not there yet."""
    settings = {**load_settings(recipe), "byzantine": 0, "attack": "none", "rule": "mean", "root_size": 0}
    settings.pop("data", None)
    cells.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        size = Experiment.from_settings({**settings, "partition": "iid"}).size
        scans = Scans.read(data, seed=seed, size=size)
        for part in parts:
            for row in rows:
                file = cells / f"{Path(data).stem}-{row}-seed{seed}-part{part}.parquet"
                if file.exists():
                    continue
                started, spent = time.monotonic(), os.times()
                answers = ROWS[row](scans, settings, part=part, seed=seed)
                judged = scans.part == part
                index = scans.index
                frame = pd.DataFrame(answers[judged], columns=list(index.classes))
                frame.insert(0, "label", index.labels[judged])
                frame.insert(0, "site", np.asarray(index.sites)[judged])
                frame.insert(0, "scan", np.flatnonzero(judged))
                write_whole(file, frame.to_parquet)
                cpu = os.times().user - spent.user
                print(f"{row} seed {seed} part {part}: {time.monotonic() - started:.0f} s, CPU {cpu:.0f} s", flush=True)


def table(data: str, cells: Path, *, parts: Sequence[int] = range(PARTS)) -> pd.DataFrame:
    """A line a row: balanced accuracy and AUC by site, and the difference of the AUC from the probe on own scans.

    Only rows and seeds of which all these ``parts`` are there.
    """
    found: dict[tuple[str, int], pd.DataFrame] = {}
    for row in ROWS:
        for seed in range(100):
            files = [cells / f"{Path(data).stem}-{row}-seed{seed}-part{part}.parquet" for part in parts]
            if all(file.exists() for file in files):
                found[row, seed] = pd.concat(map(pd.read_parquet, files)).sort_values("scan")
    lines = []
    for row in dict.fromkeys(row for row, _ in found):
        seeds = [seed for name, seed in found if name == row]
        probes = {seed: found[PROBE, seed] for seed in seeds if (PROBE, seed) in found}
        first = found[row, seeds[0]]
        classes = list(first.columns[3:])
        for site in [*sorted(set(first["site"])), "all sites"]:
            frames = [_at(found[row, seed], site) for seed in seeds]
            counts = np.bincount(frames[0]["label"], minlength=len(classes))
            line: dict[str, object] = {
                "row": row, "site": site, "seeds": len(seeds), "scans": int(counts.sum()), "least": int(counts.min()),
                "balanced": float(np.mean([_balanced(frame, classes) for frame in frames])),
                "auc": float(np.mean([_auc(frame, classes) for frame in frames])),
            }  # fmt: skip
            if len(classes) == 2 and probes:
                pairs = [(_at(found[row, seed], site), _at(probes[seed], site)) for seed in probes]
                line["less_probe"], line["low"], line["high"] = _difference(pairs, classes)
            lines.append(line)
    return pd.DataFrame(lines)


def _at(frame: pd.DataFrame, site: str) -> pd.DataFrame:
    return frame if site == "all sites" else frame[frame["site"] == site]


def _balanced(frame: pd.DataFrame, classes: list[str]) -> float:
    answers, labels = frame[classes].to_numpy().argmax(1), frame["label"].to_numpy()
    return float(np.mean([(answers[labels == label] == label).mean() for label in np.unique(labels)]))


def _auc(frame: pd.DataFrame, classes: list[str]) -> float:
    labels, scores = frame["label"].to_numpy(), frame[classes].to_numpy()
    areas = [
        roc_auc_score(labels == label, scores[:, label])
        for label in ([1] if len(classes) == 2 else np.unique(labels))
        if 0 < (labels == label).sum() < len(labels)
    ]
    return float(np.mean(areas)) if areas else float("nan")


def _difference(pairs: list[tuple[pd.DataFrame, pd.DataFrame]], classes: list[str]) -> tuple[float, float, float]:
    """Mean over seeds of the AUC of a row less the probe's, and its interval; scans are drawn alike for all seeds."""
    labels = pairs[0][0]["label"].to_numpy()
    if not 0 < labels.sum() < len(labels):
        return float("nan"), float("nan"), float("nan")
    scores = [(row[classes[1]].to_numpy(), probe[classes[1]].to_numpy()) for row, probe in pairs]
    draw = np.random.default_rng(0)
    groups = [np.flatnonzero(labels == label) for label in (0, 1)]  # one scan a group: the counts of both stay
    values = []
    for number in range(DRAWS + 1):
        rows = np.concatenate([draw.choice(group, len(group)) if number else group for group in groups])
        values.append(np.mean([_rank_auc(labels[rows], a[rows]) - _rank_auc(labels[rows], b[rows]) for a, b in scores]))
    return float(values[0]), *(float(each) for each in np.percentile(values[1:], [2.5, 97.5]))  # type: ignore[return-value]


def _rank_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    from scipy.stats import rankdata

    positive = labels == 1
    count = positive.sum()
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("run", help="compute cells")
    filling.add_argument("data", help="a data set with sites, by name or path")
    filling.add_argument("--recipe", default="ham10000")
    filling.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    filling.add_argument("--seeds", default="0")
    showing = commands.add_parser("table", help="what the cells say")
    showing.add_argument("data", nargs="?", default="ham10000")
    for each in (filling, showing):
        each.add_argument("--parts", default=",".join(map(str, range(PARTS))))
        each.add_argument("--cells", type=Path, default=Path("runs/by_site"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [int(number) for number in given.parts.split(",")]
    if given.command == "run":
        seeds = [int(number) for number in given.seeds.split(",")]
        fill(given.data, recipe=given.recipe, rows=given.rows.split(","), seeds=seeds, parts=parts, cells=given.cells)
    else:
        print(table(given.data, given.cells, parts=parts).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
