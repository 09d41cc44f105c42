"""The log of a run: ``run.log`` in its folder, one JSON object a line."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedplatform.core.logs import of
from fedplatform.core.messages import RoundReport
from fedplatform.core.wording import count
from fedplatform.experiments.callbacks import Callback, TrainedRun
from fedplatform.experiments.experiment import Experiment

log = logging.getLogger(__name__)


class RunLog(Callback):
    """Logs the moments of a run: its start, each round with every hospital that was not as expected, its end."""

    def __init__(self) -> None:
        self._rounds = 0

    def started(self, experiment: Experiment, earlier: Sequence[RoundReport]) -> None:
        """Who takes part, and after which round it goes on."""
        self._rounds = experiment.rounds
        after = f", after round {earlier[-1].round_number}" if earlier else ""
        log.info("%s, %s%s", count(experiment.hospitals, "hospital"), count(experiment.rounds, "round"), after)

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """The figures of the newest round, and what became of hospitals."""
        report = reports[-1]
        number = report.round_number
        for record in report.hospitals:
            if not record.state.is_as_expected:
                log.info(
                    "%s: %s", record.state, record.reason, extra=of(round_number=number, hospital=record.hospital_id)
                )
        seconds = report.train_seconds + report.aggregate_seconds + report.evaluate_seconds
        log.info(
            "done, of %d: balanced accuracy %.3f, AUC %.3f, loss %.3f, %.1f s",
            *(self._rounds, report.balanced_accuracy, report.auc, report.loss, seconds),
            extra=of(round_number=number),
        )

    def finished(self, run: TrainedRun) -> None:  # noqa: ARG002
        """All rounds are done."""
        log.info("finished")

    def closed(self, error: BaseException | None) -> None:
        """What ended it, where that was no end of its own."""
        if error is not None:
            log.info("ended: %s", " ".join(f"{type(error).__name__} {error}".split()))
