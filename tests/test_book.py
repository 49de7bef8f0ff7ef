"""The front page and the book: links that lead somewhere, numbers that records hold, pages that a browser likes."""

import functools
import http.server
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import addresses
import front_page
import make_book
import pytest
from lab_server import CHROMIUM, NO_CHROMIUM

ROOT = Path(__file__).parent.parent
PAGES = [path for path in make_book.PAGES if path.endswith(".md")]


@pytest.mark.parametrize("page", PAGES)
def test_a_link_of_a_page_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for _, _, target in addresses.LINK.findall(text) if "://" not in target]
    assert [target for target in targets if target and not ((ROOT / page).parent / target).exists()] == []


def test_the_front_page_quotes_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.search(r"<!-- reached -->\n(.*?)\n<!-- /reached -->", text, re.DOTALL)
    assert quoted
    assert quoted.group(1) == front_page.reached()


def test_the_five_lines_run(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Five lines\n+```python\n(.*?)```", text, re.DOTALL)
    assert code
    assert len(code.group(1).splitlines()) == 5
    names: dict[str, Any] = {}
    exec(code.group(1).replace("epochs=15", "epochs=1, progress=False"), names)
    assert names["run"].status == "done"


def test_a_link_is_led_into_the_book_to_the_repository_or_to_nothing():
    text = "[course](notebooks/README.md) [licence](LICENSE) [none](no/where.md) ![p](notebooks/book/workbench.png) [w](https://x)"
    pages = {"README.md": "index.md", "notebooks/README.md": "notebooks/README.md"}
    led = addresses.inside(text, "README.md", pages, "https://github.com/a/b")
    assert led == (
        "[course](notebooks/README.md) [licence](https://github.com/a/b/blob/main/LICENSE) none "
        "![p](notebooks/book/workbench.png) [w](https://x)"
    )
    assert addresses.inside("[licence](LICENSE)", "README.md", pages, "") == "licence"
    assert "colab.research.google.com/github/a/b/blob/main/notebooks/x.ipynb" in make_book.badges(
        "x.ipynb", "https://github.com/a/b"
    )


@pytest.mark.parametrize("home", ["https://github.com/a/b", ""])
def test_a_package_index_gets_a_front_page_without_dead_links(home):
    described = addresses.described(home)
    links = addresses.LINK.findall(described["readme"]["text"])
    assert [target for _, _, target in links if "://" not in target] == []
    assert bool(home) == bool(links) == bool(described["urls"])
    for target in [*described["urls"].values(), *(target for _, _, target in links if home and home in target)]:
        path = target.removeprefix(home).strip("/").split("/", 2)[2:]
        assert all((ROOT / name).exists() for name in path)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    out = tmp_path_factory.mktemp("book")
    assert make_book.main(out) == 0
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(out / "html")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", out / "html"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.xdist_group("browser")
@pytest.mark.filterwarnings("ignore")  # of Sphinx and its extensions
def test_the_book_has_no_dead_link_no_missing_image_and_no_error_in_the_console(site):
    """Each page in a real browser, with a place for each link within the book; one of them in the dark as well."""
    sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    address, folder = site
    pages = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*.html")
        if not {"_modules", "_static"} & set(path.parts)
    )
    assert {"index.html", "search.html", "notebooks/05_admm.html", "reference/masks.html"} <= set(pages)
    faults: list[str] = []
    anchors: dict[str, set[str]] = {}
    links: set[tuple[str, str]] = set()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.on("console", lambda said: faults.append(f"{page.url}: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        for name in pages:
            page.goto(address + name, wait_until="load")
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 80))"
            faults += [f"{name}: no image {image}" for image in page.evaluate(broken)]
            anchors[name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
            links |= {(name, href) for href in page.evaluate("[...document.links].map(a => a.href)")}
            page.set_viewport_size({"width": 420, "height": 1000})
            if wider := page.evaluate("document.documentElement.scrollWidth - innerWidth"):
                faults.append(f"{name}: {wider} pixels wider than a telephone")
            page.set_viewport_size({"width": 1300, "height": 1000})
        page.goto(address + "search.html?q=sparsity")
        page.locator("#search-results a").first.wait_for(timeout=60_000)
        page.emulate_media(color_scheme="dark")
        page.goto(address + "notebooks/05_admm.html")
        assert page.locator("html[data-theme=dark]").count() == 1
        browser.close()
    for name, href in sorted(links):
        path, _, anchor = urllib.parse.unquote(href.removeprefix(address)).partition("#")
        if href.startswith(address) and not (folder / (path or "index.html")).exists():
            faults.append(f"{name}: dead link {href}")
        elif href.startswith(address) and anchor and path in anchors and anchor not in anchors[path]:
            faults.append(f"{name}: no such place {href}")
    assert faults == []
