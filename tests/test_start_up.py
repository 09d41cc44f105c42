"""Nothing is imported before it is needed: not by help, not by ``import fedplatform``, not by an inference replica."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray", "pandas", "pydantic", "mlflow", "numpy", "matplotlib", "sklearn")
# What an inference replica has no use for.
FOREIGN = (
    *("fedplatform.attacks", "fedplatform.federated", "fedplatform.experiments", "fedplatform.learning.training"),
    *("fedplatform.api", "tune"),
)


def loaded_by(code: str) -> set[str]:
    """The modules in a fresh process after some code."""
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(chr(10).join(sys.modules), file=sys.stderr)"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return set(said.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import fedplatform",
        "import fedplatform.cli",
        "import sys; sys.argv = ['fedplatform', 'run', '--help']\n"
        "try:\n    from fedplatform.cli import main; main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['fedplatform', 'defend', 'runs/x', '--depht', '3']\n"
        "try:\n    from fedplatform.cli import main; main()\nexcept SystemExit: pass",
    ],
    ids=["import", "command line", "help", "mistyped"],
)
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize("deployment", ["diagnostician", "purifying", "ingress", "auditor"])
def test_an_inference_replica_imports_nothing_of_attacks_and_aggregation(deployment: str) -> None:
    loaded = loaded_by(f"import actors.endpoint.{deployment}")
    assert not [name for name in loaded if name.startswith(FOREIGN)]
