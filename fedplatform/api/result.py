"""A finished run in Python: its figures as tables, its page, its scans."""

from __future__ import annotations

import html
import shutil
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq
import torch

from fedplatform.core.rounds import PREDICTIONS, predictions_of
from fedplatform.data.images import to_images
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.shards_here import shards_here

if TYPE_CHECKING:
    from fedplatform.core.messages import Predictions
    from fedplatform.learning.site_figures import SiteFigures


class Page(str):
    """A page as HTML; a notebook shows it.

    >>> import fedplatform as fp
    >>> fp.Page("<p>hello</p>")._repr_html_()[:7]
    '<iframe'
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self)}" style="width: 100%; height: 48em; border: 0"></iframe>'


class Result:
    """A finished run.

    ``experiment`` is what was run, ``path`` the folder that holds it; a temporary one is removed with the result.
    ``rounds`` is a table with a row a round (accuracy, macro_f1, auc, loss, attack_success, seconds), ``hospitals`` one
    with a row a round and hospital (state, reason, weight, trust, reputation, accuracy on its own test scans),
    ``sites`` what the last model is worth at each hospital.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
    >>> result = fp.run(**small, byzantine=0, rule="mean", rounds=1)
    >>> list(result.rounds.index)
    [1]
    """

    def __init__(self, path: Path, *, temporary: Path | None = None) -> None:
        self.path = path
        if temporary is not None:  # goes with the result, or with the process
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self.experiment = Experiment.from_settings(RunFolder(path).read_settings())

    @classmethod
    def open(cls, path: str | Path) -> Result:
        """Open the folder of a run that is finished, such as ``runs/lesions``. Raises :class:`ExperimentError`."""
        folder = Path(path)
        if not (folder / "experiment.yaml").is_file() or not (folder / "global.safetensors").is_file():
            raise ExperimentError(f"{folder} holds no finished run (experiment.yaml and global.safetensors)")
        return cls(folder)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round; figures are those of all honest hospitals' test scans together."""
        return self._table("rounds.parquet").set_index("round_number")

    @cached_property
    def hospitals(self) -> pd.DataFrame:
        """One row a round and hospital."""
        return self._table("hospitals.parquet").set_index(["round_number", "hospital_id"])

    @cached_property
    def sites(self) -> pd.DataFrame:
        """The last model on each hospital's own test scans, one row a hospital, and one of all where they are several.

        AUC and balanced accuracy with their 95 % intervals (``auc_low``, ``auc_high``, ...) from a bootstrap over
        patients, sensitivity and specificity where there are two classes, and the expected calibration error; all are
        shares in [0, 1], NaN where a hospital has no scan of a class. Raises :class:`ExperimentError` where the run
        kept no predictions of its last round.

        >>> import fedplatform as fp
        >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
        >>> sites = fp.run(**small, byzantine=0, rule="mean", rounds=1).sites
        >>> list(sites.index)
        ['hospital-00', 'hospital-01', 'hospital-02', 'all sites']
        """
        rows = [{"site": one.site, **_row(one)} for one in self._site_figures]
        return pd.DataFrame(rows).set_index("site")

    @cached_property
    def subgroups(self) -> pd.DataFrame:
        """The last model on the test scans of each subgroup, over all hospitals: one row a column and subgroup.

        The figures are of :attr:`sites`. Raises :class:`ExperimentError` where the data name no subgroups.

        >>> import fedplatform as fp
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> sex = random.choice(["female", "male"], 90)
        >>> mine = fp.from_arrays(random.random((90, 16, 16)), random.integers(0, 2, 90), subgroups={"sex": sex})
        >>> fp.run(data=mine, hospitals=3, byzantine=0, rule="mean", rounds=1).subgroups.loc["sex"].index.tolist()
        ['female', 'male']
        """
        from fedplatform.learning.site_figures import figures_by_subgroup

        found = figures_by_subgroup(self._predictions)
        if not found:
            raise ExperimentError("no subgroups were named: --subgroups, or from_arrays(..., subgroups=...)")
        rows = [{"column": name, "subgroup": one.site, **_row(one)} for name, those in found.items() for one in those]
        return pd.DataFrame(rows).set_index(["column", "subgroup"])

    def cross_site(self) -> pd.DataFrame:
        """Every honest hospital's model on every honest hospital's test scans: one row a model and site.

        The columns are scans, balanced_accuracy and auc, NaN where a site lacks a class; ``["auc"].unstack()`` is the
        matrix. Where nothing stays in a hospital all have one model, called ``all hospitals``. From now on the report
        shows it, too. Raises :class:`ExperimentError` where the hospitals' scans are not all here.

        >>> import fedplatform as fp
        >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
        >>> matrix = fp.run(**small, byzantine=0, rule="mean", rounds=1).cross_site()["auc"].unstack()
        >>> matrix.shape
        (3, 3)
        """
        from fedplatform.experiments.cross_site import cross_site
        from fedplatform.experiments.cross_site_table import read_cross_site

        found = read_cross_site(self.path, round_number=int(self.rounds.index[-1]))
        return cross_site(self.path) if found is None else found

    @cached_property
    def findings(self) -> pd.DataFrame:
        """The same of each finding by itself, one row a site and finding, where a scan has any number of them.

        ``scans`` counts those with the finding; ``auc`` and ``balanced_accuracy`` have their intervals; sensitivity and
        specificity are at a probability of .5. A finding that all scans of a site have, or none, has no AUC and is left
        out of the means in :attr:`sites`. Raises :class:`ExperimentError` where a scan has one class.

        >>> import fedplatform as fp
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> mine = fp.from_arrays(random.random((90, 16, 16)), random.integers(0, 2, (90, 2)), classes=["a", "b"])
        >>> fp.run(data=mine, hospitals=3, byzantine=0, rule="mean", rounds=1).findings.loc["all sites"].index.tolist()
        ['a', 'b']
        """
        if not any(one.findings for one in self._site_figures):
            raise ExperimentError(f"a scan has one class under task {self.experiment.task}; sites has the figures")
        rows = [
            {
                "site": site.site,
                "finding": name,
                "scans": one.scans,
                **{f"auc{end}": value for end, value in one.auc.named()},
                **{f"balanced_accuracy{end}": value for end, value in one.balanced_accuracy.named()},
                "accuracy": one.accuracy,
                "sensitivity": one.sensitivity,
                "specificity": one.specificity,
            }
            for site in self._site_figures
            for name, one in zip(self.classes, site.findings, strict=True)
        ]
        return pd.DataFrame(rows).set_index(["site", "finding"])

    @cached_property
    def _site_figures(self) -> tuple[SiteFigures, ...]:
        from fedplatform.learning.site_figures import figures_by_site

        return figures_by_site(self._predictions)

    @cached_property
    def _predictions(self) -> tuple[Predictions, ...]:
        last = int(self.rounds.index[-1])
        file = self.path / PREDICTIONS
        predictions = predictions_of(pq.read_table(file), round_number=last) if file.is_file() else ()
        if not predictions:
            raise ExperimentError(f"{self.path} kept no predictions of its last round")
        return predictions

    def _table(self, name: str) -> pd.DataFrame:
        table: pd.DataFrame = pq.read_table(self.path / name).to_pandas()
        return table

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return Manifest.load(self.path / "shards").classes

    def report(self) -> Page:
        """The page of the run, one file without outside assets; a notebook shows it."""
        from fedplatform.experiments.report import write_report

        return Page(write_report(self.path).read_text(encoding="utf-8"))

    def scans(self, hospital_id: str, *, role: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
        """A hospital's scans of a role (train, validation or test): images (n, c, h, w) in [0, 1], and labels.

        These are (n,), or (n, k) of 0 and 1 where a scan has any number of findings.

        Raises :class:`ExperimentError` for an unknown hospital or role.
        """
        shards = self.path / "shards"
        dealt = shards_here(self.experiment, shards)
        if hospital_id not in dealt:
            raise ExperimentError(f"no hospital is called {hospital_id!r}; there are {', '.join(dealt)}")
        roles = {str(known.value): known for known in Role}
        if role not in roles:
            raise ExperimentError(f"no role is called {role!r}; there are {', '.join(roles)}")
        shard = Shard.open(shards / dealt[hospital_id].file)
        return to_images(shard.images(roles[role])), torch.from_numpy(shard.labels(roles[role]).copy())

    def __repr__(self) -> str:
        last, experiment = self.rounds.iloc[-1], self.experiment
        return (
            f"{experiment.data_slug}: {experiment.hospitals} hospitals, {experiment.byzantine} Byzantine, "
            f"attack {experiment.attack_slug}, rule {experiment.rule_slug}, {len(self.rounds)} rounds: "
            f"accuracy {last['accuracy']:.3f}, AUC {last['auc']:.3f}"
        )

    def _repr_html_(self) -> str:
        names = ["accuracy", "macro_f1", "auc", "loss"]
        if "attack_success" in self.rounds and self.rounds["attack_success"].notna().any():
            names.append("attack_success")
        figures = self.rounds[names]
        return f"<p>{html.escape(repr(self))}</p>{figures.to_html(float_format='{:.3f}'.format)}"


def _row(one: SiteFigures) -> dict[str, float]:
    """Figures of a site or subgroup as columns."""
    return {
        "scans": one.scans,
        "groups": one.groups,
        **{f"auc{end}": value for end, value in one.auc.named()},
        **{f"balanced_accuracy{end}": value for end, value in one.balanced_accuracy.named()},
        "sensitivity": one.sensitivity,
        "specificity": one.specificity,
        "calibration_error": one.calibration_error,
    }
