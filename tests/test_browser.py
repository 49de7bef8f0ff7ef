"""The notebooks in a real JupyterLab in a real browser: run all, drag, press, type. Screenshots go to runs/browser/.

Text is asserted, pictures are kept to be looked at. Without a Chromium these tests are skipped and say so.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab_server import CHROMIUM, NO_CHROMIUM, serving

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "runs" / "browser"
SECONDS = 300_000  # for what takes long on a busy machine, in milliseconds
PATIENT = "const own = AbortSignal.timeout; AbortSignal.timeout = ms => own.call(AbortSignal, 100 * ms)"
"""anywidget gives a panel two seconds to begin, and shows nothing of it if a busy machine needs more."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the server's notebooks lie."""
    notebooks = tmp_path_factory.mktemp("lab") / "notebooks"
    notebooks.mkdir()
    return notebooks


@pytest.fixture(scope="module")
def lab_server(folder) -> Iterator[str]:
    """JupyterLab over copies of the notebooks that train for two epochs, with settings of its own."""
    home, notebooks = folder.parent, folder
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = path.read_text(encoding="utf-8")
        (notebooks / path.name).write_text(re.sub(r'"(epochs: int|images: int) = \d+', r'"\1 = 2', source))
    with serving(notebooks, home) as address:
        yield f"{address}/lab/tree"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.add_init_script(PATIENT)
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    page.close()


def open_and_start(page: Any, lab_server: str, name: str) -> None:
    """Open a notebook and start all its cells."""
    page.goto(f"{lab_server}/{name}?reset", timeout=SECONDS)
    page.locator(".jp-Notebook").wait_for(timeout=SECONDS)
    page.locator("text=| Idle").wait_for(timeout=SECONDS)
    page.wait_for_timeout(1000)
    page.locator('.lm-MenuBar-itemLabel:text-is("Run")').click()
    page.locator('.lm-Menu-itemLabel:text-is("Run All Cells")').click()
    if page.locator(".jp-Dialog button:has-text('Select')").count():
        page.locator(".jp-Dialog button:has-text('Select')").click()


def run_all(page: Any, lab_server: str, name: str) -> None:
    """Open a notebook, run all its cells, and wait until each has its number."""
    open_and_start(page, lab_server, name)
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

    bring(page, "Exercise")
    printed = page.locator("pre").filter(has_text=re.compile(r"PruneByHand: [\d,]+ of 430,500 weights")).last
    printed.wait_for(timeout=SECONDS, state="attached")  # an output that is folded away comes in pieces
    by_code = re.search(r"[\d,]+ of 430,500", printed.text_content())
    assert by_code
    bring(page, "Prune by hand")
    words = page.locator(".pl-columns table").first
    words.wait_for(timeout=SECONDS)
    at_rest(page, 1)
    # code has moved the sliders since; the browser must not move them
    sync_api.expect(words).to_contain_text(by_code.group(0), timeout=SECONDS)
    sliders = page.locator(".pl-row input[type=range]")
    before = left(words)
    drag(page, sliders.first, -0.2)
    assert left(words) != before
    dragged = left(words)
    sliders.nth(3).press("ArrowRight")  # which is not JupyterLab's here; fc1 may be at its lowest already
    sync_api.expect(words).not_to_contain_text(f"{dragged:,} of 430,500", timeout=SECONDS)
    at_rest(page, 1)
    page.locator("button:text-is('Which layer next?')").click()
    page.locator(".pl-hint:has-text('could go from')").wait_for(timeout=SECONDS)
    at_rest(page)
    all_layers = page.locator(".pl-row:has-text('all layers') output").first
    assert f"{left(words) / 430_500:.2%}" == all_layers.inner_text()  # slider and words show one state
    page.screenshot(path=SCREENSHOTS / "prune-by-hand.png")

    bring(page, "What was kept")
    seen = page.locator(".pl-map").first
    seen.scroll_into_view_if_needed()
    seen.hover(position={"x": 100, "y": 80})
    told = page.locator(".pl-hint:has-text('WeightMom, as pruned:')")
    told.wait_for(timeout=SECONDS)
    first = told.inner_text()
    assert re.search(
        r"conv2, output \d+, input \d+ — WeightMom, as pruned: -?[\d.e-]+, (kept|pruned); dense, mag", first
    )
    page.mouse.wheel(0, -400)
    seen.hover(position={"x": 140, "y": 80})
    assert told.inner_text() != first
    density = page.locator(".pl-row:has-text('density') input[type=range]").nth(1)
    density.press("ArrowLeft")
    sync_api.expect(density.locator("xpath=../output")).to_have_text("4.00%", timeout=SECONDS)
    at_rest(page)
    page.screenshot(path=SCREENSHOTS / "explorer.png")

    bring(page, "Train and watch")
    epochs = page.locator(".jp-OutputArea .widget-text:has(label:text-is('epochs')) input").last
    epochs.fill("5000")  # it must not be over before it is stopped
    epochs.press("Enter")
    press = lambda name: page.locator(f"button:text-is('{name}')").last.click()  # noqa: E731
    for paused in (False, True, True):
        press("Start")
        page.locator(".widget-html:has-text('of 5000, step')").wait_for(timeout=SECONDS)
        if paused:
            press("Pause")
            page.locator(".widget-html:has-text('paused at step')").wait_for(timeout=SECONDS)
            press("Step")
            press("Resume")
        press("Stop")
        page.locator(".widget-html:has-text('stopping'), .widget-html:has-text('interrupted')").first.wait_for(
            timeout=SECONDS
        )
        page.locator(".widget-html:has-text('interrupted')").first.wait_for(timeout=SECONDS)
    at_rest(page)
    page.screenshot(path=SCREENSHOTS / "live-panel.png")
    assert page.errors == []


