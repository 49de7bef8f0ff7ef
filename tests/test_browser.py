"""The notebooks in a real JupyterLab in a real browser: run all, drag, press, type. Screenshots go to runs/browser/.

Text is asserted, pictures are kept to be looked at. Without a Chromium these tests are skipped and say so.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "runs" / "browser"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECONDS = 180_000  # for what takes long on a busy machine, in milliseconds

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install one, or name it in CHROMIUM")


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory) -> Iterator[str]:
    """JupyterLab over copies of the notebooks that train for two epochs, with settings of its own."""
    home = tmp_path_factory.mktemp("lab")
    notebooks = home / "notebooks"
    notebooks.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = path.read_text(encoding="utf-8")
        (notebooks / path.name).write_text(re.sub(r'"(epochs: int|images: int) = \d+', r'"\1 = 2', source))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{what}_DIR": str(home / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    asked = [
        "--allow-root",
        "--no-browser",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={notebooks}",
    ]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *asked],
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            _answers(f"http://127.0.0.1:{port}/api", server, home / "server.log")
            yield f"http://127.0.0.1:{port}/lab/tree"
        finally:
            server.terminate()
            server.wait(30)


def _answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the server does not answer\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    page.close()


def run_all(page: Any, lab_server: str, name: str) -> None:
    """Open a notebook, run all its cells, and wait until each has its number."""
    page.goto(f"{lab_server}/{name}?reset", timeout=SECONDS)
    page.locator(".jp-Notebook").wait_for(timeout=SECONDS)
    page.locator("text=| Idle").wait_for(timeout=SECONDS)
    page.wait_for_timeout(1000)
    page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
    page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
    if page.locator(".jp-Dialog button:has-text('Select')").count():
        page.locator(".jp-Dialog button:has-text('Select')").click()
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="busy"]').wait_for(timeout=SECONDS)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=SECONDS)


def bring(page: Any, text: str) -> None:
    """Scroll to a heading; cells out of sight are not in the page."""
    heading = page.locator(f'.jp-Notebook h3:has-text("{text}")')
    panel = page.locator(".jp-WindowedPanel-outer").first
    panel.evaluate("panel => panel.scrollTop = 0")
    for _ in range(60):
        if heading.count():
            heading.first.scroll_into_view_if_needed()
            return
        panel.evaluate("panel => panel.scrollBy(0, 400)")
        page.wait_for_timeout(150)
    raise AssertionError(f"there is no heading {text}")


def at_rest(page: Any, seconds: float = 2) -> None:
    """Count what is redrawn after the last event has been answered: nothing may be."""
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=SECONDS)
    page.wait_for_timeout(1000)
    page.evaluate(
        """() => {
            window.redraws = [];
            window.watcher = new MutationObserver(found => found.forEach(one => {
                const element = one.target.closest ? one.target : one.target.parentElement;
                const widget = element?.closest('.jupyter-widgets');
                if (widget) window.redraws.push(widget.className + ' ' + one.type);
            }));
            window.watcher.observe(document.querySelector('.jp-Notebook'),
                {subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ['src']});
        }"""
    )
    page.wait_for_timeout(1000 * seconds)
    redraws = page.evaluate("() => { window.watcher.disconnect(); return window.redraws; }")
    assert redraws == []


@pytest.mark.slow
def test_the_first_notebook_runs_top_to_bottom(page, lab_server):
    run_all(page, lab_server, "00_start.ipynb")
    assert page.locator(".jp-RenderedText[data-mime-type*=stderr]:has-text('Traceback')").count() == 0
    assert page.errors == []


def test_the_panels_answer(page, lab_server):
    run_all(page, lab_server, "16_workbench.ipynb")
    left = re.compile(r"([\d,]+) of 430,500 \(")

    bring(page, "Exercise")
    printed = page.locator("pre:has-text('PruneByHand:')")
    printed.wait_for(timeout=SECONDS)
    by_code = re.search(r"[\d,]+ of 430,500", printed.inner_text())
    assert by_code
    bring(page, "Prune by hand")
    words = page.locator(".widget-html:has-text('weights left')").first
    words.wait_for(timeout=SECONDS)
    at_rest(page, 1)
    assert by_code.group(0) in words.inner_text()  # code has moved the sliders since; the browser must not move them
    before = left.search(words.inner_text())
    assert before
    sliders = page.locator(".widget-slider .noUi-handle")
    box = sliders.first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 45, box["y"] + 5, steps=5)
    page.mouse.up()
    sync_api.expect(words).not_to_contain_text(before.group(0), timeout=SECONDS)
    dragged = left.search(words.inner_text())
    assert dragged
    sliders.nth(3).focus()
    page.keyboard.press("ArrowLeft")
    sync_api.expect(words).not_to_contain_text(dragged.group(0), timeout=SECONDS)
    page.locator("button:text-is('Which layer next?')").click()
    page.locator(".widget-html:has-text('could go from')").wait_for(timeout=SECONDS)
    at_rest(page)
    shown = left.search(words.inner_text())
    assert shown
    share = int(shown.group(1).replace(",", "")) / 430_500
    row = page.locator(".widget-hbox:has(> .widget-slider):has-text('all layers')").first
    assert f"{share:.2%}" in row.inner_text()  # slider and words show one state
    page.screenshot(path=SCREENSHOTS / "prune-by-hand.png")

    bring(page, "What was kept")
    page.locator(".widget-dropdown select").nth(0).wait_for(timeout=SECONDS)
    page.locator("button[title^='trajectory of weight']").first.click()
    page.locator(".widget-image").first.wait_for(timeout=SECONDS)
    at_rest(page)
    page.screenshot(path=SCREENSHOTS / "explorer.png")

    bring(page, "Train and watch")
    epochs = page.locator(".widget-text:has(label:text-is('epochs')) input")
    epochs.fill("5000")  # it must not be over before it is stopped
    epochs.press("Enter")
    for paused in (False, True, True):
        page.locator("button:text-is('Start')").click()
        page.locator(".widget-html:has-text('of 5000, step')").wait_for(timeout=SECONDS)
        if paused:
            page.locator("button:text-is('Pause')").click()
            page.locator(".widget-html:has-text('paused at step')").wait_for(timeout=SECONDS)
            page.locator("button:text-is('Resume')").click()
        page.locator("button:text-is('Stop')").click()
        page.locator(".widget-html:has-text('stopping'), .widget-html:has-text('interrupted')").first.wait_for(
            timeout=2000
        )
        page.locator(".widget-html:has-text('interrupted')").first.wait_for(timeout=SECONDS)
    at_rest(page)
    page.screenshot(path=SCREENSHOTS / "live-panel.png")
    assert page.errors == []
