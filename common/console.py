"""The one place that prints. Nothing in a trace is read as markup or controls the terminal."""

import io
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import NoReturn

from langfuse import get_client
from langfuse.api import ObservationV2
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from common.errors import explain_model
from common.readback import last_trace_id, read_trace, sent_count

# Piped output has no width of its own; 120 columns are enough for one line per node of a tree.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")  # an old code page cannot draw a tree's lines
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

links: list[str] = []  # the links printed so far
_failed: list[str] = []  # the titles of sections that ended with an error
_last = {"line": "", "trace": ""}  # the last line printed, the last trace drawn

# Control characters, except tab and line break: a terminal would obey them.
_STEERING = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def _plain(text: object, style: str = "") -> Text:
    return Text(str(text).translate(_STEERING), style=style)


def show_line(text: str, style: str = "") -> None:
    """Print one line of text as it is."""
    _out.print(_plain(text, style), soft_wrap=True)
    _last["line"] = text


def _gap() -> None:
    """Print an empty line, unless the last line was one."""
    if _last["line"]:
        show_line("")


def show_section(title: str) -> None:
    """Print the heading of the next section."""
    _gap()
    show_line(title, "bold cyan")


@contextmanager
def section(title: str) -> Iterator[None]:
    """Print a heading; if the model fails, say why, draw what was stored, and go on.

    `end_sections()` gives the program its exit status.
    """
    show_section(title)
    try:
        yield
    except Exception as error:
        said = explain_model(error)
        if not said:
            raise
        _failed.append(title.strip())
        show_line(f"  Failed: {said}", "red")
        show_trace()


def end_sections() -> None:
    """End the program with exit status 1 if a section failed."""
    if _failed:
        fail(f"{len(_failed)} of the sections failed: {'; '.join(_failed)}.", 1)


def show_result(label: str, text: object) -> None:
    """Print a short label and its value on one line."""
    show_line(f"  {label:<20} {text}")


