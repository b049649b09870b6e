"""Every event reaches its receiver, signed, or is parked where somebody can see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import orjson
import pytest

from fabric.contracts.budget import NANO, Budget, window_at
from fabric.contracts.completion import Completion, EarlierAttempt
from fabric.contracts.errors import ConfigError, EngineError, NotFound
from fabric.contracts.job import JobSpec, JobState, Measures, Usage
from fabric.contracts.webhook import Webhook, job_event
from fabric.ledger import Ledger, batches, deliveries
from fabric.ledger.batches import NewBatch
from fabric.ledger.deliveries import Delivery
from fabric.webhooks import Courier, announce, keys_of, tell_of_budgets
from fabric.webhooks.courier import PATIENCE_MS, next_try_ms

if TYPE_CHECKING:
    from tests.webhooks.conftest import Receiver

    UnderWay = Callable[..., AbstractContextManager[Courier]]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def done(number: int = 1, state: JobState = JobState.SUCCEEDED, **fields: Any) -> Completion:
    spec = JobSpec(f"job_{number:026}", "/v1/chat/completions", "small", tags=("a",), **fields)
    measures = Measures(usage=Usage(7, 3), cost_usd=0.25)
    earlier = EarlierAttempt(1, "d", "gpu", "w", "requeued", 1, 2, 3, Measures(cost_usd=0.5), None)
    error = None if state is JobState.SUCCEEDED else orjson.dumps(EngineError("It said: a secret word.").info)
    return Completion("1-1", spec, state, 2, "d", "cpu", "w", 1, 1, 1, 5_000, measures, None, error, (earlier,))


def tell(ledger: Ledger, hook: Webhook, *completions: Completion) -> None:
    ledger.write(announce([hook]), completions)


def kept(ledger: Ledger) -> list[Delivery]:
    return ledger.read(deliveries.page, state=None, webhook=None, before=None, limit=100)


def until(ledger: Ledger, state: str, count: int = 1) -> list[Delivery]:
    limit = time.monotonic() + 60
    while len(found := [one for one in kept(ledger) if one.state == state]) < count:
        assert time.monotonic() < limit, kept(ledger)
        time.sleep(0.01)
    return found


def test_an_event_arrives_and_openais_sdk_believes_it(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay
) -> None:
    with courier(hook):
        tell(ledger, hook, done())
        receiver.wait_for(1)
        (delivery,) = until(ledger, "delivered")
    headers, body = receiver.got[0]
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    client.webhooks.verify_signature(body, headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body.replace(b"small", b"large"), headers)
    event = orjson.loads(body)
    assert (event["id"], event["type"], event["created_at"]) == (headers["webhook-id"], "job.succeeded", 5)
    assert event["data"]["usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert (event["data"]["cost_usd"], event["data"]["tags"], event["data"]["error"]) == (0.75, ["a"], None)
    assert (delivery.tries, delivery.last_status, delivery.subject) == (1, 204, event["data"]["id"])


def test_the_same_end_is_told_once_and_another_end_again(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay
) -> None:
    """The recorder may write an entry twice; a parked job may be replayed and end a second time."""
    parked = done(state=JobState.DEAD)
    tell(ledger, hook, parked)
    tell(ledger, hook, parked, replace(done(), attempt=3))
    with courier(hook):
        until(ledger, "delivered", 2)
    assert sorted(orjson.loads(body)["type"] for _, body in receiver.got) == ["job.dead", "job.succeeded"]


def test_what_nobody_asked_for_is_not_written_down(ledger: Ledger, hook: Webhook) -> None:
    only = hook.model_copy(update={"tenants": ("other",)})
    tell(ledger, only, done())
    tell(ledger, hook, done(2, JobState.CANCELLED), done(3, batch_id="b", line_no=1), done(4, shadow_of="j"))
    assert kept(ledger) == []
    tell(ledger, only, done(5, tenant="other"))
    assert [one.tenant for one in kept(ledger)] == ["other"]


def test_no_text_of_an_error_leaves(ledger: Ledger) -> None:
    event = job_event(done(state=JobState.DEAD))
    assert event is not None
    assert b"secret" not in event.body()
    assert event.data["error"] == {"code": "engine_error", "fault": "engine"}


def test_a_batch_that_has_ended_is_told_of(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay
) -> None:
    new = NewBatch("batch_1", "t", None, "/v1/chat/completions", "file_1", "24h", None, 1_000, 90_000)
    ledger.write(batches.create, new)
    ledger.write(batches.advance, "batch_1", "validating", "in_progress", in_progress_ms=2_000, total=3)
    ledger.write(batches.advance, "batch_1", "in_progress", "finalizing", finalizing_ms=3_000)
    with courier(hook):
        assert ledger.write(batches.advance, "batch_1", "finalizing", "completed", completed_ms=4_000)
        assert not ledger.write(batches.advance, "batch_1", "finalizing", "completed", completed_ms=4_000)
        receiver.wait_for(1)
        until(ledger, "delivered")
    event = orjson.loads(receiver.got[0][1])
    assert (event["type"], event["created_at"]) == ("batch.completed", 4)
    assert event["data"]["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    assert not ledger.read(deliveries.any_ended)


def test_a_soft_budget_that_is_used_up_is_told_of_once(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay
) -> None:
    wants = hook.model_copy(update={"events": ("budget.exceeded",), "tenants": ("acme",)})
    tell_all = tell_of_budgets(ledger, [wants])
    window = window_at("day", 1_790_000_000_000)
    mine = Budget(name="mine", usd=2.0, window="day", tenant="acme", hard=False)
    for _ in range(2):
        tell_all(mine, window, 3 * NANO)
    tell_all(mine.model_copy(update={"name": "all", "tenant": None}), window, 3 * NANO)
    with courier(wants):
        until(ledger, "delivered")
    ((_, body),) = receiver.got
    event = orjson.loads(body)
    assert (event["type"], event["data"]["name"]) == ("budget.exceeded", "mine")
    assert (event["data"]["unit"], event["data"]["limit"], event["data"]["used"]) == ("usd", 2.0, 3.0)
    assert event["data"]["window_end_ms"] == window.end_ms


def test_a_receiver_that_stumbles_is_tried_again_under_the_same_id(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay
) -> None:
    receiver.answers = [500, 302, 200]
    tell(ledger, hook, done())
    clock = Clock()
    with courier(hook, now_ms=clock):
        for tries in (1, 2):
            receiver.wait_for(tries)
            (waiting,) = until_tried(ledger, tries)
            assert waiting.state == "waiting"
            clock.ms = waiting.next_ms
        (delivered,) = until(ledger, "delivered")
    assert delivered.tries == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({headers["webhook-signature"] for headers, _ in receiver.got}) > 1, "each try has its own time"


class Clock:
    def __init__(self) -> None:
        self.ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.ms


def until_tried(ledger: Ledger, tries: int) -> list[Delivery]:
    limit = time.monotonic() + 60
    while min(one.tries for one in kept(ledger)) < tries:
        assert time.monotonic() < limit, kept(ledger)
        time.sleep(0.01)
    return kept(ledger)


@pytest.mark.parametrize(("answer", "later_ms", "said"), [(410, 0, "410"), (503, PATIENCE_MS, "503")])
def test_one_that_is_gone_or_away_for_a_day_is_parked_and_can_be_replayed(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay, answer: int, later_ms: int, said: str
) -> None:
    receiver.answers = [answer]
    tell(ledger, hook, done())
    clock = Clock()
    clock.ms += later_ms
    with courier(hook, now_ms=clock):
        (parked,) = until(ledger, "parked")
        assert said in str(parked.last_error)
        receiver.answers = [200]
        ledger.write(deliveries.replay, parked.id, clock())
        (delivered,) = until(ledger, "delivered")
    assert (delivered.event_id, delivered.tries) == (parked.event_id, 1)


def test_a_redirect_is_not_followed(ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay) -> None:
    receiver.answers, receiver.location = [307], receiver.url
    with courier(hook):
        tell(ledger, hook, done())
        (waiting,) = until_tried(ledger, 1)
    assert "redirect" in str(waiting.last_error)
    assert len(receiver.got) == 1


def test_a_private_address_is_not_connected_to_whatever_its_name_says(
    ledger: Ledger, receiver: Receiver, courier: UnderWay
) -> None:
    """The name is looked up once a connection: one that would be public at a first look and private at a second."""
    looked_up: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["93.184.215.14", "127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.1"]

    hook = Webhook(name="evil", url="https://rebind.example/hook", secret_env="S", events=("job.succeeded",))
    with courier(hook, resolve=rebinding):
        tell(ledger, hook, done())
        (waiting,) = until_tried(ledger, 1)
    assert "isn't public" in str(waiting.last_error)
    assert (receiver.got, looked_up) == ([], ["rebind.example"])


def test_the_connection_goes_to_the_address_that_was_checked(
    ledger: Ledger, receiver: Receiver, courier: UnderWay
) -> None:
    """Whatever the name would stand for by then: nobody but the check looks it up."""
    looked_up: list[str] = []

    async def once(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["192.0.2.1"]

    url = receiver.url.replace("127.0.0.1", "rebind.example")
    hook = Webhook(name="named", url=url, secret_env="S", events=("job.succeeded",), allow_private=True)
    with courier(hook, resolve=once):
        tell(ledger, hook, done())
        until(ledger, "delivered")
    ((headers, _),) = receiver.got
    assert headers["host"].startswith("rebind.example")
    assert looked_up == ["rebind.example"]


def test_a_slow_receiver_holds_up_nobody_else(
    ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay, silent_port: int
) -> None:
    slow = hook.model_copy(update={"name": "slow", "url": f"http://127.0.0.1:{silent_port}/"})
    with courier(slow, hook, timeout_s=1.5):
        tell(ledger, slow, done(1))
        tell(ledger, hook, done(2))
        until(ledger, "delivered")
        assert [one.tries for one in kept(ledger) if one.webhook == "slow"] == [0]
        until_tried(ledger, 1)


def test_deliveries_of_a_webhook_that_is_gone_are_parked(ledger: Ledger, hook: Webhook, courier: UnderWay) -> None:
    tell(ledger, hook, done())
    with courier():
        (parked,) = until(ledger, "parked")
    assert "isn't configured" in str(parked.last_error)


def test_a_delivery_is_taken_by_one_courier_at_a_time_and_given_up_by_a_dead_one(ledger: Ledger, hook: Webhook) -> None:
    tell(ledger, hook, done())
    now = time.time_ns() // 1_000_000 + 1
    assert len(ledger.write(deliveries.take, "ops", now, now + 60_000, 10)) == 1
    assert ledger.write(deliveries.take, "ops", now, now + 60_000, 10) == []
    assert len(ledger.write(deliveries.take, "ops", now + 60_000, now + 120_000, 10)) == 1


def test_old_deliveries_are_forgotten(ledger: Ledger, receiver: Receiver, hook: Webhook, courier: UnderWay) -> None:
    tell(ledger, hook, done(1), done(2))
    with courier(hook):
        (first, _) = until(ledger, "delivered", 2)
    assert ledger.write(deliveries.prune, (first.ended_ms or 0) - 60_000) == 0
    assert ledger.write(deliveries.prune, (first.ended_ms or 0) + 60_000) == 2
    with pytest.raises(NotFound):
        ledger.write(deliveries.replay, first.id, 1)


def test_tries_come_ever_later_for_a_day() -> None:
    now, tries, waits = 0, 0, []
    while True:
        tries += 1
        after = next_try_ms(tries, 0, now, 1.0)
        if after is None:
            break
        waits.append((after - now) / 1000)
        now = after
    assert waits[:4] == [5, 10, 20, 40]
    assert max(waits) == 3_600
    assert now >= PATIENCE_MS
    assert 25 <= tries <= 40
    assert next_try_ms(1, 0, 0, 0.0) == 2_500


@pytest.mark.parametrize(
    ("secret", "said"),
    [("", "is missing"), ("plain", "whsec_"), ("whsec_???", "base64"), ("whsec_c2hvcnQ=", "shorter")],
)
def test_a_secret_that_is_none_is_refused_and_not_quoted(hook: Webhook, secret: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        keys_of([hook], {"OPS_SECRET": secret})
    assert "OPS_SECRET" in str(refused.value)
    assert secret in ("", "plain") or secret not in str(refused.value)
