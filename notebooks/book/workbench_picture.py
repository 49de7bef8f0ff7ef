"""The workbench at work, as the README shows it: real runs in a real JupyterLab. It needs a Chromium.

python notebooks/book/workbench_picture.py
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from playwright.sync_api import Error, sync_playwright

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


@contextmanager
def lab_server(folder: Path) -> Generator[str]:
    """JupyterLab over a folder, with settings of its own, for this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{what}_DIR": str(folder / ".own") for what in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".own"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".own")}
    asked = [
        "--allow-root",
        "--no-browser",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
    ]
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *asked], env={**os.environ, **own}, **silent)
    try:
        yield f"http://127.0.0.1:{port}/doc/tree/bench.ipynb"
    finally:
        server.terminate()
        server.wait()


def picture(address: str, chromium: str) -> bytes:
    """The panel with its runs done and picked, down to the end of their curves."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        for _ in range(60):
            try:
                page.goto(address, timeout=MINUTES)
            except Error:  # the server is not there yet
                page.wait_for_timeout(1000)
            else:
                break
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
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        sys.exit("there is no Chromium here; install one, or name it in CHROMIUM")
    with tempfile.TemporaryDirectory() as made:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BENCH)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, Path(made, "bench.ipynb"))
        with lab_server(Path(made)) as address:
            taken = Image.open(BytesIO(picture(address, chromium))).convert("RGB")
    taken.quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
