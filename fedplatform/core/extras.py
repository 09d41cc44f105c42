"""Which extra of the package brings a library that not every role needs."""

from __future__ import annotations

EXTRA_OF = {
    "diffusers": "run",
    "fastapi": "serve",
    "fastapi_swagger": "serve",
    "jinja2": "run",
    "mlflow": "mlflow",
    "nilearn": "run",
    "onnx": "serve",
    "onnxruntime": "serve",
    "onnxscript": "serve",
    "opacus": "privacy",
    "optuna": "tune",
    "ray": "run",
    "starlette": "serve",
}


def advice(error: ModuleNotFoundError) -> str | None:
    """How to install what is missing: ``mlflow is not installed: pip install "fedplatform[mlflow]"``; None if unknown.

    >>> advice(ModuleNotFoundError(name="optuna"))
    'optuna is not installed: pip install "fedplatform[tune]"'
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in EXTRA_OF:
        return None
    return f'{missing} is not installed: pip install "fedplatform[{EXTRA_OF[missing]}]"'