def show_answer(question: str, answer: str) -> None:
    """Print a question and, below it, its answer."""
    if _last["line"].startswith("  http"):
        show_line("")
    show_line(f"  {question}", "bold")
    show_line(textwrap.indent(answer, "    "))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under column headings, if there are any rows."""
    if not rows:
        return
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for place, column in enumerate(columns):
        numbers = all(str(row[place])[:1] in "$0123456789" for row in rows)
        table.add_column(column, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_plain(textwrap.shorten(str(each), 160, placeholder=" …")) for each in row))
    _out.print(table)
    _last["line"] = "table"


def fail(message: str, status: int) -> NoReturn:
    """Print one line to stderr and end the program with this exit status."""
    _err.print(_plain(message, "red"))
    raise SystemExit(status)


def show_pieces(pieces: Iterable[str]) -> None:
    """Print text piece by piece, each as soon as it arrives, and always end the line."""
    indent = "    "
    try:
        for piece in pieces:
            _out.print(_plain(indent + piece.replace("\n", "\n    ")), end="", soft_wrap=True)
            indent = ""
    finally:
        if not indent:
            show_line("")
            _last["line"] = "pieces"


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar while the block runs; call what it yields after each step."""
    with Progress(console=_out, transient=True, disable=not _out.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what the program is waiting for: at once in a terminal, otherwise after 3 seconds."""
    if _out.is_terminal:
        with _out.status(Text(text)):
            yield
        return
    late = threading.Timer(3, show_line, [f"  {text} …"])
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def show_trace(trace_id: str = "") -> list[ObservationV2]:
    """Draw a stored trace as a tree, print its link, and return its observations, oldest first.

    Without an id, it takes the trace that ended last. The list is empty if nothing is stored:
    tracing is off, or LANGFUSE_SAMPLE_RATE left it out. Raises `NotStoredError` if it cannot
    be read back; uncaught, that ends the program with one line on stderr and exit status 1.
    """
    langfuse, given, trace_id = get_client(), trace_id, trace_id or last_trace_id()
    if not sent_count(trace_id) or (trace_id == _last["trace"] and not given):
        if os.environ.get("LANGFUSE_TRACING_ENABLED", "").lower() != "false":
            show_line("  No new trace was recorded.", "dim")
        return []
    _last["trace"] = trace_id
    with waiting("Reading the trace back"):
        langfuse.flush()
        stored = read_trace(langfuse, trace_id)
    draw_tree(stored)
    show_link("", langfuse.get_trace_url(trace_id=trace_id) or "")
    return stored


def show_link(label: str, url: str) -> None:
    """Print a link on its own line, after its label."""
    links.append(url)
    show_line(f"  {label}{url}", "blue")


def draw_tree(observations: Sequence[ObservationV2]) -> None:
    """Draw the observations of one trace as a tree, one row per node."""
    nodes = list(_walk(observations))
    show_line("")
    head = ("observation", "type", "model", "ms", "first token", "in", "out", "cost")
    rows = [head, *(_cells(guide, node) for guide, node in nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    used = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
    for dispensable in (2, 1):  # model, then type, if the terminal is narrow
        if sum(widths[i] + 2 for i in used) > _out.width and dispensable in used:
            used.remove(dispensable)
    for row, node in zip(rows, (None, *(node for _, node in nodes)), strict=True):
        cells = [row[i].ljust(widths[i]) if i < 3 else row[i].rjust(widths[i]) for i in used]
        style = _LEVEL_STYLES.get(node.level or "", "") if node else "dim"
        show_line("  " + "  ".join(cells).rstrip(), style)
        if node and node.status_message:
            guide = row[0].removesuffix(node.name or "(no name)")
            guide = guide.replace("├─ ", "│  ").replace("└─ ", "   ")
            told = textwrap.shorten(node.status_message, 160, placeholder=" …")
            show_line(f"  {guide}{node.level}: {told}", style)


_LEVEL_STYLES = {"ERROR": "red", "WARNING": "yellow", "DEBUG": "dim"}


def _walk(observations: Sequence[ObservationV2]) -> Iterator[tuple[str, ObservationV2]]:
    known = {node.id for node in observations}
    children: dict[str, list[ObservationV2]] = {}  # by parent, "" for the roots
    for node in observations:
        # A root may name a parent that does not exist: an id that only carries the trace id.
        parent = node.parent_observation_id
        children.setdefault(parent if parent in known and parent else "", []).append(node)

    def below(parent: str, guide: str) -> Iterator[tuple[str, ObservationV2]]:
        siblings = children.get(parent, [])
        for node in siblings:
            last = node is siblings[-1]
            yield (guide + ("└─ " if last else "├─ ") if parent else ""), node
            yield from below(node.id, guide + ("   " if last else "│  ") if parent else "")

    return below("", "")


def _cells(guide: str, node: ObservationV2) -> tuple[str, ...]:
    usage = node.usage_details or {}
    tokens = [sum(n for key, n in usage.items() if side in key) for side in ("input", "output")]
    return (
        guide + (node.name or "(no name)"),
        node.type.lower(),
        node.model or "",
        _milliseconds(node.latency or 0),
        _milliseconds(node.time_to_first_token) if node.time_to_first_token else "",
        *(f"{count:,}" if any(tokens) else "" for count in tokens),
        cost_text(node),
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f}"


def cost_text(node: ObservationV2) -> str:
    """Return the stored cost in USD: `unknown` for a model without a price, never $0.

    It begins with `≥` if some of the tokens have no price and so are not in the sum. A
    call that was refused has no tokens, so nothing is shown for it.
    """
    usage, costs = node.usage_details or {}, node.cost_details or {}
    if not node.model or (node.level == "ERROR" and not usage):
        return ""
    if "total" not in costs:
        return "unknown"
    by_bucket = bool(node.internal_model_id) and costs.keys() > {"total"}  # not set by hand
    is_partial = by_bucket and any(n for bucket, n in usage.items() if bucket not in costs)
    return f"{'≥' if is_partial else ''}{usd_text(costs['total'])}"


def usd_text(usd: Decimal | float) -> str:
    """Return an amount with six decimals, or eight if six would show only zeros.

    `usd_text(0.0000432) -> "$0.000043"`, `usd_text(0.00000006) -> "$0.00000006"`
    """
    return f"${usd:.6f}" if usd >= 0.000001 or not usd else f"${usd:.8f}"
