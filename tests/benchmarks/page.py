"""Measure how soon each view of the page shows its first rows, with 100,000 observations stored.

    python tests/benchmarks/page.py [observations]

Prints a Markdown table: for each view the time from asking for the address to the first row,
to all of it, and what the page's script holds of memory. It needs Chromium.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))

from playwright.sync_api import Browser, sync_playwright  # noqa: E402

import local_langfuse  # noqa: E402
from local_langfuse import datasets, prompts  # noqa: E402
from local_langfuse.models import Tariffs  # noqa: E402
from local_langfuse.otlp import read_spans  # noqa: E402
from local_langfuse.scores import score_row  # noqa: E402
from local_langfuse.store import Store  # noqa: E402

A_TRACE = 8  # observations
MODELS = ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-nano-2025-04-14", "who-knows")
TEAMS, USERS = ("sales", "support", "logistics"), 500
DAYS = 30
TIMES = 3  # each address is opened; the middle one counts
FIRST_ROW = {
    "Traces": ("/traces", "table tbody tr"),
    "Traces, older": ("/traces?older", "table tbody tr"),
    "Traces with an error": ("/traces?level=ERROR", "table tbody tr"),
    "Traces with a text": ("/traces?text=radiator", "table tbody tr"),
    "Traces of a tag": ("/traces?tag=team%3Asales", "table tbody tr"),
    "Traces over a cost": ("/traces?cost=0.001", "table tbody tr"),
    "One trace": (f"/traces/{1:032x}", "[role=treeitem]"),
    "Sessions": ("/sessions", "table tbody tr"),
    "One session": ("/sessions/chat-1", ".turns li"),
    "Users": ("/users", "table tbody tr"),
    "Dashboard, a day": ("/dashboard?period=24h", "svg"),
    "Dashboard, 30 days": ("/dashboard?period=30d", "svg"),
    "100 prompts": ("/prompts", "table tbody tr"),
    "A dataset of 200 items": ("/datasets/shop-questions", "table tbody tr"),
}


def fill(db: Path, observations: int) -> None:
    """Store traces of eight observations each, spread over the last days, as the SDK sends them."""
    dice, now, store = random.Random(4), datetime.now(UTC), Store(db)
    tariffs = Tariffs(store)
    for begin in range(0, observations // A_TRACE, 500):
        numbers = range(begin, min(begin + 500, observations // A_TRACE))
        spans = [span for number in numbers for span in trace(number + 1, dice, now)]
        body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
        rows, _ = read_spans(json.dumps(body).encode(), tariffs, is_json=True)
        store.put_observations(rows)
        store.put_scores(
            score_row({"name": "relevance", "value": dice.random(), "traceId": f"{n + 1:032x}"})
            for n in numbers
            if n % 10 == 0
        )
    for number in range(100):
        prompts.create(
            store, {"name": f"answer-{number}", "prompt": WORDS, "labels": ["production"]}
        )
    datasets.create_dataset(store, {"name": "shop-questions"})
    for number in range(200):
        datasets.put_item(store, {"datasetName": "shop-questions", "input": f"{number}: {WORDS}"})
    store.close()


def trace(number: int, dice: random.Random, now: datetime) -> list[dict[str, Any]]:
    """Return the spans of one trace: a chain, its steps, and calls of a model."""
    start = int((now - timedelta(days=DAYS * dice.random())).timestamp() * 1e9)
    shared = {
        "user.id": f"user-{dice.randrange(USERS)}",
        "session.id": f"chat-{number // 4}",
        "langfuse.trace.tags": json.dumps([f"team:{dice.choice(TEAMS)}"]),
        "langfuse.environment": "development",
    }
    spans = []
    for step in range(A_TRACE):
        is_call = step % 2 == 1
        own = {
            "langfuse.observation.type": "generation" if is_call else "chain",
            "langfuse.observation.input": json.dumps([{"role": "user", "content": WORDS * 5}]),
            "langfuse.observation.output": "Never dry wet shoes on a radiator."
            if dice.random() < 0.01
            else "Unworn shoes can be returned within 30 days.",
            "langfuse.observation.level": "ERROR" if dice.random() < 0.01 else "DEFAULT",
        }
        if is_call:
            usage = {"input": dice.randrange(2000), "output": dice.randrange(400)}
            own["langfuse.observation.model.name"] = dice.choice(MODELS)
            own["langfuse.observation.usage_details"] = json.dumps(usage)
        spans.append(
            {
                "traceId": f"{number:032x}",
                "spanId": f"{number * A_TRACE + step:016x}",
                **({"parentSpanId": f"{number * A_TRACE:016x}"} if step else {}),
                "name": f"step-{step}" if step else "answer-question",
                "startTimeUnixNano": str(start + step * 10_000_000),
                "endTimeUnixNano": str(start + (100 + dice.randrange(2000)) * 1_000_000),
                "attributes": [
                    {"key": key, "value": {"stringValue": value}}
                    for key, value in {**shared, **own}.items()
                ],
            }
        )
    return spans


WORDS = "My leather shoes are wet after the rain, and I would like to know what to do. "


def measure(browser: Browser, url: str, first_row: str) -> tuple[float, float, float]:
    """Return seconds to the first row, seconds to the whole view, and MB of the script's heap."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    if url.endswith("?older"):
        page.goto(url.removesuffix("?older"))
        url = page.get_by_role("link", name="Older traces").evaluate("link => link.href")
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(first_row)
    first = time.perf_counter() - began
    page.wait_for_selector("main:not([aria-busy]) h1")
    whole = time.perf_counter() - began
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
    page.close()
    return first, whole, heap


def main() -> None:
    """Fill, serve, open each view, print."""
    observations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        db = Path(folder) / "langfuse.db"
        fill(db, observations)
        running = local_langfuse.start(db)
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        write = sys.stdout.write
        write(f"| View, with {running.stored:,} observations | first rows | all of it | memory |\n")
        write("|---|--:|--:|--:|\n")
        for name, (path, first_row) in FIRST_ROW.items():
            took = [measure(browser, running.base_url + path, first_row) for _ in range(TIMES)]
            first, whole, heap = (sorted(column)[TIMES // 2] for column in zip(*took, strict=True))
            write(f"| {name} | {first:.2f} s | {whole:.2f} s | {heap:.0f} MB |\n")
        browser.close()
        running.stop()


if __name__ == "__main__":
    main()
