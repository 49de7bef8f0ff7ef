"""What all panels share."""

import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import ipywidgets as ipw
import matplotlib
import numpy as np
import torch
from PIL import Image
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


def share_slider(label: str, shares: Sequence[float], **options: Any) -> Any:
    """A slider over these shares.

    A browser sends back every number that it was given and that is not exactly on its own grid. The position here is a
    whole number, so the browser has nothing to send back, and only a user moves the slider.
    """
    choices = [(f"{share:.2%}", share) for share in shares]
    return ipw.SelectionSlider(options=choices, index=len(shares) - 1, description=label, **options)


def picture(**layout: Any) -> ipw.Image:
    """A place for a picture; a browser shows a broken one for as long as there is none, so it is hidden until then."""
    return ipw.Image(format="png", layout=ipw.Layout(display="none", **layout))


def fill(place: ipw.Image, content: bytes) -> None:
    """Show this picture, or with b"" none."""
    place.value = content
    place.layout.display = None if content else "none"


def _problem(error: Exception, kind: str = "") -> str:
    return f'<span style="color:#c33">{_html.cell(kind)}{_html.cell(error)}</span>'


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


# What is exactly 0 has the first colour for its own; no other shade may round down to it.
PALETTE = (matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
PALETTE[0] = 225


def _mosaic(weights: Mapping[str, Tensor], width: int = 900, height: int = 120) -> bytes:
    """Each weight as a matrix, side by side, its own largest value in full colour; what is 0 is grey."""
    each = max(width // len(weights) - 8, 16)
    canvas = Image.new("RGB", ((each + 8) * len(weights), height), "white")
    for i, weight in enumerate(weights.values()):
        matrix = weight.flatten(1) if weight.ndim > 1 else weight[None]
        top = float(matrix.abs().max()) or 1.0
        shades = (matrix * (126.9 / top)).add_(128).mul_(matrix != 0).to(torch.uint8)
        pixels = Image.fromarray(shades.numpy())
        pixels.putpalette(PALETTE.tobytes())
        canvas.paste(pixels.convert("RGB").resize((each, height), Image.Resampling.BOX), (i * (each + 8), 0))
    content = io.BytesIO()
    canvas.save(content, format="png", compress_level=1)
    return content.getvalue()
