"""Small deterministic HTML for rich display: no ids, no times, readable in light and dark themes."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

BLUE = "#2a7ab0"
SAFE = " /:=,.-"
"""What a data address may hold as it is within double quotes; quotes, brackets and # are written in codes."""


class Raw(str):
    """HTML that is already escaped."""

    __slots__ = ()


def cell(value: Any) -> str:
    return value if isinstance(value, Raw) else escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """First column to the left, the others to the right."""
    align = ["left"] + ["right"] * (len(head) - 1)
    columns = "".join(f'<th style="text-align:{a}">{cell(h)}</th>' for h, a in zip(head, align, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:{a}">{cell(v)}</td>' for v, a in zip(row, align, strict=True))
        + "</tr>"
        for row in rows
    )
    title = f'<caption style="text-align:left;white-space:nowrap">{cell(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def bar(share: float, width: int = 80) -> Raw:
    """A share in [0, 1] as a bar."""
    filled = round(width * min(max(share, 0.0), 1.0), 1)
    shapes = f'<rect width="{width}" height="10" fill="#8886"/><rect width="{filled}" height="10" fill="{BLUE}"/>'
    return _image(shapes, f"{share:.1%}", (width, 10))


def curve(values: Sequence[float], low: float, high: float, label: str, size: tuple[int, int] = (220, 60)) -> Raw:
    """A line through equally spaced values, drawn between `low` and `high`."""
    width, height = size
    span = (high - low) or 1.0
    points = " ".join(
        f"{2 + i * (width - 4) / max(len(values) - 1, 1):.1f},{height - 2 - (v - low) / span * (height - 4):.1f}"
        for i, v in enumerate(values)
    )
    line = f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="2"/>'
    return _image(f'<rect width="{width}" height="{height}" fill="#8882"/>{line}', label, size)


def _image(shapes: str, alt: str, size: tuple[int, int]) -> Raw:
    """A drawing as an `<img>`: a notebook that is not trusted drops `<svg>`, and keeps this."""
    width, height = size
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{shapes}</svg>'
    return Raw(
        f'<img src="data:image/svg+xml,{quote(svg, safe=SAFE)}" width="{width}" height="{height}" alt="{escape(alt)}">'
    )
