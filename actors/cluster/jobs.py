"""Runs handed to a cluster as jobs of Ray: by the run's name, followed, cancelled, resumed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from actors.cluster import security
from fedplatform.core.specification import plugin_modules
from fedplatform.experiments.experiment import Experiment

DASHBOARD = "http://127.0.0.1:8265"
RUN = "fedplatform_run"  # the key in a job's metadata
POLL_S = 0.5


class JobError(security.ClusterError):
    """A job that cannot be handed in, is not there, or did not end well."""


@dataclass(frozen=True)
class Job:
    """One attempt at a run: its id with Ray, where it stands, and what Ray says of it."""

    run: str
    id: str
    status: str
    message: str
    started: datetime

    @property
    def is_under_way(self) -> bool:
        """Whether it has not ended yet."""
        return self.status in ("PENDING", "RUNNING")


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``.

    Raises :class:`~actors.cluster.security.AccessError` where nobody answers there, or lets nobody in.
    """

    def __init__(self, address: str = DASHBOARD) -> None:
        security.secure()
        security.require_token()
        for chatty in ("ray.dashboard", "ray.dashboard.modules.job.sdk", "ray._private"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise security.AccessError(
                f"the dashboard at {address} refuses the token: copy {security.TOKEN_FILE} from the cluster's head node"
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise security.AccessError(
                f"no dashboard answers at {address}; it listens on the head node alone, "
                "and 'ssh -L 8265:127.0.0.1:8265 HEAD' brings it here"
            ) from error

    def submit(self, run: str, words: Sequence[str], *, folder: Path | None = None, goes_on: bool = False) -> None:
        """Run ``fedplatform WORDS`` on the head node, in a copy of ``folder``.

        Raises :class:`JobError`, and hands nothing in, where the name is taken, or a run to go on with is not known.
        """
        attempts = self.attempts(run)
        if attempts and attempts[-1].is_under_way:
            raise JobError(f"run {run!r} is under way: 'fedplatform jobs follow {run}' shows it")
        if goes_on and not attempts:
            raise JobError(self._unknown(run))
        if not goes_on and any(job.status == "SUCCEEDED" for job in attempts):
            raise JobError(
                f"run {run!r} is finished: choose another --name, or 'fedplatform submit --resume {run} --rounds N' "
                "goes on with it"
            )
        self._client.submit_job(
            entrypoint=entrypoint(words),
            submission_id=f"{run}.{len(attempts) + 1}",
            metadata={RUN: run},
            runtime_env={"working_dir": str(folder)} if folder else {},
        )

    def unused(self, name: str) -> str:
        """``name``, or ``name-2``, ``name-3``... where a run of that name was handed in before."""
        number, found = 1, name
        while self.attempts(found):
            number += 1
            found = f"{name}-{number}"
        return found

    def runs(self) -> list[Job]:
        """The last attempt of every run, the newest first."""
        last = {job.run: job for job in self._all()}
        return sorted(last.values(), key=lambda job: job.started, reverse=True)

    def attempts(self, run: str) -> list[Job]:
        """All attempts of a run, the first one first."""
        return [job for job in self._all() if job.run == run]

    def cancel(self, run: str) -> None:
        """Stop a run; the rounds that it finished are kept."""
        job = self._last(run)
        if not job.is_under_way:
            raise JobError(f"run {run!r} is not under way: it {job.status.lower()}")
        self._client.stop_job(job.id)

    def follow(self, run: str, *, write: Callable[[str], None]) -> None:
        """Pass on what the run prints until it ends. Raises :class:`JobError` where it does not end well."""
        asyncio.run(self._pass_on(self._last(run).id, write))
        while (job := self._last(run)).is_under_way:
            time.sleep(POLL_S)
        if job.status != "SUCCEEDED":
            raise JobError(f"run {run!r} {job.status.lower()}: {job.message}")

    async def _pass_on(self, job_id: str, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            write(text)

    def _last(self, run: str) -> Job:
        attempts = self.attempts(run)
        if not attempts:
            raise JobError(self._unknown(run))
        return attempts[-1]

    def _unknown(self, run: str) -> str:
        known = ", ".join(job.run for job in self.runs()) or "none"
        return f"the cluster knows no run {run!r}; those that were handed in: {known}"

    def _all(self) -> list[Job]:
        found: list[Any] = self._client.list_jobs()
        return sorted(
            (_job(details) for details in found if RUN in (details.metadata or {})), key=lambda job: job.started
        )


def pack(experiment: Experiment, folder: Path) -> None:
    """Write ``experiment.yaml``, and the files that a user's own parts come from, into the folder that travels."""
    text = yaml.safe_dump(experiment.settings(), sort_keys=False, allow_unicode=True)
    for module in plugin_modules:
        file = Path(inspect.getfile(module)).resolve()
        shutil.copy(file, folder)
        text = text.replace(str(file), file.name)
    (folder / "experiment.yaml").write_text(text, encoding="utf-8")


def entrypoint(words: Sequence[str]) -> str:
    """The shell command of a job; ``~/`` at a word's beginning is the home directory on the head node."""
    quoted = (
        f'"$HOME"/{shlex.quote(word.removeprefix("~/"))}' if word.startswith("~/") else shlex.quote(word)
        for word in words
    )
    return f"exec fedplatform {' '.join(quoted)}"


def _job(details: Any) -> Job:
    started = datetime.fromtimestamp((details.start_time or 0) / 1000, UTC)
    message, _, _ = " ".join(str(details.message or "").split()).partition(", last available logs")  # seen already
    return Job(details.metadata[RUN], details.submission_id, str(details.status), message, started)
