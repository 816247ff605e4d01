"""What self-hosting needs fits together: secrets, the override, Helm values, the README.

No server is started. `docker compose config` merges the override with a stand-in of the
official file where it is installed; a merge in Python makes the same checks everywhere.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its types would be one more package
from conftest import TOP, Desk

from common.settings import DEFAULTS, choose_destination, read_settings

HERE = TOP / "recipes" / "self_host"
OVERRIDE = (HERE / "docker-compose.override.yml").read_text()
GUIDE = (HERE / "README.md").read_text()
SCRIPT = ("-m", "recipes.self_host.make_secrets")

# --- Facts about the official files, looked up; no copy of them --------------------------

# Services, published ports, and the variables whose default value is a password that the
# file marks with CHANGEME: docker-compose.yml of langfuse/langfuse at commit 287310b. It
# starts version 3; projects that adapt the file of 4.50.0 show the same services and ports.
DEFAULT = "a-password-of-the-official-file"
SERVER_SECRETS = (
    "DATABASE_URL",
    "SALT",
    "ENCRYPTION_KEY",
    "CLICKHOUSE_PASSWORD",
    "LANGFUSE_S3_EVENT_UPLOAD_SECRET_ACCESS_KEY",
    "LANGFUSE_S3_MEDIA_UPLOAD_SECRET_ACCESS_KEY",
    "LANGFUSE_S3_BATCH_EXPORT_SECRET_ACCESS_KEY",
    "REDIS_AUTH",
)
OFFICIAL: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "langfuse-web": (["3000:3000"], (*SERVER_SECRETS, "NEXTAUTH_SECRET")),
    "langfuse-worker": (["127.0.0.1:3030:3030"], SERVER_SECRETS),
    "clickhouse": (["127.0.0.1:8123:8123", "127.0.0.1:9000:9000"], ("CLICKHOUSE_PASSWORD",)),
    "minio": (["9090:9000", "127.0.0.1:9091:9001"], ("MINIO_ROOT_PASSWORD",)),
    "redis": (["127.0.0.1:6379:6379"], ()),
    "postgres": (["127.0.0.1:5432:5432"], ("POSTGRES_PASSWORD",)),
}
# langfuse.com/self-hosting/configuration and .../administration/headless-initialization,
# both of version 4; the last three are variables of the images of the stores.
DOCUMENTED = {
    *SERVER_SECRETS,
    *("NEXTAUTH_URL", "NEXTAUTH_SECRET", "TELEMETRY_ENABLED", "AUTH_DISABLE_SIGNUP"),
    *("LANGFUSE_INIT_ORG_ID", "LANGFUSE_INIT_ORG_NAME"),
    *("LANGFUSE_INIT_PROJECT_ID", "LANGFUSE_INIT_PROJECT_NAME", "LANGFUSE_INIT_PROJECT_RETENTION"),
    *("LANGFUSE_INIT_PROJECT_PUBLIC_KEY", "LANGFUSE_INIT_PROJECT_SECRET_KEY"),
    *("LANGFUSE_INIT_USER_EMAIL", "LANGFUSE_INIT_USER_NAME", "LANGFUSE_INIT_USER_PASSWORD"),
    "NODE_OPTIONS",
    *("POSTGRES_PASSWORD", "CLICKHOUSE_PASSWORD", "MINIO_ROOT_PASSWORD"),
}
# Of charts/langfuse/values.yaml of langfuse/langfuse-k8s 2.0.0, commit 003801b.
_REFERENCE = ("secretKeyRef.name", "secretKeyRef.key")
CHART_KEYS = {
    "langfuse.image.tag",
    "langfuse.features.telemetryEnabled",
    "langfuse.features.signUpDisabled",
    "langfuse.nextauth.url",
    *(f"langfuse.{name}.{leaf}" for name in ("salt", "encryptionKey") for leaf in _REFERENCE),
    *(f"langfuse.nextauth.secret.{leaf}" for leaf in _REFERENCE),
    "langfuse.additionalEnv",
    *(
        f"langfuse.{pods}.{leaf}"
        for pods in ("web", "worker")
        for leaf in (
            "image.repository",
            "replicas",
            "resources",
            "hpa.enabled",
            "hpa.minReplicas",
            "hpa.maxReplicas",
            "hpa.targetCPUUtilizationPercentage",
            "pod.additionalEnv",
        )
    ),
    *(f"{store}.deploy" for store in ("postgresql", "clickhouse", "redis", "s3")),
    *(f"{store}.host" for store in ("postgresql", "clickhouse", "redis")),
    *(f"{store}.auth.username" for store in ("postgresql", "clickhouse", "redis")),
    *(f"{store}.auth.existingSecret" for store in ("postgresql", "clickhouse", "redis")),
    "postgresql.args",
    "postgresql.auth.database",
    "postgresql.auth.secretKeys.userPasswordKey",
    "clickhouse.httpPort",
    "clickhouse.nativePort",
    "clickhouse.migration.ssl",
    "clickhouse.cluster.enabled",
    "clickhouse.auth.existingSecretKey",
    "redis.port",
    "redis.tls.enabled",
    "redis.auth.existingSecretPasswordKey",
    *(f"s3.{leaf}" for leaf in ("bucket", "region", "endpoint", "forcePathStyle")),
    *(f"s3.{key}.{leaf}" for key in ("accessKeyId", "secretAccessKey") for leaf in _REFERENCE),
    *(f"s3.{kind}.prefix" for kind in ("eventUpload", "batchExport", "mediaUpload")),
}
FREE_FORM = ("resources", "additionalEnv")  # the chart passes on what stands below these


# --- The script --------------------------------------------------------------------------


@dataclass
class Made:
    """The file that the script wrote, and what it said meanwhile."""

    path: Path
    said: str

    @property
    def settings(self) -> dict[str, str]:
        lines = self.path.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Made:
    folder = tmp_path_factory.mktemp("server")
    ran = Desk(folder, vocabulary).run(*SCRIPT, str(folder / ".env"))
    assert (ran.returncode, ran.stderr) == (0, "")
    return Made(folder / ".env", ran.stdout)


def test_the_file_is_for_its_owner_alone(made: Made) -> None:
    assert made.path.stat().st_mode & 0o777 == 0o600


def test_every_secret_has_the_form_that_its_reader_wants(made: Made) -> None:
    settings = dict(made.settings)
    assert settings.pop("LANGFUSE_BASE_URL") == "http://localhost:3000"
    assert "@" in settings.pop("LANGFUSE_INIT_USER_EMAIL")
    for name, prefix in (("LANGFUSE_PUBLIC_KEY", "pk-lf-"), ("LANGFUSE_SECRET_KEY", "sk-lf-")):
        assert re.fullmatch(prefix + r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", settings[name])
    for name in ("SALT", "ENCRYPTION_KEY", "NEXTAUTH_SECRET"):
        assert re.fullmatch(r"[0-9a-f]{64}", settings.pop(name)), name
    passwords = [settings[name] for name in settings if not name.endswith("_KEY")]
    assert len(passwords) == 5
    for password in passwords:
        assert re.fullmatch(r"[0-9a-f]{32}", password)


def test_no_secret_is_printed(made: Made) -> None:
    shown = [name for name, value in made.settings.items() if value in made.said]
    assert shown == []


def test_a_second_run_changes_nothing(made: Made, desk: Desk) -> None:
    before = made.path.read_bytes()
    ran = desk.run(*SCRIPT, str(made.path))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"{made.path} exists and was not changed: a server may depend on what is in it.\n"
    )
    assert made.path.read_bytes() == before


def test_every_file_has_secrets_of_its_own(made: Made, desk: Desk) -> None:
    # As a file, from elsewhere: a server needs neither this folder nor its packages.
    script = shutil.copy(HERE / "make_secrets.py", desk.folder)
    assert desk.run("-I", str(script), str(desk.folder / "other")).returncode == 0
    other = Made(desk.folder / "other", "").settings
    assert other.keys() == made.settings.keys()
    same = {name for name in other if other[name] == made.settings[name]}
    assert same == {"LANGFUSE_BASE_URL", "LANGFUSE_INIT_USER_EMAIL"}


def test_a_folder_that_is_missing_is_one_line(desk: Desk) -> None:
    target = desk.folder / "missing" / ".env"
    ran = desk.run(*SCRIPT, str(target))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"{target} cannot be written: No such file or directory.\n"


def test_the_command_it_prints_connects_the_scripts(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (TOP / ".env.example").read_text()
    used = example.replace("LANGFUSE_PUBLIC_KEY=", "LANGFUSE_PUBLIC_KEY=pk-lf-of-yesterday")
    (tmp_path / ".env").write_text(used.rstrip("\n"))
    [command] = re.findall(r"^    (.*)$", made.said, re.MULTILINE)
    ran = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout + ran.stderr == ""

    monkeypatch.setenv("PYTHON_DOTENV_DISABLED", "0")
    for name in DEFAULTS:  # so that what the file sets is taken back afterwards
        monkeypatch.setenv(name, "")
    settings = read_settings(tmp_path / ".env")
    keys = ("LANGFUSE_BASE_URL", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")
    assert {name: settings[name].value for name in keys} == {
        name: made.settings[name] for name in keys
    }
    destination = choose_destination(settings)
    assert (destination.mode, destination.base_url) == ("langfuse", "http://localhost:3000")


# --- The override, merged with the official file -----------------------------------------


@dataclass
class Replaced:
    """What stands behind `!override` or `!reset`: it does not join what it replaces."""

    value: Any


class ComposeLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with Compose's two tags."""


