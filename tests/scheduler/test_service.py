"""The scheduler process: waits through outages, and ends when it can't do its duties."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from fabric.contracts.catalog import Catalog
from fabric.store import Store
from scheduler import service

if TYPE_CHECKING:
    from tests.conftest import Valkey

CATALOG = Catalog.model_validate(
    {"models": [{"name": "m", "deployments": [{"name": "d", "engine": "mock", "tier": "cpu"}]}]}
)


def start(valkey: Valkey, stop: threading.Event) -> threading.Thread:
    settings = {"redis_url": valkey.url, "broker_url": valkey.broker_url, "catalog": CATALOG, "stop": stop}
    thread = threading.Thread(target=service.run, kwargs=settings)
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
        service.run(
            redis_url=valkey.url, broker_url=valkey.broker_url, catalog=CATALOG, stop=(stop := threading.Event())
        )
    assert stop.is_set()
