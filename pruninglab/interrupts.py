"""Ctrl-C as a request: the first asks for an end, the second is what it always was."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


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
