"""A mistake in the settings gets one line that names the variable and the fix."""

import sys
from pathlib import Path

import pytest
from conftest import Desk

from common.client import connect
from common.settings import (
    DEFAULTS,
    Setting,
    SettingsError,
    choose_destination,
    masked,
    read_settings,
)

CONNECT = ("-c", "from common.client import connect; connect()")
PUBLIC, SECRET = "pk-lf-11111111-aaaa", "sk-lf-22222222-bbbb"
BOTH = {"LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_SECRET_KEY": SECRET}

REFUSED: dict[str, tuple[dict[str, str], str, str]] = {  # settings, variable, part of the fix
    "public key alone": ({"LANGFUSE_PUBLIC_KEY": PUBLIC}, "LANGFUSE_SECRET_KEY", "set it"),
    "secret key alone": ({"LANGFUSE_SECRET_KEY": SECRET}, "LANGFUSE_PUBLIC_KEY", "set it"),
    "swapped": (
        {"LANGFUSE_PUBLIC_KEY": SECRET, "LANGFUSE_SECRET_KEY": PUBLIC},
        "LANGFUSE_PUBLIC_KEY",
        "exchange",
    ),
    "the public key twice": (
        {**BOTH, "LANGFUSE_SECRET_KEY": PUBLIC},
        "LANGFUSE_SECRET_KEY",
        "sk-lf-",
    ),
    "the secret key twice": (
        {**BOTH, "LANGFUSE_PUBLIC_KEY": SECRET},
        "LANGFUSE_PUBLIC_KEY",
        "pk-lf-",
    ),
    "quotes": ({**BOTH, "LANGFUSE_SECRET_KEY": f"'{SECRET}'"}, "LANGFUSE_SECRET_KEY", "quotes"),
    "a space": ({**BOTH, "LANGFUSE_PUBLIC_KEY": f"{PUBLIC} "}, "LANGFUSE_PUBLIC_KEY", "space"),
    "no scheme": (
        {**BOTH, "LANGFUSE_BASE_URL": "cloud.langfuse.com"},
        "LANGFUSE_BASE_URL",
        "https",
    ),
    "a key as URL": ({**BOTH, "LANGFUSE_BASE_URL": SECRET}, "LANGFUSE_BASE_URL", "https"),
    "a bad port": ({**BOTH, "LANGFUSE_BASE_URL": "http://a:b"}, "LANGFUSE_BASE_URL", "https"),
    "a page's URL": (
        {**BOTH, "LANGFUSE_BASE_URL": "https://cloud.langfuse.com/project/abc"},
        "LANGFUSE_BASE_URL",
        "keep only https://cloud.langfuse.com.",
    ),
    "two addresses": (
        {**BOTH, "LANGFUSE_BASE_URL": "http://a:1", "LANGFUSE_HOST": "http://b:1"},
        "LANGFUSE_HOST",
        "remove LANGFUSE_HOST",
    ),
    "off spelt otherwise": (
        {"LANGFUSE_TRACING_ENABLED": "no"},
        "LANGFUSE_TRACING_ENABLED",
        "true or false",
    ),
    "a rate above 1": ({"LANGFUSE_SAMPLE_RATE": "50"}, "LANGFUSE_SAMPLE_RATE", "0 to 1"),
    "no number": ({"LANGFUSE_TIMEOUT": "5s"}, "LANGFUSE_TIMEOUT", "whole number"),
    "a key as number": ({"LANGFUSE_TIMEOUT": SECRET}, "LANGFUSE_TIMEOUT", "whole number"),
    "capitals": (
        {"LANGFUSE_TRACING_ENVIRONMENT": "Production"},
        "LANGFUSE_TRACING_ENVIRONMENT",
        "lower-case",
    ),
    "no port": ({"LOCAL_LANGFUSE_PORT": "99999"}, "LOCAL_LANGFUSE_PORT", "65535"),
    "no model URL": ({"OPENAI_BASE_URL": "localhost:11434"}, "OPENAI_BASE_URL", "http"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_exit_2(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env, variable, fix = REFUSED[case]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # `connect` sets its own
    monkeypatch.setattr("local_langfuse.start", None)  # it is not to come so far
    with pytest.raises(SystemExit) as ended:
        connect()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith(variable)
    assert fix in shown.err
    for secret in (PUBLIC, SECRET):
        assert secret not in shown.err


def test_a_mistake_ends_a_program_with_this_line_alone(desk: Desk) -> None:
    ran = desk.run(*CONNECT, LANGFUSE_PUBLIC_KEY=PUBLIC)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("LANGFUSE_SECRET_KEY")
    assert ran.stderr.count("\n") == 1, ran.stderr


def test_the_older_name_of_the_address_still_works(desk: Desk) -> None:
    ran = desk.run(*CONNECT, **BOTH, LANGFUSE_HOST="http://127.0.0.1:1/")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "http://127.0.0.1:1 with pk-lf-…aaaa" in ran.stdout
    assert "LANGFUSE_HOST is now LANGFUSE_BASE_URL" in ran.stdout


@pytest.mark.parametrize(
    ("env", "mode", "why"),
    [
        (dict.fromkeys(DEFAULTS, ""), "local", "no Langfuse keys are set"),
        (
            {"LANGFUSE_TRACING_ENABLED": "False", "LANGFUSE_PUBLIC_KEY": "'half"},
            *("disabled", "LANGFUSE_TRACING_ENABLED is false"),
        ),
    ],
    ids=["empty is not set", "off needs no valid keys"],
)
def test_what_is_no_mistake_has_a_destination(
    env: dict[str, str], mode: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    destination = choose_destination(read_settings())
    assert (destination.mode, destination.why) == (mode, why)


def test_a_proxy_is_not_asked_for_this_machine(desk: Desk) -> None:
    proxy = "http://127.0.0.1:9"
    ran = desk.run("01_langfuse_setup.py", HTTP_PROXY=proxy, http_proxy=proxy, ALL_PROXY=proxy)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_every_value_knows_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "0")
    env_file = tmp_path / ".env"
    env_file.write_text(
        f"LANGFUSE_PUBLIC_KEY=ignored\nLANGFUSE_SECRET_KEY={SECRET}\nOPENAI_MODEL=\n"
    )
    for name in DEFAULTS:  # so that what the file sets is taken back afterwards
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", PUBLIC)
    settings = read_settings(env_file)
    assert settings["LANGFUSE_PUBLIC_KEY"].source == "environment"
    assert settings["LANGFUSE_SECRET_KEY"] == Setting("LANGFUSE_SECRET_KEY", SECRET, ".env")
    assert settings["OPENAI_MODEL"].source == "default"
    assert settings["LANGFUSE_SECRET_KEY"].shown == "sk-lf-…bbbb"


def test_a_short_key_shows_nothing_of_itself() -> None:
    assert masked("pk-lf-short") == "pk-lf-…"
    assert masked("password") == "…"
    assert masked("") == ""


def test_a_second_local_server_has_nothing_to_do(desk: Desk) -> None:
    first = desk.start_server()
    try:
        ran = desk.run("-m", "local_langfuse")
    finally:
        first.terminate()
        first.communicate(timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"Already running on port {desk.port}, with {desk.db.resolve()}:" in ran.stdout
    assert desk.db.exists()


def test_an_env_file_in_another_encoding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("LANGFUSE_PUBLIC_KEY=pk", encoding="utf-16")
    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "0")
    with pytest.raises(SettingsError, match="not UTF-8: save it as UTF-8"):
        read_settings(env_file)
