"""Which model is kept: the best round by validation, when to stop for want of a better one, and the moving average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import fedplatform as fp
from fedplatform.cli import fedplatform as command_line
from fedplatform.core.messages import RoundReport, best_of
from fedplatform.experiments.callbacks import EachRound
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.federated.selection import Best, better, moving_average, score_of
from fedplatform.learning.metrics import Figures
from fedplatform.serving.export import export

NAN = float("nan")
QUIET = {"byzantine": 0, "attack": "none", "rule": "mean", "algorithm": "fedavg"}


def figures(confusion: list[list[int]], loss: float) -> Figures:
    return Figures(NAN, NAN, NAN, loss, np.array(confusion))


def test_a_round_is_judged_by_balanced_accuracy_and_then_by_its_loss() -> None:
    assert score_of(figures([[8, 2], [5, 5]], 0.3)) == (pytest.approx(0.65), -0.3)
    assert score_of(figures([[8, 2], [0, 0]], 0.3)) == (pytest.approx(0.8), -0.3), "classes without a scan are left out"
    assert score_of(figures([[0, 0], [0, 0]], 0.3)) == (0.0, -0.3), "a network that names no class has its loss"
    assert score_of(figures([[0, 0], [0, 0]], NAN)) is None


def test_of_equal_rounds_the_earlier_stays() -> None:
    weights = np.zeros(2, np.float32)
    first = better(None, figures([[5, 0], [0, 5]], 0.2), round_number=1, weights=weights)
    assert first is not None
    assert better(first, figures([[5, 0], [0, 5]], 0.2), round_number=2, weights=weights) is first
    assert better(first, figures([[5, 0], [0, 5]], NAN), round_number=2, weights=weights) is first
    second = better(first, figures([[5, 0], [0, 5]], 0.1), round_number=2, weights=weights)
    assert isinstance(second, Best)
    assert second.round_number == 2


@given(models=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), decay=st.floats(0.01, 0.95))
def test_the_moving_average_is_a_weighted_mean_of_all_models(models: list[float], decay: float) -> None:
    average = None
    for number, model in enumerate(models, 1):
        average = moving_average(average, np.float32([model]), decay=decay, rounds=number)
    shares = decay ** np.arange(len(models))[::-1]
    assert average is not None
    assert average.dtype == np.float32
    np.testing.assert_allclose(average, [np.average(models, weights=shares)], atol=1e-4)


def reports_and_models(experiment: Experiment, shards: Path, folder: Path) -> tuple[list[RoundReport], Path]:
    made, reports = run(experiment, engine=InProcessEngine(), runs=folder, name="r", shards=shards)
    return reports, made.path


@pytest.fixture(scope="module")
def overtrained(small: Experiment, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that gets worse: from round 6 on an attacker turns the mean round."""
    experiment = small.replace(
        **{**QUIET, "byzantine": 1, "attack": "sleeper(patience=5, scale=30)"}, rounds=8, schedule="constant"
    )
    return reports_and_models(experiment, shards, tmp_path_factory.mktemp("overtrained"))[1]


def test_the_best_round_is_the_best_of_the_table_and_its_model_is_kept(
    overtrained: Path, small: Experiment, shards: Path, tmp_path: Path
) -> None:
    rounds = fp.Result.open(overtrained).rounds
    rows = rounds[["validation_balanced_accuracy", "validation_loss"]].itertuples()
    scored = {row.Index: (row.validation_balanced_accuracy, -row.validation_loss) for row in rows}
    best = max(scored, key=lambda number: (scored[number], -number))
    assert rounds["best_round"].iloc[-1] == best
    assert best < 8, "else there is nothing to show"
    reports = RunFolder(overtrained).read_reports()
    assert best_of(reports).round_number == best
    # The same training, ended where the best round was: with the same schedule it is the same model.
    experiment = Experiment.from_settings({**RunFolder(overtrained).read_settings(), "rounds": best})
    _, cut = reports_and_models(experiment, shards, tmp_path)
    kept, wanted = load_file(overtrained / "best.safetensors"), load_file(cut / "global.safetensors")
    assert all(kept[name].tobytes() == value.tobytes() for name, value in wanted.items())
    assert not (cut / "best.safetensors").exists(), "where the last round is the best there is no other"
    assert f"Round {best} was best" in (overtrained / "report.html").read_text()


def test_the_best_model_can_be_exported(overtrained: Path, tmp_path: Path) -> None:
    import onnxruntime

    scan = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    answers = []
    for best in (False, True):
        export(overtrained, tmp_path / str(best), form="onnx", best=best)
        session = onnxruntime.InferenceSession(str(tmp_path / str(best) / "model.onnx"))
        answers.append(session.run(None, {session.get_inputs()[0].name: scan})[0])
    assert not np.allclose(*answers)


