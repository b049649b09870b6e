"""What a caller asks of a batch as a whole: then it is planned as one (``docs/batches.md``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fabric.contracts.openai import Shape


class BatchOptions(Shape):
    """The ``fabric`` object of ``POST /v1/batches``. Seconds from its creation; US dollars, for all lines together."""

    deadline_s: Annotated[float, Field(gt=0, le=2_592_000)] | None = None
    max_cost_usd: Annotated[float, Field(ge=0, le=1_000_000)] | None = None

    @property
    def asked(self) -> bool:
        return self.deadline_s is not None or self.max_cost_usd is not None

    def dump(self) -> str:
        """Compact JSON."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def load(cls, text: str | None) -> BatchOptions:
        """Nothing was asked: all are ``None``."""
        return cls() if text is None else cls.model_validate_json(text)
