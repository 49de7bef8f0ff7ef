"""Kernels of the notebooks under test, forked from one process that has imported what nearly every notebook imports.

The imports are a fifth of the cost of all notebooks. That a notebook runs in a process of its own from the first
import on is seen by `make notebooks` and by the tests of papermill.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import nbval.kernel
import pytest

SERVER = """
import json, os, runpy, signal, sys
import ipykernel.kernelapp, pandas, torch._dynamo, pruninglab.plots, pruninglab.train

pandas.set_option("display.max_columns", 20)  # what pandas takes by itself where it is imported in a notebook

def kernel(command, cwd, env):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    sys.argv = command[2:]  # after `python -m`
    sys.path[0] = cwd
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody has to wait for an ended kernel
started = []
for line in sys.stdin:
    if not (pid := os.fork()):
        os.setpgid(0, 0)
        kernel(**json.loads(line))
        os._exit(0)
    os.setpgid(pid, pid)  # signals go to the kernel and to what it starts
    started.append(pid)
    print(pid, flush=True)
for pid in started:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
"""Each line that it reads is a kernel; it answers with its process. At the end no kernel is left."""


class Kernel:
    """What jupyter_client asks of a process that it has started."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self) -> int:
        assert self.poll() == 0, "asked for only when it has ended"
        return 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Kernels:
    """The process that is forked, from the first kernel on."""

    def __init__(self) -> None:
        self.server: Any = None

    def launch(self, command: Sequence[str], cwd: str | None = None, env: Any = None, **_: Any) -> Kernel:
        if self.server is None:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            self.server = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)
        order = {"command": command, "cwd": cwd or os.getcwd(), "env": dict(env or os.environ)}
        print(json.dumps(order), file=self.server.stdin)
        return Kernel(int(self.server.stdout.readline()))

    def close(self) -> None:
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()
            self.server.stdout.close()


class Forked:
    """The plugin that gives nbval such kernels; other tests start theirs as a user does."""

    def __init__(self) -> None:
        self.kernels = Kernels()
        self.start = nbval.kernel.start_new_kernel

    def pytest_configure(self) -> None:
        nbval.kernel.start_new_kernel = self.started

    def started(self, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", self.kernels.launch)
            return self.start(**options)

    def pytest_unconfigure(self) -> None:
        nbval.kernel.start_new_kernel = self.start
        self.kernels.close()