ComposeLoader.add_constructor(
    "!override", lambda loader, node: Replaced(loader.construct_sequence(node))
)
ComposeLoader.add_constructor("!reset", lambda _, __: Replaced([]))


def merge(base: Any, over: Any) -> Any:
    """Merge as Compose does: mappings by key, lists by appending, else the later one."""
    if isinstance(over, Replaced):
        return over.value
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merge(base.get(key), value) for key, value in over.items()}
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    return over


class MissingError(Exception):
    """A variable that the override refers to has no value."""


def filled(text: str, settings: dict[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name, message = found.groups()
        if not settings.get(name):
            raise MissingError(message)
        return settings[name]

    return re.sub(r"\$\{(\w+):\?(.*?)\}", value, text)


def stand_in() -> str:
    """Return a file with the official one's services, ports and names, and one password."""
    services = {
        name: {
            "image": f"docker.langfuse.com/{name}:4",
            "ports": ports,
            "environment": dict.fromkeys(secrets, DEFAULT) | {"TELEMETRY_ENABLED": "true"},
        }
        for name, (ports, secrets) in OFFICIAL.items()
    }
    services["redis"]["command"] = f"--requirepass {DEFAULT}"
    return yaml.safe_dump({"services": services})  # type: ignore[no-any-return]


@dataclass
class Service:
    """One service as it would be started."""

    image: str
    environment: dict[str, str]
    ports: set[tuple[str, str]]  # address and port on the machine
    command: str


def merged_in_python(folder: Path, settings: dict[str, str]) -> dict[str, Service]:
    base = yaml.safe_load((folder / "docker-compose.yml").read_text())
    over = yaml.load(filled(OVERRIDE, settings), ComposeLoader)
    return {
        name: Service(
            service["image"],
            service["environment"],
            {
                (address or "0.0.0.0", port)
                for published in service["ports"]
                for address, port in [published.rsplit(":", 1)[0].rpartition(":")[::2]]
            },
            service.get("command", ""),
        )
        for name, service in merge(base, over)["services"].items()
    }


def compose() -> list[str]:
    """Return the command of a Compose that knows `!override`, or skip the test."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, check=False
            )
            version = [int(part) for part in re.findall(r"\d+", asked.stdout)[:3]]
            if asked.returncode == 0 and version >= [2, 24, 4]:
                return command
    pytest.skip("no Docker Compose 2.24.4 or later here; merged in Python instead")


def merged_by_compose(folder: Path, settings: dict[str, str]) -> dict[str, Service]:
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    known = {name: os.environ[name] for name in ("PATH", "DOCKER_CONFIG") if name in os.environ}
    ran = subprocess.run(
        [*compose(), "config", "--format", "json"],
        cwd=folder,
        env={"HOME": str(folder), **known},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise MissingError(ran.stderr)
    return {
        name: Service(
            service["image"],
            service["environment"],
            {(p.get("host_ip", "0.0.0.0"), p["published"]) for p in service.get("ports", [])},
            " ".join(service["command"] or []),
        )
        for name, service in json.loads(ran.stdout)["services"].items()
    }


MERGES = {"Python": merged_in_python, "Compose": merged_by_compose}


@pytest.fixture(scope="module", params=MERGES)
def by(request: pytest.FixtureRequest) -> str:
    if request.param == "Compose":
        compose()
    return str(request.param)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("langfuse")
    (folder / "docker-compose.yml").write_text(stand_in())
    (folder / "docker-compose.override.yml").write_text(OVERRIDE)
    return folder


@pytest.fixture(scope="module")
def services(by: str, project: Path, made: Made) -> dict[str, Service]:
    return MERGES[by](project, made.settings)


def test_no_password_of_the_official_file_survives(services: dict[str, Service]) -> None:
    assert services.keys() == OFFICIAL.keys()
    for name, service in services.items():
        assert DEFAULT not in service.command
        kept = [key for key, value in service.environment.items() if value == DEFAULT]
        assert kept == [], name


def test_two_ports_are_published_to_this_machine_only(services: dict[str, Service]) -> None:
    published = {name: service.ports for name, service in services.items() if service.ports}
    assert published == {
        "langfuse-web": {("127.0.0.1", "3000")},
        "minio": {("127.0.0.1", "9090")},
    }


def test_the_project_begins_with_the_keys_of_the_file(
    services: dict[str, Service], made: Made
) -> None:
    web, settings = services["langfuse-web"].environment, made.settings
    assert web["LANGFUSE_INIT_PROJECT_PUBLIC_KEY"] == settings["LANGFUSE_PUBLIC_KEY"]
    assert web["LANGFUSE_INIT_PROJECT_SECRET_KEY"] == settings["LANGFUSE_SECRET_KEY"]
    assert web["LANGFUSE_INIT_USER_PASSWORD"] == settings["LANGFUSE_INIT_USER_PASSWORD"]
    assert web["NEXTAUTH_URL"] == settings["LANGFUSE_BASE_URL"]
    # Keys belong to a project, a project and a user to an organisation.
    assert web["LANGFUSE_INIT_ORG_ID"]
    assert web["LANGFUSE_INIT_PROJECT_ID"]


def test_each_store_has_the_password_that_the_server_uses(services: dict[str, Service]) -> None:
    for name in ("langfuse-web", "langfuse-worker"):
        server = services[name].environment
        password = services["postgres"].environment["POSTGRES_PASSWORD"]
        assert server["DATABASE_URL"] == f"postgresql://postgres:{password}@postgres:5432/postgres"
        for store in ("clickhouse", name):
            environment = services[store].environment
            assert environment["CLICKHOUSE_PASSWORD"] == server["CLICKHOUSE_PASSWORD"]
        bucket = {
            value for key, value in server.items() if key.endswith("UPLOAD_SECRET_ACCESS_KEY")
        } | {server["LANGFUSE_S3_BATCH_EXPORT_SECRET_ACCESS_KEY"]}
        assert bucket == {services["minio"].environment["MINIO_ROOT_PASSWORD"]}
        assert services["redis"].command == (
            f"--requirepass {server['REDIS_AUTH']} --maxmemory-policy noeviction"
        )


def test_web_and_worker_agree(services: dict[str, Service]) -> None:
    web, worker = (services[name].environment for name in ("langfuse-web", "langfuse-worker"))
    assert {name: web[name] for name in worker} == worker
    images = {name: services[f"langfuse-{name}"].image for name in ("web", "worker")}
    assert images == {
        "web": "docker.io/langfuse/langfuse:4",
        "worker": "docker.io/langfuse/langfuse-worker:4",
    }


def test_nothing_is_reported_and_nobody_signs_up(services: dict[str, Service]) -> None:
    for name in ("langfuse-web", "langfuse-worker"):
        assert services[name].environment["TELEMETRY_ENABLED"] == "false"
    assert services["langfuse-web"].environment["AUTH_DISABLE_SIGNUP"] == "true"


def test_without_a_secret_nothing_starts(by: str, project: Path, made: Made) -> None:
    empty = made.settings | {"ENCRYPTION_KEY": ""}
    missing = {name: value for name, value in made.settings.items() if name != "REDIS_AUTH"}
    for settings in (empty, missing):
        with pytest.raises(MissingError, match=r"run make_secrets\.py"):
            MERGES[by](project, settings)


def test_every_reference_is_one_to_the_file_and_stops_without_it(made: Made) -> None:
    references = re.findall(r"\$\{(\w+)(:\?run make_secrets\.py)?\}", OVERRIDE)
    assert OVERRIDE.count("$") == len(references)
    assert {guard for _, guard in references} == {":?run make_secrets.py"}
    assert {name for name, _ in references} == made.settings.keys()


def variables(node: Any) -> Iterator[tuple[str, str]]:
    for service in node["services"].values():
        yield from service.get("environment", {}).items()


def test_every_secret_of_the_override_is_a_reference() -> None:
    secret = re.compile(r"(PASSWORD|SECRET|_KEY|SALT|REDIS_AUTH|DATABASE_URL)$")
    named = dict(variables(yaml.load(OVERRIDE, ComposeLoader)))
    literal = {name: value for name, value in named.items() if "${" not in value}
    assert [name for name in literal if secret.search(name)] == []
    assert literal.keys() == {
        *("TELEMETRY_ENABLED", "AUTH_DISABLE_SIGNUP", "LANGFUSE_INIT_USER_NAME"),
        *("LANGFUSE_INIT_ORG_ID", "LANGFUSE_INIT_ORG_NAME"),
        *("LANGFUSE_INIT_PROJECT_ID", "LANGFUSE_INIT_PROJECT_NAME"),
    }


def test_langfuse_documents_every_variable() -> None:
    named = dict(variables(yaml.load(OVERRIDE, ComposeLoader)))
    assert named.keys() - DOCUMENTED == set()


def test_the_names_of_the_keys_are_those_of_the_example(made: Made) -> None:
    example = (TOP / ".env.example").read_text()
    offered = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, flags=re.MULTILINE))
    shared = {"LANGFUSE_BASE_URL", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"}
    assert made.settings.keys() & offered == shared
    assert set(re.findall(r"LANGFUSE_[A-Z_]+(?=[|)])", made.said)) == shared


# --- Helm --------------------------------------------------------------------------------

VALUES = yaml.safe_load((HERE / "values.yaml").read_text())


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and path.rpartition(".")[2] not in FREE_FORM:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, node


def environment_of_pods() -> list[dict[str, Any]]:
    langfuse = VALUES["langfuse"]
    return [*langfuse["additionalEnv"], *langfuse["web"]["pod"]["additionalEnv"]]


def references() -> set[tuple[str, str]]:
    """Return every pair of a Secret and a key in it that the values refer to."""
    found = [entry["valueFrom"] for entry in environment_of_pods() if "valueFrom" in entry]
    found += [VALUES["langfuse"][name] for name in ("salt", "encryptionKey")]
    found += [VALUES["langfuse"]["nextauth"]["secret"]]
    found += [VALUES["s3"][name] for name in ("accessKeyId", "secretAccessKey")]
    pairs = [(each["secretKeyRef"]["name"], each["secretKeyRef"]["key"]) for each in found]
    postgres, clickhouse, redis = (
        VALUES[name]["auth"] for name in ("postgresql", "clickhouse", "redis")
    )
    pairs += [
        (postgres["existingSecret"], postgres["secretKeys"]["userPasswordKey"]),
        (clickhouse["existingSecret"], clickhouse["existingSecretKey"]),
        (redis["existingSecret"], redis["existingSecretPasswordKey"]),
    ]
    return set(pairs)


def test_the_chart_has_every_key() -> None:
    used = {path for path, _ in leaves(VALUES)}
    assert used - CHART_KEYS == set()


def test_the_values_name_secrets_and_hold_none() -> None:
    paths = {path for path, _ in leaves(VALUES)}
    assert [path for path in paths if re.search(r"(password|value|rootUser)$", path)] == []
    for entry in environment_of_pods():
        assert entry["name"] in DOCUMENTED
        secret = re.search(r"(PASSWORD|_KEY|SECRET)$", entry["name"])
        assert ("valueFrom" in entry) >= bool(secret), entry["name"]


def test_the_guide_makes_every_secret_that_the_values_name(made: Made) -> None:
    [pattern] = re.findall(r"grep -E '(\^\(SALT.*?)' \.\./server\.env", GUIDE)
    generated = {name for name in made.settings if re.match(pattern, name)}
    [file] = re.findall(r"```text\n(.*?)```", GUIDE, flags=re.DOTALL)
    given = set(re.findall(r"^([a-z0-9-]+)=", file, flags=re.MULTILINE))
    wanted = references()
    assert {secret for secret, _ in wanted} == {"langfuse", "langfuse-stores"}
    assert {key for secret, key in wanted if secret == "langfuse"} == generated - {
        "LANGFUSE_BASE_URL"
    }
    assert {key for secret, key in wanted if secret == "langfuse-stores"} == given


def test_the_stores_are_yours_and_the_server_is_new_enough() -> None:
    for store in ("postgresql", "clickhouse", "redis", "s3"):
        assert VALUES[store]["deploy"] is False
    check = (TOP / "recipes" / "check_connection.py").read_text()
    [oldest] = re.findall(r"^OLDEST_SERVER = \((\d+), (\d+)\)", check, flags=re.MULTILINE)
    tag = VALUES["langfuse"]["image"]["tag"]
    assert [int(part) for part in tag.split(".")[:2]] >= [int(part) for part in oldest]
    assert VALUES["langfuse"]["features"] == {"telemetryEnabled": False, "signUpDisabled": True}


def test_more_than_one_of_each_with_what_it_needs() -> None:
    web, worker = VALUES["langfuse"]["web"], VALUES["langfuse"]["worker"]
    assert web["replicas"] >= 2
    assert worker["hpa"]["maxReplicas"] > worker["hpa"]["minReplicas"] >= 2
    for pods in (web, worker):
        assert pods["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
        assert pods["resources"]["limits"]["memory"] == "4Gi"


# --- The guide ---------------------------------------------------------------------------


def test_the_guide_names_what_exists(made: Made) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", GUIDE):
        assert (HERE / target).exists(), target
    for name in re.findall(r"\b(?:python|cp|--values) ([\w/.-]+\.\w+)", GUIDE):
        assert (TOP / name).exists(), name
    assert f"python {' '.join(SCRIPT)} ../langfuse/.env" in GUIDE
    named = set(re.findall(r"\b[A-Z]+_[A-Z_]*[A-Z]\b", GUIDE))
    assert named - DOCUMENTED - made.settings.keys() == set()


def test_every_source_that_the_guide_cites_is_given() -> None:
    given = re.findall(r"^\[(\d+)\]: https://\S+$", GUIDE, flags=re.MULTILINE)
    assert set(re.findall(r"\[(\d+)\](?!:)", GUIDE)) == set(given)
    sizing = GUIDE.split("## Sizing")[1].split("\n## ")[0]
    assert "At least [4]" in sizing
