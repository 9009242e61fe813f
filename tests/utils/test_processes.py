"""Workers leave it to their parent to handle signals that are sent to all processes of a job."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from src.utils.processes import WorkerContext, follow_parent


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, WorkerContext(), follow_parent) as pool:
        yield pool


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_worker_stays_where_its_parent_decides(pool, number):
    worker = pool.submit(os.getpid).result()
    assert worker != os.getpid()
    os.kill(worker, number)
    time.sleep(0.1)
    assert pool.submit(os.getpid).result() == worker
