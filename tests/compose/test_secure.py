"""secure.yaml over compose.yaml: a user for each role and TLS, with what `fabric security init` writes."""

from __future__ import annotations

import shlex
import ssl
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml
from cryptography import x509

from fabric.cli.entry import run
from fabric.security import certificates
from fabric.store import embedded
from tests.compose.conftest import interpolate
from tests.conftest import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RabbitMQ

RESET = object()
ROLES = {
    **{"api": "gateway", "scheduler": "scheduler", "recorder": "recorder", "migrate": "recorder"},
    **{"zone-keys": "recorder", "flower": "monitor"},
    **{f"{tier}-worker": f"worker-{tier}" for tier in ("cpu", "gpu", "cloud")},
}


class _Loader(yaml.SafeLoader):
    """With Compose's tag for what an override takes out."""


_Loader.add_constructor("!reset", lambda loader, node: RESET)


def merged(below: Any, above: Any) -> Any:
    """As Compose does it: mappings by key, lists one behind the other."""
    if isinstance(below, dict) and isinstance(above, dict):
        whole = below | {name: merged(below.get(name), value) for name, value in above.items()}
        return {name: value for name, value in whole.items() if value is not RESET}
    return [*below, *above] if isinstance(below, list) and isinstance(above, list) else above


#: Lists that an override takes the place of.
REPLACED = ("command", "entrypoint", "test")


@pytest.fixture(scope="module")
def services(compose: Any, folder: Path) -> dict[str, Any]:
    above = interpolate(yaml.load((folder / "secure.yaml").read_text(), _Loader))["services"]
    whole: dict[str, Any] = merged(compose.services, above)
    for name, service in above.items():
        whole[name] |= {part: service[part] for part in REPLACED if part in service}
        if "healthcheck" in service:
            whole[name]["healthcheck"]["test"] = service["healthcheck"]["test"]
    return whole


def documented(folder: Path) -> list[str]:
    """The command of secure.yaml that makes what it mounts."""
    lines = [line.removeprefix("#").strip() for line in (folder / "secure.yaml").read_text().splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("docker compose run"))
    words = shlex.split(lines[first].rstrip("\\") + lines[first + 1])
    return words[words.index("zone-keys") + 1 :]


