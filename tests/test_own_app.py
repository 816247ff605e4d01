"""What a reader copies runs in a folder of its own, against the two services as they print."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LESSONS, TOP, Desk, client_of, free_port, stored_observations

README = (TOP / "README.md").read_text()
LIFTED = {  # functions that need no search, price list or console of ours, and how to call them
    "01": (
        "ask('Shoes are blue.', 'What colour are shoes?')",
        "write_answer(OpenAI(), 'Shoes?', ['Shoes are blue.'])",
    ),
    "02": (
        "classify_question('Where is my order?')",
        "run_tool('look_up_order', '{\"order_id\": \"A-1042\"}')",
        "answer_with_tool(OpenAI(), 'Where is my order A-1042?')",
    ),
    "03": ("create_versions(Langfuse(), 'gpt-6-luna')", "load_prompt(Langfuse(), version=2)"),
    "04": (
        "set_price(Langfuse(), 'own', {'input': 1e-6})",
        "spent_today(Langfuse(), 'ada')",
        "check_budget('ada', Decimal(1), Decimal(1), Decimal(2))",
    ),
    "05": (
        "rate_answer(Langfuse(), 32 * 'a', 5, datetime.now(UTC))",
        "build_dataset(Langfuse(), {})",
        "score_statistics(Langfuse(), 'none')",
    ),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Iterator[dict[str, str]]:
    """Start both services as the README says, and return the variables that they print."""
    desk = Desk(tmp_path_factory.mktemp("own"), vocabulary)
    last = {"local_langfuse": "LANGFUSE_SECRET_KEY", "local_model": "OPENAI_EMBEDDING_MODEL"}
    found, started = dict[str, str](), []
    for module, name in last.items():
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(free_port())],
            cwd=TOP,
            env=desk.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        while name not in found:
            line = process.stdout.readline()
            assert line, f"{module} ended"
            found |= dict(re.findall(r"\b([A-Z_]+)=(\S+)", line))
    yield found
    for process in started:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def lifted(lesson: str, names: set[str]) -> str:
    """Return these functions and all they need, without a line of ours that is not copied."""
    tree = ast.parse((TOP / lesson).read_text())
    defined: dict[str, ast.stmt] = {}
    imports = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defined[node.targets[0].id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined[node.target.id] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common")
            imports += [] if ours else [ast.unparse(node)]
    wanted, todo = set[str](), set(names)
    while todo:
        wanted |= todo
        used = {n.id for name in todo for n in ast.walk(defined[name]) if isinstance(n, ast.Name)}
        todo = (used & defined.keys()) - wanted
    return "\n".join([*imports, *(ast.unparse(n) for k, n in defined.items() if k in wanted)])


def run(folder: Path, code: str, printed: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(code)
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=folder,
        env={"HOME": str(folder), "PATH": "", **printed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_functions_run_where_they_are_copied_to(tmp_path: Path, printed: dict[str, str]) -> None:
    calls = []
    for lesson in LESSONS:
        wanted = LIFTED[lesson[:2]]
        source = lifted(lesson, {call.split("(")[0] for call in wanted})
        assert "common" not in source
        (tmp_path / f"lesson_{lesson[:2]}.py").write_text(source)
        calls += [f"from lesson_{lesson[:2]} import *", *(f"print({call})" for call in wanted)]
    calls += ["from langfuse import get_client", "get_client().flush()"]
    ran = run(tmp_path, "\n".join(calls), printed)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "shipped" in ran.stdout
    with client_of(printed["LANGFUSE_BASE_URL"]) as client:
        names = {node["name"] for node in stored_observations(client)}
    assert names >= {"write-answer", "classify-question", "look-up-order", "check-budget"}


def test_the_program_in_the_readme_is_traced(tmp_path: Path, printed: dict[str, str]) -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    ran = run(tmp_path, block, printed)
    assert (ran.returncode, ran.stderr) == (0, "")
    link = ran.stdout.split()[0]
    with client_of(printed["LANGFUSE_BASE_URL"]) as client:
        stored = stored_observations(client)
    trace = [node for node in stored if node["traceId"] == link.rpartition("/")[2]]
    assert {node["type"] for node in trace} == {"SPAN", "GENERATION"}
    assert any(node["totalCost"] for node in trace)
