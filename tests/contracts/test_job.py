"""What workers and gateways of two versions tell each other."""

from __future__ import annotations

import orjson

from fabric.contracts.job import Measures, Usage


def test_measures_of_a_newer_worker_are_read_as_far_as_they_are_known() -> None:
    values = orjson.loads(Measures(engine_s=1.5, usage=Usage(3, 2), cost_usd=0.25).dump())
    newer = {**values, "joules": 7, "usage": {**values["usage"], "audio_tokens": 9}}
    assert Measures.load(orjson.dumps(newer)) == Measures(engine_s=1.5, usage=Usage(3, 2), cost_usd=0.25)
    del values["finish_reasons"]  # of an older one
    assert Measures.load(orjson.dumps(values)).usage == Usage(3, 2)
