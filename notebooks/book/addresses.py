"""Where links of the pages lead: into the book, to the repository where its address is known, or to nothing.

The build of the package uses this too. The README says the same on a package index as here, with addresses that are
whole, and the address of the repository becomes the project's URLs. It is not written down anywhere: the workflow or
the clone tells it.
"""

import os
import re
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def repository() -> str:
    """The address of the repository on GitHub, from the workflow or from the clone; empty where there is none."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return f"https://github.com/{name}"
    try:
        asked = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # git is not installed
        return ""
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?$", asked.stdout.strip())
    return f"https://github.com/{found.group(1)}" if found else ""


def inside(text: str, source: str, pages: dict[str, str], home: str) -> str:
    """The text with its links led to pages of the book, to the repository, or to nothing."""
    here = Path(pages[source]).parent

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("data:"):
            return match.group()
        known = os.path.normpath(Path(source).parent / path)
        if known in pages:
            return f"{picture}[{words}]({os.path.relpath(pages[known], here)}{'#' + anchor if anchor else ''})"
        if picture:
            return f"![{words}]({os.path.relpath(known, here)})"
        return f"[{words}]({home}/blob/main/{known})" if home and (ROOT / known).exists() else words

    return LINK.sub(led, text)


def outside(text: str, home: str) -> str:
    """The README for a package index, which knows no files beside it. Without an address pictures are left out."""

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if "://" in target:
            return match.group()
        if not home:
            return "" if picture else words
        return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/main/{target})"

    return LINK.sub(led, text)


def described(home: str) -> dict[str, Any]:
    """What the metadata of the package say beside pyproject.toml."""
    text = outside((ROOT / "README.md").read_text(encoding="utf-8"), home)
    urls = {"Repository": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/main/CHANGELOG.md"}
    return {"readme": {"content-type": "text/markdown", "text": text}, "urls": urls if home else {}}


def get_metadata_hook() -> type[Any]:
    """What hatchling asks this file for when it builds."""
    interface: Any = import_module("hatchling.metadata.plugin.interface").MetadataHookInterface

    class Described(interface):
        def update(self, metadata: dict[str, Any]) -> None:
            metadata.update(described(repository()))

    return Described
