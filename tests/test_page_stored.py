"""The page on databases of its own: empty, hostile, growing while one looks, and large."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
from browsing import (
    TRACE,
    TYPING_MS,
    needs_chromium,
    opened,
    paged_traces,
    refreshed,
    send,
    serving,
    settled,
    shown_traces,
    span,
)
from conftest import LESSONS
from playwright.sync_api import Page, Route, expect

pytest_plugins = ["browsing"]
pytestmark = needs_chromium


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


LESSON_FOR = {
    "traces": "01",
    "sessions": "02",
    "users": "02",
    "dashboard": "01",
    "prompts": "03",
    "datasets": "05",
}


def test_an_empty_database_says_how_to_fill_it(fresh: httpx.Client, tab: Page) -> None:
    for view, lesson in LESSON_FOR.items():
        opened(tab, fresh, f"/project/local/{view}")
        expect(tab.locator("main .nothing")).to_contain_text(
            f"python {next(name for name in LESSONS if name.startswith(lesson))}"
        )


def test_a_trace_appears_while_one_looks(fresh: httpx.Client, tab: Page) -> None:
    opened(tab, fresh, "/")
    expect(tab.locator("main")).to_contain_text("Nothing is stored yet")
    send(fresh, span(1))
    refreshed(tab)
    expect(tab.locator("table")).to_contain_text("step-1")
    tab.get_by_role("link", name="step-1").click()
    expect(tab.get_by_role("treeitem")).to_have_count(1)
    send(fresh, span(2, 1))
    refreshed(tab)
    expect(tab.get_by_role("treeitem")).to_have_count(2)


def test_a_server_that_was_started_again_is_asked_again(
    tmp_path: Path, tab: Page, wrong: list[str]
) -> None:
    db = tmp_path / "langfuse.db"
    with serving(db) as client:
        send(client, span(1))
        opened(tab, client, "/")
        expect(tab.locator("table")).to_contain_text("step-1")
    refreshed(tab)
    expect(tab.locator("#said")).to_contain_text("Is it still running?")
    with serving(db, client.base_url.port or 0) as client:
        send(client, span(2), {**span(3), "traceId": f"{7:032x}"})
        refreshed(tab)
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


def test_hostile_text_is_shown_as_text_and_never_runs(
    fresh: httpx.Client, tab: Page, wrong: list[str]
) -> None:
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
    expect(tab.get_by_role("alert")).to_have_text("cursor must come from the page before")
    assert tab.evaluate("window.__hacked") is None
    assert all("400" in text for text in wrong)
    wrong.clear()


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


# While one looks


def placed(number: int, trace: int, parent: int = 0, **attributes: str) -> dict[str, Any]:
    """Return a span as `span` does, of a trace of this number."""
    return {**span(number, parent, **attributes), "traceId": f"{trace:032x}"}


def call(number: int, user: str, session: str) -> dict[str, Any]:
    """Return a model call, just now, as the only span of its trace."""
    now_ns = time.time_ns()
    attributes = {
        "langfuse__observation__type": "generation",
        "langfuse__observation__model__name": "gpt-4o-mini",
        "langfuse__observation__usage_details": json.dumps({"input": 10, "output": 5}),
        "langfuse__observation__input": "line\n" * 100,
        "user__id": user,
        "session__id": session,
    }
    times = {"startTimeUnixNano": str(now_ns), "endTimeUnixNano": str(now_ns + 10**9)}
    return {**placed(number, number, 0, **attributes), **times}


def post(client: httpx.Client, path: str, **body: Any) -> None:
    client.post(f"/api/public/{path}", json=body).raise_for_status()


def add(client: httpx.Client, number: int) -> None:
    """Store something new of every kind."""
    name = f"new-{number}"
    send(client, call(number, "ada", "chat"), call(1000 + number, name, name))
    post(client, "scores", name=name, value=0.5, traceId=f"{number:032x}")
    post(client, "v2/prompts", name="answer", prompt=name)
    post(client, "v2/prompts", name=name, prompt="one")
    post(client, "v2/datasets", name=name)
    post(client, "dataset-items", datasetName="questions", id=name, input=name)


def test_every_view_follows_what_is_stored_and_leaves_the_focus(
    fresh: httpx.Client, tab: Page
) -> None:
    post(fresh, "v2/datasets", name="questions")
    add(fresh, 1)
    views = {
        "traces": ("a.row", "step-{}"),
        "traces?user=ada": (".filters [name=user]", "step-{}"),
        "sessions": ("a.row", "new-{}"),
        "sessions/chat": (".turn a", "step-{}"),
        "users": ("a.row", "new-{}"),
        "users/ada": ("a.row", "step-{}"),
        "dashboard?period=24h": ("[aria-label=Period]", "new-{}"),
        "prompts": ("a.row", "new-{}"),
        "prompts/answer": (".versions a", "new-{}"),
        "datasets": ("a.row", "new-{}"),
        "datasets/questions": (".title a", "new-{}"),
    }
    for number, (view, (focus, wanted)) in enumerate(views.items(), start=10):
        opened(tab, fresh, f"/project/local/{view}")
        tab.locator(focus).first.focus()
        tab.evaluate("window.held = document.activeElement")
        add(fresh, number)
        refreshed(tab)
        expect(tab.locator("main")).to_contain_text(wanted.format(number))
        assert tab.evaluate("document.activeElement === held && held.isConnected"), view
        assert tab.evaluate("held !== document.body"), view


def test_what_was_opened_scrolled_and_pointed_at_stays_so(fresh: httpx.Client, tab: Page) -> None:
    post(fresh, "v2/datasets", name="questions")
    add(fresh, 1)
    opened(tab, fresh, f"/project/local/traces/{1:032x}")
    tab.get_by_text("Ids, times").click()
    text = tab.locator(".detail pre")
    text.evaluate("pre => { pre.scrollTop = 300; }")
    send(fresh, placed(2, 1, 1))
    refreshed(tab)
    expect(tab.get_by_role("treeitem")).to_have_count(2)
    expect(tab.locator(".detail .json", has_text="traceId")).to_be_visible()
    assert text.evaluate("pre => pre.scrollTop") == 300

    opened(tab, fresh, "/project/local/dashboard?period=24h")
    figure = tab.get_by_role("figure", name="Model calls", exact=True)
    figure.get_by_text("Values as a table").click()
    figure.locator(".zone").last.hover()
    add(fresh, 3)
    refreshed(tab)
    calls = fresh.get("/api/public/v2/observations", params={"type": "GENERATION"}).json()["data"]
    expect(figure.locator("td").last).to_have_text(str(len(calls)))
    expect(figure.get_by_role("table")).to_be_visible()
    expect(figure.locator(".tip")).to_be_visible()
    tab.mouse.move(0, 0)
    figure.locator(".zone").last.hover()
    expect(figure.locator(".tip")).to_contain_text(f"gpt-4o-mini: {len(calls)}")


def test_the_focus_moves_with_the_row_that_has_it(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, call(1, "ada", "chat"), call(2, "ada", "chat"), call(3, "bob", "chat"))
    opened(tab, fresh, "/users")
    names = tab.locator("a.row")
    expect(names).to_have_text(["ada", "bob"])
    names.last.focus()
    send(fresh, call(4, "bob", "chat"), call(5, "bob", "chat"))
    refreshed(tab)
    expect(names).to_have_text(["bob", "ada"])
    expect(names.first).to_be_focused()


def test_one_can_go_on_typing_while_the_list_is_filtered(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, *(placed(number, number) for number in range(1, 4)))
    opened(tab, fresh, "/")
    tab.locator(".filters [name=name]").press_sequentially("step")
    tab.clock.fast_forward(TYPING_MS)
    expect(tab).to_have_url(re.compile("name=step$"))
    tab.keyboard.type("-2")
    tab.clock.fast_forward(TYPING_MS)
    expect(tab).to_have_url(re.compile("name=step-2$"))
    expect(tab.locator("a.row")).to_have_count(1)
    tab.keyboard.press("Home")
    tab.keyboard.press("Shift+End")
    tab.keyboard.type("step-3")
    tab.keyboard.press("Enter")
    expect(tab.locator("a.row")).to_have_text("step-3")
    tab.get_by_role("link", name="Clear the filters").click()
    expect(tab.locator("a.row")).to_have_count(3)
    expect(tab.locator(".filters [name=name]")).to_have_value("")


def test_a_view_that_was_left_does_not_come_back(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, placed(1, 1))
    post(fresh, "v2/prompts", name="answer", prompt="one")
    opened(tab, fresh, "/")
    tab.locator(".filters [name=name]").press_sequentially("step")
    tab.get_by_role("link", name="step-1").click()
    tab.clock.fast_forward(TYPING_MS)
    expect(tab.get_by_role("treeitem")).to_have_count(1)
    expect(tab).to_have_url(re.compile("/traces/"))
    # An answer that comes when another view is open, and one that comes late itself.
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.route("**/v2/datasets?*", hold)
    tab.route("**/v2/prompts?*", hold)
    tab.get_by_role("link", name="Datasets").click()
    expect(tab).to_have_url(re.compile("/datasets"))
    tab.get_by_role("link", name="Prompts").click()
    expect(tab).to_have_url(re.compile("/prompts"))
    expect(tab.get_by_role("heading", level=1)).to_contain_text("step-1")
    for route in held:
        route.continue_()
    settled(tab)
    expect(tab.get_by_role("heading", level=1)).to_have_text("Prompts")
    refreshed(tab)
    expect(tab.get_by_role("link", name="answer")).to_be_visible()


# Many


def filtered(tab: Page, client: httpx.Client, **asked: str) -> list[int]:
    """Return the traces of all pages for these filters, as their numbers."""
    opened(tab, client, f"/traces?{httpx.QueryParams(asked)}")
    return [int(trace_id, 16) for trace_id in paged_traces(tab)]


def test_every_trace_has_one_place_on_the_pages_of_a_filter(fresh: httpx.Client, tab: Page) -> None:
    # 75 traces, one after the other. What fits in them is spread over all that come later.
    numbers = range(1, 76)
    spans = [placed(number, number) for number in numbers]
    for number in numbers:
        for later in (200, 400, 600):
            attributes = {
                "langfuse__observation__level": "ERROR",
                "langfuse__observation__output": "Wet shoes" if number % 2 else "Dry SHOES",
            }
            place = later + (number * 37) % 190
            spans.append(placed(place, number, number, **attributes))
    # And one with three roots: it is at its first.
    spans += [placed(number, 999) for number in (60, 150, 300)]
    send(fresh, *spans)
    newest_first = [*reversed(numbers)]
    assert filtered(tab, fresh, text="shoes", level="ERROR") == newest_first
    wet = [number for number in newest_first if number % 2]
    assert filtered(tab, fresh, text="wet shoes") == wet
    assert filtered(tab, fresh, text="wet shoes", level="WARNING") == []
    everything = filtered(tab, fresh)
    assert [number for number in everything if number != 999] == newest_first
    assert everything.index(999) in (everything.index(60) - 1, everything.index(60) + 1)


def test_what_is_rare_is_found_however_old(fresh: httpx.Client, tab: Page) -> None:
    paid = {
        "langfuse__observation__type": "generation",
        "langfuse__observation__model__name": "gpt-4o-mini",
        "langfuse__observation__usage_details": json.dumps({"input": 10_000, "output": 5_000}),
    }
    unknown = {**paid, "langfuse__observation__model__name": "who-knows"}
    cheap = json.dumps({"input": 2, "output": 1})
    spans = [placed(number, number) for number in range(1, 1206)]
    spans += [
        placed(2000, 1, 1, **paid),
        placed(2001, 2, 2, **unknown),
        placed(2002, 3, 3, **{**paid, "langfuse__observation__usage_details": cheap}),
        placed(2003, 4, 4, langfuse__observation__level="ERROR"),
        placed(2004, 5, 5, langfuse__observation__input="needle"),
    ]
    send(fresh, *spans)
    assert filtered(tab, fresh, tokens="10000") == [2, 1]
    assert filtered(tab, fresh, cost="0.001") == [1]
    assert filtered(tab, fresh, cost="unknown") == [2]
    assert filtered(tab, fresh, level="ERROR") == [4]
    assert filtered(tab, fresh, text="NEEDLE") == [5]
    assert filtered(tab, fresh, tokens="1", cost="<0.001") == [3]
    # What is common is read on only until the page is full.
    opened(tab, fresh, f"/traces?{httpx.QueryParams({'cost': '<0.001'})}")
    assert shown_traces(tab) == [f"{number:032x}" for number in range(1205, 1155, -1)]


def test_what_is_common_but_old_is_found_too(fresh: httpx.Client, tab: Page) -> None:
    def call_of(number: int) -> dict[str, Any]:
        usage = json.dumps({"input": 2000 - number})
        return placed(number, number, 0, langfuse__observation__usage_details=usage)

    # More than one answer of the API can hold, and the newest of them have the fewest tokens.
    send(fresh, *map(call_of, range(1, 1101)), *(placed(n, n) for n in range(1101, 1251)))
    opened(tab, fresh, "/traces?tokens=1")
    expect(tab.locator(".more span")).to_have_text("50 shown")
    assert shown_traces(tab) == [f"{number:032x}" for number in range(1100, 1050, -1)]


def test_a_long_search_says_how_far_it_is(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, *(placed(number, number) for number in range(1, 401)))
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        held.append(route)

    tab.route("**/v2/observations?*cursor=*", hold_the_first)
    tab.goto(f"{fresh.base_url}/traces?tokens=%3C0")
    expect(tab.locator(".more")).to_have_text(
        re.compile("Looking … 100 traces so far, back to 20 Nov")
    )
    deadline = time.monotonic() + 30
    while not held and time.monotonic() < deadline:
        tab.evaluate("0")  # meanwhile Playwright tells of the request that is held
    held[0].continue_()
    expect(tab.locator("main")).to_contain_text("No trace matches these filters.")


def test_a_filter_that_cannot_be_read_is_not_left_out(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, placed(1, 1))
    for asked in ("tokens=many", "latency=1.2.3", "cost=free", "from=x", "level=BAD"):
        opened(tab, fresh, f"/traces?{asked}")
        expect(tab.get_by_role("alert")).to_contain_text("cannot be read")
        expect(tab.locator("a.row")).to_have_count(0)


def test_a_session_has_one_place_on_the_pages_of_sessions(fresh: httpx.Client, tab: Page) -> None:
    # 450 turns of 150 conversations: each has one among the newest, and one among the oldest.
    send(
        fresh,
        *(placed(number, number, session__id=f"chat-{number % 150}") for number in range(2, 450)),
        placed(450, 450, session__id="newest"),
        placed(1, 1, session__id="oldest"),
    )
    opened(tab, fresh, "/sessions")
    seen: list[str] = []
    while True:
        expect(tab.locator(".more span")).to_have_text(re.compile("shown"))
        rows = tab.locator("a.row")
        seen += rows.all_inner_texts()
        older = tab.get_by_role("link", name="Older sessions")
        if not older.count():
            break
        here = tab.url
        older.click()
        expect(tab).not_to_have_url(here)
        settled(tab)
    assert len(seen) == len({*seen}) == 152
    assert (seen[0], seen[-1]) == ("newest", "oldest")


def test_a_list_of_users_that_is_cut_says_so(fresh: httpx.Client, tab: Page) -> None:
    def of_user(number: int) -> dict[str, Any]:
        cost = json.dumps({"total": number})
        return placed(
            number,
            number,
            user__id=f"user-{number}",
            langfuse__observation__type="generation",
            langfuse__observation__model__name="m",
            langfuse__observation__cost_details=cost,
        )

    send(fresh, *map(of_user, range(1, 301)), placed(2000, 2000))
    opened(tab, fresh, "/users")
    rows = tab.locator("tbody tr")
    expect(rows).to_have_count(200)
    expect(tab.locator("main")).to_contain_text("The 200 costliest of 300 users are shown.")
    # These have more calls than the costliest, who must be counted all the same.
    send(fresh, *map(of_user, range(301, 1101)))
    often = [placed(5000 + n, 5000 + n % 1000, user__id=f"often-{n % 1000}") for n in range(2000)]
    send(fresh, *often)
    opened(tab, fresh, "/users")
    expect(rows).to_have_count(200)
    expect(rows.first).to_contain_text("user-1100")
    expect(rows.first.locator("[data-label=Traces]")).to_have_text("1")
    expect(rows.first.locator("[data-label='Model calls']")).to_have_text("1")
    expect(tab.locator("main")).to_contain_text(
        "more than the 1,000 that the Metrics API returns in one answer"
    )


def test_ids_too_long_for_one_address_are_asked_for_in_parts(
    fresh: httpx.Client, tab: Page
) -> None:
    # 100 users of 200 characters, each written in nine.
    names = {number: f"{'用' * 190}{number}" for number in range(1, 101)}
    send(fresh, *(placed(n, n, user__id=name, session__id=name) for n, name in names.items()))
    for view in ("users", "sessions"):
        opened(tab, fresh, f"/project/local/{view}")
        expect(tab.locator("tbody tr")).to_have_count(100)
        counts = tab.locator("td[data-label=Traces], td[data-label=Turns]").all_inner_texts()
        assert counts == ["1"] * 100


# One trace, by keyboard and in detail


def test_what_is_folded_away_is_not_chosen_any_more(fresh: httpx.Client, tab: Page) -> None:
    send(fresh, span(1), span(2, 1), span(3, 2))
    opened(tab, fresh, f"/project/local/traces/{TRACE}?observation={3:016x}")
    items = tab.get_by_role("treeitem")
    items.nth(1).locator(".fold").click()
    expect(items).to_have_count(2)
    expect(tab.locator("[aria-selected=true]")).to_contain_text("step-2")
    expect(tab.locator(".detail h2")).to_contain_text("step-2")
    tab.keyboard.press("ArrowRight")
    expect(items).to_have_count(3)


def test_numbers_are_shown_as_they_were_stored(fresh: httpx.Client, tab: Page) -> None:
    text = '{"id": 12345678901234567890, "price": 1.10, "count": 3}'
    send(fresh, span(1, langfuse__observation__input=text))
    detail = opened(tab, fresh, f"/project/local/traces/{TRACE}").locator(".detail")
    for wanted in ("id: 12345678901234567890", "price: 1.10", "count: 3"):
        expect(detail).to_contain_text(wanted)
