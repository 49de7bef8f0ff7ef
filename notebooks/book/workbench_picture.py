"""The workbench at work, as the README shows it: real runs in a real JupyterLab. It needs a Chromium.

python notebooks/book/workbench_picture.py
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from lab_server import CHROMIUM, NO_CHROMIUM, serving
from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().with_name("workbench.png")
BENCH = """import pruninglab as lab
bench = lab.Workbench("digits", "lenet5", "Gradual", epochs=12)
methods = {
    "Dense": {},
    "Gradual": {"schedule": lab.Cubic(0.95)},
    "WeightMom": {"schedule": lab.Cubic(0.95), "window": 4, "min_epochs_below": 3},
}
for name, fields in methods.items():
    _ = bench.submit(lab.widgets.Choice("digits", "lenet5", name, fields, 12, 0))
bench"""
MINUTES = 10 * 60_000
SIZE: Any = {"width": 1500, "height": 1400}


def picture(address: str, chromium: str) -> bytes:
    """The panel with its runs done and picked, down to the end of their curves."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        page.goto(address, timeout=MINUTES)
        page.locator(".jp-Notebook").wait_for(timeout=MINUTES)
        page.wait_for_timeout(3000)
        page.locator(".jp-CodeCell .jp-Editor").first.click()
        page.keyboard.press("Control+Enter")
        rows = page.locator(".pl tbody tr")
        rows.filter(has_text="done").nth(2).wait_for(timeout=MINUTES)
        for row in range(3):
            rows.nth(row).locator("input").check()
        curves = page.locator(".jp-OutputArea img[src^='data:image/png']").first
        curves.wait_for(timeout=MINUTES)
        page.wait_for_timeout(3000)
        panel, end = page.locator(".jp-OutputArea-output").first.bounding_box(), curves.bounding_box()
        assert panel
        assert end
        high = end["y"] + end["height"] - panel["y"]
        taken = page.screenshot(clip={**panel, "height": high})
        browser.close()
    return taken


if __name__ == "__main__":
    if CHROMIUM is None:
        sys.exit(NO_CHROMIUM)
    with tempfile.TemporaryDirectory() as made:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BENCH)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebooks = Path(made, "notebooks")
        notebooks.mkdir()
        nbformat.write(notebook, notebooks / "bench.ipynb")
        with serving(notebooks, Path(made)) as address:
            taken = Image.open(BytesIO(picture(f"{address}/doc/tree/bench.ipynb", CHROMIUM))).convert("RGB")
    taken.quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
