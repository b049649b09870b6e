"""Rate limits at the door: headers, refusals that say when to come back, clients that obey them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest

from fabric.contracts.key import Permissions
from fabric.contracts.limits import Limits
from fabric.contracts.secret import Secrets
from fabric.gateway.rate_headers import duration
from fabric.ledger import Ledger, keys
from fabric.ledger.keys import NewKey
from fabric.store import Store
from tests.gateway.conftest import CATALOG, PATIENCE_S, chat

if TYPE_CHECKING:
    from fabric.gateway import GatewaySettings
    from tests.gateway.conftest import Served, Worker

SECRETS = Secrets(["s" * 32])
CHAT = "/v1/chat/completions"
NAMES = {f"x-ratelimit-{word}-{kind}" for word in ("limit", "remaining", "reset") for kind in ("requests", "tokens")}


@pytest.fixture
def key(settings: GatewaySettings) -> Callable[..., str]:
    ledger = Ledger(settings.database_url)

    def make(tenant: str = "acme", **limits: int) -> str:
        new = NewKey(tenant, ("inference", "batch", "read"), 1, "cli", permissions=Permissions(limits=Limits(**limits)))
        return ledger.write(keys.create, SECRETS, new)[1]

    return make


@pytest.fixture
def kept(serve: Callable[..., Served], settings: GatewaySettings) -> Served:
    return serve(replace(settings, secrets=SECRETS))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refusals(served: Served, key: str, limit: str) -> float:
    with served.http(headers=bearer(key)) as http:
        lines = http.get("/metrics").text.splitlines()
    name = f'fabric_rate_limit_refusals_total{{limit="{limit}",scope="key"}}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def job(**options: Any) -> dict[str, Any]:
    return {"endpoint": CHAT, "body": chat(max_tokens=5), "fabric": options}


def test_every_answer_says_what_is_left(key: Callable[..., str], kept: Served, worker: Worker) -> None:
    http = kept.http(headers=bearer(key(requests_per_minute=10, tokens_per_minute=1_000)))
    whole = http.post(CHAT, json=chat(max_tokens=5))
    with http.stream("POST", CHAT, json=chat(max_tokens=5, stream=True)) as streamed:
        streamed.read()
    submitted = http.post("/v1/jobs", json=job())
    for answer, left in ((whole, "9"), (streamed, "8"), (submitted, "7")):
        assert answer.headers.keys() >= NAMES
        assert answer.headers["x-ratelimit-limit-requests"] == "10"
        assert answer.headers["x-ratelimit-remaining-requests"] == left
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1_000
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert not http.get("/v1/models").headers.keys() & NAMES


def test_without_limits_nothing_is_said_and_nothing_kept(
    key: Callable[..., str], kept: Served, worker: Worker, store: Store
) -> None:
    assert not kept.http(headers=bearer(key())).post(CHAT, json=chat()).headers.keys() & NAMES
    assert not store.redis.keys("fabric:rate:*")


def test_a_refusal_names_the_limit_and_when_there_is_room(key: Callable[..., str], kept: Served) -> None:
    http = kept.http(headers=bearer(key(requests_per_minute=2)))
    assert [http.post("/v1/jobs", json=job()).status_code for _ in range(3)] == [202, 202, 429]
    refused = http.post(CHAT, json=chat())
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "may send 2 requests a minute" in error["message"]
    assert "the key key_" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in refused.headers
    assert refusals(kept, key(), "requests") == 2


def test_jobs_at_once_are_free_again_when_they_end(
    key: Callable[..., str], kept: Served, by_hand: Worker, eventually: Callable[..., Any]
) -> None:
    http = kept.http(headers=bearer(key(concurrent_jobs=1)))
    assert http.post("/v1/jobs", json=job()).status_code == 202
    refused = http.post("/v1/jobs", json=job())
    assert refused.status_code == 429
    assert "as soon as some of them have ended" in refused.json()["error"]["message"]
    by_hand.next().succeed()
    eventually(lambda: http.post("/v1/jobs", json=job()).status_code == 202)


def test_work_of_the_batch_class_is_limited_by_its_tokens(key: Callable[..., str], kept: Served) -> None:
    http = kept.http(headers=bearer(key(batch_tokens=20, concurrent_jobs=1)))
    codes = [http.post("/v1/jobs", json=job(priority="batch")).status_code for _ in range(6)]
    assert codes[0] == 202
    assert 429 in codes
    assert http.post("/v1/jobs", json=job()).status_code == 202


def test_what_never_fits_is_refused_for_good(key: Callable[..., str], kept: Served) -> None:
    refused = kept.http(headers=bearer(key(tokens_per_minute=100))).post(CHAT, json=chat(max_tokens=200))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_over_limit")
    assert "retry-after" not in refused.headers


def test_a_tenants_limit_holds_for_all_of_its_keys_and_gateways(
    key: Callable[..., str], serve: Callable[..., Served], settings: GatewaySettings
) -> None:
    catalog = CATALOG.model_copy(update={"tenant_limits": {"acme": Limits(requests_per_minute=3)}})
    tenants = replace(settings, secrets=SECRETS, catalog=catalog)
    one, other = serve(tenants), serve(tenants)
    mine, yours, strangers = (http_of for http_of in (bearer(key()), bearer(key()), bearer(key("other"))))
    codes = [
        served.http(headers=who).post("/v1/jobs", json=job()).status_code
        for served, who in ((one, mine), (other, yours), (one, yours), (other, mine), (one, mine))
    ]
    assert codes == [202, 202, 202, 429, 429]
    assert one.http(headers=strangers).post("/v1/jobs", json=job()).status_code == 202


def test_openais_client_waits_as_long_as_it_is_told(
    key: Callable[..., str], kept: Served, by_hand: Worker, meanwhile: Callable[..., Future[Any]]
) -> None:
    mine = key(tokens_per_minute=6_000)
    client = openai.OpenAI(base_url=f"{kept.url}/v1", api_key=mine, timeout=PATIENCE_S, max_retries=2)
    message: Any = [{"role": "user", "content": "hi"}]
    with client:
        # A job that nobody ends holds nearly all of this minute's tokens; a hundred come back in a second.
        kept.http(headers=bearer(mine)).post("/v1/jobs", json={"endpoint": CHAT, "body": chat(max_tokens=5_950)})
        by_hand.next()
        create = client.chat.completions.create
        answered = meanwhile(create, model="small", messages=message, max_tokens=350)
        by_hand.next().succeed("at last")
        assert answered.result(PATIENCE_S).choices[0].message.content == "at last"
    # Its own idea of a pause is half a second: it would have been refused again.
    assert refusals(kept, mine, "tokens") == 1


@pytest.mark.parametrize(
    ("ms", "said"), [(0, "0ms"), (850, "850ms"), (7_660, "7.66s"), (60_000, "1m0s"), (179_560, "2m59.56s")]
)
def test_spans_are_written_as_openai_writes_them(ms: int, said: str) -> None:
    assert duration(ms) == said
