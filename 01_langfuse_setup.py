"""Connect to Langfuse, and prove it.

Most first hours with a new tool go into one wrong key or one wrong address, found
out after the fact. Say first which settings are in force and whether they work; then
send one trace, and believe in it only when it has been read back.

A trace is what happened for one request. It consists of observations, nested like the
calls of your functions: a generation is a call of a model, with tokens and cost; a
retriever is a search; a chain joins steps; any other step is a span.

Run it:

    python 01_langfuse_setup.py

The traces have this shape, each of the three made in a different way:

    answer-question      chain       x 3
      find-passages      retriever
      write-answer       generation

Try next: change QUESTION to "Can I pay in dollars?" and open the link. The output of
`find-passages` is all that the model got to read; is its answer to blame, or the search?
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from langfuse import Langfuse, get_client, observe
from langfuse.api import ObservationV2
from langfuse.api.core import ApiError, RequestOptions
from langfuse.openai import OpenAI

from common.client import connect, tracing_is_on
from common.console import fail, show_line, show_result, show_section, show_table, show_trace
from common.readback import poll, sent_count
from common.retriever import search
from common.settings import read_settings

QUESTION = "Can I return shoes after 20 days?"
DECISIVE = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_TRACING_ENABLED")


# %% 1. Say which settings are in force
#
# A value can come from three places, and the wrong one wins silently: a variable you
# exported last week beats the `.env` you are editing now.


def settings_in_force() -> list[tuple[str, str, str]]:
    """Return name, value and source of what is set and of what decides, keys masked.

    In Langfuse: a project's public key is shown in its settings under API Keys. Compare
    the last four characters with the row here.
    """
    return [
        (setting.name, setting.shown or "not set", setting.source)
        for setting in read_settings().values()
        if setting.source != "default" or setting.name in DECISIVE
    ]


# %% 2. Check the connection before you trust it
#
# The SDK sends in the background and never raises into your application, so a wrong
# key or address loses every trace in silence. `langfuse.auth_check()` answers yes or no;
# the functions here ask the same with a short time limit, and say what to change.


@dataclass(frozen=True)
class Check:
    """One thing that was tried; `fix` is empty when it worked."""

    name: str
    found: str
    fix: str = ""


QUICKLY: RequestOptions = {"timeout_in_seconds": 2, "max_retries": 0}
OLDEST_SERVER = (4, 59)  # what SDK 5 needs; an older server belongs to SDK 4
CLOUD_REGIONS = (
    "https://cloud.langfuse.com",  # EU
    "https://us.cloud.langfuse.com",
    "https://jp.cloud.langfuse.com",
    "https://hipaa.cloud.langfuse.com",
)


def check_connection(
    langfuse: Langfuse, base_url: str, regions: Sequence[str] = CLOUD_REGIONS
) -> list[Check]:
    """Try the address, the server's version and the keys; stop at the first failure.

    The last check tells: its `fix` is empty when all is well.
    """
    try:
        health = langfuse.api.health.health(request_options=QUICKLY)
    except (httpx.HTTPError, ApiError, ValueError) as error:
        return [explain_no_health(base_url, error)]
    checks = [
        Check("address", f"{base_url} answers {health.status}"),
        check_version(health.version),
    ]
    if not checks[-1].fix:
        checks.append(check_keys(langfuse, base_url, regions))
    return checks


def explain_no_health(base_url: str, error: Exception) -> Check:
    """Turn a failed health request into what was found and the one thing to change."""
    said = str(error)
    if isinstance(error, httpx.TimeoutException):
        found, fix = "no answer within 2 seconds", "Check the host, your VPN and your firewall."
    elif isinstance(error, ApiError) and 300 <= (error.status_code or 0) < 400:
        target = urlsplit((error.headers or {}).get("location", ""))
        found = f"it redirects to {target.scheme}://{target.netloc}"
        fix = f"Set LANGFUSE_BASE_URL={target.scheme}://{target.netloc}"
    elif isinstance(error, httpx.RemoteProtocolError) or "HTTPS port" in said:
        found, fix = "the server expects https", "Write https:// in LANGFUSE_BASE_URL."
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        found, fix = "its certificate is not trusted", "Point SSL_CERT_FILE to your company's CA."
    elif "SSL" in said:
        found, fix = "the server does not speak https", "Write http:// in LANGFUSE_BASE_URL."
    elif "[Errno -" in said or "getaddrinfo" in said:
        found, fix = "no such host is known here", "Check LANGFUSE_BASE_URL and your network."
    elif isinstance(error, httpx.HTTPError):
        found, fix = f"nothing listens there ({said})", "Start it, or correct LANGFUSE_BASE_URL."
    elif isinstance(error, ApiError) and (error.status_code or 0) >= 500:
        found, fix = f"it answers {error.status_code}", "Look at the server's log, or try again."
    else:
        found = "something answers that is not Langfuse, such as a proxy's sign-in page"
        fix = "Correct LANGFUSE_BASE_URL, or let the proxy pass this address."
    return Check("address", f"{base_url}: {found}", fix)


def check_version(version: str) -> Check:
    """Compare the server's version with the oldest one that SDK 5 can talk to."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_SERVER:
        fix = "Upgrade Langfuse to 4.59 or later, or stay on it with `pip install 'langfuse<5'`."
        return Check("version", f"{version} is too old for SDK 5", fix)
    return Check("version", version)


