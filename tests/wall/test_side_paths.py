"""The label is a wall: every side path to the cloud is tried with a text that no cloud may see.

A whole fabric, spoken to from outside, and a cloud that keeps every byte it gets. Each attempt has a canary of its
own; at the end none of them may be among those bytes. That the cloud can be reached, and that it would show, is
tried as well.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fabric.broker import Sender, make_app
from fabric.contracts.catalog import Deployment
from fabric.contracts.message import Chunk
from fabric.contracts.secret import Secrets
from fabric.contracts.signed import Signer
from fabric.store import embedded

sys.path.insert(0, str(Path(__file__).parent))
from cloud import Cloud

sys.path.pop(0)

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

CHAT = "/v1/chat/completions"
PATIENCE_S = 120.0
CONFIG = """
default_policy: cloud-first
models:
  - name: both
    deployments:
      - {{name: home, engine: mock, tier: cpu, slots: 4, capabilities: [chat, completions, embeddings]}}
      - {{name: away, engine: openai, tier: cloud, base_url: "{url}", model: m, options: {{auth: none}}, slots: 2,
         data_policy: zero_retention, capabilities: [chat, completions, embeddings]}}
  - name: frail
    deployments:
      - {{name: frail-home, engine: mock, tier: cpu, slots: 4, options: {{fail: 1}}}}
      - {{name: frail-away, engine: openai, tier: cloud, base_url: "{url}", model: m,
         data_policy: zero_retention, options: {{auth: none}}}}
  - name: hosted
    deployments:
      - {{name: hosted, engine: openai, tier: cloud, base_url: "{url}", model: m, options: {{auth: none}}, slots: 1,
         data_policy: zero_retention, capabilities: [chat, completions, embeddings]}}
  - name: keeps
    deployments:
      - {{name: keeps, engine: openai, tier: cloud, base_url: "{url}", model: m, data_policy: no_training,
         options: {{auth: none}}}}
  - name: slow
    deployments:
      - {{name: slow, engine: mock, tier: cpu, slots: 2, options: {{latency_ms: 3000}}}}
rules:
  - {{name: push, when: "'push' in tags", require: {{tier: cloud}}}}
  - {{name: prefer, when: "'prefer' in tags", prefer: {{deployment: away}}}}
  - {{name: canary, when: "'canary' in tags", canary: {{deployment: away, weight: 1}}}}
  - {{name: shade, when: "'shade' in tags", shadow: {{deployment: away, weight: 1}}}}
privacy:
  internal: {{tiers: [{internal}]}}
  detectors:
    - {{entity: secret, raise_to: restricted}}
    - {{entity: ticket, pattern: 'TICKET-[0-9]+', raise_to: restricted}}
