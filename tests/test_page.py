"""The page, in a real browser: headless Chromium on what the lessons stored."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import LESSONS, Desk, stored_observations
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    not CHROMIUM and "CI" not in os.environ,
    reason="needs Chromium, for example from `apt install chromium`; in CI it must be there",
)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
SPANS = "/api/public/otel/v1/traces"
TRACE = "0af7651916cd43dd8448eb211c80319c"
NOW_NS = 1_795_198_770_000_000_000
VIEWS = ("traces", "sessions", "users", "dashboard", "prompts", "datasets")


@dataclass
class Shop:
    """The lessons' database, served, and what they printed."""

    client: httpx.Client
    printed: dict[str, str]
    rows: list[dict[str, Any]]

    def traces(self) -> dict[str, list[dict[str, Any]]]:
        """Return the observations of each trace, the newest trace first."""
        traces: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(self.rows, key=lambda row: not row["isRootObservation"]):
            traces.setdefault(row["traceId"], []).append(row)
        newest = sorted(traces, key=lambda one: traces[one][0]["startTime"], reverse=True)
        return {one: traces[one] for one in newest}

    def trace(self, named: str, /, **wanted: Any) -> list[dict[str, Any]]:
        """Return the newest trace of this name with such an observation."""
        return next(
            rows
            for rows in self.traces().values()
            if rows[0]["name"] == named and any(wanted.items() <= row.items() for row in rows)
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[Shop]:
    # The first process that gets here runs the lessons; the others wait, and read what it stored.
    folder = tmp_path_factory.getbasetemp().parent / "shop"
    folder.mkdir(exist_ok=True)
    desk, said = Desk(folder, vocabulary), folder / "printed.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            with ThreadPoolExecutor() as pool:
                printed = {ran.args[1][:2]: ran.stdout for ran in pool.map(desk.run, LESSONS)}
            said.write_text(json.dumps(printed))
    with desk.serving() as client:
        yield Shop(client, json.loads(said.read_text()), stored_observations(client))


@pytest.fixture
def fresh(desk: Desk) -> Iterator[httpx.Client]:
    """A served database in which nothing is stored."""
    with desk.serving() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def wrong() -> list[str]:
    """What the browser complained about."""
    return []


@pytest.fixture
def tab(browser: Browser, wrong: list[str]) -> Iterator[Page]:
    """A page that must not raise, complain or break its Content-Security-Policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, timezone_id="UTC")
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))"
    )
    yield page
    context.close()
    assert wrong == []


def opened(page: Page, client: httpx.Client, path: str) -> Page:
    page.goto(f"{client.base_url}".rstrip("/") + path)
    settled(page)
    return page


def settled(page: Page) -> None:
    expect(page.locator("main:not([aria-busy]) h1")).to_be_visible()


def shown_traces(page: Page) -> list[str]:
    links = page.locator("table[aria-label=Traces] a.row")
    hrefs: list[str] = links.evaluate_all("links => links.map(link => link.pathname)")
    return [href.rpartition("/")[2] for href in hrefs]


# The views


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/", ["Traces", "DEFAULT", "Older traces"]),
        ("/traces?name=answer-request", ["team:logistics", "Latency", "Environment"]),
        ("/sessions", ["Sessions", "customer-17", "Last turn"]),
        ("/users", ["Users", "customer-17", "Model calls"]),
        (
            "/dashboard?period=1h",
            ["Cost by model", "p95", "Cost by team", "shop-topics", "unknown"],
        ),
        ("/prompts", ["answer-from-handbook", "production"]),
        ("/prompts/answer-from-handbook", ["Version 1", "latest", "{{passages}}"]),
        ("/datasets", ["shop-questions", "accuracy 0."]),
        ("/datasets/shop-questions", ["Item by item", "30 days", "correct 1", "baseline"]),
        ("/project/local/nowhere", ["No such page"]),
        (f"/project/local/traces/{TRACE}", ["No such trace", TRACE]),
    ],
)
def test_each_address_opens_its_view(path: str, texts: list[str], shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, path)
    for text in texts:
        expect(tab.locator("main")).to_contain_text(text)
    expect(tab.locator("header")).to_contain_text("A local stand-in, not Langfuse")
    tab.get_by_text("A local stand-in").click()
    expect(tab.locator("header")).to_contain_text("LANGFUSE_PUBLIC_KEY")
    expect(tab.locator("header")).to_contain_text(".env")


@pytest.mark.parametrize("lesson", ["01", "02", "03", "04", "05"])
def test_the_link_that_a_lesson_printed_shows_its_trace(lesson: str, shop: Shop, tab: Page) -> None:
    link = shop.printed[lesson].split()[-1]
    trace_id = link.rpartition("/")[2]
    opened(tab, shop.client, f"/project/local/traces/{trace_id}")
    rows = [row for row in shop.rows if row["traceId"] == trace_id]
    items = tab.get_by_role("treeitem")
    expect(items).to_have_count(len(rows))
    assert {*items.evaluate_all("all => all.map(one => one.dataset.key)")} == {
        row["id"] for row in rows
    }
    for row in rows:
        item = tab.locator(f"[role=treeitem][data-key='{row['id']}']")
        expect(item).to_contain_text(row["name"])
        expect(item).to_contain_text(row["type"].lower())
        assert item.locator(".bar").bounding_box() is not None


def test_the_tree_shows_depth_time_cost_and_failure(shop: Shop, tab: Page) -> None:
    rows = shop.trace("answer-from-handbook", level="ERROR")
    opened(tab, shop.client, f"/project/local/traces/{rows[0]['traceId']}")
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        depth, above = 1, row["parentObservationId"]
        while above in by_id:
            depth, above = depth + 1, by_id[above]["parentObservationId"]
        expect(tab.locator(f"[role=treeitem][data-key='{row['id']}']")).to_have_attribute("aria-level", str(depth))
    failed = next(row for row in rows if row["level"] == "ERROR")
    item = tab.locator(f"[role=treeitem][data-key='{failed['id']}']")
    expect(item.locator(".chip.ERROR")).to_be_visible()
    item.click()
    expect(tab.locator(".detail .status")).to_have_text(failed["statusMessage"])
    expect(tab).to_have_url(re.compile(f"observation={failed['id']}"))
    # The bars lie as the observations do: what starts later, starts further to the right.
    bars = {row["id"]: tab.locator(f"[role=treeitem][data-key='{row['id']}'] .bar").bounding_box() for row in rows}
    by_start = sorted(rows, key=lambda row: row["startTime"])
    lefts = [box["x"] for row in by_start if (box := bars[row["id"]])]
    assert lefts == sorted(lefts)


def test_an_observation_shows_all_that_is_stored_of_it(shop: Shop, tab: Page) -> None:
    rows = shop.trace("answer-from-handbook", name="write-answer")
    row = next(row for row in rows if row["name"] == "write-answer")
    opened(tab, shop.client, f"/project/local/traces/{row['traceId']}?observation={row['id']}")
    detail = tab.locator(".detail")
    expect(detail.get_by_role("heading", level=2)).to_contain_text("write-answer")
    for message in json.loads(row["input"]):
        expect(detail.locator(".message", has_text=message["role"]).first).to_be_visible()
        expect(detail).to_contain_text(message["content"].splitlines()[0])
    expect(detail).to_contain_text(json.loads(row["output"])["content"])
    expect(detail).to_contain_text(row["model"])
    usage = detail.get_by_role("table", name="Usage")
    for bucket, tokens in row["usageDetails"].items():
        expect(usage.locator("tr", has_text=bucket).first).to_contain_text(str(tokens))
    expect(usage).to_contain_text("$0.0000")
    expect(detail).to_contain_text("temperature")
    detail.get_by_role("link", name="answer-from-handbook, version 1").click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("answer-from-handbook")
    tab.go_back()
    expect(tab.locator("[aria-selected=true]")).to_contain_text("write-answer")


def test_scores_stand_where_they_were_given(shop: Shop, tab: Page) -> None:
    found = shop.client.get("/api/public/v3/scores", params={"fields": "details,subject"}).json()
    score = next(one for one in found["data"] if one["subject"]["kind"] == "trace")
    opened(tab, shop.client, f"/project/local/traces/{score['subject']['id']}")
    expect(tab.get_by_role("table", name="Scores")).to_contain_text(score["name"])


def test_an_unknown_cost_is_never_a_zero(shop: Shop, tab: Page) -> None:
    row = next(row for row in shop.rows if row["model"] and not row["costDetails"])
    opened(tab, shop.client, f"/project/local/traces/{row['traceId']}?observation={row['id']}")
    expect(tab.locator(f"[role=treeitem][data-key='{row['id']}'] .number").last).to_have_text("unknown")
    usage = tab.get_by_role("table", name="Usage")
    expect(usage).to_contain_text("unknown")
    expect(usage).not_to_contain_text("$")
    opened(tab, shop.client, "/traces?cost=unknown")
    expect(tab.locator("td[data-label=Cost]").first).to_contain_text("unknown")
    expect(tab.locator("main")).not_to_contain_text("$0 ")


def test_a_session_is_a_conversation_in_order(shop: Shop, tab: Page) -> None:
    session = shop.trace("answer-from-handbook")[0]["sessionId"]
    turns = [row for row in shop.rows if row["sessionId"] == session and row["isRootObservation"]]
    opened(tab, shop.client, "/sessions")
    tab.get_by_role("link", name=session).click()
    expect(tab.locator(".turns li")).to_have_count(len(turns))
    for item, row in zip(tab.locator(".turns li").all(), turns, strict=True):
        expect(item).to_contain_text(row["input"])
        expect(item).to_contain_text(row["output"])


def test_a_user_is_summed_up(shop: Shop, tab: Page) -> None:
    own = [row for row in shop.rows if row["userId"] == "customer-17"]
    tokens = sum(row["totalUsage"] for row in own)
    calls = sum(row["type"] in ("GENERATION", "EMBEDDING") for row in own)
    opened(tab, shop.client, "/users")
    line = tab.locator("tr", has_text="customer-17")
    expect(line.locator("[data-label=Tokens]")).to_have_text(f"{tokens:,}")
    expect(line.locator("[data-label='Model calls']")).to_have_text(str(calls))
    cost = sum(row["totalCost"] for row in own)
    written = line.locator("[data-label=Cost]").inner_text().split()[0]
    assert float(written.removeprefix("$")) == pytest.approx(cost, rel=0.01)
    tab.get_by_role("link", name="customer-17").click()
    expect(tab.get_by_role("heading", level=1)).to_have_text("User customer-17")


def test_a_chart_says_its_values_to_pointer_and_keyboard(shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, "/dashboard?period=24h")
    for name in ("Cost by model", "Tokens", "Model calls", "Latency of model calls"):
        figure = tab.get_by_role("figure", name=name, exact=True)
        zones = figure.locator(".zone")
        expect(zones.first).to_be_attached()
        zones.last.hover()
        expect(figure.locator(".tip")).to_be_visible()
    teams = tab.get_by_role("figure", name="Cost by team")
    teams.get_by_text("Values as a table").press("Enter")
    costs: dict[str, float] = {}
    for row in shop.rows:
        for tag in row["tags"]:
            costs[tag] = costs.get(tag, 0) + row["totalCost"]
    for team in ("team:sales", "team:support", "team:logistics"):
        cell = teams.locator("tr", has_text=team).locator("td").last
        assert float(cell.inner_text().strip("$")) == pytest.approx(costs[team], rel=0.01)
    tab.get_by_label("Period").select_option("7d")
    expect(tab).to_have_url(re.compile("period=7d"))
    expect(tab.locator(".tiles")).to_contain_text("Error rate")


def test_two_versions_of_a_prompt_differ_line_by_line(fresh: httpx.Client, tab: Page) -> None:
    name = "answer/from handbook"
    for text in ("Answer.\nBe brief.\n{{passages}}", "Answer.\nBe kind.\n{{passages}}"):
        body = {"name": name, "prompt": text, "labels": ["production"]}
        assert fresh.post("/api/public/v2/prompts", json=body).status_code == 201
    opened(tab, fresh, "/prompts")
    tab.get_by_role("link", name=name).click()
    expect(tab.locator(".versions a")).to_have_count(2)
    expect(tab.locator(".versions [aria-current]")).to_contain_text("production")
    expect(tab.locator("ins")).to_have_text("+ Be kind.")
    expect(tab.locator("del")).to_have_text("- Be brief.")


def test_experiments_stand_side_by_side(shop: Shop, tab: Page) -> None:
    query = {"fromStartTime": "2020-01-01T00:00:00Z"}
    runs = shop.client.get("/api/public/experiments", params=query).json()["data"]
    baseline = next(run for run in runs if "baseline" in run["name"])
    # The address that the SDK prints after an experiment.
    opened(tab, shop.client, f"/project/local/experiments/results?baseline={baseline['id']}")
    items = tab.get_by_role("table", name="Items")
    expect(items.locator("thead th")).to_have_count(2 + len(runs))
    expect(items.locator("thead th").nth(2)).to_contain_text("baseline")
    expect(items.locator("tbody tr")).to_have_count(baseline["itemCount"])
    expect(items.locator(".worse").first).to_contain_text("▼")
    expect(items.locator(".better").first).to_contain_text("▲")
    tab.get_by_role("checkbox", name="candidate").uncheck()
    expect(items.locator("thead th")).to_have_count(3)


# Filters and pages

FITS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bool]]] = {
    "name": ("handbook", lambda t: "handbook" in t[0]["name"]),
    "user": ("customer-17", lambda t: t[0]["userId"] == "customer-17"),
    "tag": ("team:sales", lambda t: "team:sales" in t[0]["tags"]),
    "environment": ("sdk-experiment", lambda t: t[0]["environment"] == "sdk-experiment"),
    "level": ("ERROR", lambda t: any(row["level"] == "ERROR" for row in t)),
    "tokens": ("200", lambda t: sum(row["totalUsage"] for row in t) >= 200),
    "cost": ("0.0001", lambda t: sum(row["totalCost"] for row in t) >= 0.0001),
    "latency": ("0.03", lambda t: (t[0]["latency"] or 0) >= 0.03),
    "text": (
        "RADIATOR",
        lambda t: any("radiator" in f"{r['input']} {r['output']}".lower() for r in t),
    ),
}


@pytest.mark.parametrize("key", [*FITS, "session", "to", "from"])
def test_a_filter_finds_what_fits_and_stands_in_the_address(
    key: str, shop: Shop, tab: Page
) -> None:
    session = shop.trace("answer-from-handbook")[0]["sessionId"]
    middle = shop.trace("answer-from-handbook")[0]["startTime"][:19]
    value, fits = {
        **FITS,
        "session": (session, lambda t: t[0]["sessionId"] == session),
        "to": (middle, lambda t: t[0]["startTime"] < middle),
        "from": (middle, lambda t: t[0]["startTime"] >= middle),
    }[key]
    wanted = [trace_id for trace_id, rows in shop.traces().items() if fits(rows)]
    assert 0 < len(wanted) < len(shop.traces()), "the filter has something to do"
    opened(tab, shop.client, "/")
    field = tab.locator(f".filters [name={key}]")
    if key == "level":
        field.select_option(value)
    else:
        field.fill(value)
    expect(tab).to_have_url(re.compile(rf"\?{key}="))
    settled(tab)
    found = tab.locator(".more span")
    expect(found).to_have_text(re.compile(r"\d+ shown"))
    shown = shown_traces(tab)
    assert set(shown) <= set(wanted)
    assert len(shown) == len(set(shown)) >= min(50, len(wanted))
    if len(wanted) <= 50:
        assert shown == wanted, "the newest first"
    tab.reload()
    expect(found).to_have_text(f"{len(shown)} shown")
    assert shown_traces(tab) == shown
    expect(tab.locator(f".filters [name={key}]")).to_have_value(value.removesuffix(":00"))


def test_filters_add_up_and_can_be_cleared(shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, "/traces?tag=team%3Asales&user=ada&tokens=%3C100")
    wanted = [
        trace_id
        for trace_id, rows in shop.traces().items()
        if "team:sales" in rows[0]["tags"]
        and rows[0]["userId"] == "ada"
        and sum(row["totalUsage"] for row in rows) < 100
    ]
    expect(tab.locator(".more span")).to_have_text(f"{len(wanted)} shown")
    assert shown_traces(tab) == wanted
    tab.get_by_role("link", name="Clear the filters").click()
    expect(tab.locator(".more span")).to_have_text("50 shown")
    opened(tab, shop.client, "/traces?name=nothing-is-called-so")
    expect(tab.locator("main")).to_contain_text("No trace fits these filters.")


def test_every_trace_is_on_one_page(shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, "/")
    seen: list[str] = []
    while True:
        expect(tab.locator(".more span")).to_have_text(re.compile("shown"))
        seen += shown_traces(tab)
        older = tab.get_by_role("link", name="Older traces")
        if not older.count():
            break
        older.click()
        expect(tab.locator("table a.row").first).not_to_have_attribute(
            "href", f"/project/local/traces/{seen[-50]}"
        )
        settled(tab)
    starts = {trace_id: rows[0]["startTime"] for trace_id, rows in shop.traces().items()}
    assert len(seen) == len(starts)
    assert {*seen} == {*starts}
    assert [starts[one][:23] for one in seen] == sorted(
        (start[:23] for start in starts.values()), reverse=True
    )


# What is stored


def span(number: int, parent: int = 0, **attributes: str) -> dict[str, Any]:
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


LESSON_FOR = {
    "traces": "01",
    "sessions": "02",
    "users": "02",
    "dashboard": "01",
    "prompts": "03",
    "datasets": "05",
}


@pytest.mark.parametrize(("view", "lesson"), [*LESSON_FOR.items()])
def test_an_empty_database_says_how_to_fill_it(
    view: str, lesson: str, fresh: httpx.Client, tab: Page
) -> None:
    opened(tab, fresh, f"/project/local/{view}")
    expect(tab.locator("main .nothing")).to_contain_text(
        f"python {next(name for name in LESSONS if name.startswith(lesson))}"
    )


def test_a_trace_appears_while_one_looks(fresh: httpx.Client, tab: Page) -> None:
    opened(tab, fresh, "/")
    expect(tab.locator("main")).to_contain_text("Nothing is stored yet")
    send(fresh, span(1))
    expect(tab.locator("table")).to_contain_text("step-1")
    tab.get_by_role("link", name="step-1").click()
    expect(tab.get_by_role("treeitem")).to_have_count(1)
    send(fresh, span(2, 1))
    expect(tab.get_by_role("treeitem")).to_have_count(2)


def test_a_server_that_was_started_again_is_asked_again(
    desk: Desk, tab: Page, wrong: list[str]
) -> None:
    with desk.serving() as client:
        send(client, span(1))
        opened(tab, client, "/")
        expect(tab.locator("table")).to_contain_text("step-1")
    expect(tab.locator("#said")).to_contain_text("is it still running?")
    with desk.serving() as client:
        send(client, span(2), {**span(3), "traceId": f"{7:032x}"})
        expect(tab.locator("table")).to_contain_text("step-3")
        expect(tab.locator("#said")).to_be_empty()
    assert all("ERR_CONNECTION" in text or "401" in text for text in wrong)
    wrong.clear()


def test_five_hundred_observations_are_one_readable_trace(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, span(1), *(span(number, max(1, number // 3)) for number in range(2, 501)))
    opened(tab, fresh, f"/project/local/traces/{TRACE}?observation={400:016x}")
    items = tab.get_by_role("treeitem")
    expect(items).to_have_count(500)
    expect(tab.locator("[aria-selected=true]")).to_contain_text("step-400")
    expect(tab.locator("[aria-selected=true]")).to_be_in_viewport()
    items.first.focus()
    items.first.click()
    tab.keyboard.press("ArrowLeft")
    expect(items).to_have_count(1)


def test_spans_in_a_circle_are_shown_once(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, span(1), span(3, 4), span(4, 3), span(5, 99))
    opened(tab, fresh, f"/project/local/traces/{TRACE}")
    expect(tab.get_by_role("treeitem")).to_have_count(4)


ATTACK = '<img src=x onerror="window.__hacked=1"><script>window.__hacked=1</script>\'"&{{7*7}}'
LINK = "javascript:window.__hacked=1"


def test_hostile_text_is_shown_as_text_and_never_runs(fresh: httpx.Client, tab: Page) -> None:
    parts = ("input", "output", "model__name", "status_message", "level", "prompt__name", "type")
    hostile: Any = {f"langfuse__observation__{part}": ATTACK for part in parts}
    common: Any = {"user__id": ATTACK, "session__id": ATTACK, "langfuse__trace__tags": ATTACK}
    chat = json.dumps([{"role": ATTACK, "content": ATTACK, ATTACK: {ATTACK: [ATTACK, LINK]}}])
    usage = json.dumps({ATTACK: 5})
    send(
        fresh,
        {**span(1, **hostile, **common), "name": ATTACK},
        {
            **span(2, 1, **{f"langfuse.observation.metadata.{ATTACK}": ATTACK}, **common),
            "name": LINK,
        },
        span(3, 1, langfuse__observation__input=chat, langfuse__observation__output=chat),
        span(
            4,
            1,
            langfuse__observation__usage_details=usage,
            langfuse__observation__model__name=ATTACK,
        ),
    )
    score = {"name": ATTACK, "value": ATTACK, "comment": ATTACK, "traceId": TRACE}
    in_session = {"name": ATTACK, "value": 1, "comment": ATTACK, "sessionId": ATTACK}
    fresh.post("/api/public/scores", json=[score, in_session]).raise_for_status()
    for text in (ATTACK, f"{ATTACK}\nmore"):
        body = {"name": ATTACK, "prompt": text, "commitMessage": ATTACK, "tags": [ATTACK]}
        fresh.post("/api/public/v2/prompts", json=body).raise_for_status()
    dataset = {"name": ATTACK, "description": ATTACK}
    fresh.post("/api/public/v2/datasets", json=dataset).raise_for_status()
    item = {"datasetName": ATTACK, "input": ATTACK, "expectedOutput": {ATTACK: ATTACK}}
    fresh.post("/api/public/dataset-items", json=item).raise_for_status()

    def harmless() -> None:
        expect(tab.locator("main")).to_contain_text(ATTACK)
        assert tab.locator("main img, main script, main iframe, main [onerror]").count() == 0
        assert tab.locator("a[href^='javascript']").count() == 0
        assert tab.evaluate("window.__hacked") is None

    for view in ("traces", "sessions", "users", "prompts", "datasets"):
        opened(tab, fresh, f"/project/local/{view}")
        harmless()
        link = tab.locator("a.row").first
        link.click()
        settled(tab)
        harmless()
    opened(tab, fresh, "/dashboard?period=90d")
    expect(tab.get_by_role("figure", name="Scores from 0 to 1")).to_contain_text(ATTACK)
    harmless()
    for number in (1, 2, 3, 4):
        opened(tab, fresh, f"/project/local/traces/{TRACE}?observation={number:016x}")
        expect(tab.locator(".detail h2")).to_be_visible()
        harmless()
    opened(
        tab, fresh, f"/project/local/traces?{httpx.QueryParams({'name': ATTACK, 'cursor': ATTACK})}"
    )
    assert tab.evaluate("window.__hacked") is None


def test_texts_messages_and_json_each_have_their_form(fresh: httpx.Client, tab: Page) -> None:
    chat = [
        {"role": "system", "content": "Answer."},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]},
    ]
    send(
        fresh,
        span(
            1,
            langfuse__observation__input=json.dumps({"messages": chat}),
            langfuse__observation__output=json.dumps({"a": {"b": [1, None, True]}}),
        ),
        span(
            2,
            1,
            langfuse__observation__input="[no JSON",
            langfuse__observation__output="two\nlines",
        ),
    )
    detail = opened(tab, fresh, f"/project/local/traces/{TRACE}").locator(".detail")
    expect(detail.locator(".message")).to_have_count(2)
    expect(detail.locator(".message").last).to_contain_text("search")
    expect(detail.locator(".json summary").first).to_have_text("a: object of 1")
    detail.locator(".json summary").first.click()
    expect(detail.get_by_text("list of 3")).to_be_hidden()
    opened(tab, fresh, f"/project/local/traces/{TRACE}?observation={2:016x}")
    expect(detail.locator("pre").nth(0)).to_have_text("[no JSON")
    expect(detail.locator("pre").nth(1)).to_have_text("two\nlines")


# Everyone's eyes and hands


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone_and_has_contrast(scheme: Any, shop: Shop, tab: Page) -> None:
    tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    rows = shop.trace("answer-from-handbook", level="ERROR")
    trace = f"traces/{rows[0]['traceId']}?observation={rows[-1]['id']}"
    session = f"sessions/{rows[0]['sessionId']}"
    for view in (*VIEWS, trace, session, "prompts/answer-from-handbook", "datasets/shop-questions"):
        tab.set_viewport_size({"width": 1280, "height": 860})
        opened(tab, shop.client, f"/project/local/{view}")
        assert tab.evaluate(CONTRAST) == [], view
        tab.set_viewport_size({"width": 390, "height": 800})
        tab.wait_for_function("document.documentElement.scrollWidth === 390")


# Texts that do not stand out from what is behind them, by WCAG's formula.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (color.startsWith('rgb(')) return rgb(color);
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const front = light(rgb(node instanceof SVGElement ? style.fill : style.color));
    const back = light(behind(node));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) bad.push(`${node.className} ${node.textContent.slice(0, 30)} ${ratio}`);
  }
  return bad;
}"""


def test_the_keyboard_is_enough(shop: Shop, tab: Page) -> None:
    trace = shop.trace("answer-from-handbook", name="check-grounding")
    opened(tab, shop.client, "/traces?name=answer-from-handbook&level=DEFAULT")
    expect(tab.locator(".more span")).to_have_text(re.compile("shown"))
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the content")).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    target = f"/project/local/traces/{trace[0]['traceId']}"
    focused = "document.activeElement.getAttribute('href')"
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.type") != "datetime-local":  # has parts inside
            assert tab.evaluate(outline) != "none", "the focus can be seen"
        if tab.evaluate(focused) == target:
            break
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("treeitem").first).to_be_visible()
    for _ in range(5):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.getAttribute('role')") == "treeitem":
            break
    chosen = tab.locator("[role=treeitem][aria-selected=true]")
    expect(chosen).to_be_focused()
    names = ["answer-from-handbook", "rewrite-query", "find-passages", "search-by"]
    for name in names:
        expect(chosen).to_contain_text(name)
        expect(tab.locator(".detail h2")).to_contain_text(name)
        tab.keyboard.press("ArrowDown")
        expect(chosen).not_to_contain_text(name + "e")
    count = tab.get_by_role("treeitem").count()
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowLeft")
    expect(tab.get_by_role("treeitem")).to_have_count(1)
    tab.keyboard.press("ArrowRight")
    expect(tab.get_by_role("treeitem")).to_have_count(count)
    tab.keyboard.press("End")
    expect(tab.get_by_role("treeitem").last).to_be_focused()
    tab.keyboard.press("ArrowLeft")
    expect(chosen).to_contain_text("answer-from-handbook")


