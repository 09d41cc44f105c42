"""Ray Serve as it is started here."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
import ray
from ray import serve
from starlette.requests import Request

from actors.endpoint.server import free_port
from actors.gateway.http_transport import HttpTransport
from actors.http import start as http
from fedplatform.outside.agent import Unreachable

HOST = "127.0.0.1"


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Greeting:
    async def __call__(self, request: Request) -> str:
        return f"hello {request.query_params['who']}"


@pytest.fixture
def ray_with_serve() -> Iterator[None]:
    http.prepare()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    serve.shutdown()
    ray.shutdown()


def proxies() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::ProxyActor"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


@pytest.mark.slow
def test_a_proxy_that_dies_while_it_starts_is_started_again(ray_with_serve: None) -> None:
    killed: list[int] = []

    def kill_the_first() -> None:
        while not killed:
            for process in proxies()[:1]:
                process.kill()
                killed.append(process.pid)
            time.sleep(0.001)

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    port = free_port(HOST)
    http.start(Greeting.bind(), name="greeting", host=HOST, port=port, tls=None)
    thread.join(60)
    (proxy,) = proxies()
    assert proxy.pid not in killed
    with urllib.request.urlopen(f"http://{HOST}:{port}/?who=you", timeout=60) as answer:
        assert answer.read() == b"hello you"


@pytest.mark.slow
def test_a_hospital_that_calls_before_anything_is_deployed_will_call_again(ray_with_serve: None) -> None:
    port = free_port(HOST)
    http.start(Greeting.bind(), name="greeting", host=HOST, port=port, tls=None)
    serve.delete("greeting")  # as it is while Serve starts: the proxy listens, and nothing is behind it
    with pytest.raises(Unreachable, match="503"):
        HttpTransport(f"http://{HOST}:{port}", authority=None).hello()
