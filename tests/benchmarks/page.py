"""Measure how soon each view of the page shows its first rows, with 100,000 observations stored.

    python tests/benchmarks/page.py [observations]

Prints a Markdown table: for each view the time from asking for the address to the first row,
to all of it, and how much memory the page holds: all of the process that renders it, and the
objects of its script alone. A blank page comes first, to compare with. It needs Chromium on Linux.
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

from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

import local_langfuse  # noqa: E402
from local_langfuse import datasets, prompts  # noqa: E402
from local_langfuse.models import Tariffs  # noqa: E402
from local_langfuse.otlp import read_spans  # noqa: E402
from local_langfuse.scores import score_row  # noqa: E402
from local_langfuse.store import Store  # noqa: E402

A_TRACE = 8  # observations
MODELS = ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-nano-2025-04-14", "who-knows")
TEAMS, USERS = ("sales", "support", "logistics"), 500
DAYS, ITEMS = 30, 200
TIMES = 3  # each address is opened; the middle one counts
RARE = (101, 5_000, 9_000)  # these traces have what hardly any other has
FIRST_ROW = {
    "Traces": ("/traces", "table tbody tr"),
    "Traces, older": ("/traces?older", "table tbody tr"),
    "Traces with an error": ("/traces?level=ERROR", "table tbody tr"),
    "Traces with a warning (rare)": ("/traces?level=WARNING", "table tbody tr"),
    "Traces with a text": ("/traces?text=radiator", "table tbody tr"),
    "Traces with a rare text": ("/traces?text=unicorn", "table tbody tr"),
    "Traces of a tag": ("/traces?tag=team%3Asales", "table tbody tr"),
    "Traces of a rare tag": ("/traces?tag=rare", "table tbody tr"),
    "Traces over a cost": ("/traces?cost=0.001", "table tbody tr"),
    "Traces over a rare cost": ("/traces?cost=0.1", "table tbody tr"),
    "Traces over rare tokens": ("/traces?tokens=100000", "table tbody tr"),
    "Traces of a rare name under a cost": ("/traces?name=rare&cost=%3C0.1", "table tbody tr"),
    "Traces under rare tokens": ("/traces?tokens=%3C9", "table tbody tr"),
    "One trace": (f"/traces/{1:032x}", "[role=treeitem]"),
    "Sessions": ("/sessions", "table tbody tr"),
    "One session": ("/sessions/chat-1", ".turns li"),
    "Users": ("/users", "table tbody tr"),
    "Dashboard, a day": ("/dashboard?period=24h", "svg"),
    "Dashboard, 30 days": ("/dashboard?period=30d", "svg"),
    "100 prompts": ("/prompts", "table tbody tr"),
    "A dataset of 200 items": ("/datasets/other-questions", "[aria-label=Items] tbody tr"),
    "Two experiments side by side": ("/datasets/shop-questions", "[aria-label=Items] tbody tr"),
}


def fill(db: Path, observations: int) -> None:
    """Store traces of eight observations each, spread over the last days, as the SDK sends them."""
    dice, now, store = random.Random(4), datetime.now(UTC), Store(db)
    tariffs = Tariffs(store)
    for begin in range(0, observations // A_TRACE, 500):
        numbers = range(begin, min(begin + 500, observations // A_TRACE))
        spans = [span for number in numbers for span in trace(number + 1, dice, now)]
        put_spans(store, tariffs, spans)
        store.put_scores(
            score_row({"name": "relevance", "value": dice.random(), "traceId": f"{n + 1:032x}"})
            for n in numbers
            if n % 10 == 0
        )
    for number in range(100):
        prompts.create(
            store, {"name": f"answer-{number}", "prompt": WORDS, "labels": ["production"]}
        )
    for name in ("shop-questions", "other-questions"):
        dataset = datasets.create_dataset(store, {"name": name})
        for number in range(ITEMS):
            item = {"datasetName": name, "id": f"{name}-{number}", "input": f"{number}: {WORDS}"}
            datasets.put_item(store, item)
        if name == "shop-questions":
            for run in (1, 2):
                fill_experiment(store, tariffs, run, dataset["id"])
    store.close()


def fill_experiment(store: Store, tariffs: Tariffs, run: int, dataset_id: str) -> None:
    """Store an experiment on every item of the dataset: one span and one score each."""
    now_ns, spans, scores = time.time_ns(), [], []
    for number in range(ITEMS):
        trace_id, span_id = f"{run * 10**9 + number:032x}", f"{run * 10**9 + number:016x}"
        attributes = {
            "langfuse.observation.output": f"Answer {run} to {number}. {WORDS}",
            "langfuse.experiment.id": f"run-{run}",
            "langfuse.experiment.name": f"run {run}",
            "langfuse.experiment.dataset.id": dataset_id,
            "langfuse.experiment.item.id": f"shop-questions-{number}",
            "langfuse.experiment.item.root_observation_id": span_id,
        }
        times = (now_ns, now_ns + 10**9)
        spans.append(span((trace_id, span_id, None), "answer-item", times, **attributes))
        score = {"name": "correct", "value": (number + run) % 2, "dataType": "BOOLEAN"}
        scores.append(score_row({**score, "traceId": trace_id, "observationId": span_id}))
    put_spans(store, tariffs, spans)
    store.put_scores(scores)


def put_spans(store: Store, tariffs: Tariffs, spans: list[dict[str, Any]]) -> None:
    """Store spans as the server does."""
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]}
    rows, _ = read_spans(json.dumps(body).encode(), tariffs, is_json=True)
    store.put_observations(rows)


def span(ids: tuple[str, str, str | None], name: str, times: tuple[int, int], **own: str) -> Any:
    """Return a span as it is sent: ids of trace, span and parent; start and end in ns."""
    trace_id, span_id, parent_id = ids
    return {
        "traceId": trace_id,
        "spanId": span_id,
        **({"parentSpanId": parent_id} if parent_id else {}),
        "name": name,
        "startTimeUnixNano": str(times[0]),
        "endTimeUnixNano": str(times[1]),
        "attributes": [{"key": key, "value": {"stringValue": own[key]}} for key in own],
    }


def trace(number: int, dice: random.Random, now: datetime) -> list[dict[str, Any]]:
    """Return the spans of one trace: a chain, its steps, and calls of a model."""
    start = int((now - timedelta(days=DAYS * dice.random())).timestamp() * 1e9)
    is_rare, is_small = number in RARE, number + 1 in RARE
    root = "rare-question" if is_rare or is_small else "answer-question"
    tags = [f"team:{dice.choice(TEAMS)}", *(["rare"] if is_rare else [])]
    shared = {
        "user.id": f"user-{dice.randrange(USERS)}",
        "session.id": f"chat-{number // 4}",
        "langfuse.trace.tags": json.dumps(tags),
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
        if is_rare and step == 4:
            own["langfuse.observation.level"] = "WARNING"
            own["langfuse.observation.output"] = "We have no unicorn in this size."
        if is_call:
            usage = {"input": dice.randrange(2000), "output": dice.randrange(400)}
            if is_rare:
                usage = {"input": 200_000, "output": 20_000}
            if is_small:
                usage = {"input": 1, "output": 1}
            own["langfuse.observation.model.name"] = MODELS[0 if is_rare else dice.randrange(4)]
            own["langfuse.observation.usage_details"] = json.dumps(usage)
        parent = f"{number * A_TRACE:016x}" if step else None
        ids = (f"{number:032x}", f"{number * A_TRACE + step:016x}", parent)
        begin = start + step * 10_000_000
        end = start + (100 + dice.randrange(2000)) * 1_000_000
        name = f"step-{step}" if step else root
        spans.append(span(ids, name, (begin, end), **shared, **own))
    return spans


WORDS = "My leather shoes are wet after the rain, and I would like to know what to do. "


def measure(browser: Browser, url: str, first_row: str) -> tuple[float, float, float, float]:
    """Return seconds to the first row and to the whole view, MB of its process and its script."""
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
    held, heap = memory(browser, page)
    page.close()
    return first, whole, held, heap


def memory(browser: Browser, page: Page) -> tuple[float, float]:
    """Return the MB that the page's process holds, and those of its script's objects.

    Memory that processes share counts in equal parts (Linux calls that PSS). Chromium keeps a
    spare process for the next page: the page's own is the larger one.
    """
    script = page.context.new_cdp_session(page)
    script.send("HeapProfiler.collectGarbage")
    heap = script.send("Runtime.getHeapUsage")["usedSize"] / 1e6
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    return max(proportional_kb(pid) for pid in renderers) / 1e3, heap


def proportional_kb(pid: int) -> int:
    """Return the proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


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
        write(f"| View, with {running.stored:,} observations | first rows | all of it ")
        write("| memory | of it, script |\n|---|--:|--:|--:|--:|\n")
        blank = browser.new_page()
        held, heap = memory(browser, blank)
        blank.close()
        write(f"| A blank page | | | {held:.0f} MB | {heap:.0f} MB |\n")
        for name, (path, first_row) in FIRST_ROW.items():
            took = [measure(browser, running.base_url + path, first_row) for _ in range(TIMES)]
            middle = (sorted(column)[TIMES // 2] for column in zip(*took, strict=True))
            first, whole, held, heap = middle
            write(f"| {name} | {first:.2f} s | {whole:.2f} s | {held:.0f} MB | {heap:.0f} MB |\n")
        browser.close()
        running.stop()


if __name__ == "__main__":
    main()
