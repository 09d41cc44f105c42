"""Large scans and large networks from end to end: run, defend, evaluate, publish, serve; time and memory of each step.

    python -m benchmarks.sizes --model resnet50 --size 224
    python -m benchmarks.sizes --model vit_tiny_patch16_224 --size 224
    python -m benchmarks.sizes --model "small_cnn(width=8)" --size 512
    python -m benchmarks.sizes --purifier

The scans are the embedded lesions, coloured and written to a folder as anybody's own. Every step is the command of that
name, in a process of its own with one thread. The last one asks a running endpoint and compares its answers with the
library's. Each step's row is printed as soon as it is there; ``--keep FOLDER`` goes on where it stopped. ``--purifier``
compares the purifier's network in tiles with the same on whole scans.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

HOSPITALS, SCANS, ROOT, ROUNDS = 4, 50, 20, 2
NAME = "sizes"
ASKED = 4  # scans of a hospital that the endpoint is asked for
AT_ONCE = 4  # scans that the purifier's network is given together
CLOSE = 1e-4  # of two probabilities: ONNX Runtime adds in another order than PyTorch


def paint(folder: Path, *, scans: int, size: int) -> None:
    """A folder a class of colour PNGs, two slices a patient."""
    from fedplatform.data.lesions import Lesions

    patients = -(-scans // 2)
    source = Lesions(hospitals=HOSPITALS, patients_per_hospital=-(-patients // HOSPITALS))
    labels = source.index()["label"].to_numpy()
    groups = source.index()["group"].to_numpy()
    chosen = np.sort(np.random.default_rng(0).permutation(groups.max() + 1)[:patients])
    row = 0
    for batch in source.images(size=size, channels=1):
        for (grey,) in batch:
            if groups[row] in chosen:
                place = folder / source.classes[labels[row]]
                place.mkdir(parents=True, exist_ok=True)
                colour = np.stack([grey, grey // 2 + grey // 4, 200 - grey // 2], axis=2)  # as if stained
                Image.fromarray(colour).save(place / f"p{groups[row]:03d}-{row % 2}.png")
            row += 1


def measured(words: Sequence[str]) -> tuple[float, float, float, str]:
    """CPU seconds, seconds, the most memory of one of its processes in MB, and what a command wrote."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"{' '.join(words)}\n{text[-3000:]}")
    return used.ru_utime + used.ru_stime, time.monotonic() - started, used.ru_maxrss / 1024, text


def steps(given: argparse.Namespace, folder: Path) -> list[tuple[str, Path, list[str]]]:
    """Each step's name, the file that it leaves, and its command."""
    run = folder / NAME
    fedplatform = ["-m", "fedplatform"]
    trained = [
        *("--size", str(given.size), "--model", given.model, "--optimiser", "adamw", "--learning-rate", given.rate),
        *("--hospitals", str(HOSPITALS), "--byzantine", "0", "--rule", "mean", "--root-size", str(ROOT)),
        *("--rounds", str(ROUNDS), "--batch-size", "16", "--patients", "^(p[0-9]+)-", "--local-epochs", given.epochs),
    ]
    once = ["autoencoder", "purifier", "tuning", "sensor"]
    defend = [word for stage in once for word in (f"--{stage}-rounds", "1")]
    few = ["--tiers", "T0,T2", "--epsilons", "8/255", "--scans", "8", "--steps", "5", "--jobs", "0"]
    rows = ["--defences", "no_defence,full"]
    place = ["--runs", str(folder), "--name", NAME, "--engine", "local"]
    return [
        ("run", run / "report.html", [*fedplatform, "run", str(folder / "scans"), *trained, *place]),
        (
            "defend",
            run / "defence/sensor.safetensors",
            [*fedplatform, "defend", str(run), *defend, "--engine", "local"],
        ),
        ("evaluate", run / "evaluation.html", [*fedplatform, "evaluate", str(run), *few, *rows]),
        ("publish", run / "serving/aliases.json", [*fedplatform, "publish", str(run)]),
        ("serve", run / "none", ["-m", "benchmarks.sizes", "--ask", str(run)]),
    ]


