"""What the tests of the page share: a browser, and databases served to it.

It is a plugin for its fixtures and imported for its functions, and so PYTEST_DONT_REWRITE.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KEYS
from playwright.sync_api import Page, expect, sync_playwright

import local_langfuse

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM and "CI" not in os.environ,
    reason="needs Chromium, for example from `apt install chromium`; in CI it must be there",
)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
expect.set_options(timeout=30_000)  # to end what hangs, not what a busy machine delays
LIVE_MS, TYPING_MS = 2_000, 400  # how long the page waits, in its own clock
SPANS = "/api/public/otel/v1/traces"
TRACE = "0af7651916cd43dd8448eb211c80319c"
NOW_NS = 1_795_198_770_000_000_000


@contextmanager
def serving(db: Path, port: int = 0) -> Iterator[httpx.Client]:
    """Serve a database from this process, and yield a client with the keys."""
    running = local_langfuse.start(db, port)
    with httpx.Client(base_url=running.base_url, auth=KEYS, timeout=60, trust_env=False) as client:
        try:
            yield client
        finally:
            running.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[httpx.Client]:
    """A served database in which nothing is stored."""
    with serving(tmp_path / "langfuse.db") as client:
        yield client


Window = tuple[Page, list[str]]


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    """One page for all tests of a module, and what is wrong with it."""
    wrong: list[str] = []

    def ask(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "about:")):
            wrong.append(f"asked {url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 860}, timezone_id="UTC")
        page.clock.install()  # it goes on as ever, and can be put forward
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: ask(request.url))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))"
        )
        yield page, wrong
        browser.close()


@pytest.fixture
def wrong(window: Window) -> list[str]:
    """What the browser complained about."""
    return window[1]


@pytest.fixture
def tab(window: Window, wrong: list[str]) -> Iterator[Page]:
    """A page that must not raise, complain, ask others or break its Content-Security-Policy."""
    page = window[0]
    page.context.clear_cookies()
    yield page
    page.goto("about:blank")
    page.unroute_all()
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="null", reduced_motion="null")
    seen = wrong.copy()
    wrong.clear()
    assert seen == [], seen


def opened(page: Page, client: httpx.Client, path: str) -> Page:
    page.goto(f"{client.base_url}".rstrip("/") + path)
    settled(page)
    return page


def settled(page: Page) -> None:
    page.locator("main:not([aria-busy]) h1").wait_for()


def refreshed(page: Page) -> None:
    """Put the page's clock forward, so that it asks whether something is new."""
    page.clock.fast_forward(LIVE_MS)


def shown_traces(page: Page) -> list[str]:
    links = page.locator("table[aria-label=Traces] a.row")
    hrefs: list[str] = links.evaluate_all("links => links.map(link => link.pathname)")
    return [href.rpartition("/")[2] for href in hrefs]


def paged_traces(page: Page) -> list[str]:
    """Return the traces of this page and of all older ones, as they are shown."""
    seen: list[str] = []
    while True:
        page.locator(".more span").wait_for()
        shown = shown_traces(page)
        seen += shown
        older = page.get_by_role("link", name="Older traces")
        if not older.count():
            return seen
        older.click()
        first = f"table a.row[href$='{shown[0]}']"
        expect(page.locator(first)).to_have_count(0)
        settled(page)


def span(number: int, parent: int = 0, **attributes: str) -> dict[str, Any]:
    """Return a span of TRACE that starts `number` milliseconds after NOW_NS."""
    start = NOW_NS + number * 1_000_000
    return {
        "traceId": TRACE,
        "spanId": f"{number:016x}",
        **({"parentSpanId": f"{parent:016x}"} if parent else {}),
        "name": f"step-{number}",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 5_000_000),
        "attributes": [
            {"key": key.replace("__", "."), "value": {"stringValue": value}}
            for key, value in attributes.items()
        ],
    }


def send(client: httpx.Client, *spans: dict[str, Any]) -> None:
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    client.post(SPANS, json=body).raise_for_status()