def left(words: Any) -> int:
    """The weights left, as the panel says them."""
    found = re.search(r"([\d,]+) of 430,500 \(", words.inner_text())
    assert found
    return int(found.group(1).replace(",", ""))


def drag(page: Any, slider: Any, share: float) -> None:
    """Drag a slider by a share of its width, in steps as a hand makes them."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    at = float(slider.input_value()) / float(slider.get_attribute("max"))
    x, y = box["x"] + 8 + at * (box["width"] - 16), box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 21):
        page.mouse.move(x + share * box["width"] * step / 20, y)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_timeout(200)


def written(folder: Path, name: str, *cells: str) -> None:
    """A notebook of these cells in the folder of the server."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / name)


HAND = """import time
import pruninglab as lab
data = lab.load("digits")
run = lab.fit(lab.build("lenet5", data, seed=0), data, epochs=1, progress=False)
hand = lab.widgets.PruneByHand(run, images=50)
hand"""


@pytest.mark.slow
def test_a_drag_is_drawn_while_the_kernel_computes(page, lab_server, folder):
    """The page measures each move to the end of its drawing, and tells it here; what is slow is no failure."""
    written(folder, "busy.ipynb", HAND, "end = time.time() + 15\nwhile time.time() < end: pass\nprint('over')")
    open_and_start(page, lab_server, "busy.ipynb")
    panel = page.locator(".pl:has(input[type=range])").first
    panel.wait_for(timeout=SECONDS)
    words = panel.locator("table")
    before = left(words)
    drag(page, panel.locator("input[type=range]").first, -0.3)
    assert page.locator("pre:text-is('over')").count() == 0, "the kernel was done before the drag was"
    assert left(words) < before
    assert "measuring" in panel.locator("b").inner_text()
    redraws = sorted(float(one) for one in panel.get_attribute("data-redraws").split())
    print(f"{len(redraws)} redraws: median {redraws[len(redraws) // 2]} ms, longest {redraws[-1]} ms")
    assert len(redraws) >= 10
    page.locator("pre:text-is('over')").wait_for(timeout=SECONDS)
    sync_api.expect(panel.locator("b")).to_contain_text("global magnitude", timeout=SECONDS)
    at_rest(page)
    assert page.errors == []


@pytest.mark.slow
def test_a_queue_survives_a_page_that_is_closed(page, lab_server, folder):
    queue = """import pruninglab as lab
bench = lab.Workbench("digits", "lenet300", "Gradual", epochs=20)
for seed in range(5):
    _ = bench.submit(lab.widgets.Choice("digits", "lenet300", "Gradual", {"schedule": lab.Cubic(0.9)}, 20, seed))
bench"""
    written(folder, "queue.ipynb", queue)
    open_and_start(page, lab_server, "queue.ipynb")
    rows, figure = page.locator(".pl tbody tr"), page.locator(".jp-OutputArea img[src^='data:image/png']").first
    rows.first.wait_for(timeout=SECONDS)
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    rows.first.locator("input").check(timeout=SECONDS)  # as soon as the first run is over
    figure.wait_for(timeout=SECONDS)
    page.goto("about:blank")
    for _ in range(5):  # JupyterLab gives the kernel a few seconds to tell of its widgets, which a busy one may need
        page.goto(f"{lab_server}/queue.ipynb", timeout=SECONDS)
        page.locator(".pl tbody tr, :text('Error displaying widget')").first.wait_for(timeout=SECONDS)
        if rows.count():
            break
    sync_api.expect(rows).to_have_count(5, timeout=SECONDS)
    figure.wait_for(timeout=SECONDS)
    before = figure.get_attribute("src")
    rows.nth(1).locator("input").check(timeout=SECONDS)
    sync_api.expect(figure).not_to_have_attribute("src", before, timeout=SECONDS)  # the kernel has heard it
    sync_api.expect(page.locator(".pl tbody tr:has-text('done')")).to_have_count(5, timeout=SECONDS)
    assert int(page.locator(".pl canvas[data-points]").get_attribute("data-points")) >= 20
    at_rest(page)
    assert page.errors == []


QUICK = ("Dense", "Gradual", "N2NSkip", "PruneWhileAccurate")
"""One that trains, one that prunes, one that is refused by its network, and one that is refused by its form."""