@pytest.fixture(scope="module")
def access(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by that command, with RabbitMQ."""
    place = tmp_path_factory.mktemp("host")
    out = place / "access"
    out.mkdir(mode=0o700)
    words = [str(out) if word == "/access" else word for word in documented(folder)]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        for name in ("FABRIC_SECRET", "FABRIC_DATA_DIR", "FABRIC_CONFIG"):
            patched.delenv(name, raising=False)
        assert run([*words, "--rabbitmq", "amqps://rabbitmq:5671/fabric"]) == 0
    return out


def test_every_process_has_its_roles_user_and_no_other(services: dict[str, Any], compose: Any, access: Path) -> None:
    assert set(ROLES) == set(compose.of_ours)
    for name, role in ROLES.items():
        service = services[name]
        environment = service["environment"]
        assert not environment.keys() & {"FABRIC_REDIS_URL", "FABRIC_BROKER_URL", "FABRIC_SECRET"}, name
        assert environment["FABRIC_REDIS_CA"] == environment["FABRIC_BROKER_CA"] == "/run/fabric/ca.pem"
        files = [file if isinstance(file, str) else file["path"] for file in service["env_file"]]
        assert [file for file in files if file.startswith("access/")] == [f"access/{role}.env"], name
        assert (access / f"{role}.env").is_file()
        assert "./access/ca.pem:/run/fabric/ca.pem:ro" in service["volumes"], name
        assert not any("/access/" in volume and "ca.pem" not in volume for volume in service["volumes"]), name


def test_what_is_mounted_is_what_is_written_and_servers_can_read_it(
    services: dict[str, Any], access: Path, folder: Path
) -> None:
    mounted = {
        volume.removeprefix("./").partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume.startswith(("./access", "./rabbitmq"))
    }
    assert "rabbitmq-secure.conf" in mounted
    assert all((access.parent / file).is_file() for file in mounted - {"rabbitmq-secure.conf"})
    assert (folder / "rabbitmq-secure.conf").is_file()
    assert stat.S_IMODE(access.stat().st_mode) == 0o700, "nobody else gets there"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in access.iterdir()}
    shared = {name for name, mode in modes.items() if mode == 0o644}
    assert shared == {file.removeprefix("access/") for file in mounted if file.startswith("access/")}
    assert {mode for name, mode in modes.items() if name not in shared} == {0o600}


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o755)
    assert run(["security", "init", "--out", str(tmp_path), "--containers"]) == 78
    assert "chmod 700" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tls_needs_urls_that_speak_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["security", "init", "--out", str(tmp_path / "out"), "--tls"]) == 78
    assert "rediss://" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_certificates_are_for_the_servers_names_and_the_authoritys_key_is_nowhere(access: Path) -> None:
    authority = x509.load_pem_x509_certificate((access / "ca.pem").read_bytes())
    for server, host in (("redis", "valkey"), ("rabbitmq", "rabbitmq")):
        made = x509.load_pem_x509_certificate((access / f"{server}.pem").read_bytes())
        made.verify_directly_issued_by(authority)
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [host]
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(access / f"{server}.pem", access / f"{server}.key")
    assert {path.name for path in access.iterdir() if path.suffix == ".key"} == {"redis.key", "rabbitmq.key"}


def test_certificates_for_addresses_and_as_long_as_they_say() -> None:
    now = datetime.now(UTC)
    made = x509.load_pem_x509_certificate(certificates({"redis": "192.0.2.7"}, now)["redis.pem"].encode())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert timedelta(days=824) < made.not_valid_after_utc - now < timedelta(days=826)


@pytest.fixture
def valkey(services: dict[str, Any], access: Path, tmp_path: Path) -> Iterator[int]:
    """As the container starts it, but for TLS, which this build may not speak: answers the port."""
    flags = services["valkey"]["environment"]["VALKEY_EXTRA_FLAGS"].split()
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    assert options["--port"] == "0", "nothing but TLS"
    (port,) = free_ports(1)
    words = [str(tmp_path) if word == "/data" else word for word in services["valkey"]["command"]]
    plain = ["--port", str(port), "--bind", "127.0.0.1"]
    acl = options["--aclfile"].replace("/run/fabric", str(access))
    process = subprocess.Popen([str(embedded.server_binary()), *words[1:], *plain, "--aclfile", acl])
    yield port
    process.kill()
    process.wait()


def test_valkey_takes_the_list_and_nobody_without_a_user(valkey: int, access: Path) -> None:
    stranger = redis.Redis(port=valkey, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100))
    with pytest.raises(redis.AuthenticationError):  # what the health check takes for an answer, too
        stranger.ping()
    lines = (access / "scheduler.env").read_text().splitlines()
    url = next(line for line in lines if line.startswith("FABRIC_REDIS_URL=")).partition("=")[2]
    assert url.startswith("rediss://") and url.endswith("@valkey:6379/0")
    named = redis.Redis.from_url(url.replace("rediss", "redis").replace("valkey:6379", f"127.0.0.1:{valkey}"))
    assert named.ping()


def test_rabbitmq_starts_with_the_files_and_speaks_tls_alone(
    folder: Path, access: Path, new_rabbitmq: Callable[..., RabbitMQ]
) -> None:
    (port,) = free_ports(1)
    lines = [
        line.replace("/run/fabric", str(access)).replace("= 5671", f"= 127.0.0.1:{port}")
        for line in (folder / "rabbitmq-secure.conf").read_text().splitlines()
        # The test's own way in stays: by it is looked what there is.
        if line and not line.startswith(("#", "listeners.tcp"))
    ]
    assert "listeners.tcp = none" in (folder / "rabbitmq-secure.conf").read_text()
    server = new_rabbitmq(conf=tuple(lines))
    if server.process is None:
        server.start()
    assert {"fabric-scheduler", "fabric-worker-cloud"} <= {str(row[0]) for row in server.ctl("list_users")}
    from kombu import Connection

    url = (access / "scheduler.env").read_text().partition("FABRIC_BROKER_URL=")[2].splitlines()[0]
    # The certificate is for the container's name, which isn't this machine's.
    options = {"ca_certs": str(access / "ca.pem"), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "rabbitmq"}
    with Connection(url.replace("rabbitmq:5671", f"127.0.0.1:{port}"), ssl=options) as connection:
        connection.ensure_connection(max_retries=20, interval_start=0.2, interval_step=0)


def test_its_compose_file_follows_the_specification(folder: Path, tool: Any, tmp_path: Path) -> None:
    checker = tool("check-jsonschema", "PyPI: check-jsonschema")
    plain = tmp_path / "secure.yaml"
    plain.write_text((folder / "secure.yaml").read_text().replace("!reset null", "null"))
    said = subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", plain], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
