"""`Chart`: the points of a training, drawn in the browser as they come."""

from typing import Any

from .front import Front, module

MOST = 4000
"""Points that are kept for a page that is opened again; of more, every second one between epochs is left out."""


class Chart(Front):
    """Loss, accuracy, sparsity and the weights left in each layer. Each point is sent once."""

    _esm = module("chart.js")

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._begin: dict[str, Any] = {"layers": [], "epochs": 1}
        self.hear(all=lambda _: self.send({"begin": self._begin, "all": self.rows}))

    def begin(self, layers: list[str], epochs: int) -> None:
        """An empty chart for another training."""
        self.rows, self._begin = [], {"layers": layers, "epochs": max(epochs, 1)}
        self.send({"begin": self._begin})

    def add(self, *rows: dict[str, Any]) -> None:
        self.rows.extend(rows)
        if len(self.rows) > MOST:
            self.rows = [row for i, row in enumerate(self.rows) if i % 2 or "accuracy" in row]
        self.send({"add": rows})
