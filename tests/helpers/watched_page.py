"""A browser's page that must not complain and must ask nobody else for anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 120_000  # of a machine that does much else


@contextmanager
def watched_page(browser: Browser, *allowed: str, ignored: str = "\0", **context_options: Any) -> Iterator[Page]:
    """A page of its own context, which in the end asked only for allowed URLs and has no message in its console.

    Messages that hold the words ``ignored`` do not count.
    """
    context = browser.new_context(**context_options)
    page = context.new_page()
    messages: list[str] = []
    urls = requests_of(page)
    page.on("console", lambda one: messages.append(one.text) if ignored not in one.text else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    yield page
    assert messages == []
    assert [url for url in urls if not url.startswith((*allowed, "data:", "blob:"))] == []
    context.close()


def requests_of(page: Page) -> list[str]:
    """The URLs that the page will have asked for, a list that grows."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    return urls


def rendered(page: Page | Locator, selector: str) -> list[str]:
    """The text of each element as a reader sees it."""
    return [text.strip() for text in page.locator(selector).all_inner_texts()]
