"""Where the API may listen: beyond loopback only with keys and TLS, unless the operator says otherwise."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from fabric import settings
from fabric.cli import listen
from fabric.cli.entry import run
from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.ledger import Ledger, keys, upgrade
from fabric.ledger.keys import NewKey

if TYPE_CHECKING:
    from tests.conftest import Valkey

ROOT = Path(__file__).parents[2]
ANYWHERE = ["0.0.0.0", "::", "192.0.2.1"]


def load(folder: Path, host: str, **variables: str) -> settings.Settings:
    return settings.load(environ={"FABRIC_DATA_DIR": str(folder), "FABRIC_HOST": host, **variables})


def guarded(folder: Path, host: str, *, has_keys: bool = False, **variables: str) -> None:
    listen.guarded(load(folder, host, **variables), lambda: has_keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost"])
def test_loopback_needs_neither_keys_nor_tls(tmp_path: Path, host: str) -> None:
    guarded(tmp_path, host)
    assert listen.only_loopback(host)


@pytest.mark.parametrize("host", ANYWHERE)
def test_everywhere_else_needs_tls_and_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=r"in plain text\. Set FABRIC_TLS_CERT and FABRIC_TLS_KEY"):
        guarded(tmp_path, host, has_keys=True)
    with pytest.raises(ConfigError, match=r"in plain text"):
        guarded(tmp_path, host, FABRIC_ALLOW_OPEN="1")
    with pytest.raises(ConfigError, match=r"no API keys\. Make one with `fabric keys create`"):
        guarded(tmp_path, host, FABRIC_ALLOW_PLAINTEXT="1")
    with pytest.raises(ConfigError, match=r"everyone who reaches this machine could use the fabric"):
        guarded(tmp_path, host)
    guarded(tmp_path, host, has_keys=True, FABRIC_ALLOW_PLAINTEXT="1")
    guarded(tmp_path, host, FABRIC_ALLOW_OPEN="1", FABRIC_ALLOW_PLAINTEXT="1")


def test_a_name_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FABRIC_HOST is no\.such\.host\.invalid, which is no address"):
        guarded(tmp_path, "no.such.host.invalid")


def test_keys_are_looked_for_in_the_ledger_and_none_is_made(tmp_path: Path) -> None:
    here = load(tmp_path, "0.0.0.0")
    assert not listen.any_keys(here)
    assert list(tmp_path.iterdir()) == []
    upgrade(here.database_url)
    assert not listen.any_keys(here)
    ledger = Ledger(here.database_url)
    secrets = Secrets(["s" * 32])
    made, _ = ledger.write(keys.create, secrets, NewKey("acme", ("read",), 1, "cli"))
    assert listen.any_keys(here)
    ledger.write(keys.revoke, secrets, made.id, 2, "cli")
    assert listen.any_keys(here)  # it was closed: nobody gets in, rather than everybody
    ledger.close()


def test_port_0_takes_a_free_one() -> None:
    with listen.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert listen.url(listener) == f"http://127.0.0.1:{port}"
        assert listen.url(listener, tls=True) == f"https://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConfigError, match=f"port {port}: address already in use. Stop what uses it"):
            listen.bind("127.0.0.1", port)


@dataclass(frozen=True)
class Authority:
    """A made-up one, with a certificate for 127.0.0.1."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def variables(self) -> dict[str, str]:
        return {"FABRIC_TLS_CERT": str(self.folder / "cert.pem"), "FABRIC_TLS_KEY": str(self.folder / "key.pem")}

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def make(self) -> None:
        (self.folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self.openssl(
            "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=made-up"
        )
        self.openssl("req", *curve, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=fabric")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions", "-days", "2"]
        self.openssl("x509", "-req", "-in", "request.pem", *signed, "-out", "cert.pem")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if not shutil.which("openssl"):
        pytest.skip("openssl isn't installed")
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.make()
    return authority


class TestTls:
    def test_a_certificate_and_keys_let_it_listen_anywhere(self, tmp_path: Path, authority: Authority) -> None:
        guarded(tmp_path, "0.0.0.0", has_keys=True, **authority.variables)
        with pytest.raises(ConfigError, match="no API keys"):
            guarded(tmp_path, "0.0.0.0", **authority.variables)

    @pytest.mark.parametrize("missing", ["FABRIC_TLS_CERT", "FABRIC_TLS_KEY"])
    def test_half_of_it_is_refused_even_on_loopback(self, tmp_path: Path, authority: Authority, missing: str) -> None:
        given = {name: value for name, value in authority.variables.items() if name != missing}
        with pytest.raises(ConfigError, match="belong together"):
            guarded(tmp_path, "127.0.0.1", **given)

    def test_what_is_no_certificate_is_refused_at_the_start(self, tmp_path: Path, authority: Authority) -> None:
        for name, file in (("FABRIC_TLS_CERT", "extensions"), ("FABRIC_TLS_KEY", "ca.key"), ("FABRIC_TLS_KEY", "none")):
            with pytest.raises(ConfigError, match="can't be used with the key"):
                guarded(tmp_path, "127.0.0.1", **{**authority.variables, name: str(authority.folder / file)})

    @pytest.fixture
    def served(self, tmp_path: Path, authority: Authority, valkey: Valkey) -> Iterator[tuple[str, str]]:
        """``fabric api`` beyond loopback, with a key and TLS; its URL and the key."""
        with listen.bind("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        variables = {
            "FABRIC_DATA_DIR": str(tmp_path),
            "FABRIC_REDIS_URL": valkey.url,
            "FABRIC_HOST": "0.0.0.0",
            "FABRIC_PORT": str(port),
            "FABRIC_SECRET": "s" * 32,
            **authority.variables,
        }
        database_url = settings.load(environ=variables).database_url
        upgrade(database_url)
        ledger = Ledger(database_url)
        _, key = ledger.write(keys.create, Secrets(["s" * 32]), NewKey("acme", ("read",), 1, "cli"))
        ledger.close()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
        command = [sys.executable, "-m", "fabric.cli", "api"]
        with (tmp_path / "log").open("wb") as log:
            environ = {**kept, "PYTHONPATH": str(ROOT), **variables}
            process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 60
            while "the API listens" not in (tmp_path / "log").read_text():
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.05)
            yield f"https://127.0.0.1:{port}", key
        finally:
            process.terminate()
            process.wait(timeout=60)

    def test_it_is_spoken_with_whoever_trusts_the_authority(
        self,
        served: tuple[str, str],
        authority: Authority,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        url, key = served
        trusting = ssl.create_default_context(cafile=authority.ca)
        with httpx.Client(base_url=url, verify=trusting, trust_env=False, timeout=60) as http:
            assert http.get("/health/live").status_code == 200
            assert http.get("/v1/jobs").status_code == 401
            assert http.get("/v1/jobs", headers={"authorization": f"Bearer {key}"}).json()["data"] == []
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http, pytest.raises(httpx.ConnectError):
            http.get("/health/live")
        plain = httpx.Client(base_url=url.replace("https", "http"), trust_env=False, timeout=60)
        with plain as http, pytest.raises(httpx.TransportError):
            http.get("/health/live")
        monkeypatch.setenv("FABRIC_URL", url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        monkeypatch.delenv("FABRIC_API_KEY", raising=False)
        assert run(["jobs", "ls"]) == 1
        told = capsys.readouterr().err
        assert "error: Give an API key" in told and "hint: set FABRIC_API_KEY" in told
        monkeypatch.setenv("FABRIC_API_KEY", key)
        assert run(["jobs", "ls"]) == 0