"""
_numbers = itertools.count(1)


class House:
    """A fabric, the cloud beside it, and the texts that must stay inside."""

    def __init__(self, fabric: Fabric, cloud: Cloud) -> None:
        self.fabric = fabric
        self.cloud = cloud
        self.kept: list[str] = []
        self.http = fabric.http()

    def canary(self) -> str:
        """A word that no cloud may see."""
        word = f"canary-{next(_numbers)}-{time.time_ns():x}"
        self.kept.append(word)
        return word

    def free(self) -> str:
        """One that it may."""
        return f"bird-{next(_numbers)}-{time.time_ns():x}"

    def ask(self, model: str, text: str, privacy: str | None = None, **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json=body(model, text, privacy, **fields))

    def submit(self, model: str, text: str, privacy: str | None = None, **fields: Any) -> str:
        answer = self.http.post("/v1/jobs", json={"endpoint": CHAT, "body": body(model, text, privacy, **fields)})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        values: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").json()
        return values

    def ended(self, job_id: str) -> dict[str, Any]:
        return until(lambda: job if (job := self.job(job_id))["state"] not in OPEN else None)

    def flush(self) -> None:
        """Whatever was on its way to the cloud before is there now: each of its queues is in order."""
        for model in ("hosted", "both", "frail", "keeps"):
            word = self.free()
            assert self.ask(model, word, "public", fabric={"tags": ["push"]}).status_code == 200
            assert self.cloud.saw(word)


OPEN = ("queued", "dispatched", "running")


def body(model: str, text: str, privacy: str | None = None, **fields: Any) -> dict[str, Any]:
    options = dict(fields.pop("fabric", {}))
    if privacy:
        options["privacy"] = privacy
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, **({"fabric": options} if options else {}), **fields}


def until(look: Callable[[], Any]) -> Any:
    limit = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < limit, "it never came about"
        time.sleep(0.05)
    return found


def config(cloud: Cloud, internal: str = "cpu, gpu, cloud") -> str:
    return CONFIG.format(url=cloud.url, internal=internal)


@pytest.fixture(scope="module")
def house(new_fabric: Callable[..., Iterator[Fabric]]) -> Iterator[House]:
    with Cloud().serving() as cloud:
        for fabric in new_fabric():
            house = House(fabric.start(config(cloud)), cloud)
            yield house
            house.http.close()
            crossed = [word for word in house.kept if cloud.saw(word)]
            assert not crossed


def test_the_cloud_is_there_and_shows_what_it_sees(house: House) -> None:
    """Without this all that follows would say nothing."""
    for privacy in ("public", None):
        word = house.free()
        answer = house.ask("both", word, privacy)
        assert answer.headers["x-fabric-deployment"] == "away"
        assert house.cloud.saw(word)
    house.flush()


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_that_wants_the_cloud_first(house: House, stream: bool) -> None:
    word = house.canary()
    answer = house.ask("both", word, "restricted", stream=stream, fabric={"policy": "cloud-first"})
    assert answer.status_code == 200
    assert answer.headers["x-fabric-deployment"] == "home"


@pytest.mark.parametrize("model", ["hosted", "keeps"])
def test_where_only_the_cloud_is_left_nothing_is(house: House, model: str) -> None:
    answer = house.ask(model, house.canary(), "restricted")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "no_eligible_deployment"
    assert "restricted" in answer.json()["error"]["message"]


def test_a_provider_whose_data_policy_is_too_weak(house: House) -> None:
    answer = house.ask("keeps", house.canary(), "confidential")
    assert answer.status_code == 422
    assert "zero_retention" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")], ids=["completions", "embeddings"]
)
def test_the_other_endpoints(house: House, path: str, field: str) -> None:
    options = {"fabric": {"privacy": "restricted"}}
    at_home = house.http.post(path, json={"model": "both", field: house.canary(), **options})
    assert at_home.headers["x-fabric-tier"] == "cpu"
    assert house.http.post(path, json={"model": "hosted", field: house.canary(), **options}).status_code == 422


def test_a_place_that_is_asked_for_by_name(house: House) -> None:
    answer = house.ask("both", house.canary(), "restricted", fabric={"deployment": "away"})
    assert answer.status_code == 422


@pytest.mark.parametrize("tag", ["push", "prefer", "canary", "shade"])
def test_rules_that_point_at_the_cloud(house: House, tag: str) -> None:
    answer = house.ask("both", house.canary(), "restricted", fabric={"tags": [tag]})
    if tag == "push":
        assert answer.status_code == 422
    else:
        assert answer.headers["x-fabric-tier"] == "cpu"


def test_a_fallback_after_failures_at_home_and_a_replay(house: House) -> None:
    job_id = house.submit("frail", house.canary(), "restricted")
    ended = house.ended(job_id)
    assert ended["state"] in ("dead", "failed")
    assert {attempt["tier"] for attempt in ended["attempts"]} == {"cpu"}
    tries = len(ended["attempts"])
    if ended["state"] == "dead":
        assert house.http.post(f"/v1/dead-letters/{job_id}/replay").status_code == 200
        again = until(lambda: job if len((job := house.ended(job_id))["attempts"]) > tries else None)
        assert {attempt["tier"] for attempt in again["attempts"]} == {"cpu"}


@pytest.mark.parametrize("again", ["public", "internal", "confidential"])
def test_the_same_key_again_with_a_weaker_label(house: House, again: str) -> None:
    word, key = house.canary(), {"idempotency-key": f"k-{next(_numbers)}"}
    first = house.http.post(CHAT, json=body("both", word, "restricted"), headers=key)
    assert first.headers["x-fabric-tier"] == "cpu"
    second = house.http.post(CHAT, json=body("both", word, again), headers=key)
    assert second.status_code == 409


@pytest.mark.parametrize(
    "found", ["AKIAIOSFODNN7EXAMPLE", "TICKET-4711", "password=Tr0ub4dor&3x", "A\u200bKIAIOSFODNN7EXAMPLE"]
)
@pytest.mark.parametrize("asked", ["public", None])
def test_a_text_in_which_a_detector_finds_something(house: House, found: str, asked: str | None) -> None:
    text = f"{house.canary()} {found}"
    answer = house.ask("both", text, asked)
    assert answer.headers["x-fabric-tier"] == "cpu"
    assert house.ask("hosted", text, asked).status_code == 422
    shown = house.job(answer.headers["x-fabric-job-id"])
    assert shown["privacy"] == "restricted"
    assert shown["raised_from"] == (asked or "internal")


def test_images_and_token_ids_under_a_label_that_redacts(house: House) -> None:
    """Nobody can take out of them what may be in them."""
    answer = house.http.post(
        "/v1/completions", json={"model": "hosted", "prompt": [71, 72], "fabric": {"privacy": "confidential"}}
    )
    assert answer.status_code == 422


def test_a_dry_run_sends_nothing_anywhere(house: House) -> None:
    for model in ("both", "hosted", "frail"):
        told = house.http.post("/v1/route", json=body(model, house.canary(), "restricted")).json()
        assert all(place["tier"] == "cpu" for place in told["decision"]["plan"])


def test_lines_of_a_batch(house: House) -> None:
    words = [house.canary() for _ in range(4)]
    bodies = [
        body("both", words[0], "restricted"),
        body("hosted", words[1], "restricted"),
        body("both", f"{words[2]} TICKET-1", "public"),
        body("frail", words[3], "restricted"),
    ]
    lines = [
        json.dumps({"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": one}) for n, one in enumerate(bodies)
    ]
    files = {"file": ("in.jsonl", "\n".join(lines).encode())}
    file_id = house.http.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    batch_id = house.http.post("/v1/batches", json=asked).json()["id"]

    def over() -> Any:
        batch = house.http.get(f"/v1/batches/{batch_id}").json()
        return batch if batch["status"] in ("completed", "failed", "expired") else None

    # A line that is parked keeps its batch open: the frail one may be.
    until(lambda: over() or house.http.get("/v1/dead-letters").json()["data"])
    house.flush()


def test_a_message_from_somebody_who_isnt_the_scheduler(house: House) -> None:
    """It names a job at home, with its right attempt, in the cloud's queue, and is signed with the scheduler's key."""
    job_id = house.submit("slow", house.canary(), "restricted")
    job = until(lambda: found if (found := house.job(job_id))["attempts"] else None)
    attempt = job["attempts"][-1]["number"]
    secrets = Secrets.parse((house.fabric.data / "secret").read_text())
    sender = Sender(make_app(embedded.broker_url(house.fabric.data / "valkey.sock")), Signer.of(secrets))
    sender.connect()
    for name in ("away", "hosted"):
        away = Deployment(name=name, engine="openai", tier="cloud", model="m")
        sender.send([(away, Chunk(deployment=name, jobs=((job_id, attempt),)))] * 3)
    house.flush()
    ended = house.ended(job_id)
    assert ended["state"] == "succeeded"
    assert {attempt["deployment"] for attempt in ended["attempts"]} == {"slow"}


@pytest.mark.parametrize("stream", [False, True])
def test_redaction_lets_the_rest_through(house: House, stream: bool) -> None:
    word, seen = house.canary(), house.free()
    mail = f"{word}@example.com"
    text = f"{seen} writes to {mail} and {mail}; <EMAIL_1> is a word"
    answer = house.ask("hosted", text, "confidential", stream=stream)
    assert answer.status_code == 200, answer.text
    assert house.cloud.saw(f"{seen} writes to <EMAIL_2> and <EMAIL_2>; <EMAIL_1> is a word")
    assert content(answer, stream=stream) == f"you said: {text}"


def content(answer: httpx.Response, *, stream: bool) -> str:
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    frames = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_redaction_of_jobs_and_batches(house: House) -> None:
    mail = f"{house.canary()}@example.com"
    job = house.ended(house.submit("hosted", f"to {mail}", "confidential"))
    assert job["result"]["choices"][0]["message"]["content"] == f"you said: to {mail}"
    job_id = house.submit("hosted", f"to {mail}", "confidential", stream=True)
    job = house.ended(job_id)
    assert job["result"]["choices"][0]["message"]["content"] == f"you said: to {mail}"
    events = house.http.get(f"/v1/jobs/{job_id}/events").text
    frames = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    deltas = [frame["chunk"]["choices"][0]["delta"] for frame in frames if frame["type"] == "token"]
    assert "".join(delta.get("content") or "" for delta in deltas) == f"you said: to {mail}"

    line = {"custom_id": "c", "method": "POST", "url": CHAT, "body": body("hosted", f"to {mail}", "confidential")}
    files = {"file": ("in.jsonl", json.dumps(line).encode())}
    file_id = house.http.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    batch_id = house.http.post("/v1/batches", json=asked).json()["id"]

    def output() -> Any:
        return house.http.get(f"/v1/batches/{batch_id}").json()["output_file_id"]

    row = json.loads(house.http.get(f"/v1/files/{until(output)}/content").text)
    assert row["response"]["body"]["choices"][0]["message"]["content"] == f"you said: to {mail}"


def test_nothing_is_written_to_the_logs(house: House) -> None:
    log = house.fabric.log()
    assert [word for word in house.kept if word in log] == []


def test_rules_that_become_stricter_while_jobs_wait(house: House) -> None:
    """The cloud is busy, jobs wait for it, and meanwhile the file says that they may not go there."""
    house.cloud.gate.clear()
    while house.cloud.waiting.acquire(blocking=False):
        pass
    try:
        # More than the worker holds: the last ones are in the backlog.
        first = [house.submit("hosted", house.free()) for _ in range(8)]
        assert house.cloud.waiting.acquire(timeout=PATIENCE_S)
        waiting = [house.submit("hosted", house.canary()) for _ in range(3)]
        until(lambda: all(house.job(job)["state"] == "queued" for job in waiting))
        (house.fabric.folder / "fabric.yaml").write_text(config(house.cloud, internal="cpu, gpu"))
        until(lambda: house.http.post("/v1/route", json=body("hosted", house.canary())).json()["chosen"] is None)
        until(lambda: _stricter(house))
    finally:
        house.cloud.gate.set()
    for job_id in waiting:
        ended = house.ended(job_id)
        assert ended["state"] == "failed"
        assert ended["error"]["code"] in ("no_eligible_deployment", "label_forbids")
    assert all(house.ended(job)["state"] in ("succeeded", "failed", "dead") for job in first)


def _stricter(house: House) -> bool:
    """Whether the scheduler goes by the new file: a job at home says under which rules it was placed."""
    now = house.http.post("/v1/route", json=body("both", "x")).json()["decision"]["policy_hash"]
    answer = house.ask("both", house.free(), "restricted")
    decision = house.job(answer.headers["x-fabric-job-id"])["decision"]
    return bool(decision["policy_hash"] == now)


#: In place of the detectors: one whose models aren't there.
DOWN = """
  presidio: {models: {en: /nowhere/a-model}}
  detectors:
    - {entity: person, presidio: PERSON, raise_to: restricted}