def check_keys(langfuse: Langfuse, base_url: str, regions: Iterable[str]) -> Check:
    """Ask for the project that the keys belong to.

    On Langfuse Cloud a right key in the wrong region looks like a wrong key. The other
    regions are asked whether they can be reached; the keys are not sent there.
    """
    try:
        projects = langfuse.api.projects.get(request_options=QUICKLY).data
    except (httpx.HTTPError, ApiError, ValueError) as error:
        status = error.status_code if isinstance(error, ApiError) else None
        if status not in (401, 403):
            return Check("keys", f"no answer ({status or error})", "Look at the server's log.")
        fix = "Copy both keys again from the project's settings, API Keys."
        if base_url in regions:
            others = " or ".join(reachable(url for url in regions if url != base_url))
            fix += (
                f" Keys of another region need its LANGFUSE_BASE_URL: {others or 'none answers'}."
            )
        return Check("keys", f"refused ({status})", fix)
    return Check("keys", f"accepted, for the project {', '.join(each.name for each in projects)}")


def reachable(urls: Iterable[str]) -> list[str]:
    """Return the addresses among these that answer a health request within 2 seconds."""
    answering = []
    for url in urls:
        try:
            httpx.get(f"{url}/api/public/health", timeout=2).raise_for_status()
        except httpx.HTTPError:
            continue
        answering.append(url)
    return answering


# %% 3. Send a first trace, three ways
#
# The decorator is the shortest and fits functions you own. The context manager fits a
# stretch of code inside a function. By hand fits callbacks and queues, where start and
# end lie far apart; nothing is nested for you, and nothing is sent before `end()`.
#
# The ids of the traces are chosen beforehand only so that section 4 can read them back.
# Each way takes one in its own spelling; leave it out, and the SDK makes one.


def write_answer(client: OpenAI, question: str, passages: list[str], **parent: str) -> str:
    """Ask the model; `langfuse.openai` makes the call a generation without further help.

    In Langfuse: select `write-answer`. You see the messages as sent, the tokens by
    kind, and the price of this one call.
    """
    response = client.chat.completions.create(
        name="write-answer",
        model=os.environ["OPENAI_MODEL"],
        messages=[
            {"role": "system", "content": "Answer only from:\n" + "\n".join(passages)},
            {"role": "user", "content": question},
        ],
        max_completion_tokens=500,  # reasoning tokens count too
        **parent,
    )
    return response.choices[0].message.content or ""


@observe(name="find-passages", as_type="retriever", capture_input=False)
def find_passages(question: str) -> list[str]:
    """Search the handbook; the return value becomes the output by itself.

    In Langfuse: the input is the question. Captured by itself it would be
    `{"args": ["Can I …"], "kwargs": {}}`, and a client object among the arguments with it.
    """
    get_client().update_current_span(input=question)
    return [passage.text for passage in search(question)]


@observe(name="answer-question", as_type="chain", capture_input=False)
def answer_with_decorator(client: OpenAI, question: str) -> str:
    """Trace by decorating: the nesting of the calls is the nesting of the trace.

    In Langfuse: select the root. Its duration is what the user waited for; the children
    say where that time went. Called with `langfuse_trace_id=`, it uses that id.
    """
    get_client().update_current_span(input=question)
    return write_answer(client, question, find_passages(question))


