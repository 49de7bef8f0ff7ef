"""A training of two threads beside other work: with threads that sleep while they wait, as processes here start."""

import os
import statistics
import subprocess
import sys

import pytest
from benchmarks.history import measured

from pruninglab.results.environment import with_threads

WORK = """
import time, torch
import pruninglab as lab
from benchmarks.lockstep import steps
data = lab.load("strokes", train=1100, test=100, val=0.0909)
step = steps(lab.build("lenet5", data, seed=0), data, batch_size=100)
for _ in range(3):
    step()
began = time.perf_counter()
for _ in range(40):
    step()
print(time.perf_counter() - began)
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_threads_that_sleep_while_they_wait_are_faster_beside_another_job() -> None:
    plain = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "2"}
    plain.pop("OMP_WAIT_POLICY", None)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def seconds(environment: dict[str, str]) -> float:
        done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    try:
        found = statistics.median(seconds({**plain, **with_threads(2)}) / seconds(plain) for _ in range(3))
    finally:
        other.kill()
        other.wait()
    measured("step of lenet5 beside another job, threads asleep / as OpenMP has them", found)
    assert found <= 1.05
