"""What the project says about itself is true: README, lessons, variables, calls."""

import ast
import builtins
import re
import statistics
import symtable
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import LESSONS, RECIPES, TOP, Desk, Ran

SOURCES = [
    path
    for path in sorted(TOP.rglob("*.py"))
    if not {".venv", "tests"} & set(path.relative_to(TOP).parts)
]
README = (TOP / "README.md").read_text()
VARIABLE = re.compile(r"\b(?:LOCAL_LANGFUSE|LANGFUSE|OPENAI)_[A-Z_]+\b(?! =)")
GONE = re.compile(
    r"langfuse\.decorators|langfuse_context|langfuse\.callback|update_current_trace|"
    r"start_as_current_(?:span|generation)|langfuse\.(?:trace|span|generation|score)\(|"
    r"fetch_traces?|api\.trace\.(?!delete)|api\.sessions\.|item\.run\(|dataset_run_|beta\.chat"
)


def variables(text: str) -> set[str]:
    return set(VARIABLE.findall(text))


def test_every_variable_is_in_the_example_and_no_other() -> None:
    example = (TOP / ".env.example").read_text()
    offered = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE))
    # What sets up a server names variables of the server, which are not ours to offer.
    ours = [path for path in SOURCES if path.parent.name != "self_host"]
    read = set().union(*(variables(path.read_text()) for path in ours))
    assert offered == read & offered, "offered but not read"
    assert read <= offered, "read but not offered"
    assert variables(README) <= offered


def test_the_example_states_the_real_defaults(desk: Desk) -> None:
    from common.settings import DEFAULTS

    example = (TOP / ".env.example").read_text()
    stated = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, flags=re.MULTILINE))
    assert stated.keys() == DEFAULTS.keys()
    for name, default in DEFAULTS.items():
        if default:
            assert stated[name] == default
    copied = desk.folder / ".env"
    copied.write_text(example)
    code = (
        f"from common.settings import *; read_settings(__import__('pathlib').Path({str(copied)!r}))"
    )
    ran = desk.run("-c", code, PYTHON_DOTENV_DISABLED="0")
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_uses_no_call_that_langfuse_removed(path: Path) -> None:
    assert GONE.findall(path.read_text()) == []


@pytest.mark.parametrize("script", [*LESSONS, *RECIPES])
def test_every_function_can_be_lifted_out(script: str) -> None:
    table = symtable.symtable((TOP / script).read_text(), script, "exec")
    movable = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_imported() or symbol.is_namespace() or symbol.get_name()[0].isupper()
    }
    for function in table.get_children():
        needed = {
            symbol.get_name()
            for scope in (function, *function.get_children())
            for symbol in scope.get_symbols()
            if symbol.is_global() and symbol.is_referenced()
        }
        assert needed - movable - set(dir(builtins)) == set(), function.get_name()


@pytest.mark.parametrize("script", [*LESSONS, *RECIPES])
def test_has_the_form_of_a_lesson(script: str) -> None:
    source = (TOP / script).read_text()
    docstring = source.split('"""')[1]
    # Only a module finds `common` from the folder of the recipes.
    asked = f"-m {script.removesuffix('.py').replace('/', '.')}" if "/" in script else script
    assert re.search(rf"^    python {asked}( |$)", docstring, flags=re.MULTILINE)
    assert docstring.index("Run it:") < docstring.index("Try next:")
    if script in LESSONS:
        begins = [docstring.index(part) for part in ("Run it:", "The traces:", "Try next:")]
        assert begins == sorted(begins)
    numbers = re.findall(r"^# %% (\d+)\. [A-Z]\w+[ ,]", source, flags=re.MULTILINE)
    assert numbers == [str(n + 1) for n in range(len(numbers))]
    assert len(numbers) > 2
    for name, text in re.findall(
        r'^(?:async )?def (\w+)\(.*?"""(.*?)"""', source, re.MULTILINE | re.DOTALL
    ):
        assert text.strip(), name
        assert name == "main" or len(text.split()) > 4, name
    assert "print(" not in source


@pytest.mark.parametrize("lesson", LESSONS[:1])
def test_the_readme_draws_what_the_first_command_shows(first_run: Ran) -> None:
    drawn = README.split("```text\n")[1].split("```")[0]

    def without_times(text: str) -> list[list[str]]:
        end = text.index(" ms") + len(" ms")  # a column of right-aligned numbers
        return [
            [*re.sub(r" +(\d+|ms)$", "", line[:end]).split(), *line[end:].split()]
            for line in text.splitlines()
        ]

    *_, last = re.findall(r"(?:^  .+\n)+(?=  http)", first_run.process.stdout, flags=re.MULTILINE)
    assert without_times(drawn) == without_times(last)


