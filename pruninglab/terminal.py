"""The terminal: a progress bar, and what Ctrl-C does."""

import signal
import sys
import threading
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


@contextmanager
def on_first_ctrl_c(act: Callable[[], object]) -> Generator[Any]:
    """Call `act` at the first Ctrl-C; gives the handler before, None outside the main thread, where none can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def first(number: int, frame: Any) -> None:
        act()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield before
    finally:
        signal.signal(signal.SIGINT, before)


def is_ours(handler: Any) -> bool:
    """Whether the handler is that of an `on_first_ctrl_c` outside this one."""
    return getattr(handler, "__qualname__", "").startswith(f"{on_first_ctrl_c.__qualname__}.")


class Bar(tqdm):
    """tqdm that leaves one deterministic line behind.

    In a notebook it redraws a plain-text display (no widget state to lose, nothing for papermill to hang on); in a log
    it prints a line now and then instead of one for every refresh.
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
