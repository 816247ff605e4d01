"""Make the picture in the README: a trace of lesson 3 on the page, in Chromium.

    python tests/make_screenshots.py

Runs the lesson on a database of its own, serves that, and writes tests/screenshots/trace.png.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

TOP = Path(__file__).resolve().parents[1]
LESSON = "03_trace_rag_pipeline.py"
PICTURE = TOP / "tests" / "screenshots" / "trace.png"


def draw_page(url: str, trace_id: str) -> None:
    """Take the picture of a trace with its answer selected."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(f"{url}/project/local/traces/{trace_id}")
        page.get_by_role("treeitem", name="write-answer").click()
        page.locator(".detail h2", has_text="write-answer").wait_for()
        page.screenshot(path=PICTURE)
        browser.close()


def main() -> None:
    """Run the lesson, serve what it stored, take the picture."""
    sys.path.insert(0, str(TOP))
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "langfuse.db"
        for name in [name for name in os.environ if name.startswith(("LANGFUSE_", "OPENAI_"))]:
            del os.environ[name]
        os.environ |= {"LOCAL_LANGFUSE_DB": str(db), "PYTHON_DOTENV_DISABLED": "1"}
        subprocess.run([sys.executable, LESSON], cwd=TOP, check=True, capture_output=True)
        import local_langfuse

        connection = sqlite3.connect(db)
        ((trace_id,),) = connection.execute(
            "SELECT trace_id FROM observations WHERE name = 'check-grounding'"
            " ORDER BY start_us DESC LIMIT 1"
        )
        connection.close()
        running = local_langfuse.start(db)
        draw_page(running.base_url, trace_id)
        running.stop()


if __name__ == "__main__":
    main()
