"""What a job takes of the rate limits of its key and its tenant. Pure."""

from __future__ import annotations

from fabric.contracts.catalog import Catalog
from fabric.contracts.errors import LargerThanLimit
from fabric.contracts.job import JobSpec
from fabric.contracts.limits import EVERY_TENANT, Limits

#: Tokens that an answer is reckoned with that may be of any length. Its end corrects it.
USUAL_ANSWER = 512


def metered(spec: JobSpec, of_key: Limits | None, catalog: Catalog) -> str:
    """A line for each that is limited: ``OWNER``, its limits (requests and tokens in a minute, jobs, batch tokens;
    ``-`` for none), and what the job takes of each of them.

    Work of the class ``batch`` takes batch tokens in place of tokens in a minute and of a place among the concurrent
    ones; a line of a batch file is no request, either.

    Raises:
        LargerThanLimit: it could never fit.
    """
    owners = [(f"key:{spec.key_id}", of_key)] if of_key is not None else []
    of_tenant = catalog.tenant_limits.get(spec.tenant) or catalog.tenant_limits.get(EVERY_TENANT)
    if of_tenant is not None:
        owners.append((f"tenant:{spec.tenant}", of_tenant))
    return "\n".join(line for owner, limits in owners if (line := _line(spec, owner, limits)))


def _line(spec: JobSpec, owner: str, limits: Limits) -> str:
    """Empty where the job takes nothing."""
    batch = spec.priority == "batch"
    requests = None if spec.batch_id else limits.requests_per_minute
    tokens, jobs = (None, None) if batch else (limits.tokens_per_minute, limits.concurrent_jobs)
    enqueued = limits.batch_tokens if batch else None
    asked = tokens_of(spec) if tokens is not None else 0
    queued = max(1, spec.prompt_tokens) if enqueued is not None else 0
    for limit, amount, what in ((tokens, asked, "tokens a minute"), (enqueued, queued, "batch tokens at once")):
        if limit is not None and amount > limit:
            raise LargerThanLimit(
                f"This request needs about {amount:,} tokens, and {told(owner)} may use {limit:,} {what}: "
                "it can never be taken. A shorter prompt or a smaller `max_tokens` needs less."
            )
    if requests is tokens is jobs is enqueued is None:
        return ""
    allowed = " ".join("-" if limit is None else str(limit) for limit in (requests, tokens, jobs, enqueued))
    return f"{owner} {allowed} {int(requests is not None)} {asked} {int(jobs is not None)} {queued}"


def tokens_of(spec: JobSpec) -> int:
    """What a request is reckoned with before it has run: its prompt, and the answers that it asks for."""
    if spec.endpoint == "/v1/embeddings":
        return max(1, spec.prompt_tokens)
    longest = USUAL_ANSWER if spec.max_output_tokens is None else spec.max_output_tokens
    return max(1, spec.prompt_tokens + spec.answers * longest)


def told(owner: str) -> str:
    """As messages say it: ``tenant:acme`` is the tenant acme."""
    scope, _, name = owner.partition(":")
    return f"the {scope} {name}"
