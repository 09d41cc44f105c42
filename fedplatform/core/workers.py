"""Worker processes for tables of many cells: one thread each, and an interruption does not wait for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import ParamSpec, TypeVar

import torch
from threadpoolctl import threadpool_limits

from fedplatform.core.compute import one_thread
from fedplatform.core.settings import ExperimentError

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class InThisProcess(Executor):
    """Works at once and in this process, with one thread: for scripts, which a worker process would run once more."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the call and return what came of it."""
        future: Future[T] = Future()
        try:
            with one_thread():
                future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """A pool of ``jobs`` processes of one thread each; with 0 jobs everything runs in this process.

    Raises :class:`ExperimentError` where one of them dies.
    """
    if jobs == 0:
        yield InThisProcess()
        return
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in)
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BrokenProcessPool as error:
        time.sleep(0.2)  # Ctrl-C reaches the workers, too, and their end may be noticed before it: let it come first
        raise ExperimentError(
            "a worker process died, perhaps for want of memory; the same command, with fewer --jobs, goes on from here"
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        raise
    finally:
        pool.shutdown()


def as_they_finish(tasks: Iterable[S], submit: Callable[[S], Future[T]], *, jobs: int) -> Iterator[tuple[S, T]]:
    """Each task with its result, whichever finishes first.

    ``submit`` hands a task to the pool of ``jobs`` workers; one more than these is waiting, so a task is drawn from
    ``tasks`` only when its turn is near.
    """
    queue = iter(tasks)
    pending: dict[Future[T], S] = {}
    while True:
        for task in islice(queue, jobs + 1 - len(pending)):
            pending[submit(task)] = task
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), future.result()


def _settle_in() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word
    torch.set_num_threads(1)
    threadpool_limits(1)


def _end_with_parent() -> None:
    """A parent that is killed cannot say so, and a worker would wait for its next cell for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
