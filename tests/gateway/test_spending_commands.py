"""``fabric usage`` and ``fabric costs``: the ledger's sums, read by people and by programs."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest

from fabric.cli.entry import run
from fabric.client import AsyncClient, Client
from fabric.contracts.completion import Completion
from fabric.contracts.job import JobSpec, Measures, Usage
from fabric.ledger import usage, worker_hours
from fabric.ledger.usage import Note
from fabric.ledger.worker_hours import Up

if TYPE_CHECKING:
    from tests.gateway.conftest import Served

HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def used(gateway: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Three requests of the last hours, one of them in the cloud; answers when the last one ended."""
    now = int(time.time() * 1000)
    tags = (("<b>x</b>",), (), ("=1+1",))
    done = [
        Completion(
            entry_id="1-1",
            spec=JobSpec(id=f"job_{n:026}", endpoint="/v1/chat/completions", model="small", tags=tags[n]),
            state="succeeded",
            attempt=1,
            deployment="small-cloud" if n == 2 else "small-cpu",
            tier="cloud" if n == 2 else "cpu",
            worker="w",
            accepted_ms=now,
            dispatched_ms=now,
            claimed_ms=now,
            finished_ms=now - n * HOUR_MS,
            measures=Measures(engine_s=3.0, usage=Usage(1000, 500, 400), cost_usd=0.25, machine_usd=0.25 * (n < 2)),
            result=None,
            error=None,
        )
        for n in range(3)
    ]
    gateway.ledger.write(usage.add, done, lambda _: Note("hash", 0.2, 1.0, 2.0))
    gateway.ledger.write(worker_hours.note, [Up("w", "cpu", 4, now - 2 * HOUR_MS, 1.5)], now)
    monkeypatch.setenv("FABRIC_URL", gateway.url)
    monkeypatch.chdir(tmp_path)
    return now


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"small +cpu +small-cpu +2 +0 +2,000 +800 +1,000", said)
    assert re.search(r"total +3 +0 +3,000", said)
    assert run(["costs"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"cloud +small-cloud +1 +0\.25 +1\.00 +0\.75", said)
    assert re.search(r"total +3 +0\.75 +3\.00 +2\.25", said)
    assert "cpu: 2.0 machine hours for $3.00, $2.50 of it idle" in said
    assert "mean error of 20%" in said


def test_json_and_csv_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "--by", "tier", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tier"], row["requests"]) for row in rows] == [("cloud", 1), ("cpu", 2)]
    assert run(["costs", "--by", "tag", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["tag"] for row in rows] == ["<b>x</b>", "'=1+1"]  # a spreadsheet would calculate it
    assert [float(row["cost_usd"]) for row in rows] == [0.25, 0.25]
    assert run(["costs", "--since", "2001-01-01", "--until", "2001-02-01", "--csv"]) == 0
    assert capsys.readouterr().out == ""


def test_prices_say_where_they_are_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["costs", "prices", "--json"]) == 0
    (price, _) = json.loads(capsys.readouterr().out)
    assert (price["deployment"], price["input_per_million"], price["version"]) == ("small-cpu", 0.0, "")
    assert run(["costs", "prices"]) == 0
    assert re.search(r"small-cpu +cpu +0 +0 +- +0 +- +-", capsys.readouterr().out)


def test_parquet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "--by", "hour,tier", "--parquet", "usage.parquet"]) == 0
    table = pyarrow.parquet.read_table("usage.parquet")
    assert (table.num_rows, sum(table["requests"].to_pylist())) == (3, 3)


def test_focus_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["costs", "--focus", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(float(row["BilledCost"]) for row in rows) == 0.75
    assert {row["BillingCurrency"] for row in rows} == {"USD"}
    assert {row["ChargeCategory"] for row in rows} == {"Usage"}
    assert {row["SubAccountId"] for row in rows} == {"default"}
    for row in rows:
        assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["BillingPeriodEnd"]
    cloud = next(row for row in rows if row["ResourceId"] == "small-cloud")
    assert (cloud["ListCost"], cloud["ConsumedQuantity"], cloud["ConsumedUnit"]) == ("1", "1500", "Tokens")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["usage", "--by", "colour"], 2, "'colour' is none of tenant, key"),
        (["costs", "--focus"], 2, "--focus is for programs"),
        (["costs", "--csv", "--json"], 2, "one of --csv"),
        (["costs", "--since", "soon"], 1, "`since` isn't a time"),
    ],
)
def test_wrong_calls(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == status
    assert said in capsys.readouterr().err


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_is_one_file_that_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["costs", "report", "-o", "costs.html"]) == 0
    text = Path("costs.html").read_text()
    page = _Page()
    page.feed(text)
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "img", "iframe", "b"}  # the last one is in a tag's name
    assert not re.search(r"https?:|url\(|@import|<[^>]+\son\w+=", text)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(values.get("aria-label") for tag, values in page.tags if values.get("role") == "img")
    assert all(values.get("scope") for tag, values in page.tags if tag == "th")
    assert "prefers-color-scheme:dark" in text
    assert {"<b>x</b>", "small-cpu", "2.25"} <= set(page.texts)
    assert sum(tag == "rect" and "x" in values for tag, values in page.tags) >= 2


def test_a_report_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["costs", "report", "-o", "c.html", "--since", "2001-01-01", "--until", "2001-02-01"]) == 0
    assert "Nothing ran in this time." in Path("c.html").read_text()


async def test_clients_read_all_pages(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric._client_wire._PAGE", 2)
    with Client() as client:
        found: list[dict[str, Any]] = list(client.usage(group_by=("hour",), tenant="default"))
        assert len(found) == 3
        assert [row["tag"] for row in client.costs(group_by=("tag",))] == ["<b>x</b>", "=1+1"]
        summary = client.costs_summary()
    async with AsyncClient() as client:
        assert [row async for row in client.usage(group_by=("hour",), tenant="default")] == found
        assert len([row async for row in client.costs(group_by=("tag",))]) == 2
        assert (await client.costs_summary())["total"] == summary["total"]