def ask(run: Path) -> None:
    """Serve the champion of a run, ask for some scans of every hospital, and compare with what the library says."""
    from actors.endpoint.arguments import EndpointArguments
    from actors.endpoint.server import free_port, served
    from fedplatform.defence import KeyedNoise
    from fedplatform.experiments.defence.load import DefendedRun
    from fedplatform.serving.answer import picture
    from fedplatform.serving.secret import open_secret, secret_path
    from fedplatform.serving.versions import RunVersions, bundle_of

    port, place, furthest, asked = free_port("127.0.0.1"), str(run.resolve()), 0.0, 0
    versions, defended_run = RunVersions(run), DefendedRun(run)
    with served(EndpointArguments(versions=place, state=place), host="127.0.0.1", port=port):
        for hospital_id in defended_run.tested:
            bundle = bundle_of(versions.folder(versions.champion()), hospital_id)
            library = bundle.defended(KeyedNoise(open_secret(secret_path(run, hospital_id))))
            images = defended_run.hospital(hospital_id).test[0][:ASKED]
            for image, said in zip(images, library.diagnose(images), strict=True):
                url = f"http://127.0.0.1:{port}/v1/diagnose?hospital={hospital_id}"
                (answer,) = _post(url, picture(image.numpy()))
                shares = [answer["probabilities"][name] for name in bundle.card.classes]
                furthest = max(furthest, float(np.abs(np.subtract(shares, said.probabilities)).max()))
                asked += 1
                if furthest > CLOSE or answer["flagged"] != said.flagged:
                    sys.exit(f"{hospital_id}: served {answer}, the library says {said}")
    print(f"{asked} answers as the library's, probabilities to {furthest:.1e}")


def _post(url: str, scan: bytes) -> list[dict[str, Any]]:
    body = b'--x\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n\r\n' + scan + b"\r\n--x--\r\n"
    request = urllib.request.Request(url, body, {"Content-Type": "multipart/form-data; boundary=x"})
    with urllib.request.urlopen(request, timeout=600) as response:
        answers: list[dict[str, Any]] = json.loads(response.read())["answers"]
    return answers


def losses(run: Path) -> str:
    """What the loss did: of training, and on the hospitals' test scans."""
    hospitals, rounds = (pd.read_parquet(run / f"{name}.parquet") for name in ("hospitals", "rounds"))
    trained = hospitals.groupby("round_number")["train_loss"].mean()
    return f"training loss {trained.iloc[0]:.3f} to {trained.iloc[-1]:.3f}, test {list(rounds['loss'].round(3))}"


def purifier() -> None:
    """Print what the purifier's network takes a scan, in tiles and on whole scans, which only training makes differ."""
    import torch

    from fedplatform.learning.models import NoisePredictor

    torch.set_num_threads(1)
    print("| pixels | | answer, CPU ms | gradient, CPU ms | gradient, MB | training, CPU ms |")
    print("|---:|---|---:|---:|---:|---:|")
    for size in (64, 128, 224, 512):
        for name, tile in (("tiles", NoisePredictor().tile), ("whole", 4096)):
            network = NoisePredictor(tile=tile)(channels=3, num_classes=2, size=size)
            scans, depth = torch.rand(AT_ONCE, 3, size, size), torch.full((AT_ONCE,), 50)
            moved = scans.clone().requires_grad_()
            draw = torch.Generator().manual_seed(0)

            def answer(scans: torch.Tensor = scans, depth: torch.Tensor = depth, network: object = network) -> None:
                with torch.no_grad():
                    network.denoise(scans, depth)  # type: ignore[attr-defined]

            work = (
                answer,
                lambda: torch.autograd.grad(network.denoise(moved, depth).sum(), moved),  # noqa: B023
                lambda: network.loss(scans, draw).backward(),  # noqa: B023
            )
            answer()
            found = [_milliseconds(each) for each in work]
            print(
                f"| {size} | {name} | {found[0][0]:.0f} | {found[1][0]:.0f} | {found[1][1]:.0f} | {found[2][0]:.0f} |",
                flush=True,
            )


def _milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """CPU milliseconds and peak MB beyond the start, a scan of ``AT_ONCE``."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = _status("VmRSS"), time.process_time()
    work()
    return 1000 * (time.process_time() - started) / AT_ONCE, (_status("VmHWM") - before) / AT_ONCE


def _status(name: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rate", default="0.001", help="first step size of AdamW")
    parser.add_argument("--epochs", default="1", help="local epochs of a round")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--ask", type=Path, metavar="RUN", help="only the last step")
    parser.add_argument("--purifier", action="store_true", help="only the purifier's network")
    given = parser.parse_args()
    if given.purifier:
        purifier()
        return
    if given.ask:
        ask(given.ask)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "scans").is_dir():
            paint(folder / "scans", scans=HOSPITALS * SCANS + ROOT, size=given.size)
        print(
            f"{given.model}, {given.size} pixels in colour, {HOSPITALS} hospitals with {SCANS} scans, {ROUNDS} rounds\n"
        )
        print("| step | CPU s | s | peak MB |\n|---|---:|---:|---:|", flush=True)
        said = ""
        for name, file, words in steps(given, folder):
            if file.exists():
                continue
            cpu, wall, peak, said = measured(words)
            print(f"| {name} | {cpu:,.0f} | {wall:,.0f} | {peak:,.0f} |", flush=True)
        print(f"\n{losses(folder / NAME)}; {said.strip().rpartition(chr(10))[2]}")


if __name__ == "__main__":
    main()