# Who may read


OURS = {"sec-fetch-site": "same-origin"}


def test_only_our_own_page_is_signed_in_and_only_to_read(shop: Shop) -> None:
    url = str(shop.client.base_url)
    with httpx.Client(base_url=url, trust_env=False, verify=False) as stranger:
        page = stranger.get("/")
        cookie = page.headers["set-cookie"]
        for attribute in ("HttpOnly", "SameSite=strict", "Path=/api/public"):
            assert attribute in cookie
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        projects = "/api/public/projects"
        assert stranger.get(projects, headers=OURS).status_code == 200
        for site in ("same-site", "cross-site", "none", ""):
            answer = stranger.get(projects, headers={"sec-fetch-site": site})
            assert answer.status_code == 401, site
        assert stranger.get(projects).status_code == 401
        other = {**OURS, "origin": "http://127.0.0.1:8000"}
        assert stranger.get(projects, headers=other).status_code == 403
        foreign = {**OURS, "host": "langfuse.example"}
        assert stranger.get(projects, headers=foreign).status_code == 421
        for method, path in (
            ("POST", SPANS),
            ("POST", "/api/public/scores"),
            ("DELETE", f"/api/public/traces/{TRACE}"),
            ("PATCH", "/api/public/v2/prompts/a/versions/1"),
            ("HEAD", projects),
        ):
            assert stranger.request(method, path, headers=OURS).status_code == 401, path
        (name,) = stranger.cookies
        for value in ("", "guess", stranger.cookies[name] + "x"):
            bad = {**OURS, "cookie": f"{name}={value}"}
            assert httpx.get(url + projects, headers=bad, trust_env=False).status_code == 401
        wrong_keys = ("pk-lf-local", "wrong")
        assert stranger.get(projects, headers=OURS, auth=wrong_keys).status_code == 401


def test_no_file_is_handed_out_but_the_pages_own(shop: Shop) -> None:
    kinds = {"style.css": "text/css", "app.js": "text/javascript", "base.js": "text/javascript"}
    for name, kind in kinds.items():
        answer = shop.client.get(f"/page/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
    for path in (
        "/page/",
        "/page/index.html",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/server.py",
        "/.env",
    ):
        answer = shop.client.get(path)
        assert answer.status_code == 404, path
        assert "import" not in answer.text
    for path in ("/traces/../../server.py", "/project/local/%2e%2e%2fserver.py"):
        assert "import asyncio" not in shop.client.get(path).text


def test_the_page_asks_nobody_else(shop: Shop, tab: Page) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for view in VIEWS:
        opened(tab, shop.client, f"/project/local/{view}")
    home = str(shop.client.base_url)
    assert [url for url in asked if not url.startswith((home, "data:"))] == []
    folder = Path(__file__).parents[1] / "local_langfuse" / "page"
    for script in folder.glob("*.js"):
        source = script.read_text()
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source
        )
        assert "https://" not in source
