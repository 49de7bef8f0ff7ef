"""`Steered`: a panel with the buttons of a training, of which one runs at a time."""

from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from .job import Job
from .panel import BUTTON, Panel

WRAPS = ipw.Layout(flex_flow="row wrap")
FORM = ipw.Layout(flex="0 0 23em", max_width="100%", padding="0 8px 0 0")
"""The controls keep their width whatever the chart needs, and stand above it where the page is narrow."""


class Steered(Panel):
    """What the buttons *Pause*, *Step* and *Stop* do, and the first one, which starts."""

    @property
    def _running(self) -> Job | None:
        """The training that has begun and is not over."""
        raise NotImplementedError

    def pause(self) -> None:
        """The training that runs stands still after its step."""
        self._do("pause")

    def resume(self) -> None:
        """Go on."""
        self._do("resume")

    def step(self) -> None:
        """One step more, while it is paused."""
        self._do("step")

    def stop(self) -> None:
        """The training that runs ends after its step with what was reached.

        What a method prepares before the first step is not cut short.
        """
        self._do("stop")

    def _do(self, what: str) -> None:
        with self._lock:
            if job := self._running:
                getattr(job, what)()

    def _pause_or_resume(self) -> None:
        with self._lock:
            (self.resume if self._running and self._running.state == "paused" else self.pause)()

    def _row(self, first: str, start: Callable[[], Any], *beside: ipw.Widget) -> ipw.HBox:
        """The buttons in a row."""
        presses = {first: start, "Pause": self._pause_or_resume, "Step": self.step, "Stop": self.stop}
        self._buttons = {name: ipw.Button(description=name, layout=BUTTON) for name in presses}
        for name, do in presses.items():
            self._buttons[name].on_click(lambda _, do=do: do())
        return ipw.HBox([*self._buttons.values(), *beside], layout=WRAPS)

    def _enable(self) -> None:
        """The buttons that the state of the training leaves."""
        state = self._running.state if self._running else "over"
        self._buttons["Pause"].disabled = self._buttons["Stop"].disabled = state not in ("running", "paused")
        self._buttons["Step"].disabled = state != "paused"
        self._buttons["Pause"].description = "Resume" if state == "paused" else "Pause"


def side_by_side(form: list[ipw.Widget], seen: list[ipw.Widget], width: str) -> ipw.HBox:
    wide = ipw.Layout(flex=f"1 1 {width}", min_width="0")
    return ipw.HBox([ipw.VBox(form, layout=FORM), ipw.VBox(seen, layout=wide)], layout=WRAPS)
