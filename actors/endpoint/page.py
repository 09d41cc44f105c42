"""The page at ``/``."""

from __future__ import annotations

from fedplatform.core.template import load_template


def page(*, asks_for_a_key: bool) -> str:
    """The page as HTML; everything that changes it asks the API for."""
    return load_template("endpoint.html", "actors.endpoint").render(asks_for_a_key=asks_for_a_key)
