"""Training the defence of a run in its own federation, and what each hospital then has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_defence import DEFENCE, SIZE

from actors.engine import RayEngine
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.defence.presets import DEFENCES, CleanScanLimits
from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.defence.evaluate import evaluate
from fedplatform.experiments.defence.load import STAGES, DefendedRun
from fedplatform.experiments.defence.plan import Plan
from fedplatform.experiments.defence.train import defend
from fedplatform.experiments.engine import Engine, InProcessEngine
from fedplatform.experiments.experiment import ExperimentError

SETTINGS = DefenceSettings.from_settings(DEFENCE)
NAMES = ("hospital-00", "hospital-01")


@pytest.fixture
def copied(defended: Path, tmp_path: Path) -> Path:
    """The defended run in a folder of the test's own."""
    shutil.copytree(defended, tmp_path / "spots")
    return tmp_path / "spots"


@pytest.fixture(scope="module")
def run(defended: Path) -> DefendedRun:
    return DefendedRun(defended)


def networks(folder: Path) -> dict[str, bytes]:
    """Everything that training has left."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def trained_stages(folder: Path, *, engine: Engine | None = None, settings: DefenceSettings = SETTINGS) -> list[str]:
    """Go on with the defence; the stages that were trained."""
    seen: dict[str, None] = {}
    defend(folder, settings, engine=engine or InProcessEngine(), observer=lambda stage, *_: seen.update({stage: None}))
    return list(seen)


def test_every_stage_is_trained_after_those_it_needs(defended: Path, stages: list[str]) -> None:
    assert list(dict.fromkeys(stages)) == ["autoencoder", "purifier", "tuned", "sensor"]
    assert not list(defended.rglob("*.partial*")) + list((defended / "defence").glob(".*"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("stage", ["tuned", "sensor"])
def test_ray_and_one_process_train_the_same_defence_bit_for_bit(copied: Path, defended: Path, stage: str) -> None:
    (copied / "defence" / STAGES[stage]).unlink()
    assert trained_stages(copied, engine=RayEngine(num_hosts=1)) == [stage]
    assert networks(copied) == networks(defended)


@pytest.mark.parametrize("stage", ["autoencoder", "tuned"])
def test_a_stage_whose_file_is_lost_is_trained_again_and_no_other(copied: Path, defended: Path, stage: str) -> None:
    (copied / "defence" / STAGES[stage]).unlink()
    assert trained_stages(copied) == [stage]
    assert networks(copied) == networks(defended)


def test_a_finished_defence_is_not_trained_again(copied: Path) -> None:
    assert trained_stages(copied) == []


@pytest.mark.slow
def test_the_sensor_learns_attacks_on_the_tuned_classifier(copied: Path, defended: Path) -> None:
    shutil.copy(copied / "global.safetensors", copied / "defence" / "tuned" / "global.safetensors")
    (copied / "defence" / "sensor.safetensors").unlink()
    assert trained_stages(copied) == ["sensor"]
    changed = {name for name, content in networks(copied).items() if networks(defended)[name] != content}
    assert changed == {"defence/tuned/global.safetensors", "defence/sensor.safetensors"}


def test_gate_and_batch_normalisation_of_the_tuned_classifier_stay_in_each_hospital(defended: Path) -> None:
    tuned = defended / "defence" / "tuned"
    shared = load_file(tuned / "global.safetensors")
    first, second = (load_file(tuned / "hospitals" / f"{name}.safetensors") for name in NAMES)
    before = load_file(defended / "hospitals" / f"{NAMES[0]}.safetensors")
    assert first.keys() == second.keys() == before.keys()
    assert not first.keys() & shared.keys()
    for part in ("gate.0.weight", "running_mean"):
        (name, *_) = [key for key in first if key.endswith(part)]
        assert not torch.equal(first[name], second[name])
        assert not torch.equal(first[name], before[name])


@pytest.mark.slow
def test_a_run_that_met_attacks_is_tuned_against_half_as_much_again(copied: Path) -> None:
    place = copied / "experiment.yaml"
    experiment = yaml.safe_load(place.read_text())
    tuned = {("cross_entropy", None): (copied / "defence" / STAGES["tuned"]).read_bytes()}
    for objective, epsilon in (("adversarial(epsilon=0.02)", None), ("cross_entropy", 0.03)):
        place.write_text(yaml.safe_dump({**experiment, "objective": objective}))
        shutil.rmtree(copied / "defence" / "tuned")
        (copied / "defence" / "defence.yaml").unlink()
        settings = DefenceSettings.from_settings({**SETTINGS.settings(), "tuning_epsilon": epsilon})
        assert trained_stages(copied, settings=settings) == ["tuned"]
        tuned[objective, epsilon] = (copied / "defence" / STAGES["tuned"]).read_bytes()
    assert tuned["adversarial(epsilon=0.02)", None] == tuned["cross_entropy", 0.03]
    assert tuned["cross_entropy", None] != tuned["cross_entropy", 0.03]


def test_tuning_goes_on_from_what_each_hospital_had(defended: Path) -> None:
    def gates(folder: Path) -> list[torch.Tensor]:
        return [load_file(folder / "hospitals" / f"{name}.safetensors")["body.gate.0.weight"] for name in NAMES]

    before, after = gates(defended), gates(defended / "defence" / "tuned")
    for own, other, tuned in zip(before, reversed(before), after, strict=True):
        assert (tuned - own).norm() < (tuned - other).norm()
        assert (tuned - own).norm() < 0.2 * own.norm()


def test_a_defence_goes_on_after_an_update_that_brought_a_setting(copied: Path) -> None:
    file = copied / "defence" / "defence.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["tuning_epsilon"]
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert trained_stages(copied) == []


def test_other_settings_are_refused_in_one_line_and_nothing_is_lost(copied: Path) -> None:
    before = networks(copied)
    with pytest.raises(ExperimentError, match="begun with other settings") as refusal:
        defend(copied, SETTINGS.model_copy(update={"copies": 5}), engine=InProcessEngine())
    assert "\n" not in str(refusal.value)
    assert networks(copied) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"most_depth": 300}, "t_max=260 learns no depth of 300"),
        ({"purifier": "masked_autoencoder(patch=2)"}, "cannot be the purifier"),
        ({"autoencoder": "noise_predictor"}, "cannot be the autoencoder"),
        ({"autoencoder": "masked_autoencoder(patch=5)"}, "even number of patches"),
    ],
)
def test_what_no_stage_could_work_with_is_refused_before_the_first(
    undefended: Path, settings: dict[str, object], said: str
) -> None:
    before = sorted(undefended.rglob("*"))
    with pytest.raises(ExperimentError, match=said):
        defend(undefended, DefenceSettings.from_settings({**DEFENCE, **settings}), engine=InProcessEngine())
    assert sorted(undefended.rglob("*")) == before


def test_a_run_without_root_scans_is_refused_before_the_first_stage(undefended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spots"
    shutil.copytree(undefended, folder)
    change_experiment(folder, root_size=0)
    with pytest.raises(ExperimentError, match="root_size"):
        defend(folder, SETTINGS, engine=InProcessEngine())
    assert not (folder / "defence").exists()


def test_a_least_depth_above_the_most_is_refused() -> None:
    with pytest.raises(ExperimentError, match="the least depth is at most the most, got 90 and 75"):
        DefenceSettings.from_settings({"least_depth": 90, "most_depth": 75})


def test_the_settings_of_a_defence_survive_their_file(defended: Path) -> None:
    assert DefendedRun(defended).settings == SETTINGS


def test_a_run_without_a_defence_is_told_how_to_get_one(undefended: Path) -> None:
    before = sorted(undefended.rglob("*"))
    with pytest.raises(ExperimentError, match=f"'fedplatform defend {undefended}' trains one"):
        evaluate(undefended, Plan(), jobs=1)
    assert sorted(undefended.rglob("*")) == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="holds no finished run"):
        defend(tmp_path, SETTINGS, engine=InProcessEngine())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "swapped"])
def test_a_damaged_network_is_named(copied: Path, damage: str) -> None:
    file = copied / "defence" / "sensor.safetensors"
    other = (copied / "defence" / "purifier.safetensors").read_bytes()
    file.write_bytes(file.read_bytes()[:1000] if damage == "cut" else other)
    with pytest.raises(ExperimentError, match=r"sensor.safetensors does not hold the sensor"):
        DefendedRun(copied)


def change_experiment(folder: Path, **changes: object) -> None:
    """Say something else of a finished run."""
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}, sort_keys=False))


def test_hospitals_of_attackers_are_not_attacked(copied: Path, run: DefendedRun) -> None:
    assert run.tested == NAMES
    change_experiment(copied, byzantine=1, attack="sign_flip")
    dishonest = DefendedRun(copied)
    (attacker,) = dishonest.experiment.adversary().hospital_ids
    assert set(dishonest.tested) == set(NAMES) - {attacker}


def without(manifest: Manifest, role: Role, hospital: int) -> Manifest:
    """The same shards, one of which has no scans in a role."""
    shards = list(manifest.hospitals)
    shards[hospital] = replace(shards[hospital], counts={**shards[hospital].counts, role: (0, 0)})
    return replace(manifest, hospitals=tuple(shards))


@pytest.mark.parametrize("role", [Role.VALIDATION, Role.TEST])
def test_hospitals_without_validation_or_test_scans_are_left_out(copied: Path, run: DefendedRun, role: Role) -> None:
    without(run.manifest, role, 0).save(copied / "shards")
    assert DefendedRun(copied).tested == NAMES[1:]
    without(without(run.manifest, role, 0), role, 1).save(copied / "shards")
    with pytest.raises(ExperimentError, match="no honest hospital"):
        _ = DefendedRun(copied).tested


def rewritten(shards: Path, folder: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """A copy of the shards with every row changed."""
    shutil.copytree(shards, folder)
    for file in folder.glob("hospital-*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            change(row)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return folder


def black_test_scans(row: dict[str, object]) -> None:
    if row["role"] == Role.TEST:
        row["label"], row["pixels"] = 1 - int(str(row["label"])), bytes(len(bytes(row["pixels"])))  # type: ignore[arg-type]


def black_validation_scans(row: dict[str, object]) -> None:
    if row["role"] == Role.VALIDATION:
        row["pixels"] = bytes(len(bytes(row["pixels"])))  # type: ignore[arg-type]


def fitted(run: DefendedRun, defence: str, name: str = NAMES[0]) -> tuple[object, ...]:
    """Everything that a hospital fits."""
    defended = run.hospital(name).defended(defence)
    fusion = (dict(defended.detector.fusion.location), defended.detector.fusion.scale) if defended.detector else ()
    return defended.gate, defended.temperature, defended.least_confidence, fusion


@pytest.mark.parametrize("defence", ["full", "mae_gate", "blur"])
def test_thresholds_depend_on_the_validation_scans_alone(
    defended: Path, run: DefendedRun, tmp_path: Path, defence: str
) -> None:
    shards = rewritten(defended / "shards", tmp_path / "test", black_test_scans)
    blackened = DefendedRun(defended, shards=shards)
    assert blackened.hospital(NAMES[0]).test[0].max() == 0
    assert fitted(blackened, defence) == fitted(run, defence)
    shards = rewritten(defended / "shards", tmp_path / "validation", black_validation_scans)
    assert fitted(DefendedRun(defended, shards=shards), defence) != fitted(run, defence)


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_no_more_validation_scans_are_flagged_than_was_asked_for(run: DefendedRun, name: str, rate: float) -> None:
    parts = run.hospital(name)
    asked = replace(parts, settings=parts.settings.model_copy(update={"false_positive_rate": rate}))
    passage = asked.defended("full").passage(parts.validation[0])
    share = float(passage.flagged.float().mean())
    assert share <= rate
    assert share > rate - 2 / len(passage.flagged), "a threshold that flags too few catches too few"


@pytest.mark.parametrize("defence", ["full", "mae_gate"])
def test_the_threshold_is_a_score_that_the_served_defence_gives_a_validation_scan(
    run: DefendedRun, defence: str
) -> None:
    parts = run.hospital(NAMES[0])
    served = parts.defended(defence)
    assert abs(served.temperature - 1) > 0.05, "a temperature of 1 would hide a score that was measured at another"
    with torch.no_grad():
        scores = served.passage(parts.validation[0]).scores
    assert float((scores - served.gate.threshold).abs().min()) < 1e-5


def few_groups(row: dict[str, object]) -> None:
    """Twelve groups a data set: a dozen a hospital, too few for a quantile of one in twenty."""
    row["group"] = int(str(row["group"])) % 12


@pytest.fixture(scope="module")
def few(defended: Path, tmp_path_factory: pytest.TempPathFactory) -> DefendedRun:
    """The same run, whose hospitals have few patients."""
    folder = tmp_path_factory.mktemp("few") / "shards"
    return DefendedRun(defended, shards=rewritten(defended / "shards", folder, few_groups))


@pytest.mark.parametrize("rate", [0.05, 0.07])
def test_hospitals_of_few_patients_flag_as_many_as_was_asked_for_together(few: DefendedRun, rate: float) -> None:
    flagged, referred = [], []
    for name in NAMES:
        parts = few.hospital(name)
        asked = replace(parts, settings=parts.settings.model_copy(update={"false_positive_rate": rate}))
        served = asked.defended("full")
        diagnoses = served.diagnose(parts.validation[0])
        flagged += [diagnosis.flagged for diagnosis in diagnoses]
        referred += [diagnosis.referred for diagnosis in diagnoses]
    for share, wanted in ((np.mean(flagged), rate), (np.mean(referred), few.settings.referral_rate)):
        assert wanted - 2 / len(flagged) < share <= wanted


@pytest.mark.parametrize("defence", ["full", "mae_gate", "purify_all"])
def test_hospitals_of_few_patients_share_their_limits_and_no_temperature(few: DefendedRun, defence: str) -> None:
    (gate, warm, least, fusion), (other_gate, other_warm, other_least, other_fusion) = (
        fitted(few, defence, name) for name in NAMES
    )
    assert (gate, least, fusion) == (other_gate, other_least, other_fusion)
    assert warm != other_warm


def test_the_limits_of_a_hospital_with_patients_enough_are_its_own(
    run: DefendedRun, few: DefendedRun, defended: Path, tmp_path: Path
) -> None:
    def blackened(shards: Path, name: str) -> DefendedRun:
        folder = rewritten(shards, tmp_path / name, black_validation_scans)
        shutil.copy(shards / f"{NAMES[0]}.parquet", folder)  # only the other hospital's scans are black
        return DefendedRun(defended, shards=folder)

    assert fitted(blackened(run.shards, "many"), "full") == fitted(run, "full")
    assert fitted(blackened(few.shards, "few"), "full") != fitted(few, "full")


def test_groups_enough_are_those_of_which_one_is_the_rate_asked_for(run: DefendedRun) -> None:
    def measured_alone(groups: int, rate: float) -> bool:
        asked: list[str] = []

        def federation(defence: str, settings: DefenceSettings) -> CleanScanLimits:
            asked.append(defence)
            return CleanScanLimits.of([(parts.calibrated(defence), parts.validation[0])], defence, settings)

        parts = run.hospital(NAMES[0])
        settings = parts.settings.model_copy(update={"false_positive_rate": rate})
        numbers = np.arange(len(parts.validation[1])) % groups
        replace(parts, settings=settings, validation_groups=numbers, federation=federation).defended("no_defence")
        return not asked

    assert len(run.hospital(NAMES[0]).validation[1]) >= 20
    assert [measured_alone(groups, 0.05) for groups in (18, 19, 20)] == [False, True, True]
    assert [measured_alone(groups, 0.2) for groups in (3, 4)] == [False, True]


@pytest.mark.parametrize("defence", DEFENCES)
def test_every_row_of_the_table_still_knows_clean_scans(run: DefendedRun, defence: str) -> None:
    parts = run.hospital(NAMES[1])
    answers = [diagnosis.label for diagnosis in parts.defended(defence).diagnose(parts.test[0])]
    assert np.mean(np.array(answers) == parts.test[1].numpy()) > 0.85


def test_no_defence_is_the_bare_classifier(run: DefendedRun) -> None:
    parts = run.hospital(NAMES[0])
    images = parts.test[0]
    bare = parts.defended("no_defence")
    torch.testing.assert_close(bare.logits(images) * bare.temperature, parts.classifier(images))
    assert not any(diagnosis.flagged for diagnosis in bare.diagnose(images))


def noisy_validation_scans(row: dict[str, object]) -> None:
    if row["role"] == Role.VALIDATION:
        size = len(bytes(row["pixels"]))  # type: ignore[arg-type]
        row["pixels"] = np.random.default_rng(int(str(row["row"]))).integers(0, 256, size, np.uint8).tobytes()


def test_a_lender_that_calls_noise_clean_does_not_switch_the_detector_of_the_others_off(
    few: DefendedRun, defended: Path, tmp_path: Path
) -> None:
    """Else noise would be what is usual; nothing marks the lender as an attacker."""
    attacker = "hospital-02"
    noisy = rewritten(few.shards, tmp_path / "noisy", noisy_validation_scans)
    shards = Path(shutil.copytree(few.shards, tmp_path / "shards"))
    shutil.copy(noisy / f"{NAMES[0]}.parquet", shards / f"{attacker}.parquet")
    manifest = Manifest.load(shards)
    third = replace(manifest.hospitals[0], file=f"{attacker}.parquet")
    replace(manifest, hospitals=(*manifest.hospitals, third)).save(shards)
    folder = Path(shutil.copytree(defended, tmp_path / "spots"))
    for place in (folder / "hospitals", folder / "defence" / "tuned" / "hospitals"):
        shutil.copy(place / f"{NAMES[0]}.safetensors", place / f"{attacker}.safetensors")

    def noise_flagged(f: int) -> float:
        settings = yaml.safe_load((defended / "experiment.yaml").read_text()) | {"hospitals": 3, "f": f}
        (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
        run = DefendedRun(folder, shards=shards)
        noise = torch.rand(200, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        return float(
            np.mean([diagnosis.flagged for diagnosis in run.hospital(NAMES[0]).defended("full").diagnose(noise)])
        )

    assert noise_flagged(f=0) < 0.2
    assert noise_flagged(f=1) > 0.9
