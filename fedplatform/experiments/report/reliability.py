"""How far a model's confidence can be believed: accuracy against confidence, as a diagram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedplatform.core.messages import Predictions
from fedplatform.core.tasks import as_questions
from fedplatform.core.wording import percent
from fedplatform.experiments.report.plot import Plot, Series, draw
from fedplatform.learning.metrics import calibration_error, reliability


def draw_reliability(tests: Sequence[Predictions]) -> Plot:
    """The reliability diagram of all test scans together (Guo et al., ICML 2017); on the diagonal they agree.

    Where a scan has any number of findings, each finding of each scan is an answer.
    """
    judged = [one for one in tests if len(one.labels)]
    probabilities, labels = as_questions(
        np.concatenate([one.probabilities for one in judged]), np.concatenate([one.labels for one in judged])
    )
    dots = [
        (
            one.confidence,
            one.accuracy,
            f"confidence {percent(one.confidence)}: {percent(one.accuracy)} right, {percent(one.share)} of the scans",
        )
        for one in reliability(probabilities, labels)
    ]
    return draw(
        "Reliability",
        [
            Series(
                "As confident as right",
                "second",
                [(0, 0, "never sure and never right"), (1, 1, "always sure and right")],
                joined="line",
            ),
            Series("The model", "first", dots, joined="line"),
        ],
        x_label="confidence",
        y_label="accuracy",
        caption=f"Expected calibration error {percent(calibration_error(probabilities, labels))}.",
    )
