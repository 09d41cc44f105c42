"""Versions of a federation's defences: written beside the run or into MLflow's registry, one of them the champion.

A version holds a bundle of every hospital, so that all move on together, and back. It is never changed once it is
there; what moves is the alias.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedplatform.core.files import write_whole
from fedplatform.core.settings import ExperimentError
from fedplatform.core.specification import nearest
from fedplatform.serving.bundle import CARD, Bundle

SERVING, VERSIONS, ALIASES = "serving", "versions", "aliases.json"
CHAMPION = "champion"
REGISTRY = "models:/"  # in front of a name in MLflow's registry

Progress = Callable[[str, int, int], None]


@runtime_checkable
class Versions(Protocol):
    """Where versions are read from."""

    def numbers(self) -> tuple[str, ...]:
        """All versions, oldest first."""
        ...

    def champion(self) -> str:
        """The version that is to be served; raises :class:`ExperimentError` where none is published."""
        ...

    def promote(self, number: str) -> None:
        """Make a version the champion; raises :class:`ExperimentError` where there is none of that number."""
        ...

    def folder(self, number: str) -> Path:
        """Where a version lies on this machine; raises :class:`ExperimentError` where there is none."""
        ...


@dataclass(frozen=True)
class RunVersions:
    """Versions in a run folder: ``serving/versions/1``, ``2``, ... and the alias in ``serving/aliases.json``."""

    path: Path

    def numbers(self) -> tuple[str, ...]:
        """See :class:`Versions`."""
        folder = self.path / SERVING / VERSIONS
        found = [entry.name for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
        return tuple(sorted(found, key=int))

    def champion(self) -> str:
        """See :class:`Versions`."""
        file = self.path / SERVING / ALIASES
        try:
            return str(json.loads(file.read_text())[CHAMPION])
        except FileNotFoundError:
            raise ExperimentError(
                f"{self.path} has no published version; 'fedplatform publish {self.path}' makes one"
            ) from None
        except (ValueError, KeyError) as error:
            raise ExperimentError(f"{file} names no {CHAMPION}") from error

    def promote(self, number: str) -> None:
        """See :class:`Versions`."""
        self.folder(number)
        file = self.path / SERVING / ALIASES
        text = json.dumps({CHAMPION: number}) + "\n"
        write_whole(file, lambda path: path.write_text(text))

    def folder(self, number: str) -> Path:
        """See :class:`Versions`."""
        known = self.numbers()
        if number not in known:
            raise ExperimentError(f"{self.path} has no version {number!r}; it has {', '.join(known) or 'none'}")
        return self.path / SERVING / VERSIONS / number

    def add(self, write: Callable[[Path], None]) -> str:
        """A new version, whole or not at all, from what ``write`` puts into a folder; its number."""
        folder = self.path / SERVING / VERSIONS
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
        try:
            write(unfinished)
            unfinished.chmod(0o755)
            number = str(max((int(name) for name in self.numbers()), default=0) + 1)
            unfinished.rename(folder / number)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return number


@dataclass(frozen=True)
class RegistryVersions:
    """Versions of a registered model of MLflow at ``uri``, fetched on demand into ``cache``."""

    name: str
    uri: str
    cache: Path
    _client: list[Any] = field(default_factory=list, repr=False, compare=False)

    def numbers(self) -> tuple[str, ...]:
        """See :class:`Versions`."""
        found = self._ask_registry(lambda client: client.search_model_versions(f"name='{self.name}'"))
        return tuple(sorted((str(version.version) for version in found), key=int))

    def champion(self) -> str:
        """See :class:`Versions`."""
        return str(self._ask_registry(lambda client: client.get_model_version_by_alias(self.name, CHAMPION)).version)

    def promote(self, number: str) -> None:
        """See :class:`Versions`."""
        self._ask_registry(lambda client: client.set_registered_model_alias(self.name, CHAMPION, number))

    def folder(self, number: str) -> Path:
        """See :class:`Versions`."""
        if not number.isdecimal():
            raise ExperimentError(f"{REGISTRY}{self.name} has no version {number!r}")
        place = self.cache / self.name / number
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unfinished-") as unfinished:
                fetched = self._ask_registry(lambda client: _fetched(client, self.name, number, unfinished))
                try:
                    Path(fetched).rename(place)
                except OSError:
                    if not place.is_dir():  # another process may have fetched the same
                        raise
        return place

    def add(self, folder: Path) -> str:
        """Register a version whose files are in ``folder``; its number."""
        return str(self._ask_registry(lambda client: _registered(client, self.uri, self.name, folder)).version)

    def _ask_registry(self, question: Callable[[Any], Any]) -> Any:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            if not self._client:
                self._client.append(MlflowClient(self.uri))
            return question(self._client[0])
        except MlflowException as error:
            raise ExperimentError(f"{REGISTRY}{self.name}: {' '.join(str(error).split())}") from error


def versions_at(place: str, *, registry: str, cache: Path) -> Versions:
    """The versions of a run folder, or of ``models:/NAME`` in a ``registry``, whose files are kept in ``cache``."""
    if place.startswith(REGISTRY):
        return RegistryVersions(place.removeprefix(REGISTRY), registry, cache)
    return RunVersions(Path(place))


def registry_uri(runs: Path) -> str:
    """Where MLflow's registry is: what MLFLOW_TRACKING_URI says, or the database in the folder of all runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def hospitals_in(version: Path) -> tuple[str, ...]:
    """The hospitals whose bundles a version holds."""
    return tuple(sorted(entry.parent.name for entry in version.glob(f"*/{CARD}")))


def bundle_of(version: Path, hospital_id: str) -> Bundle:
    """One hospital's bundle of a version; raises :class:`ExperimentError` where it has none."""
    known = hospitals_in(version)
    if hospital_id not in known:
        raise ExperimentError(f"this version holds no model of {hospital_id!r}{nearest(hospital_id, known)}")
    return Bundle.open(version / hospital_id)


def _fetched(client: Any, name: str, number: str, place: str) -> str:
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(name, number)
    fetched: str = download_artifacts(artifact_uri=source, dst_path=place, tracking_uri=client.tracking_uri)
    return fetched


def _registered(client: Any, uri: str, name: str, folder: Path) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # MLflow would put the files of a local database under the working directory.
        local = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:") else None
        place = None if local is None else (Path(local).parent / "mlflow-artifacts").as_uri()
        made = client.create_experiment(name, artifact_location=place)
    else:
        made = experiment.experiment_id
    run = client.create_run(made, run_name="publish").info
    client.log_artifacts(run.run_id, str(folder), "bundles")
    version = client.create_model_version(name, f"{run.artifact_uri}/bundles", run.run_id)
    client.set_terminated(run.run_id)
    return version
