"""The defence behind HTTP, on Ray Serve: ``actors.endpoint:app`` builds the application.

``app`` is imported on first use: a replica imports its own module of this package and not all deployments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.endpoint.application import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module 'actors.endpoint' has no attribute {name!r}")
    from actors.endpoint.application import app

    return app
