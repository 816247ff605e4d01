"""The page, in a real browser: headless Chromium on what three lessons stored.

One browser and one database serve all tests.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from browsing import (
    SPANS,
    TRACE,
    TYPING_MS,
    needs_chromium,
    opened,
    paged_traces,
    serving,
    shown_traces,
)
from conftest import LESSONS, Desk, stored_observations
from playwright.sync_api import Page, expect

pytest_plugins = ["browsing"]
pytestmark = needs_chromium
STORING = LESSONS[2:]  # the pipeline, a day of traffic, scores and experiments
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
    desk = Desk(tmp_path_factory.mktemp("shop"), vocabulary)
    with ThreadPoolExecutor() as pool:
        printed = {ran.args[1][:2]: ran.stdout for ran in pool.map(desk.run, STORING)}
    with serving(desk.db) as client:
        yield Shop(client, printed, stored_observations(client))


# The views


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/", ["Traces", "DEFAULT", "Older traces"]),
        ("/traces?name=answer-request", ["team:sales", "Latency", "Environment"]),
        ("/sessions", ["Sessions", "customer-17", "Last turn"]),
        ("/users", ["Users", "customer-17", "Model calls"]),
        (
            "/dashboard?period=1h",
            ["Cost by model", "p95", "Cost by team", "shop-topics", "unknown"],
        ),
        ("/prompts", ["answer-from-handbook", "production"]),
        ("/prompts/answer-from-handbook", ["Version 1", "latest", "{{passages}}"]),
        ("/datasets", ["shop-questions", "baseline"]),
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


def test_the_link_that_a_lesson_printed_shows_its_trace(shop: Shop, tab: Page) -> None:
    link = re.findall(r"http\S+", shop.printed["03"])[-1]
    trace_id = link.rpartition("/")[2]
    opened(tab, shop.client, f"/project/local/traces/{trace_id}")
    rows = [row for row in shop.rows if row["traceId"] == trace_id]
    items = tab.get_by_role("treeitem")
    expect(items).to_have_count(len(rows))
    shown = items.evaluate_all(
        "all => all.map(one => [one.dataset.key, one.querySelector('b').textContent,"
        " one.querySelector('.chip').textContent, one.querySelector('.bar').clientWidth > 0])"
    )
    wanted = [[row["id"], row["name"], row["type"].lower(), True] for row in rows]
    assert sorted(shown) == sorted(wanted)


def test_the_tree_shows_depth_time_cost_and_failure(shop: Shop, tab: Page) -> None:
    rows = shop.trace("answer-from-handbook", level="ERROR")
    opened(tab, shop.client, f"/project/local/traces/{rows[0]['traceId']}")
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        depth, above = 1, row["parentObservationId"]
        while above in by_id:
            depth, above = depth + 1, by_id[above]["parentObservationId"]
        item = tab.locator(f"[role=treeitem][data-key='{row['id']}']")
        expect(item).to_have_attribute("aria-level", str(depth))
    failed = next(row for row in rows if row["level"] == "ERROR")
    item = tab.locator(f"[role=treeitem][data-key='{failed['id']}']")
    expect(item.locator(".chip.ERROR")).to_be_visible()
    item.click()
    expect(tab.locator(".detail .status")).to_have_text(failed["statusMessage"])
    expect(tab).to_have_url(re.compile(f"observation={failed['id']}"))
    # The bars lie as the observations do: what starts later, starts further to the right.
    lefts = tab.get_by_role("treeitem").evaluate_all(
        "all => all.map(one => [one.dataset.key,"
        " one.querySelector('.bar').getBoundingClientRect().left])"
    )
    starts = {row["id"]: row["startTime"] for row in rows}
    in_order = [left for _, left in sorted(lefts, key=lambda one: starts[one[0]])]
    assert len(in_order) == len(rows)
    assert in_order == sorted(in_order)


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
    expect(tab.locator(f"[role=treeitem][data-key='{row['id']}'] .number").last).to_have_text(
        "unknown"
    )
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
    for team in ("team:sales", "team:support"):
        cell = teams.locator("tr", has_text=team).locator("td").last
        assert float(cell.inner_text().strip("$")) == pytest.approx(costs[team], rel=0.01)
    tab.get_by_label("Period").select_option("7d")
    expect(tab).to_have_url(re.compile("period=7d"))
    expect(tab.locator(".tiles")).to_contain_text("Error rate")


def test_a_model_has_one_colour_in_all_charts(shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, "/dashboard?period=24h")
    tab.get_by_role("figure", name="Other scores").wait_for()
    entries = (
        "all => all.map(one => [one.textContent.replace(' (cost unknown)', ''), one.className])"
    )
    legends = {
        name: tab.get_by_role("figure", name=name, exact=True).locator("li").evaluate_all(entries)
        for name in ("Cost by model", "Model calls", "Scores from 0 to 1")
    }
    cost, calls = dict(legends["Cost by model"]), dict(legends["Model calls"])
    assert len(cost) > 3
    assert cost.items() <= calls.items()
    for legend in legends.values():
        colours = [colour for _, colour in legend if colour != "series-rest"]
        assert len(colours) == len({*colours}) >= 5
    # What is drawn has the legend's colours.
    drawn = tab.get_by_role("figure", name="Cost by model").locator("rect[class^=series]")
    assert {*drawn.evaluate_all("all => all.map(one => one.className.baseVal)")} <= {*cost.values()}


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
    expect(items.locator(".better").first).to_contain_text("▲")
    tab.get_by_role("checkbox", name="candidate").uncheck()
    expect(items.locator("thead th")).to_have_count(3)
    candidate = next(run for run in runs if "candidate" in run["name"])
    opened(tab, shop.client, f"/project/local/experiments/results?baseline={candidate['id']}")
    expect(items.locator(".worse").first).to_contain_text("▼")


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
def test_a_filter_in_the_address_finds_what_fits(key: str, shop: Shop, tab: Page) -> None:
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
    opened(tab, shop.client, f"/traces?{httpx.QueryParams({key: value})}")
    expect(tab.locator(".more span")).to_have_text(re.compile(r"\d+ shown"))
    shown = shown_traces(tab)
    assert set(shown) <= set(wanted)
    assert len(shown) == len(set(shown)) >= min(50, len(wanted))
    if len(wanted) <= 50:
        assert shown == wanted, "the newest first"
    expect(tab.locator(f".filters [name={key}]")).to_have_value(value.removesuffix(":00"))


def test_what_is_typed_and_chosen_stands_in_the_address(shop: Shop, tab: Page) -> None:
    opened(tab, shop.client, "/")
    tab.locator(".filters [name=from]").fill("2026-01-02T03:04")
    tab.locator(".filters [name=name]").fill("answer-from")
    tab.locator(".filters [name=level]").select_option("ERROR")
    tab.clock.fast_forward(TYPING_MS)
    expect(tab).to_have_url(re.compile(r"\?name=answer-from&level=ERROR&from=2026-01-02T03"))
    wanted = [
        trace_id
        for trace_id, rows in shop.traces().items()
        if "answer-from" in rows[0]["name"] and any(row["level"] == "ERROR" for row in rows)
    ]
    expect(tab.locator(".more span")).to_have_text(f"{len(wanted)} shown")
    assert shown_traces(tab) == wanted


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
    expect(tab.locator("main")).to_contain_text("No trace matches these filters.")


def test_every_trace_is_on_one_page(shop: Shop, tab: Page) -> None:
    seen = paged_traces(opened(tab, shop.client, "/"))
    starts = {trace_id: rows[0]["startTime"] for trace_id, rows in shop.traces().items()}
    assert len(seen) == len(starts)
    assert {*seen} == {*starts}
    assert [starts[one][:23] for one in seen] == sorted(
        (start[:23] for start in starts.values()), reverse=True
    )


# Everyone's eyes and hands


def test_every_view_fits_a_phone_and_has_contrast(shop: Shop, tab: Page) -> None:
    rows = shop.trace("answer-from-handbook", level="ERROR")
    trace = f"traces/{rows[0]['traceId']}?observation={rows[-1]['id']}"
    session = f"sessions/{rows[0]['sessionId']}"
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for view in (*VIEWS, trace, session, "prompts/answer-from-handbook", "datasets/shop-questions"):
        opened(tab, shop.client, f"/project/local/{view}")
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 860})
            tab.wait_for_function(f"document.documentElement.scrollWidth === {width}")
            for scheme in schemes[: 2 if width > 400 else 1]:
                tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                assert tab.evaluate(CONTRAST) == [], f"{view} at {width}, {scheme}"


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
    folder = Path(__file__).parents[1] / "local_langfuse" / "page"
    scripts = dict.fromkeys((path.name for path in folder.glob("*.js")), "text/javascript")
    for name, kind in {**scripts, "style.css": "text/css"}.items():
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


def test_no_script_makes_elements_of_text_or_knows_another_address() -> None:
    folder = Path(__file__).parents[1] / "local_langfuse" / "page"
    scripts = [path.read_text() for path in folder.glob("*.js")]
    assert scripts
    for source in scripts:
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source
        )
        assert "https://" not in source
