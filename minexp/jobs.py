"""The same function over many items: in this process, in several, or on a cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from joblib import Parallel, delayed, parallel_config

from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.models import load_model

BACKENDS = ("loky", "dask")


def run(function: Callable, items: Sequence, *, jobs: int = 1, backend: str = "loky") -> Iterator:
    """Yield ``function(item)`` in the items' order.

    With one job, in this process. With more, ``function`` and items must be picklable, and each
    worker computes with one torch thread: two threads each on a busy machine are far slower.
    ``backend="dask"`` uses the scheduler that dask's own configuration names (the environment
    variable DASK_SCHEDULER_ADDRESS), or ``jobs`` local workers.

    Raises:
        InputError: an unknown backend, jobs < 1, or dask is not installed.
    """
    check(jobs, backend)
    if jobs == 1 and backend == "loky":
        yield from map(function, items)
        return
    with _workers(jobs, backend):
        tasks = (delayed(_single_threaded)(function, item) for item in items)
        yield from Parallel(return_as="generator")(tasks)


def check(jobs: int, backend: str = "loky") -> None:
    """Raise InputError for fewer than one job or an unknown backend."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    if jobs < 1:
        raise InputError(f"jobs={jobs}: expected an integer >= 1")


def _single_threaded(function: Callable, item: object) -> object:
    torch.set_num_threads(1)
    return function(item)


@contextmanager
def _workers(jobs: int, backend: str) -> Iterator[None]:
    if backend == "loky":
        with parallel_config("loky", n_jobs=jobs):
            yield
        return
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise InputError("backend dask: not installed; pip install 'minexp[cluster]'") from error
    address = dask.config.get("scheduler-address", None)
    local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address) if address else Client(**local), parallel_config("dask", n_jobs=jobs):
        yield


@cache
def model(name: str) -> Classifier:
    """:func:`minexp.load_model`, once a worker, not once an item."""
    return load_model(name)
