"""Celery's consumer without its delayed delivery.

On quorum queues Celery declares about thirty queues to hold tasks with an ETA. Delays of jobs live in
the backlog, so no task of ours has one. The setting that switches the detection of quorum queues off
doesn't stop that step, and brings back global prefetch, which quorum queues refuse.
"""

from __future__ import annotations

from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    class Blueprint(CeleryConsumer.Blueprint):
        default_steps = tuple(
            step for step in CeleryConsumer.Blueprint.default_steps if not str(step).endswith("DelayedDelivery")
        )
