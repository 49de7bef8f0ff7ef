"""A notebook run to its end without anyone at it: papermill with an engine that neither hangs nor outlives its limit.

nbclient waits for the kernel's answer without a limit, and a message of a widget's can take the answer's wake-up with
it: the wait then lasts for ever. This engine looks again every quarter of a second. At the time limit the kernel and
what it started are killed, whatever they are doing. A kernel that does not come up is started once more.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from ..errors import RunError
from ..terminal import ENDED, asked_to_stop

LOOK_AGAIN = 0.25
GRACE = 30.0
"""Seconds that a kernel has for its step in flight and a checkpoint, once it is asked to end."""


class OutOfTime(RunError):
    """The time limit was reached, and the kernel killed."""


class Stopped(RunError):
    """The kernel was asked to end before the notebook had, and did; what it wrote is there to go on with."""


class _Watch:
    """One try: what the kernel is given, what became of it, and the clock that kills it."""

    running: ClassVar[set["_Watch"]] = set()

    def __init__(
        self, folder: Path, environment: Mapping[str, str], limit: float | None, on_start: Callable[[int], None]
    ):
        self.folder, self.environment, self.on_start = folder, dict(environment), on_start
        self.ready = self.expired = self.stopped = False
        self.pid, self.process = 0, None
        self.timer = threading.Timer(limit, self.expire) if limit is not None else None

    def __enter__(self) -> "_Watch":
        self.running.add(self)
        if self.timer:
            self.timer.daemon = True
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running.discard(self)
        if self.timer:
            self.timer.cancel()

    def started(self, process: Any) -> None:
        self.pid, self.process = process.pid, process
        self.on_start(process.pid)
        if self.expired or self.stopped:
            kill(process.pid)

    def stop(self) -> None:
        """Ask the kernel to end: a training writes its checkpoint. After a while it is killed."""
        if not self.stopped:
            self.stopped = True
            if self.timer:
                self.timer.cancel()
            self.timer = threading.Timer(GRACE, self.expire)
            self.timer.daemon = True
            self.timer.start()
            if self.process:
                self.process.terminate()

    @property
    def was_stopped(self) -> bool:
        """By this process, or by a signal from elsewhere."""
        code = self.process.poll() if self.process else None
        return self.stopped or code in (ENDED, -signal.SIGTERM)

    def expire(self) -> None:
        self.expired = True
        if self.pid:
            kill(self.pid)


class _Client(PapermillNotebookClient):
    watch: _Watch

    def start_new_kernel(self, **kwargs: Any) -> None:
        super().start_new_kernel(cwd=str(self.watch.folder), env=self.watch.environment, **kwargs)
        self.watch.started(self.km.provisioner.process)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    def start_new_kernel_client(self, **kwargs: Any) -> Any:
        client = super().start_new_kernel_client(**kwargs)
        client.shell_channel.get_msg = _looking_again(client.shell_channel.get_msg)
        self.watch.ready = True
        return client


def _looking_again(wait: Callable[..., Any]) -> Callable[..., Any]:
    """`get_msg` in short waits: a lost wake-up then costs one of them."""

    async def get_msg(timeout: float | None = None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_AGAIN if end is None else min(LOOK_AGAIN, max(end - time.monotonic(), 0.0))
            try:
                return await wait(timeout=left)
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise

    return get_msg


class Engine(NBClientEngine):
    """papermill's own engine with the client above."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, watch: _Watch, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        client = _Client(
            nb_man, kernel_name=kernel_name, startup_timeout=120, iopub_timeout=120, shutdown_kernel="immediate",
            extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        client.watch = watch
        return client.execute()


papermill_engines.register("pruninglab", Engine)


def stop_all() -> None:
    """Ask all kernels that this process runs to end."""
    for watch in list(_Watch.running):
        watch.stop()


def execute(
    notebook: Any,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    folder: Path,
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[int], None] = lambda pid: None,
) -> None:
    """Run `notebook` (a path, or one that is read already) in `folder` and leave it at `output`, executed so far.

    `limit` is in seconds for all of it. `on_start` is given the kernel's process id, which is its group's too. A cell
    that fails, a kernel that dies and a limit that is reached are a RunError. Ctrl-C, SIGTERM and SIGUSR1 ask the
    kernel to end, and then act as ever.
    """
    make = partial(_Watch, folder, {**os.environ, **(environment or {})})
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _execute(_plain(notebook), _plain(output), dict(parameters), limit, lambda left: make(left, on_start))
        except BaseException as error:
            failed.append(error)

    with asked_to_stop(lambda by: stop_all()) as asked:
        # nbclient would take the signals in the main thread
        thread = threading.Thread(target=work, name="pruninglab notebook", daemon=True)
        thread.start()
        thread.join()
    asked.end()
    if asked.number is not None:
        raise KeyboardInterrupt
    if failed:
        raise failed[0]


def _plain(path: Any) -> Any:
    """A path as it is: papermill would fill in {braces}. A notebook that is read already stays one."""
    return str(path).replace("{", "{{").replace("}", "}}") if isinstance(path, str | Path) else path


def _execute(
    notebook: Any, output: str, parameters: dict[str, Any], limit: float | None, watching: Callable[[Any], _Watch]
) -> None:
    began = time.monotonic()
    for is_last in (False, True):
        left = None if limit is None else limit - (time.monotonic() - began)
        with _closing_loop(), watching(left) as watch:
            try:
                Context().run(  # ours may hold an event loop that runs in another thread, and jupyter_client take it
                    papermill.execute_notebook, notebook, output, parameters, engine_name="pruninglab",
                    kernel_name="python3", language="python", progress_bar=False, watch=watch,
                )  # fmt: skip
                return
            except PapermillExecutionError as error:
                raise RunError(f"cell [{error.exec_count}] ended in {error.ename}: {error.evalue}") from None
            except Exception as error:  # zmq, the kernel manager and nbclient have each their own
                if watch.was_stopped:
                    raise Stopped("the kernel was asked to end; the same call goes on from what it wrote") from None
                if watch.expired:
                    raise OutOfTime(f"the time limit of {limit:g} s was reached; the kernel was killed") from None
                if not watch.ready and not is_last:
                    time.sleep(1 + random.random())  # the port or the memory that it lacked may be there again
                    continue
                what = "the kernel died; out of memory?" if isinstance(error, DeadKernelError) else repr(error)
                raise RunError(what if watch.ready else f"the kernel did not start: {error!r}") from error


@contextmanager
def _closing_loop() -> Generator[None]:
    """jupyter_client makes an event loop in a thread that has none, and leaves it open."""
    try:
        yield
    finally:
        with suppress(RuntimeError):  # one that runs is not ours, and cannot be closed
            asyncio.get_event_loop().close()


def kill(pid: int) -> None:
    """End a kernel, which leads a group of its own, and everything in that group."""
    with suppress(OSError):  # it has gone already
        os.killpg(pid, signal.SIGKILL) if hasattr(os, "killpg") else os.kill(pid, signal.SIGTERM)
