"""The scheduler process: waits through outages, and ends when it can't do its duties."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from fabric.contracts.catalog import Catalog
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.store import Store
from scheduler import service

if TYPE_CHECKING:
    from tests.conftest import Valkey

CATALOG = Catalog.model_validate(
    {"models": [{"name": "m", "deployments": [{"name": "d", "engine": "mock", "tier": "cpu"}]}]}
)
SIGNER = Signer.of(Secrets.passing())


def settings(valkey: Valkey, stop: threading.Event) -> dict[str, Any]:
    places = {"redis_url": valkey.url, "broker_url": valkey.broker_url}
    return {**places, "catalog": CATALOG, "signer": SIGNER, "stop": stop}


def start(valkey: Valkey, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=service.run, kwargs=settings(valkey, stop))
    thread.start()
    return thread


def test_it_stops_when_told(valkey: Valkey) -> None:
    stop = threading.Event()
    thread = start(valkey, stop)
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_it_waits_for_a_store_that_is_away_and_says_so_once(valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="scheduler.service")
    valkey.kill()
    stop, pause = threading.Event(), threading.Event()
    thread = start(valkey, stop)
    for text in ("can't be reached", "are back"):
        for _ in range(600):
            if text in caplog.text:
                break
            pause.wait(0.05)
        assert text in caplog.text
        if valkey.process is None:
            valkey.start()
    stop.set()
    thread.join(timeout=30)
    assert caplog.text.count("can't be reached") == 1


def test_without_its_duties_it_does_not_go_on(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(store: Store, stop: threading.Event) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service, "run_duties", broken)
    with pytest.raises(ZeroDivisionError):
        service.run(**settings(valkey, stop := threading.Event()))
    assert stop.is_set()
