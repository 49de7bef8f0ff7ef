"""What all panels share."""

import inspect
import sys
import threading
import warnings
from typing import Any, Self

import ipywidgets as ipw
import torch
from torch import Tensor

from .. import _html
from ..errors import ConfigError
from ..plots.figure import Figure

WIDE = ipw.Layout(width="100%")
NARROW = ipw.Layout(width="auto")
BUTTON = ipw.Layout(width="6em")
"""For buttons whose words change: the ones beside them must not move under a pointer."""


class Panel:
    """What shows itself as widgets where there are any, and as its own figure and words elsewhere.

    JupyterLab's messages may be handled in a thread beside the one that runs cells. So whatever reads or changes the
    state of a panel holds its lock.
    """

    box: ipw.Widget
    _lock: threading.RLock

    def __new__(cls, *_: Any, **__: Any) -> Self:
        panel = super().__new__(cls)
        hear_reopened_pages()
        panel._lock = threading.RLock()
        return panel

    def figure(self) -> Figure:
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            data, metadata = self.figure()._repr_mimebundle_()
        except ConfigError:  # there is nothing to draw yet
            data, metadata = {"text/plain": repr(self)}, {}
        shown: Any = self.box._repr_mimebundle_()
        return {**shown, **data}, metadata


def hear_reopened_pages() -> None:
    """Hand what a page sends to the subshell that it names, where the one that wrote last to its widget is gone.

    ipykernel 7.4 hands it to the one that wrote last. That was a thread of the page before, which ended with it, and
    the kernel dropped every click of a page that was opened again. ipykernel has no public way to change this. So
    where its private parts are others than those known here, they stay as they are, and a warning says what to do.
    """
    if "ipykernel.kernelbase" not in sys.modules:  # this is no kernel
        return
    from ipykernel.comm.comm import BaseComm

    comms: Any = BaseComm
    route: Any = getattr(comms, "_reply_subshell_for", None)
    if route is None or route.__module__ == __name__:
        return
    if not _is_known(route):
        warnings.warn(UNHEARD, stacklevel=3)
        return

    def hear(comm: Any, data: Any, named: str | None) -> str | None:
        last = route(comm, data, named)
        return last if _is_open(last) else named

    comms._reply_subshell_for = hear


UNHEARD = (
    "this version of ipykernel is not known to pruninglab. If a panel does not answer after its page was opened again, "
    "run its cell again."
)


def _is_known(route: Any) -> bool:
    try:
        from ipykernel.subshell_manager import SubshellManager
    except ImportError:
        return False
    return hasattr(SubshellManager, "list_subshell") and len(inspect.signature(route).parameters) == 3


def _is_open(subshell: str | None) -> bool:
    """Whether something still listens there; of what cannot be found out, yes."""
    from ipykernel.kernelbase import Kernel

    threads = getattr(Kernel.instance(), "shell_channel_thread", None)
    return subshell is None or threads is None or subshell in threads.manager.list_subshell()


def _problem(error: Exception, kind: str = "") -> str:
    return f'<span style="color:#c33">{_html.cell(kind)}{_html.cell(error)}</span>'


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def framed(figure: Figure) -> str:
    """A figure within a panel; what a narrow page has no room for is scrolled to."""
    return f'<div style="overflow-x:auto">{figure.html()}</div>'


def flat(weight: Tensor) -> Tensor:
    """As a matrix (out, in·k·k)."""
    return weight.flatten(1) if weight.ndim > 1 else weight[None]


def ranks_of(scores: Tensor) -> Tensor:
    """The place of each from the highest, ties by position."""
    order = scores.argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
