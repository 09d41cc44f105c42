"""The page at ``/``."""

from __future__ import annotations

from fedplatform.core.template import load_template


def page(*, asks_for_a_key: bool, root_path: str) -> str:
    """The page as HTML; everything that changes it asks the API for, which lies below ``root_path``."""
    template = load_template("endpoint.html", "actors.endpoint")
    return template.render(asks_for_a_key=asks_for_a_key, root_path=root_path)
