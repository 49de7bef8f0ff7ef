"""What runs in the browser: plain ES modules of this package, each shown by one `Front`.

Nothing travels in a circle. The kernel writes traits, which the browser only reads; the browser sends messages, which
the kernel only hears. So a panel comes to rest as soon as the user does.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget

FOLDER = Path(__file__).parent / "js"


def module(name: str) -> str:
    """A module of the browser, after the few functions that all of them share."""
    return "\n".join((FOLDER / file).read_text(encoding="utf-8") for file in ("look.js", name))


class Front(anywidget.AnyWidget):
    """A widget that hears messages `{do: "name", …}` and hands each to the function of that name."""

    _css = (FOLDER / "look.css").read_text(encoding="utf-8")

    def hear(self, **answers: Callable[[Mapping[str, Any]], None]) -> None:
        def heard(_: Any, content: Any, __: Any) -> None:
            if isinstance(content, Mapping) and content.get("do") in answers:
                answers[content["do"]](content)

        self.on_msg(heard)
