"""The terminal: a progress bar, and what Ctrl-C and other signals do."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def alert(text: str) -> None:
    """A warning, which never ends what it warns of: where warnings are errors, a line on the error stream."""
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        print(f"pruninglab: {text}", file=sys.stderr, flush=True)


ENDED = 143
"""The exit code of a process that a signal ended, and whose work can be gone on with."""
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class _Parent(int):
    """The process id of a kernel's parent. A thread of ipykernel compares it every second, and ends the kernel with it.

    During a training it is told at first that nothing has changed, and the training to stop.
    """

    missed: float | None = None

    def __ne__(self, found: object) -> bool:
        if int(self) == found:
            return False
        if self.missed is None:
            self.missed = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        return time.monotonic() > self.missed + PATIENCE

    __hash__ = int.__hash__


PATIENCE = 30.0
"""Seconds that a kernel without its parent has for the step in flight and a checkpoint."""


@contextmanager
def _outliving_parent() -> Generator[None]:
    app = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    poller: Any = app.instance().poller if app and app.initialized() else None
    parent = getattr(poller, "parent_pid", 0)
    if not parent:
        yield
        return
    poller.parent_pid = _Parent(parent)
    try:
        yield
    finally:
        poller.parent_pid = parent


class Asked:
    """What is asked of a piece of work by Ctrl-C, SIGTERM or SIGUSR1: to stop where it can be gone on with."""

    def __init__(self, act: Callable[[str], object]):
        self.act = act
        self.before: dict[int, Any] = {}
        self.number: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """The first signal. A second one acts as ever."""
        self.number = number
        self.act("the user" if number == signal.SIGINT else signal.Signals(number).name)
        self._give_back()

    def _take(self) -> None:
        self.before = {signal.SIGINT: signal.getsignal(signal.SIGINT) or signal.default_int_handler}
        found = {number: signal.getsignal(number) for number in _ENDING}
        self.before |= {number: before for number, before in found.items() if before not in (None, signal.SIG_IGN)}
        for number in self.before:
            signal.signal(number, self)

    def _give_back(self) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)

    @property
    def ends(self) -> bool:
        """Whether the process is to end, and not this work alone."""
        return self.number in _ENDING

    def pass_on(self, number: int = signal.SIGINT) -> None:
        """What stops work inside other work stops the other one too."""
        outer = self.before.get(self.number or number)
        if isinstance(outer, Asked) and outer.number is None:
            outer(self.number or number, None)

    def end(self) -> None:
        """Once all is written: SIGTERM and SIGUSR1 end the process, unless somebody around this sees to it."""
        if self.number is None or not self.ends:
            return
        before = self.before[self.number]
        if before != signal.SIG_DFL:
            return None if isinstance(before, Asked) else before(self.number, None)
        if _notebook_display():  # a kernel survives a SystemExit
            sys.stdout.flush()
            os._exit(ENDED)
        raise SystemExit(ENDED)


@contextmanager
def asked_to_stop(act: Callable[[str], object]) -> Generator[Asked]:
    """Call `act` at the first Ctrl-C, SIGTERM or SIGUSR1, with who asked. Outside the main thread nobody can ask."""
    asked = Asked(act)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    asked._take()
    try:
        with _outliving_parent():
            yield asked
    finally:
        asked._give_back()


class Bar(tqdm):
    """tqdm that leaves one deterministic line behind.

    In a notebook it redraws a plain-text display: no widget state is lost, and papermill cannot hang on it. In a log it
    prints a line now and then, not one for every refresh.
    """

    def __init__(self, total: int, label: str, enabled: bool = True):
        self.handle: Any = None
        self.is_log = not sys.stderr.isatty()
        if enabled and (display := _notebook_display()):
            self.handle = display({"text/plain": label}, raw=True, display_id=True)
        pace = 0.2 if self.handle or not self.is_log else 10.0
        super().__init__(total=total, desc=label, disable=not enabled, mininterval=pace, file=sys.stderr, leave=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        text = str(self) if msg is None else msg
        if self.handle:
            self._show(text)
        elif self.is_log:
            if 0 < self.n < self.total:
                print(text, file=sys.stderr, flush=True)
        else:
            super().display(msg, pos)

    last_line = ""
    """What is left in place of the bar when its block ends."""

    def __exit__(self, *error: object) -> None:
        self.finish(self.last_line)

    def finish(self, line: str) -> None:
        if self.disable:
            return
        shown, self.disable = self.handle, self.handle is not None or self.is_log
        self.close()
        if shown:
            self._show(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def _show(self, text: str) -> None:
        self.handle.update({"text/plain": text}, raw=True)


def _notebook_display() -> Any:
    """IPython's display function inside a Jupyter kernel, else None."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import display, get_ipython

    return display.display if getattr(get_ipython(), "kernel", None) else None
