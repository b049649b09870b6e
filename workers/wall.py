"""The worker's own look at where a job's text may be, before the engine has it.

The scheduler has looked already, and the store hands out no job that was sent elsewhere. This look meets what
those two can't know of: rules that have changed since, and a message from somebody who isn't the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.contracts.catalog import Catalog, Deployment, PrivacyRules
from fabric.contracts.errors import LabelForbids
from fabric.contracts.job import JobSpec
from fabric.routing import walled_off


class Wall:
    """``renewed`` answers the catalogue that counts from now on, once, if there is another one."""

    def __init__(self, privacy: PrivacyRules, renewed: Callable[[], Catalog | None] = lambda: None) -> None:
        self._privacy = privacy
        self._renewed = renewed

    def look(self) -> None:
        """Adopts rules that are new."""
        catalog = self._renewed()
        if catalog is not None:
            self._privacy = catalog.privacy

    def check(self, spec: JobSpec, deployment: Deployment) -> None:
        """
        Raises:
            LabelForbids: the job's label, or its key, doesn't let its text come here.
        """
        out = walled_off(spec, deployment, self._privacy.of(spec.privacy))
        if out is not None:
            raise LabelForbids(f"The worker refused the job: {out.detail}.")
