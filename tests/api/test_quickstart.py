"""docs/quickstart.py runs as it stands, as a script and as a notebook, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "quickstart.py"

pytestmark = pytest.mark.slow


def test_the_quickstart_runs_as_a_script_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = "import torch\ntorch.set_num_threads(2)\n"
    after = "\nimport ray as library\nassert not library.is_initialized()\nassert torch.get_num_threads() == 2\n"
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # Ray's sockets take no long path
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(short)}
    folder = tmp_path / "empty"
    folder.mkdir()
    script = tmp_path / "quickstart.py"
    script.write_text(before + SCRIPT.read_text().partition('"""\n')[2] + after)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nearest_neighbour" in done.stdout
    assert not list(folder.iterdir())
    assert not list(short.glob("fedplatform-*"))
    shutil.rmtree(short)


def test_the_quickstart_runs_as_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    parts = SCRIPT.read_text().split("\n\n")
    trained = next(number for number, part in enumerate(parts) if "result = " in part)
    parts.insert(trained + 1, "result")
    cells = [nbformat.v4.new_code_cell(part) for part in parts]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("<table" in output["data"].get("text/html", "") for output in shown), "a result is shown as a table"
    assert any("<iframe" in output["data"].get("text/html", "") for output in shown), "a report is shown as a page"
