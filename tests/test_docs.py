"""What the README and the docs show is run here: commands, code, and the words they promise."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import fedplatform
from doc_pages import blocks

ROOT = Path(__file__).parents[1]
TINY = "--rounds 1 --local-epochs 1 --size 32 --root-size 20 --hospitals 3 --byzantine 1 --f 1"
QUICK = {
    "run": TINY,
    "compare": f"{TINY} --model small_cnn(width=4)",
    "defend": "--autoencoder masked_autoencoder(width=16,depth=1,decoder_width=16,decoder_depth=1) --sensor "
    "small_cnn(width=4) --purifier noise_predictor(width=8,halvings=1,t_max=200) --copies 2 --probe-depth 25 "
    "--least-depth 25 --most-depth 75 --autoencoder-rounds 1 --purifier-rounds 1 --sensor-rounds 1 "
    "--tuning-rounds 1 --engine local",
    "evaluate": "--tiers T0,T2,T5 --scans 4 --hard-scans 4 --steps 2 --eot 1 --queries 4 --epsilons 8/255 --jobs 0",
    "certify": "--scans 2 --samples 8 --sigmas 0.1 --jobs 0",
}
SMALL_DATA = "fedplatform.data.lesions:Lesions(hospitals=3, patients_per_hospital=40, slices_per_patient=1)"


def commands(page: str) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("fedplatform ")]


def quickly(command: str) -> list[str]:
    """The command as written, made small: fewer rounds, pixels, hospitals; the embedded data where it names no own."""
    words = shlex.split(command)[1:]
    if words[0] == "data":
        words = [SMALL_DATA if word == "lesions" else word for word in words]
    if words[0] in QUICK:
        words += shlex.split(QUICK[words[0]])
    if words[0] in ("run", "compare"):
        words += ["--engine", "local"]
        if "--data" not in words:
            words += ["--data", SMALL_DATA]
        if "--model" not in words:
            words += ["--model", "small_cnn(width=4)"]
    return words


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with every file of docs/extending.md."""
    folder = tmp_path_factory.mktemp("mine")
    for block in blocks("docs/extending.md", "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None, "a block of docs/extending.md does not say which file it is"
        (folder / name[1]).write_text(block)
    return folder


@pytest.mark.parametrize("command", commands("docs/extending.md"))
def test_a_users_own_parts_plug_in_as_the_docs_say(extended: Path, command: str) -> None:
    done = fedplatform(quickly(command), extended)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout


@pytest.mark.slow
def test_a_users_own_parts_run_on_ray_from_python(extended: Path) -> None:
    done = run(["my_run.py"], extended)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout


def is_one_of_a_chain(command: str) -> bool:
    return "runs/" in command or "--name" in command


@pytest.mark.slow
def test_a_run_is_defended_attacked_and_certified_as_the_readme_says(tmp_path: Path) -> None:
    chain = [command for command in commands("README.md") if is_one_of_a_chain(command)]
    *trained, published, served = chain
    assert [shlex.split(command)[1] for command in trained] == ["run", "defend", "evaluate", "certify"]
    # The server of all tests over HTTP was started by that command: tests/endpoint_process.py.
    assert served == "fedplatform serve runs/scan"
    for command in (*trained, published):
        done = fedplatform(quickly(command), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs" / "scan" / "evaluation.html").is_file()
    assert (tmp_path / "runs" / "scan" / "serving" / "versions" / "1").is_dir()


@pytest.mark.parametrize("command", [c for c in commands("README.md") if " my_" not in c and not is_one_of_a_chain(c)])
def test_a_command_of_the_readme_works(tmp_path: Path, command: str) -> None:
    done = fedplatform(quickly(command), tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_examples_of_serve_are_commands_that_work(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "runs" / "scan")
    said = fedplatform(["serve", "--help"], tmp_path).stdout
    examples = [line.strip() for line in said.partition("Examples:")[2].splitlines() if line.startswith("    ")]
    lines = [line for line in examples if line.startswith(("fedplatform ", "openssl "))]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line)
        if program == "openssl":
            subprocess.run([program, *words], cwd=tmp_path, check=True, capture_output=True)
            continue
        # A server that stays is what tests/actors/test_endpoint.py asks; here its options are checked and written down.
        built = [] if "--build" in words or words[0] == "keys" else ["--build", "built.yaml"]
        done = fedplatform([*words, *built], tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert "/runs/scan" in (tmp_path / "serve.yaml").read_text()


def test_the_readmes_first_command_is_a_comparison_that_the_makefile_knows() -> None:
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "fedplatform compare lesions" in planned
    assert "make demo" in (ROOT / "README.md").read_text()


def test_ci_calls_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "page", [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}, which is not there"
