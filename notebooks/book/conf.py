"""Settings of the book for Sphinx. `make book` copies pages and notebooks beside this file and builds them."""

import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

version = (Path(__file__).parent / "VERSION").read_text(encoding="utf-8").strip()
project, author, release = "pruninglab", "The pruninglab authors", version
project_copyright = "the pruninglab authors, MIT licence"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
nb_execution_mode = "off"  # the outputs of the notebooks are kept, and tested
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_typehints = "none"
autodoc_member_order = "alphabetical"
autodoc_default_options = {"members": True, "undoc-members": False}
suppress_warnings = ["docutils", "ref.ref", "myst.header"]  # docstrings are prose, not reStructuredText
html_math_renderer = "mathml"  # browsers draw it themselves: the pages need nothing from elsewhere

html_theme = "pydata_sphinx_theme"
html_title = "pruninglab"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def _formula(tex: str, block: bool) -> str:
    """MathML, or the source where docutils cannot read it."""
    try:
        return tex2mathml(tex, as_block=block)
    except Exception:
        return f"<code>{escape(tex)}</code>"


def _inline(writer: Any, node: nodes.Element) -> None:
    writer.body.append(_formula(node.astext(), block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{_formula(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _as_markdown(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Two things that docstrings write as in Markdown: |w| is a formula, and an indented paragraph is code."""
    written: list[str] = []
    for line in lines:
        code = line.startswith((" ", ">>>"))
        if line.startswith("    ") and written and not written[-1]:
            written += ["::", ""]
        written.append(line if code else re.sub(r"(`[^`]*`)|\|", lambda found: found.group(1) or r"\|", line))
    lines[:] = written


def _of_others(_app: Any, _what: str, _name: str, member: Any, _skip: bool, _options: Any) -> bool | None:
    """What matplotlib writes into its subclasses is not of this package."""
    return True if str(getattr(member, "__module__", "")).startswith("matplotlib") else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _as_markdown)
    app.connect("autodoc-skip-member", _of_others)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