"""


def test_a_detector_that_is_down(house: House) -> None:
    """The label lets all into the cloud, and nobody can say what is in the texts: so they stay."""
    before, _, _ = config(house.cloud).partition("\n  detectors:")
    file = house.fabric.folder / "fabric.yaml"
    kept = file.read_text()
    file.write_text(before + DOWN)

    def counts() -> bool:
        told = house.http.post("/v1/route", json=body("both", house.canary())).json()
        return bool(told["privacy"] == "restricted" and told["entities"] == ["person"])

    until(counts)
    for tags in ([], ["prefer"], ["canary"], ["shade"]):
        for stream in (False, True):
            answer = house.ask("both", house.canary(), "public", stream=stream, fabric={"tags": tags})
            assert answer.headers["x-fabric-tier"] == "cpu"
    assert house.ask("hosted", house.canary()).status_code == 422
    assert house.ended(house.submit("both", house.canary(), "confidential"))["attempts"][-1]["tier"] == "cpu"
    file.write_text(kept)
    until(lambda: not counts())


def test_a_key_with_a_floor(house: House) -> None:
    """Last: from the first key on the fabric is closed."""
    made = house.fabric.command("keys", "create", "--tenant", "t", "--privacy-floor", "restricted", "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    headers = {"authorization": f"Bearer {key}"}

    def closed() -> bool:
        return house.ask("both", house.free(), "public").status_code == 401

    until(closed)
    for asked in ("public", None, "confidential"):
        answer = house.http.post(CHAT, json=body("both", house.canary(), asked), headers=headers)
        assert answer.headers["x-fabric-tier"] == "cpu"
        assert house.http.post(CHAT, json=body("hosted", house.canary(), asked), headers=headers).status_code == 422


@pytest.fixture(scope="module")
def new_fabric() -> Callable[..., Iterator[Fabric]]:
    from tests.e2e.conftest import Fabric

    def start() -> Iterator[Fabric]:
        with tempfile.TemporaryDirectory(prefix="fabric-wall-", dir="/tmp") as folder:
            fabric = Fabric(Path(folder))
            try:
                yield fabric
            finally:
                fabric.end()

    return start
