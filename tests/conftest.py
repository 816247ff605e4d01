"""Run what a reader runs: each script as a process of its own, with its own database."""

import atexit
import gzip
import hashlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from forking import Forks

import local_langfuse
from common.settings import DEFAULTS, read_settings

TOP = Path(__file__).resolve().parents[1]
LESSONS = sorted(path.name for path in TOP.glob("[0-9][0-9]_*.py"))
RECIPES = sorted(f"recipes/{path.name}" for path in TOP.glob("recipes/[a-z]*.py"))
KEYS = ("pk-lf-local", "sk-lf-local")
SMOKE = "tests/test_smoke.py"


def scope_of(test: str) -> str:
    """Return what a test shares runs and fixtures with: all of its lesson, or of its module."""
    lesson = re.search(r"test_lesson_(\d)|\[0(\d)_", test)
    return f"lesson {lesson[1] or lesson[2]}" if lesson else test.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the tests side by side, where the package for it is installed: not for the smoke run."""
    is_worker = hasattr(config, "workerinput")
    if config.pluginmanager.hasplugin("xdist") and not is_worker and config.args != [SMOKE]:
        config.option.numprocesses = config.option.numprocesses or "auto"


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Start three workers on two cores: a third of the time a test waits for something."""
    cores = yield
    return cores + (cores + 1) // 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each scope to one worker, which then runs it as if it were alone."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = scope_of
    return scheduling


@pytest.fixture(autouse=True)
def no_settings_of_mine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the variables and the `.env` of the person who runs the tests out of them."""
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "1")
    read_settings.cache_clear()
    yield
    read_settings.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiktoken's vocabularies, so that no test fetches them."""
    folder = tmp_path_factory.mktemp("tiktoken")
    spec = find_spec("bpe_openai")  # found, not imported: it would load its own copies
    if spec is None or spec.origin is None:  # the smoke run does without: it counts by estimate
        return folder
    data = Path(spec.origin).parent / "data"
    for name in ("o200k_base", "cl100k_base"):
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        packed = (data / f"{name}.tiktoken.gz").read_bytes()
        cached = folder / hashlib.sha1(url.encode()).hexdigest()
        cached.write_bytes(gzip.decompress(packed))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)  # for the servers of this process
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client_of(base_url: str) -> httpx.Client:
    # There is no TLS here; without `verify` each client would load all certificates.
    return httpx.Client(base_url=base_url, auth=KEYS, trust_env=False, timeout=20, verify=False)


@cache
def forks() -> Forks:
    """Return what runs the commands of this worker."""
    started = Forks()
    atexit.register(started.stop)
    return started


