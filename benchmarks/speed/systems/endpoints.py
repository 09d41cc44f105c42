"""Three ways to put a classifier behind HTTP on this machine, each under the same requests."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from benchmarks.speed.contestant import Job
from fedplatform.serving.answer import picture

HOST, USERS = "127.0.0.1", 8
BOUNDARY = "benchmark"


def requests(port: int, *, hospital: str, size: int, count: int) -> Callable[[], dict[str, float]]:
    """``count`` scans from eight users, each asking as soon as it has its answer; answers a second, and p99."""
    scan = picture(np.random.default_rng(0).random((1, size, size), dtype=np.float32))
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="scan"; filename="scan.png"\r\n\r\n'
    body = head.encode() + scan + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def send() -> dict[str, float]:
        left, taken, lock = iter(range(count)), [], threading.Lock()
        failures: list[str] = []

        def user() -> None:
            with closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    start = time.perf_counter()
                    connection.request("POST", f"/v1/diagnose?hospital={hospital}", body, headers)
                    response = connection.getresponse()
                    said = response.read()
                    if response.status != 200:
                        failures.append(f"{response.status} {said[:100]!r}")
                        return
                    taken.append(time.perf_counter() - start)

        started = time.perf_counter()
        users = [threading.Thread(target=user) for _ in range(USERS)]
        for each in users:
            each.start()
        for each in users:
            each.join()
        if failures:
            raise RuntimeError(failures[0])
        seconds = time.perf_counter() - started
        return {"figure": count / seconds, "p99_ms": 1000 * float(np.percentile(taken, 99))}

    return send


def wait_until_ready(port: int, path: str) -> None:
    for _ in range(1200):
        with suppress(OSError), closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return
        time.sleep(0.1)
    raise RuntimeError("the server did not get ready within two minutes")


@contextmanager
def endpoint(run: str, version: str, hospital: str, size: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """This project's: batches, an audit line on the disk before every answer, limits, metrics."""
    from actors.endpoint.arguments import EndpointArguments
    from actors.endpoint.server import free_port, served
    from fedplatform.serving.versions import RunVersions

    RunVersions(Path(run)).promote(version)
    port = free_port(HOST)
    with served(EndpointArguments(versions=run, state=run, rate=1e6, burst=10**6), host=HOST, port=port):
        wait_until_ready(port, "/readyz")
        yield requests(port, hospital=hospital, size=size, count=count)


@contextmanager
def uvicorn(run: str, version: str, hospital: str, size: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """FastAPI and one uvicorn process."""
    from actors.endpoint.server import free_port

    port = free_port(HOST)
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "benchmarks.speed.systems.plain_app:from_environment"),
            *("--host", HOST, "--port", str(port), "--log-level", "error"),
        ],
        env={**os.environ, "BENCHMARK_RUN": run, "BENCHMARK_VERSION": version},
    )
    try:
        wait_until_ready(port, "/docs")
        yield requests(port, hospital=hospital, size=size, count=count)
    finally:
        server.terminate()
        server.wait()


@contextmanager
def ray_serve(run: str, version: str, hospital: str, size: int, count: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Ray Serve with one replica and no batching."""
    import ray
    from ray import serve
    from starlette.requests import Request

    from actors.endpoint.server import free_port
    from benchmarks.speed.systems.plain_app import Diagnosis

    @serve.deployment(max_ongoing_requests=64)
    class Classifier:
        def __init__(self) -> None:
            self._diagnosis = Diagnosis(run, version)

        async def __call__(self, request: Request) -> dict[str, object]:
            async with request.form() as form:
                return self._diagnosis(await form["scan"].read())  # type: ignore[union-attr]

    port = free_port(HOST)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": HOST, "port": port})
        serve.run(Classifier.bind(), route_prefix="/v1/diagnose")
        yield requests(port, hospital=hospital, size=size, count=count)
    finally:
        serve.shutdown()
        ray.shutdown()


JOBS: dict[str, Job] = {"serving": endpoint, "uvicorn": uvicorn, "ray_serve": ray_serve}
