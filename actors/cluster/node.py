"""A node of a cluster: the ``ray start`` of this machine, with its label, and a dashboard that is nobody else's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedplatform.experiments.places import LABEL

DASHBOARD_HOST = "127.0.0.1"


def ray_start(*, address: str | None, hospital: str | None, in_background: bool, more: Sequence[str]) -> list[str]:
    """The words of the command; the head where there is no ``address``, and ``more`` as ``ray start`` takes them."""
    words = [str(Path(sys.executable).parent / "ray"), "start", "--disable-usage-stats"]
    words += ["--head", f"--dashboard-host={DASHBOARD_HOST}"] if address is None else [f"--address={address}"]
    if hospital is not None:
        words.append(f"--labels={LABEL}={hospital}")
    if not in_background:
        words.append("--block")
    return [*words, *more]
