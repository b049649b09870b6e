"""Where a worker's zone keys come from, and what it says when it has none; trust zones of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric import settings
from fabric.contracts.errors import ConfigError
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.contracts.zones import WorkerKeys
from fabric.settings.secret import secrets_of
from fabric.settings.zone_keys import scheduler_keys, worker_keys

KEYS = WorkerKeys.of(Secrets(["s" * 32]), ["local", "eu"])


def load(folder: Path, **variables: str) -> settings.Settings:
    return settings.load(environ={"FABRIC_DATA_DIR": str(folder), **variables})


def test_given_ones_are_used_and_no_more_of_them_than_are_needed(tmp_path: Path) -> None:
    held = worker_keys(load(tmp_path, FABRIC_ZONE_KEYS=KEYS.dump()), {"eu"})
    assert (held.zones, held.home, held.schedulers) == ({"eu"}, KEYS.home, KEYS.schedulers)


def test_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEYS.dump() + "\n")
    assert worker_keys(load(tmp_path, FABRIC_ZONE_KEYS_FILE=str(file)), {"local", "eu"}) == KEYS


def test_of_the_secret_where_the_worker_has_it(tmp_path: Path) -> None:
    of_environment = worker_keys(load(tmp_path, FABRIC_SECRET="s" * 32), {"local", "eu"})
    assert of_environment == KEYS
    secrets = secrets_of(load(tmp_path))
    assert worker_keys(load(tmp_path), {"local"}) == WorkerKeys.of(secrets, ["local"])


def test_without_any_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fabric security zone-keys"):
        worker_keys(load(tmp_path / "none"), {"local"})
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="no key of zone cloud"):
        worker_keys(load(tmp_path, FABRIC_ZONE_KEYS=KEYS.dump()), {"local", "cloud"})
    with pytest.raises(ConfigError, match="can't be read"):
        worker_keys(load(tmp_path, FABRIC_ZONE_KEYS_FILE=str(tmp_path / "none")), {"local"})


class TestOfAScheduler:
    def test_from_its_variable_its_file_or_the_secret(self, tmp_path: Path) -> None:
        signer = Signer.of(Secrets(["s" * 32]))
        (tmp_path / "keys").write_text(signer.dump() + "\n")
        for variables in (
            {"FABRIC_ZONE_KEYS": signer.dump()},
            {"FABRIC_ZONE_KEYS_FILE": str(tmp_path / "keys")},
            {"FABRIC_SECRET": "s" * 32},
        ):
            assert scheduler_keys(load(tmp_path, **variables)).verifier == signer.verifier

    def test_without_any_it_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="fabric security zone-keys scheduler"):
            scheduler_keys(load(tmp_path / "none"))
        with pytest.raises(ConfigError, match="are keys of a worker"):
            scheduler_keys(load(tmp_path, FABRIC_ZONE_KEYS=KEYS.dump()))


def catalogue(folder: Path, **zones: str) -> settings.Settings:
    places = [
        {"engine": "mock", "tier": tier, "name": tier} | ({"trust_zone": zones[tier]} if tier in zones else {})
        for tier in ("cpu", "gpu", "cloud")
    ]
    config = folder / "fabric.yaml"
    config.write_text(repr({"models": [{"name": "m", "deployments": places}]}))
    return settings.load(environ={"FABRIC_DATA_DIR": str(folder), "FABRIC_CONFIG": str(config)})


def test_zones_of_a_catalogue(tmp_path: Path) -> None:
    deployments = catalogue(tmp_path, gpu="rack-7").catalog.by_deployment
    assert {name: place.zone for name, place in deployments.items()} == {
        "cpu": "local",
        "gpu": "rack-7",
        "cloud": "cloud",
    }


@pytest.mark.parametrize(
    "zones", [{"cloud": "local"}, {"gpu": "cloud"}, {"gpu": "home"}, {"cloud": "scheduler"}, {"gpu": "Rack"}]
)
def test_a_zone_is_of_one_kind(tmp_path: Path, zones: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"trust.zone"):
        catalogue(tmp_path, **zones)
