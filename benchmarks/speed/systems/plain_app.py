"""The same classifier behind FastAPI as one would write it on a first day: a scan in, probabilities out, nothing kept.

uvicorn benchmarks.speed.systems.plain_app:from_environment --factory
"""

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, UploadFile

from fedplatform.defence import KeyedNoise
from fedplatform.serving.intake import Limits, read_scans
from fedplatform.serving.versions import RunVersions, bundle_of, hospitals_in


class Diagnosis:
    """Reads a scan as the endpoint does, and asks the bare classifier."""

    def __init__(self, run: str, version: str) -> None:
        torch.set_num_threads(1)
        folder = RunVersions(Path(run)).folder(version)
        bundle = bundle_of(folder, hospitals_in(folder)[0])
        self._card, self._classifier = bundle.card, bundle.accelerated(KeyedNoise(b"unused")).classifier

    def __call__(self, data: bytes) -> dict[str, Any]:
        scans = read_scans(data, size=self._card.size, channels=self._card.channels, limits=Limits())
        with torch.inference_mode():
            logits = self._classifier(torch.from_numpy(scans.astype(np.float32) / 255))
        shares = logits.softmax(dim=1)[0].tolist()
        return {"answers": [{"probabilities": dict(zip(self._card.classes, shares, strict=True))}]}


def application(diagnosis: Diagnosis) -> FastAPI:
    """One path; FastAPI runs it in a thread of its pool."""
    app = FastAPI()

    @app.post("/v1/diagnose")
    def diagnose(scan: Annotated[UploadFile, "the scan"]) -> dict[str, Any]:
        return diagnosis(scan.file.read())

    return app


def from_environment() -> FastAPI:
    """The application for uvicorn's --factory; BENCHMARK_RUN and BENCHMARK_VERSION say what is served."""
    return application(Diagnosis(os.environ["BENCHMARK_RUN"], os.environ["BENCHMARK_VERSION"]))
