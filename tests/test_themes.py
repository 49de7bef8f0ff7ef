"""The kept notebooks, opened in JupyterLab: light and dark, wide and narrow. Photographs go to runs/browser/."""

import json
from pathlib import Path
from typing import Any

import pytest
from lab_server import CHROMIUM, NO_CHROMIUM
from normalise_notebooks import found
from test_browser import (
    HAND,
    SCREENSHOTS,
    SECONDS,
    browser,
    folder,
    lab_server,
    open_and_start,
    page,
    written,
)

__all__ = ["browser", "folder", "lab_server", "page"]  # fixtures

NAMES = [path.name for path in found([Path(__file__).parent.parent / "notebooks"])]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
]

FAULTS = """() => {
    const light = part => (part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = numbers(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.9) return colour;
        }
        return [255, 255, 255];
    };
    const boxes = [], faults = [];
    for (const area of document.querySelectorAll('.jp-OutputArea-output, .jp-RenderedMarkdown')) {
        const walker = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
            if (!text || !element.checkVisibility()) continue;
            if (element.closest('mjx-container, .jp-InternalAnchorLink, style')) continue;
            const range = document.createRange();
            range.selectNodeContents(walker.currentNode);
            const seen = [...range.getClientRects()].filter(box => box.width > 1 && box.height > 1);
            boxes.push(...seen.map(box => ({box, node: walker.currentNode, text: text.slice(0, 40)})));
            if (!seen.length) continue;
            const colours = [numbers(getComputedStyle(element).color), behind(element)];
            const pair = colours.map(luminance).sort((a, b) => b - a);
            const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
            // brackets in code within text have a colour of JupyterLab's own, which in the light theme is a pale #997
            const bracket = element.closest('pre > code') && /^[()[\\]{}]+$/.test(text)
                && getComputedStyle(element).color === 'rgb(153, 153, 119)';
            if (contrast < 3 && !bracket) faults.push(`contrast ${contrast.toFixed(1)}: ${text.slice(0, 40)}`);
        }
    }
    boxes.sort((one, other) => one.box.top - other.box.top);
    boxes.forEach((one, i) => {
        for (let j = i + 1; j < boxes.length && boxes[j].box.top < one.box.bottom - 4; j++)
            if (one.node !== boxes[j].node
                && Math.min(one.box.right, boxes[j].box.right) - Math.max(one.box.left, boxes[j].box.left) > 2)
                faults.push(`overlap: ${one.text} | ${boxes[j].text}`);
    });
    for (const image of document.querySelectorAll('.jp-OutputArea img')) {
        const size = image.width / (image.getAttribute('width') || image.naturalWidth);
        if (image.complete && !image.naturalWidth) faults.push('broken image');
        else if (size < 0.6 || size > 1.01) faults.push(`${size.toFixed(2)} of its size: ${image.alt.slice(0, 40)}`);
    }
    for (const element of document.querySelectorAll('.jp-OutputArea [hidden]'))
        if (element.checkVisibility()) faults.push(`hidden, but shown: ${element.tagName}`);
    for (const text of document.querySelectorAll('.jp-RenderedMarkdown'))
        if (text.scrollWidth > text.clientWidth + 1) faults.push(`formula too wide: ${text.innerText.slice(0, 40)}`);
    const pane = document.querySelector('.jp-WindowedPanel-outer') || document.querySelector('.jp-Notebook');
    if (pane.scrollWidth > pane.clientWidth + 1) faults.push(`${pane.scrollWidth - pane.clientWidth} pixels too wide`);
    return {faults: [...new Set(faults)], boxes: boxes.length};
}"""


def settings(home: Path, theme: str) -> None:
    """This theme, and all cells in the page at once."""
    for extension, setting in (
        ("apputils-extension/themes", {"theme": f"JupyterLab {theme}"}),
        ("notebook-extension/tracker", {"windowingMode": "none"}),
    ):
        path = home / "settings" / "@jupyterlab" / f"{extension}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting), encoding="utf-8")


@pytest.mark.parametrize("theme", ["Dark", "Light"])
@pytest.mark.parametrize("name", NAMES)
def test_a_kept_page_is_legible(page: Any, lab_server: str, folder: Path, name: str, theme: str) -> None:
    settings(folder.parent, theme)
    page.goto(f"{lab_server.replace('/lab/', '/doc/')}/{name}?reset", timeout=SECONDS)
    page.locator(".jp-Notebook .jp-RenderedMarkdown h1").first.wait_for(timeout=SECONDS)
    page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(timeout=SECONDS, state="attached")
    page.locator("text=| Idle").wait_for(timeout=SECONDS)
    assert faults(page, f"kept-{Path(name).stem}-{theme}") == {}
    assert page.errors == []


PANELS = (
    """bench = lab.Workbench("digits", "lenet300", "Gradual", epochs=2)
for seed in range(2):
    _ = bench.submit(lab.widgets.Choice("digits", "lenet300", "Gradual", {"schedule": lab.Cubic(0.9)}, 2, seed))
runs = bench.wait()
bench.pick("1", "2")
bench
""",
    """live = lab.widgets.LivePanel(epochs=2)
live.start(); _ = live.wait()
live""",
    "lab.widgets.MaskExplorer(*runs.values())",
    "lab.widgets.TruthMeter(*runs.values())",
)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_panels_are_legible(page: Any, lab_server: str, folder: Path, theme: str) -> None:
    settings(folder.parent, theme)
    written(folder, f"panels-{theme}.ipynb", HAND, *PANELS)
    open_and_start(page, lab_server.replace("/lab/", "/doc/"), f"panels-{theme}.ipynb")
    page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(timeout=SECONDS, state="attached")
    page.locator(".jp-InputPrompt:text-is('[5]:')").wait_for(timeout=SECONDS)
    page.wait_for_timeout(3000)
    assert faults(page, f"panels-{theme}") == {}
    assert page.errors == []


def faults(page: Any, name: str) -> dict[int, list[str]]:
    """What cannot be read in a wide and in a narrow window; both are photographed."""
    found = {}
    for width in (1300, 600):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(1000)
        seen = page.evaluate(FAULTS)
        assert seen["boxes"] > 50
        found[width] = seen["faults"]
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png")
    return {width: seen for width, seen in found.items() if seen}
