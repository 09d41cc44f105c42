"""A Ray that a test starts and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_of_our_own(**settings: Any) -> Iterator[None]:
    """Four CPUs and whatever else ``settings`` say, whatever runs on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="error",
        **settings,
    )
    try:
        yield
    finally:
        ray.shutdown()
