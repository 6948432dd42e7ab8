"""The files in deploy/: they parse, agree with the settings and with each other, and grant no rights."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

import airy_trio
from airy_trio.admin.server import PROBES, AdminOptions
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.sessions.session import ABORT_TIMEOUT_S, CLOSE_TIMEOUT_S, LINGER_S
from airy_trio.settings import Settings, load, parse
from airy_trio.websocket.admission import Admission, is_loopback
from airy_trio.websocket.request import read_head, upgrade_in
from tests.locks import pins
from tests.processes import AIRY_TRIO
from tests.websocket.test_request import head

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LISTENER, ADMIN = ListenerOptions(), AdminOptions()
SHUTDOWN_S = LISTENER.drain_s + CLOSE_TIMEOUT_S + LINGER_S + ABORT_TIMEOUT_S
NO = "no-new-privileges:true"


def unit() -> dict[str, dict[str, str]]:
    """Return the sections of the systemd unit. Repeated entries are joined by newlines."""

    class Joined(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:  # noqa: ANN401 - configparser's
            if key in self and isinstance(value, list):
                value = [*self[key], *value]
            super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Joined, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((DEPLOY / "airy-trio.service").read_text())
    return {name: dict(parser[name]) for name in parser.sections()}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, rest), with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def assert_accepted(words: list[str]) -> None:
    """Assert that the program accepts these arguments."""
    ended = subprocess.run([*AIRY_TRIO, *words, "--help"], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_unit_is_valid() -> None:
    assert set(unit()) == {"Unit", "Service", "Install"}
    systemd_analyze = shutil.which("systemd-analyze")
    if systemd_analyze is None:
        pytest.skip("needs systemd-analyze")
    ended = subprocess.run(
        [systemd_analyze, "verify", DEPLOY / "airy-trio.service"], check=False, capture_output=True, text=True
    )
    faults = [line for line in ended.stderr.splitlines() if "is not executable: No such file" not in line]
    assert faults == []


@pytest.mark.slow
def test_unit_runs_the_program_and_waits_for_its_shutdown() -> None:
    service = unit()["Service"]
    words = service["ExecStart"].split()
    assert words[0].endswith("/bin/airy-trio")
    assert_accepted(words[1:])
    assert float(service["TimeoutStopSec"]) > SHUTDOWN_S
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["LimitNOFILE"]) > 20_000


def test_unit_gives_no_rights_away() -> None:
    service = unit()["Service"]
    assert service["DynamicUser"] == "yes"
    assert (service["CapabilityBoundingSet"], service["AmbientCapabilities"]) == ("", "")
    assert (service["ProtectSystem"], service["ProtectHome"]) == ("strict", "yes")
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == service["MemoryDenyWriteExecute"] == "yes"
    assert "ReadWritePaths" not in service


def test_image_copies_existing_files_and_runs_unprivileged() -> None:
    found = instructions()
    final = found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]
    for word, rest in found:
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    users = [rest for word, rest in final if word == "USER"]
    assert users == ["10001:10001"]
    assert [rest for word, rest in final if word == "EXPOSE"] == [str(LISTENER.port)]
    packaging = {"FROM", "ARG", "LABEL", "RUN", "COPY", "ENV", "USER", "WORKDIR"}
    allowed = packaging | {"EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert all(word in allowed for word, _ in final)


@pytest.mark.slow
def test_image_starts_the_program_with_a_health_check() -> None:
    named = dict(instructions())
    entry, command = (yaml.safe_load(named[name]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["airy-trio"]
    assert_accepted(command)
    health = yaml.safe_load(named["HEALTHCHECK"].partition("CMD ")[2])
    assert health == ["airy-trio", "health", *command]
    assert_accepted(health[1:])


def test_image_is_labelled_with_its_version() -> None:
    text = dict(instructions())["LABEL"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', text))
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels == {
        "title": metadata["name"],
        "description": metadata["description"],
        "version": airy_trio.__version__,
        "revision": "$REVISION",
        "licenses": metadata["license"],
    }


def test_image_installs_locked_versions_alone() -> None:
    installs = [step for word, rest in instructions() if word == "RUN" for step in rest.split("&&") if "pip " in step]
    assert len(installs) == 4
    for step in installs:
        assert "--require-hashes --requirement locks/" in step or "--no-deps" in step, step
    wheel, program = installs[2:]
    assert "--no-build-isolation" in wheel, "else pip fetches the build tools without a hash"
    assert "--no-index" in program
    assert "coredis" in {pin.name for pin in pins("image")}


def test_image_is_built_from_no_settings() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copied = {
        name for word, rest in instructions() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    }
    of_config = {f"config/{path.name}" for path in (ROOT / "config").glob("*.toml")}
    assert allowed == copied - {"config"} | of_config


@pytest.mark.slow
def test_compose_fits_the_image_and_the_settings() -> None:
    services = compose()["services"]
    for name in ("migrate", "server"):
        service = services[name]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        (settings,) = [volume.split(":") for volume in service["volumes"]]
        assert settings[1:] == ["/etc/airy-trio/airy-trio.toml", "ro"]
        environment = {
            name: re.sub(r"\$\{\w+(?::-([^}]*))?\}", r"\1", value) for name, value in service["environment"].items()
        }
        loaded = load(DEPLOY / settings[0], environment)
        assert loaded.listener.trusted_proxies == [environment["TRUSTED_PROXIES"]]
        assert (loaded.listener.port, loaded.admin) == (LISTENER.port, ADMIN)
        assert service["command"][-2:] == ["--config", settings[1]]
        assert_accepted(service["command"])
        assert service["depends_on"]["db"]["condition"] == "service_healthy"
    assert services["server"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert float(services["server"]["stop_grace_period"].removesuffix("s")) > SHUTDOWN_S


def kubernetes() -> dict[str, Any]:
    """Return the objects of kubernetes.yaml by kind. `make check-manifests` validates them against the schemas."""
    objects = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    assert set(objects) == {"ConfigMap", "Job", "Deployment", "Service"}
    return objects


def pods() -> dict[str, Any]:
    return {kind: kubernetes()[kind]["spec"]["template"]["spec"] for kind in ("Job", "Deployment")}


def kubernetes_settings() -> Settings:
    [text] = kubernetes()["ConfigMap"]["data"].values()
    return parse(text, {"DATABASE_URL": "postgresql://airy@db/airy", "ADMIN_TOKEN": "t" * 16})


@pytest.mark.slow
def test_kubernetes_pods_run_the_program_with_the_settings() -> None:
    [file] = kubernetes()["ConfigMap"]["data"]
    config = kubernetes()["ConfigMap"]["metadata"]["name"]
    for kind, pod in pods().items():
        [container] = pod["containers"]
        assert container["image"] == f"airy-trio:{airy_trio.__version__}"
        assert_accepted(container["args"])
        [mount], [volume] = container["volumeMounts"], pod["volumes"]
        assert container["args"][-2:] == ["--config", f"{mount['mountPath']}/{file}"]
        assert (volume["name"], volume["configMap"]["name"]) == (mount["name"], config)
        assert {one["name"] for one in container["env"]} == {"DATABASE_URL", "ADMIN_TOKEN"}
        assert all(set(one["valueFrom"]) == {"secretKeyRef"} for one in container["env"]), "no secret in the file"
        assert ("migrate" in container["args"]) == (kind == "Job")
    job = kubernetes()["Job"]["metadata"]["name"]
    assert job.endswith(airy_trio.__version__.replace(".", "-")), "a Job cannot be changed by an upgrade"


def test_kubernetes_probes_ask_the_admin_port() -> None:
    settings, [container] = kubernetes_settings(), pods()["Deployment"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"clients": settings.listener.port, "admin": settings.admin.port}
    assert not is_loopback(settings.admin.host)
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "admin"}
        assert path in PROBES, "it needs no token"
    [port] = kubernetes()["Service"]["spec"]["ports"]
    assert port["targetPort"] == "clients", "the admin port is not public"
    labels = kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == kubernetes()["Service"]["spec"]["selector"]
    assert labels == kubernetes()["Deployment"]["spec"]["selector"]["matchLabels"]


def test_kubernetes_waits_for_the_shutdown() -> None:
    grace_s = pods()["Deployment"]["terminationGracePeriodSeconds"]
    assert grace_s > kubernetes_settings().listener.drain_s - LISTENER.drain_s + SHUTDOWN_S


def test_kubernetes_gives_no_rights_away() -> None:
    for pod in pods().values():
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_settings_named_in_a_proxy_file_admit_its_clients(name: str) -> None:
    text = (DEPLOY / name).read_text()
    named = re.search(r"\[listener\] (hosts = \[.*?\]), (trusted_proxies = \[.*?\])", text)
    assert named is not None
    listener = parse(f'[database]\nurl = "sqlite:///a.db"\n[listener]\n{named[1]}\n{named[2]}\n', {}).listener
    (host,) = listener.hosts
    assert f"{host} {{" in text or f"server_name {host};" in text
    admission = Admission(listener)
    request = read_head(head(f"Origin: https://{host}", "X-Forwarded-For: 192.0.2.1", changed={"Host": host}))
    assert request is not None

    async def admit() -> str:
        await trio.lowlevel.checkpoint()
        slot = admission.arrive("127.0.0.1", loopback=True)
        upgrade = upgrade_in(request)
        slot.examine(request, upgrade.host, upgrade.origin)
        return slot.address

    assert trio.run(admit) == "192.0.2.1"


def test_compose_gives_no_rights_away() -> None:
    services = compose()["services"]
    for name in ("migrate", "server"):
        service = services[name]
        assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (True, ["ALL"], [NO])
        assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))


def test_no_file_contains_a_password() -> None:
    for path in DEPLOY.iterdir():
        for match in re.finditer(r"(?:password|secret|token)\w*\s*[:=]\s*(\S+)", path.read_text(), re.IGNORECASE):
            assert match[1].startswith(("${", '"${', "...", "{", "false")), (path.name, match[0])