@dataclass
class Desk:
    """A reader's desk: an empty environment, a database of its own, and a shell."""

    folder: Path
    vocabulary: Path
    port: int = field(default_factory=free_port)

    @property
    def db(self) -> Path:
        return self.folder / "langfuse.db"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHON_DOTENV_DISABLED": "1",
            "TIKTOKEN_CACHE_DIR": str(self.vocabulary),
            "LOCAL_LANGFUSE_DB": str(self.db),
            "LOCAL_LANGFUSE_PORT": str(self.port),
            **more,
        }

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python COMMAND` in the project's folder and return what it printed.

        In a fork of a process that has imported the libraries, where that can be one.
        """
        is_option = command[0].startswith("-") and command[0] != "-m"
        if is_option or "REFUSE_SOCKETS" in env or not hasattr(os, "fork"):
            return self.run_fresh(*command, **env)
        return forks().run([*command], self.environment(**env), str(TOP), 180)

    def run_fresh(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Do the same in a process of its own."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=TOP,
            env=self.environment(**env),
            capture_output=True,
            text=True,
            timeout=180,  # to end what hangs, not what a busy machine delays
            check=False,
        )

    def start_server(self, *options: str) -> subprocess.Popen[str]:
        """Start `python -m local_langfuse` and return when it answers."""
        server = subprocess.Popen(
            [sys.executable, "-m", "local_langfuse", *options],
            cwd=TOP,
            env=self.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        said = ""
        while f":{self.port}" not in said:  # it says where it listens once it does
            line = server.stdout.readline()
            assert line, f"the server ended with {server.wait()}: {said}"
            said += line
        return server

    @contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        """Serve this desk's database on its port, and yield a client with the keys.

        From a thread here: a process of its own would cost half a second each time, and
        `start_server` is there for the tests that need one.
        """
        server = local_langfuse.start(self.db, self.port)
        try:
            with client_of(server.base_url) as client:
                yield client
        finally:
            server.stop()

    def copied_to(self, folder: Path) -> "Desk":
        """Return another desk with all that lies on this one."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Desk(folder, self.vocabulary)

    def run_edited(
        self, lesson: str, *edits: tuple[str, str], **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a copy of a lesson in which each text was replaced by another."""
        source = (TOP / lesson).read_text()
        for old, new in edits:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        copy = self.folder / lesson
        copy.write_text(source)
        return self.run(str(copy), PYTHONPATH=str(TOP), **env)


@pytest.fixture
def desk(tmp_path: Path, vocabulary: Path) -> Desk:
    return Desk(tmp_path, vocabulary)


@dataclass(frozen=True)
class Ran:
    """A lesson that has run, and the desk with what it stored: to look at, not to change."""

    desk: Desk
    process: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Callable[[str, int], Ran]:
    """Run a lesson, the first or second time, once for all tests that ask what it left behind."""

    @cache
    def run(lesson: str, time: int) -> Ran:
        folder = tmp_path_factory.mktemp("run")
        if time == 1:
            desk = Desk(folder, vocabulary)
            return Ran(desk, desk.run_fresh(lesson))
        desk = run(lesson, 1).desk.copied_to(folder)
        with desk.serving():
            return Ran(desk, desk.run_fresh(lesson))

    return run


@pytest.fixture
def first_run(lesson: str, runs: Callable[[str, int], Ran]) -> Ran:
    """The lesson that the test module names, as a newcomer runs it."""
    return runs(lesson, 1)


@pytest.fixture
def second_run(lesson: str, runs: Callable[[str, int], Ran]) -> Ran:
    """The same lesson on what its first run stored, with a server there to be found."""
    return runs(lesson, 2)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Serve one database to all tests of `local_langfuse`: its address and its file."""
    db = tmp_path_factory.mktemp("server") / "langfuse.db"
    running = local_langfuse.start(db)
    yield running.base_url, db
    running.stop()


@pytest.fixture
def client(server: tuple[str, Path]) -> Iterator[httpx.Client]:
    """A client of a server in which nothing is stored."""
    url, db = server
    with closing(sqlite3.connect(db)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        for (table,) in tables.fetchall():
            connection.execute(f"DELETE FROM {table}")
    with client_of(url) as client:
        yield client


Tree = tuple[str, str, tuple[Any, ...]]  # name, type, children


def nest(rows: list[tuple[int, str, str]]) -> list[Tree]:
    """Turn rows of depth, name and type into trees."""
    trees: list[Tree] = []
    while rows:
        depth, name, kind = rows[0]
        end = next((i for i, row in enumerate(rows) if i and row[0] <= depth), len(rows))
        trees.append((name, kind, tuple(nest(rows[1:end]))))
        rows = rows[end:]
    return trees


def promised_trees(source: str) -> list[Tree]:
    """Read the trees that a lesson's docstring promises."""
    docstring = source.split('"""')[1]
    start = r"The traces?:\n|ha(?:s|ve) th(?:is|ese) shapes?.*?:\n"
    block = re.split(start, docstring, maxsplit=1, flags=re.DOTALL)[1]
    rows = re.findall(r"^    ( *)([a-z_-]+) +([a-z]+)(?: +x (\d+))?$", block, flags=re.MULTILINE)
    trees = nest([(len(indent) // 2, name, kind) for indent, name, kind, _ in rows])
    times = [int(count or 1) for indent, *_, count in rows if not indent]
    return [tree for tree, count in zip(trees, times, strict=True) for _ in range(count)]


def drawn_trees(output: str) -> list[Tree]:
    """Read the trees that a lesson drew in the terminal."""
    row = re.compile(r"^  ((?:[│ ]  )*(?:[├└]─ )?)([a-z_-]+) +([a-z]+)(?: |$)")
    trees = []
    for block in re.split(r"^  observation .*\n", output, flags=re.MULTILINE)[1:]:
        body = block[: re.search(r"^  http", block, flags=re.MULTILINE).start()]  # type: ignore[union-attr]
        rows = [found.groups() for line in body.splitlines() if (found := row.match(line))]
        trees += nest([(len(guide) // 3, name, kind) for guide, name, kind in rows])
    return trees


def stored_observations(client: httpx.Client) -> list[dict[str, Any]]:
    """Return every stored observation with all its fields, oldest first."""
    fields = "core,basic,time,io,metadata,model,usage,prompt,metrics,trace_context"
    query: dict[str, str | int] = {"fields": fields, "limit": 1000}
    rows: list[dict[str, Any]] = []
    while True:
        answer = client.get("/api/public/v2/observations", params=query)
        answer.raise_for_status()
        rows += answer.json()["data"]
        if "cursor" not in answer.json()["meta"]:
            return sorted(rows, key=lambda row: (row["startTime"], not row["isRootObservation"]))
        query["cursor"] = answer.json()["meta"]["cursor"]


def stored_trees(client: httpx.Client) -> list[Tree]:
    """Return all stored traces as trees, oldest first."""
    rows = stored_observations(client)
    known = {row["id"] for row in rows}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        parent = row["parentObservationId"]
        children.setdefault(parent if parent in known else None, []).append(row)

    def below(parent: str | None) -> tuple[Tree, ...]:
        nodes = children.get(parent, [])
        return tuple((row["name"], row["type"].lower(), below(row["id"])) for row in nodes)

    return list(below(None))