def test_where_a_part_stays_in_the_hospitals_the_best_model_is_not_exported(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(**{**QUIET, "algorithm": "fedbn_p"})
    _, path = reports_and_models(experiment, shards, tmp_path)
    with pytest.raises(ExperimentError, match="that of the best round is not kept"):
        export(path, tmp_path / "out", form="onnx", hospital_id="hospital-00", best=True)


def test_patience_ends_a_run_and_more_patience_goes_on(
    overtrained: Path, small: Experiment, shards: Path, tmp_path: Path
) -> None:
    settings = RunFolder(overtrained).read_settings()
    experiment = Experiment.from_settings({**settings, "patience": 2, "rounds": 20})
    reports, path = reports_and_models(experiment, shards, tmp_path)
    assert len(reports) < 20
    assert len(reports) - reports[-1].best_round == 2
    with pytest.raises(ExperimentError, match="2 without a better one on validation scans; --patience 3 or more"):
        RunFolder.reopen(tmp_path, "r")
    seen: list[int] = []
    later = resume(
        RunFolder.reopen(tmp_path, "r", patience=0), engine=InProcessEngine(), patience=0, rounds=len(reports) + 1,
        callbacks=[EachRound(lambda report: seen.append(report.round_number))],
    )  # fmt: skip
    assert seen == [len(reports) + 1]
    assert len(later) == len(reports) + 1
    assert path.exists()


@pytest.mark.parametrize("changes", [{"patience": 3}, {"ema": 0.7, "server_optimiser": "fedadam"}], ids=str)
def test_a_stopped_run_goes_on_with_its_average_and_its_best_round_bit_for_bit(
    small: Experiment, shards: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    class StoppedError(Exception):
        pass

    def stop(report: RoundReport) -> None:
        if report.round_number == 3:
            raise StoppedError

    experiment = small.replace(**{**QUIET, "rounds": 6, **changes})
    engine = InProcessEngine()
    run(experiment, engine=engine, runs=tmp_path, name="unbroken", shards=shards)
    with pytest.raises(StoppedError):
        run(experiment, engine=engine, runs=tmp_path, name="broken", shards=shards, callbacks=[EachRound(stop)])
    resume(RunFolder.reopen(tmp_path, "broken"), engine=engine)
    for name in ("global.safetensors", "best.safetensors"):
        one, other = ((tmp_path / run_name / name) for run_name in ("unbroken", "broken"))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()
    rounds = [RunFolder(tmp_path / name).read_reports() for name in ("unbroken", "broken")]
    assert [report.best_round for report in rounds[0]] == [report.best_round for report in rounds[1]]
    assert [report.accuracy for report in rounds[0]] == [report.accuracy for report in rounds[1]]


def test_the_average_answers_and_is_what_the_run_leaves(small: Experiment, shards: Path, tmp_path: Path) -> None:
    """Training goes on from the last model, so that the average is of the models of the same run without one."""
    plain = small.replace(**QUIET, rounds=4)
    states = []
    with InProcessEngine().launch(plain, shards, state_folder=tmp_path / "plain") as federation:
        for _ in federation.reports():
            states.append(federation.outcome().weights)
    with InProcessEngine().launch(plain.replace(ema=0.5), shards, state_folder=tmp_path / "ema") as federation:
        list(federation.reports())
        average = federation.outcome().weights
    wanted = np.average(states, axis=0, weights=[0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(average, wanted, atol=1e-5)


def test_the_command_line_says_where_it_stopped_and_which_round_was_best(tmp_path: Path) -> None:
    options = [
        *("run", "lesions", "--size", "16", "--scans", "200", "--hospitals", "3", "--partition", "iid"),
        *("--byzantine", "0", "--rule", "mean"),
        *(
            "--rounds",
            "30",
            "--patience",
            "1",
            "--learning-rate",
            "0.5",
            "--momentum",
            "0.95",
            "--schedule",
            "constant",
        ),
        *("--engine", "local", "--root-size", "0", "--runs", str(tmp_path), "--name", "r"),
    ]
    found = CliRunner().invoke(command_line, options, catch_exceptions=False)
    assert found.exit_code == 0
    assert "of 30: 1 round without a better one on validation scans" in found.output
    assert "was best on validation scans: balanced accuracy" in found.output
    assert (tmp_path / "r" / "best.safetensors").exists()
