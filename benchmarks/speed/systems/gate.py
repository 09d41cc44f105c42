"""Lets a system that runs all its rounds in one call run one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class GateClosed(Exception):  # noqa: N818 - an order that is obeyed
    """The rounds are over."""


class Gate:
    """The system's thread waits in :meth:`pass_through` until :meth:`one_round` lets it do one round."""

    def __init__(self) -> None:
        self._here, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._failure: BaseException | None = None

    def pass_through(self) -> None:
        """To be called by the system before each round."""
        self._here.release()
        self._go.acquire()
        if self._closed:
            raise GateClosed

    def one_round(self) -> None:
        """Let the system do one round, and wait until it is back."""
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._here.acquire()
        if self._failure is not None:
            raise RuntimeError(f"the system stopped: {self._failure!r}")

    @contextmanager
    def opened(self, everything: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Run ``everything`` in a thread up to its first round."""

        def run() -> None:
            try:
                everything()
                raise RuntimeError("no more rounds")
            except GateClosed:
                return
            except BaseException as error:
                self._failure = error
                self._here.release()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._wait()
        try:
            yield self.one_round
        finally:
            self._closed = True
            self._go.release()
            thread.join(timeout=30)
