"""A batch that is planned as a whole, with a deadline and a cap, while its processes are killed: the cap holds at every
look, each line has one outcome, and the plan is taken up again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from fabric.client import Client
from tests.e2e.conftest import until

if TYPE_CHECKING:
    from tests.e2e.conftest import Fabric

#: 1 US dollar for each token of an answer in the cloud, and nothing for the question: 8 are reserved, 5 are spent.
CONFIG = """
models:
  - name: small
    deployments:
      - {name: home, engine: mock, tier: cpu, slots: 4, options: {latency_ms: 300, tokens: 5}}
      - {name: away, engine: mock, tier: cloud, slots: 8, options: {latency_ms: 300, tokens: 5},
         price: {input_per_million: 0, output_per_million: 1000000}}
"""
#: Dying takes time, so that at home there is time for a part of the lines, and the cap pays for 60 of the others.
LINES, CAP_USD, DEADLINE_S = 400, 300.0, 40.0
#: In this order; each dies when lines have moved on since the death before.
VICTIMS = ("recorder", "worker-cpu", "scheduler", "worker-cloud", "recorder")


def test_the_cap_holds_and_the_plan_goes_on_whoever_is_killed(fresh: Fabric) -> None:
    fabric = fresh.start(CONFIG)
    source = fabric.folder / "in.jsonl"
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    source.write_text("\n".join(json.dumps({"custom_id": f"line-{n}", **line}) for n in range(LINES)))
    victims = list(VICTIMS)
    seen: list[dict[str, Any]] = []
    struck_at: list[float] = []

    with Client(fabric.url) as client:
        batch = client.batch(source, deadline_s=DEADLINE_S, max_cost_usd=CAP_USD)

        def look(done: int, total: int | None) -> None:
            plan = (batch.values.get("fabric") or {}).get("plan")
            if plan:
                seen.append(plan)
                assert plan["spent_usd"] + plan["reserved_usd"] <= CAP_USD
            if victims and plan and done > len(struck_at) * LINES // 12:
                fabric.kill(victims.pop(0))
                struck_at.append(time.time())

        batch.wait(timeout=150, progress=look)
        outcomes = list(batch.results())
    assert not victims
    # Planned again after each death, by the recorder that came after the one that had planned before.
    planned = [plan["planned_at"] for plan in seen]
    assert planned == sorted(planned)
    assert max(planned) > struck_at[0]
    counts = batch.values["request_counts"]
    assert counts["total"] == LINES == counts["completed"] + counts["failed"]
    assert len(outcomes) == LINES == len({outcome["custom_id"] for outcome in outcomes})
    done = [outcome for outcome in outcomes if outcome["error"] is None]
    assert len(done) == counts["completed"]

    # What the ledger has to say: nobody paid for more, and both places did their part.
    def recorded() -> list[dict[str, Any]] | None:
        with fabric.http() as http:
            rows: list[dict[str, Any]] = http.get("/v1/costs", params={"group_by": "deployment"}).json()["data"]
        return rows if sum(row["requests"] for row in rows if row["deployment"]) >= counts["completed"] else None

    rows = {row["deployment"]: row for row in until(recorded, within_s=60, hint="for the ledger to have all")}
    assert rows["home"]["requests"] > 0
    assert 0 < rows["away"]["cost_usd"] <= CAP_USD
    assert fabric.stop() == 0, fabric.log()[-3000:]
