"""The site of the documentation: it builds without a warning, nothing on it is dead, every public name is on it."""

from __future__ import annotations

import functools
import http.server
import inspect
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import elegy as eg

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The anchors, links and embedded files of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.embedded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", values.get("name", "")))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.embedded.append(values["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in values:
            self.embedded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. A warning of MkDocs fails the build (with `--quiet` it would not)."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def resolve(page: str, link: str) -> tuple[str, str]:
    """The file of the site, and the anchor in it, to which an internal link of a page leads."""
    parts = urlsplit(link)
    folder = "" if parts.path.startswith("/") else os.path.dirname(page)
    path = os.path.normpath(os.path.join(folder, parts.path.removeprefix("/"))) if parts.path else page
    return ("index.html" if path == "." else unquote(path)), unquote(parts.fragment)


@pytest.mark.needs(library="mkdocs")
def test_no_link_and_no_image_is_dead(site, pages):
    dead = []
    for name, page in pages.items():
        for link in [link for link in page.links if not urlsplit(link).scheme]:
            target, anchor = resolve(name, link)
            exists = target in pages if target.endswith(".html") else (site / target).exists()
            if not exists or (anchor and anchor not in pages[target].anchors):
                dead.append((name, link))
        for file in page.embedded:
            if urlsplit(file).netloc or not (site / resolve(name, file)[0]).exists():
                dead.append((name, file))  # also files of another host: the site needs no network
    assert dead == []
    assert sum(len(page.links) for page in pages.values()) > 1000


@pytest.mark.needs(library="mkdocs")
def test_every_public_name_is_in_the_reference(pages):
    reference = set().union(*(page.anchors for name, page in pages.items() if name.startswith("reference/")))
    missing = []
    for name in eg.__all__:
        value = getattr(eg, name)
        missing.append(f"elegy.{name}")
        if inspect.ismodule(value):
            here = [key for key, one in vars(value).items() if getattr(one, "__module__", "") == value.__name__]
            inner = getattr(value, "__all__", [key for key in here if callable(getattr(value, key))])
            missing += [f"elegy.{name}.{key}" for key in inner if not key.startswith("_") and len(key) > 1]
    assert len(missing) > 100
    assert [name for name in missing if name not in reference] == []


@pytest.mark.needs(library="mkdocs")
def test_every_page_of_docs_is_linked_from_the_start_page(pages):
    linked = {resolve("index.html", link)[0] for link in pages["index.html"].links}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= linked


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def address(site):
    """Serves the site on this machine."""
    handler = functools.partial(Silent, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.needs(library="chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_has_an_error_in_a_browser_or_is_wider_than_it(pages, address, width):
    from playwright.sync_api import sync_playwright  # only where a browser is

    errors = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda request: None if request.url.startswith(address) else errors.append(request.url))
        for name in sorted(pages.keys() - {"404.html"}):
            page.goto(f"{address}/{name}")
            if page.evaluate("document.documentElement.scrollWidth") > width:
                errors.append(f"{name} is wider than {width}")
        page.goto(f"{address}/index.html")
        page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        page.keyboard.type("EarlyStopping")
        page.wait_for_selector(".md-search-result__item")
        browser.close()
    assert errors == []
