"""The defence of a classifier that is in use: what tells a tampered scan, and what cleans it."""

from __future__ import annotations

from fedplatform.defence.calibration import (
    DepthMap,
    Fusion,
    Quantiles,
    expected_calibration_error,
    fit_temperature,
)
from fedplatform.defence.certificate import Certificate, certified_accuracy, certify, step_of
from fedplatform.defence.defended_classifier import DefendedClassifier, Examination, Passage
from fedplatform.defence.detector import Detector
from fedplatform.defence.diagnosis import Diagnosis
from fedplatform.defence.gate import Gate
from fedplatform.defence.noise import FreshNoise, KeyedNoise, Noise
from fedplatform.defence.purifier import Ddim, Ddpm, DiffusionPurifier, DpmSolver, OneShot, Purifier, Sampler
from fedplatform.defence.smoothing import BitDepth, GaussianBlur, Jpeg

SAMPLERS: dict[str, type[Sampler]] = {"one_shot": OneShot, "ddim": Ddim, "dpm_solver": DpmSolver, "ddpm": Ddpm}

__all__ = [
    "SAMPLERS",
    "BitDepth",
    "Certificate",
    "Ddim",
    "Ddpm",
    "DefendedClassifier",
    "DepthMap",
    "Detector",
    "Diagnosis",
    "DiffusionPurifier",
    "DpmSolver",
    "Examination",
    "FreshNoise",
    "Fusion",
    "Gate",
    "GaussianBlur",
    "Jpeg",
    "KeyedNoise",
    "Noise",
    "OneShot",
    "Passage",
    "Purifier",
    "Quantiles",
    "Sampler",
    "certified_accuracy",
    "certify",
    "expected_calibration_error",
    "fit_temperature",
    "step_of",
]