def answer_with_context_manager(client: OpenAI, question: str, trace_id: str) -> str:
    """Trace with `with` blocks: what runs inside a block becomes its child.

    In Langfuse: the tree is the same as the decorator's. An exception marks its block as
    an error, and every block around it that does not catch it.
    """
    langfuse = get_client()
    with langfuse.start_as_current_observation(
        name="answer-question",
        as_type="chain",
        input=question,
        trace_context={"trace_id": trace_id},
    ) as root:
        with langfuse.start_as_current_observation(
            name="find-passages", as_type="retriever", input=question
        ) as step:
            passages = [passage.text for passage in search(question)]
            step.update(output=passages)
        answer = write_answer(client, question, passages)
        root.update(output=answer)
    return answer


def answer_by_hand(client: OpenAI, question: str, trace_id: str) -> str:
    """Trace by hand: name the parent of each child, and end each one.

    In Langfuse: the same tree again. Forget an `end()` and that node never appears.
    """
    root = get_client().start_observation(
        name="answer-question",
        as_type="chain",
        input=question,
        trace_context={"trace_id": trace_id},
    )
    step = root.start_observation(name="find-passages", as_type="retriever", input=question)
    passages = [passage.text for passage in search(question)]
    step.update(output=passages).end()
    answer = write_answer(
        client, question, passages, trace_id=trace_id, parent_observation_id=root.id
    )
    root.update(output=answer).end()
    return answer


# %% 4. Read it back
#
# A trace that was sent is not yet a trace that was stored. `flush()` hands over what is
# waiting; Langfuse Cloud shows it some seconds later, so ask until it is complete.


def read_back(langfuse: Langfuse, trace_id: str, expected: int) -> list[ObservationV2]:
    """Return the stored observations of a trace, waiting up to 30 seconds for all of them.

    In Langfuse: the tree on the left of a trace's page. `fields` adds what you see when
    you select a node: `io`, `usage`, `model`, `metadata` and more.
    """

    def read() -> list[ObservationV2]:
        page = langfuse.api.observations.get_many(trace_id=trace_id, fields="core,basic")
        stored: list[ObservationV2] = page.data
        return stored

    return poll(read, until=lambda stored: len(stored) >= expected)


def shape(observations: list[ObservationV2]) -> frozenset[tuple[str, str, str]]:
    """Return name, type and parent's name of each node: the tree without its particulars.

    Two traces of one shape took the same path through your code.
    """
    names = {node.id: node.name or "" for node in observations}
    return frozenset(
        (node.name or "", node.type, names.get(node.parent_observation_id or "", ""))
        for node in observations
    )


def main() -> None:
    """Settings, connection, three traces of one shape, and the proof that they are stored."""
    connect()
    langfuse, client = Langfuse(), OpenAI(timeout=60)

    show_section("1. Settings in force")
    show_table(("setting", "value", "from"), settings_in_force())

    show_section("2. Connection")
    if tracing_is_on():
        checks = check_connection(langfuse, os.environ["LANGFUSE_BASE_URL"])
        for check in checks:
            show_result(check.name, f"{'FAILED  ' if check.fix else ''}{check.found}")
        if checks[-1].fix:
            fail(checks[-1].fix, 1)
    else:
        show_line("  skipped: tracing is off")

    show_section("3. One question, traced three ways")
    first, second, third = (langfuse.create_trace_id() for _ in range(3))
    show_result("question", QUESTION)
    show_result("decorator", answer_with_decorator(client, QUESTION, langfuse_trace_id=first))
    show_result("context manager", answer_with_context_manager(client, QUESTION, second))
    show_result("by hand", answer_by_hand(client, QUESTION, third))

    langfuse.flush()  # hand over what is waiting before anyone looks
    show_section("4. Read back from where it was stored")
    if tracing_is_on():
        ids = (first, second, third)
        stored = [rows for each in ids if (rows := read_back(langfuse, each, sent_count(each)))]
        show_result("traces", len(stored))
        show_result("different shapes", len({shape(rows) for rows in stored}))
        show_trace(first)
    else:
        show_line("  skipped: tracing is off")


if __name__ == "__main__":
    main()