def test_the_readme_links_and_names_files_that_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (TOP / target).exists(), target
    for name in re.findall(r"\b(?:python3?|-r) ([\w/]+\.\w+)", README):
        assert (TOP / name).exists(), name
    for name in re.findall(r"python -m ((?:recipes|local_)[\w.]*)", README):
        assert find_spec(name), name
    for script in [*LESSONS, *RECIPES]:
        assert f"]({script})" in README, script


# Which stand-ins each room may import; lessons and recipes import none.
BELOW = {
    "local_langfuse": {"local_langfuse"},
    "local_model": {"local_model", "local_langfuse"},
    "common": {"common", "local_langfuse", "local_model"},
}
SHARED = {"local_langfuse", *(f"local_langfuse.{name}" for name in ("guard", "serving", "wire"))}


def imports_of(path: Path) -> set[str]:
    """Return what of ours a file imports, wherever in it."""
    lines = re.findall(
        r"^ *(?:from ((?:common|local_)[\w.]*) import|import ((?:common|local_)[\w.]*))",
        path.read_text(),
        flags=re.MULTILINE,
    )
    return {first or second for first, second in lines}


def test_arrows_point_down_only() -> None:
    for path in SOURCES:
        room = path.relative_to(TOP).parts[0]
        imported = imports_of(path)
        assert {name.split(".")[0] for name in imported} <= BELOW.get(room, {"common"}), path
        if room == "local_model":
            theirs = {name for name in imported if name.startswith("local_langfuse")}
            assert theirs <= SHARED, path
        if room == "common" and path.name not in ("client.py", "tokens.py"):
            assert all(name.startswith("common") for name in imported), path


def test_common_is_small_and_has_no_circle() -> None:
    files = {path: imports_of(path) for path in SOURCES if path.parent.name == "common"}
    assert sum(len(path.read_text().splitlines()) for path in files) <= 1025
    TopologicalSorter({f"common.{path.stem}": needed for path, needed in files.items()}).prepare()


def test_every_message_under_troubleshooting_is_one_that_we_print() -> None:
    table = README.split("## Troubleshooting")[1].split("\n## ")[0]
    sources = "".join(path.read_text() for path in SOURCES)
    plain = re.sub(r'"\s*f?"', "", sources)  # joins the parts of a message
    messages = [row.split("|")[1] for row in table.split("| It says |")[1].splitlines()[2:] if row]
    assert len(messages) > 10
    for message in re.findall(r"`([^`]+)`", "".join(messages)):
        known = message.replace("LANGFUSE_SECRET_KEY is", "SECRET_KEY is")
        assert known in plain, message


def test_the_calls_that_the_readme_names_exist() -> None:
    import langfuse
    from langfuse import Langfuse

    table = README.split("## Coming from something older")[1].split("\n## ")[0]
    today = [line.split("|")[2] for line in table.splitlines() if line.startswith("| `")]
    names = set(re.findall(r"\b([a-z_]+)\(", "".join(today)))
    of_other_objects = {"get_many", "metrics", "score"}
    assert names - {*dir(langfuse), *dir(Langfuse)} == of_other_objects


def code_lines(source: str) -> tuple[set[int], dict[str, int]]:
    """Return the lines that are neither blank, comment nor docstring; and how many by function."""
    tree = ast.parse(source)
    docs: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in docs
    }
    functions = {
        node.name: sum(node.lineno <= number <= (node.end_lineno or 0) for number in lines)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return lines, functions


def test_the_lessons_are_short_enough_to_be_explained_in_three_hours() -> None:
    """About five lines of code a minute, with running and questions."""
    sources = [(TOP / lesson).read_text() for lesson in LESSONS]
    lengths = [len(source.splitlines()) for source in sources]
    assert lengths[0] <= 220
    assert max(lengths) <= 350
    assert sum(lengths) <= 1580
    counted = [code_lines(source) for source in sources]
    assert sum(len(lines) for lines, _ in counted) <= 900
    sizes = [size for _, functions in counted for size in functions.values()]
    assert statistics.median(sizes) <= 12


def test_the_lessons_make_their_clients_in_plain_sight() -> None:
    for lesson in LESSONS:
        source = (TOP / lesson).read_text()
        assert re.search(r"\bOpenAI\(\)", source), lesson
        assert "Langfuse()" in source, lesson
        assert "create_trace_id" not in source, lesson