@pytest.mark.parametrize("which", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_every_method_ends_or_is_refused_in_words(page, lab_server, folder, which):
    start = 'import pruninglab as lab\nbench = lab.Workbench("digits", "lenet300", epochs=1)\nbench'
    written(folder, f"methods-{which}.ipynb", start)
    open_and_start(page, lab_server, f"methods-{which}.ipynb")
    method = page.locator("select:has(option:text-is('Gradual'))").first
    method.wait_for(timeout=SECONDS)
    names = QUICK if which == "quick" else method.locator("option").all_inner_texts()
    queued = 0
    for name in names:
        method.select_option(name)
        page.wait_for_timeout(300)
        page.locator("button:text-is('Run')").click()
        said = page.locator(
            ".widget-html:has-text('in the queue'), .widget-html:has-text('expected'), .widget-html:has-text('needs')"
        ).first
        said.wait_for(timeout=SECONDS)
        page.wait_for_timeout(300)
        queued = page.locator(".pl tbody tr").count()
    assert queued >= len(names) - 2
    ended = page.locator(
        ".pl tbody tr:has-text('done'), .pl tbody tr:has-text('refused'), "
        ".pl tbody tr:has-text('target_missed'), .pl tbody tr:has-text('diverged')"
    )
    sync_api.expect(ended).to_have_count(queued, timeout=3 * SECONDS)
    refused = page.locator(".pl tbody tr:has-text('refused')")
    assert all(len(title) > 20 for title in refused.evaluate_all("rows => rows.map(row => row.title)"))
    rows = page.locator(".pl tbody tr:has-text('done')")
    for row in (0, 1):
        rows.nth(row).locator("input").check()
    page.locator(".jp-OutputArea img[src^='data:image/png']").first.wait_for(timeout=SECONDS)
    for view in ("layers", "verdict", "masks", "code"):
        page.locator("select:has(option:text-is('truth meter'))").select_option(view)
        page.wait_for_timeout(700)
        page.screenshot(path=SCREENSHOTS / f"workbench-{view}.png")
    assert "lab.methods.Gradual(schedule=lab.Cubic(0.9))" in page.locator(".pl pre").inner_text()
    at_rest(page)
    broken = "images => images.filter(image => !image.complete || !image.naturalWidth).length"
    assert page.locator(".jp-OutputArea img").evaluate_all(broken) == 0
    for theme in ("dark", "light"):
        for width in (1400, 700):
            page.emulate_media(color_scheme=theme)
            page.evaluate(f"document.body.dataset.jpThemeLight = '{str(theme == 'light').lower()}'")
            page.set_viewport_size({"width": width, "height": 1200})
            page.wait_for_timeout(500)
            page.screenshot(path=SCREENSHOTS / f"workbench-{theme}-{width}.png")
    assert page.errors == []


@pytest.mark.slow
def test_the_first_hour_of_a_new_user(page, lab_server, folder):
    """Open the workbench, prune, compare, copy as code, run that cell: the same record. Each step is photographed."""
    began = time.perf_counter()

    def reached(step: str) -> None:
        print(f"{step}: {time.perf_counter() - began:.0f} s")
        page.screenshot(path=SCREENSHOTS / f"new-user-{step}.png")

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    written(folder, "first.ipynb", 'import pruninglab as lab\nbench = lab.Workbench("digits", epochs=2)\nbench')
    open_and_start(page, lab_server, "first.ipynb")
    method = page.locator("select:has(option:text-is('Gradual'))").first
    method.wait_for(timeout=SECONDS)
    reached("opened")
    rows = page.locator(".pl tbody tr")
    for number, name in enumerate(("Dense", "Gradual"), 1):
        method.select_option(name)
        page.wait_for_timeout(300)
        page.locator("button:text-is('Run')").click()
        sync_api.expect(rows.filter(has_text="done")).to_have_count(number, timeout=SECONDS)
    reached("pruned")
    for row in range(2):
        rows.nth(row).locator("input").check()
    view = page.locator("select:has(option:text-is('truth meter'))")
    view.select_option("verdict")
    page.locator(":text('so nothing can be said')").first.wait_for(timeout=SECONDS)
    reached("compared")
    rows.nth(0).locator("input").uncheck()
    view.select_option("code")
    code = page.locator(".pl pre").first
    sync_api.expect(code).to_contain_text("lab.methods.Gradual", timeout=SECONDS)
    sync_api.expect(code).not_to_contain_text("lab.methods.Dense", timeout=SECONDS)
    same = "theirs = bench.runs['2']\nprint('same record:', run.result.config == theirs.result.config)"
    page.locator("[data-command='notebook:insert-cell-below']").first.click()
    page.locator(".jp-CodeCell .cm-content").last.click(timeout=SECONDS)
    page.keyboard.insert_text(f"{code.inner_text()}\n{same}")
    page.keyboard.press("Control+Enter")
    page.locator("pre:has-text('same record: True')").first.wait_for(timeout=SECONDS)
    reached("copied")
    assert page.errors == []
