"""Many items, few processes: the same list in the same order, whatever the backend."""

import math
import time

import pytest

from minexp import jobs
from minexp.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # dask's sockets

ITEMS = [9.0, 4.0, 0.0, 2.0, 25.0, 1.0]
ROOTS = [math.sqrt(item) for item in ITEMS]


def test_one_job_runs_here_and_lazily():
    seen = []
    rows = jobs.run(lambda item: seen.append(item) or -item, [1, 2, 3])
    assert seen == [] and next(rows) == -1 and seen == [1]
    assert list(rows) == [-2, -3]


@pytest.mark.parametrize("backend", jobs.BACKENDS)
def test_both_backends_give_the_same_list(backend):
    assert list(jobs.run(math.sqrt, ITEMS, jobs=2, backend=backend)) == ROOTS


def test_the_order_is_the_items_not_that_of_finishing():
    waits = [0.6, 0.0, 0.3, 0.0]
    rows = jobs.run(_slept, waits, jobs=2)
    assert list(rows) == waits


def _slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_no_items():
    assert list(jobs.run(math.sqrt, [])) == []
    assert list(jobs.run(math.sqrt, [], jobs=2)) == []


def test_workers_compute_with_one_thread():
    import torch

    mine = torch.get_num_threads()
    assert list(jobs.run(_threads, [0, 0], jobs=2)) == [1, 1]
    assert torch.get_num_threads() == mine


def _threads(_item: int) -> int:
    import torch

    return torch.get_num_threads()


@pytest.mark.parametrize("backend", ["", "threads", "Loky"])
def test_an_unknown_backend_is_refused(backend):
    with pytest.raises(InputError, match="loky, dask"):
        list(jobs.run(math.sqrt, ITEMS, backend=backend))


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("backend", jobs.BACKENDS)
def test_no_jobs_are_refused(count, backend):
    with pytest.raises(InputError, match=f"jobs={count}"):
        list(jobs.run(math.sqrt, ITEMS, jobs=count, backend=backend))


@pytest.mark.parametrize("options", [
    {}, {"jobs": 2}, pytest.param({"jobs": 2, "backend": "dask"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_an_exception_in_a_worker_reaches_the_caller(options):
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(jobs.run(math.sqrt, [4.0, -1.0], **options))


def test_our_own_errors_keep_their_kind_and_words():
    with pytest.raises(InputError, match="no such thing"):
        list(jobs.run(_refuse, ["no such thing"], jobs=2))


def _refuse(words: str) -> None:
    raise InputError(words)
