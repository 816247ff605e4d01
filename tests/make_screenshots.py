"""Make the pictures in the README from what lessons 3 and 4 store.

    python tests/make_screenshots.py

Runs both lessons on a database of its own, serves it, and writes to tests/screenshots/:
trace.png and dashboard.png from the page in Chromium, terminal.svg of a trace as the
lessons draw it. Lesson 4 sends a day of traffic within a second: for the dashboard alone,
its traces are moved apart over the day that they stand for.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
FOLDER = TOP / "tests" / "screenshots"
LESSONS = ("03_trace_rag_pipeline.py", "04_cost_monitoring.py")
# In the order they were stored, evenly over the last 23 hours; each trace stays whole.
APART = """WITH placed AS (SELECT trace_id, min(start_us) AS start_us, CAST((julianday('now')
        - 2440587.5) * 86400e6 - 8.28e10 * (1 - percent_rank() OVER (ORDER BY min(start_us)))
        AS INTEGER) AS at FROM observations GROUP BY trace_id)
    UPDATE observations SET start_us = observations.start_us + at - placed.start_us,
        end_us = end_us + at - placed.start_us
    FROM placed WHERE placed.trace_id = observations.trace_id"""
SCORES_APART = """UPDATE scores SET timestamp_us = (SELECT max(end_us) FROM observations
    WHERE observations.trace_id = scores.trace_id) WHERE trace_id IN (SELECT trace_id
    FROM observations)"""


def draw_terminal(trace_id: str) -> None:
    """Write what the console draws for one trace, as rich exports it."""
    from langfuse import Langfuse
    from rich.console import Console

    from common import console
    from common.client import connect
    from common.readback import read_trace

    connect()

    with Path(os.devnull).open("w") as nowhere:
        console._out = Console(record=True, width=104, highlight=False, file=nowhere)
        console.draw_tree(read_trace(Langfuse(), trace_id))
        svg = console._out.export_svg(title=f"python {LESSONS[0]}")
    svg = re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL)  # it would fetch a font
    (FOLDER / "terminal.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()))


def draw_page(url: str, db: Path, trace_id: str) -> None:
    """Write the two pictures of the page."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{url}/project/local/traces/{trace_id}")
        page.get_by_role("treeitem", name="write-answer").click()
        page.locator(".detail h2", has_text="write-answer").wait_for()
        page.screenshot(path=FOLDER / "trace.png")
        connection = sqlite3.connect(db)
        with connection:
            connection.execute(APART)
            connection.execute(SCORES_APART)
        connection.close()
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.goto(f"{url}/project/local/dashboard?period=24h")
        page.locator("main:not([aria-busy]) .tiles").wait_for()
        page.locator("figure:nth-child(6) svg").wait_for()
        page.screenshot(path=FOLDER / "dashboard.png")
        browser.close()


def main() -> None:
    """Run the lessons, serve what they stored, write the pictures."""
    sys.path.insert(0, str(TOP))
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "langfuse.db"
        for name in [name for name in os.environ if name.startswith(("LANGFUSE_", "OPENAI_"))]:
            del os.environ[name]
        os.environ |= {"LOCAL_LANGFUSE_DB": str(db), "PYTHON_DOTENV_DISABLED": "1"}
        for lesson in LESSONS:
            subprocess.run([sys.executable, lesson], cwd=TOP, check=True, capture_output=True)
        import local_langfuse

        connection = sqlite3.connect(db)
        ((trace_id,),) = connection.execute(
            "SELECT trace_id FROM observations WHERE name = 'check-grounding' LIMIT 1"
        )
        connection.close()
        draw_terminal(trace_id)
        running = local_langfuse.start(db)
        draw_page(running.base_url, db, trace_id)
        running.stop()


if __name__ == "__main__":
    main()
