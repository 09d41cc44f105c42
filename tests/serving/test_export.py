"""A model for other programs: opened by a process that cannot import this project, it gives the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fedplatform as fp
from fedplatform.data.shards import Manifest
from fedplatform.experiments.defence.load import read_classifier, read_experiment
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.learning.training import Trainer
from fedplatform.serving.export import Format, export

SETTINGS = {
    "data": "fedplatform.data.lesions:Lesions(hospitals=2, patients_per_hospital=20)",
    **{"size": 32, "hospitals": 2, "byzantine": 0, "rule": "mean", "rounds": 1, "root_size": 0, "partition": "iid"},
}
# A torchvision of another build lacks two operators; timm wants them to be there and never calls them.
ALONE = """
import sys, numpy as np, torch
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fedplatform", "actors", "tune"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
folder, images = sys.argv[1], np.load(sys.argv[2])
"""
USES = {
    "torch": "logits = torch.export.load(folder + '/model.pt2').module()(torch.from_numpy(images)).detach().numpy()",
    "onnx": (
        "import onnxruntime\n"
        "logits = onnxruntime.InferenceSession(folder + '/model.onnx').run(None, {'images': images})[0]"
    ),
    "timm": (
        "kept = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    if not hasattr(torch.ops.torchvision, name):\n"
        "        kept.define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import timm\n"
        "network = timm.create_model('local-dir:' + folder, pretrained=True).eval()\n"
        "cfg = network.pretrained_cfg\n"
        "mean, std = (torch.tensor(cfg[name]).reshape(-1, 1, 1) for name in ('mean', 'std'))\n"
        "with torch.no_grad():\n    logits = network((torch.from_numpy(images) - mean) / std).numpy()"
    ),
}


def trained(folder: Path, **settings: object) -> Path:
    fp.run(**{**SETTINGS, **settings}, folder=folder)
    return folder


def answers(run: Path, hospital_id: str, images: np.ndarray) -> np.ndarray:
    trainer = Trainer(local_training(read_experiment(run), Manifest.load(run / "shards")))
    with torch.no_grad():
        return read_classifier(trainer, run, hospital_id)(torch.from_numpy(images)).numpy()


def answers_elsewhere(folder: Path, form: Format, images: np.ndarray, scratch: Path) -> np.ndarray:
    np.save(scratch / "images.npy", images)
    script = f"{ALONE}\n{USES[form]}\nnp.save(sys.argv[3], logits)"
    command = [sys.executable, "-c", script, str(folder), str(scratch / "images.npy"), str(scratch / "logits.npy")]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: np.ndarray = np.load(scratch / "logits.npy")
    return found


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("small") / "run", model="small_cnn(width=4)", algorithm="fedbn_p")


@pytest.fixture(scope="module")
def timm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("timm") / "run", model="timm(name='test_resnet', pixels='timm')", algorithm="fedavg"
    )


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_a_hospitals_model_answers_the_same_where_nobody_knows_this_project(
    small_run: Path, tmp_path: Path, form: Format
) -> None:
    export(small_run, tmp_path / "out", form=form, hospital_id="hospital-01")
    for batch in (1, 5):
        images = np.random.default_rng(batch).random((batch, 1, 32, 32), np.float32)
        got = answers_elsewhere(tmp_path / "out", form, images, tmp_path)
        np.testing.assert_allclose(got, answers(small_run, "hospital-01", images), atol=1e-5)
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["classes"] == ["healthy", "lesion"]
    assert (card["channels"], card["size"], card["hospital"]) == (1, 32, "hospital-01")


@pytest.mark.parametrize("form", ["torch", "onnx", "timm"])
def test_a_shared_network_of_timm_goes_into_every_format(timm_run: Path, tmp_path: Path, form: Format) -> None:
    export(timm_run, tmp_path / "out", form=form)
    images = np.random.default_rng(0).random((3, 1, 32, 32), np.float32)
    got = answers_elsewhere(tmp_path / "out", form, images, tmp_path)
    np.testing.assert_allclose(got, answers(timm_run, "hospital-00", images), atol=1e-5)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExperimentError, match="a part of the model stays in each hospital: --hospital NAME says whose"):
        export(small_run, out, form="onnx")
    with pytest.raises(ExperimentError, match="no hospital is called 'hospital-9'"):
        export(small_run, out, form="onnx", hospital_id="hospital-9")
    with pytest.raises(ExperimentError, match="--format timm is for networks of timm, the run's is small_cnn"):
        export(small_run, out, form="timm", hospital_id="hospital-00")
    with pytest.raises(ExperimentError, match="holds no finished run"):
        export(tmp_path, out, form="onnx")
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ExperimentError, match="is there already"):
        export(small_run, out, form="onnx", hospital_id="hospital-00")
