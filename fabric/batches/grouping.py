"""Lines that are alike, for the plan of their batch: the same places are open to them, they are about as long. Pure.

A group is shown by the job of a line that doesn't exist: with the longest prompt and the longest answer of all
lines in it. Only what routing reads is in it; no text is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from math import ceil, log

from fabric.contracts.catalog import Catalog
from fabric.contracts.job import JobSpec
from fabric.contracts.request import InferenceRequest
from fabric.ledger.batches import Batch
from fabric.privacy import screen_of
from fabric.routing import Denied, admit, shape

#: Sizes that count as alike: the longest is that much longer than the shortest.
_RATIO = 1.25
#: Groups of one batch; more are more exact, and take longer to plan. What comes beyond is one group a model.
MOST = 200


class Groups:
    """Those of one batch, as its lines come."""

    def __init__(self, batch: Batch, catalog: Catalog, policy_hash: str, now_ms: int) -> None:
        self._batch = batch
        self._catalog = catalog
        self._hash = policy_hash
        self._now_ms = now_ms
        self._numbers: dict[Hashable, int] = {}
        self._specs: dict[int, JobSpec] = {}

    def number(self, request: InferenceRequest) -> int:
        """Of the group that a line with this request belongs to."""
        spec = self._spec(request)
        key = self._key(spec, request)
        if key not in self._numbers and len(self._numbers) >= MOST:
            key = spec.model
        number = self._numbers.setdefault(key, len(self._numbers))
        known = self._specs.get(number, spec)
        self._specs[number] = replace(
            known,
            prompt_tokens=max(known.prompt_tokens, spec.prompt_tokens),
            max_output_tokens=_longer(known.max_output_tokens, spec.max_output_tokens),
            answers=max(known.answers, spec.answers),
        )
        return number

    def dump(self) -> Mapping[int, bytes]:
        """Number -> its job."""
        return {number: spec.dump() for number, spec in self._specs.items()}

    def _spec(self, request: InferenceRequest) -> JobSpec:
        """As it will be when the line is handed over; a deadline of its own counts from then only."""
        spec = request.spec(
            job_id="job_group",
            tenant=self._batch.tenant,
            key_id=self._batch.key_id,
            batch_id=self._batch.id,
            accepted_under=self._hash,
            default_privacy=self._catalog.privacy.default,
            default_priority="batch",
        )
        spec = screen_of(self._catalog).screened(spec, request).spec
        try:
            spec = admit(spec, self._catalog, self._hash, self._now_ms).spec
        except Denied:
            pass  # it ends when it is handed over
        return replace(spec, deadline_ms=None)

    def _key(self, spec: JobSpec, request: InferenceRequest) -> Hashable:
        most = spec.max_output_tokens
        alike = replace(spec, prompt_tokens=_size(spec.prompt_tokens), max_output_tokens=most and _size(most))
        return shape(alike), spec.tags if self._catalog.rules else (), request.options.deadline_s


def _size(tokens: int) -> int:
    return ceil(log(max(1, tokens), _RATIO))


def _longer(one: int | None, other: int | None) -> int | None:
    """``None``: as long as the context window leaves."""
    return None if one is None or other is None else max(one, other)
