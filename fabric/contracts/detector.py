"""What texts are searched for, as ``fabric.yaml`` says it. The search itself is ``fabric.privacy``."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fabric.contracts.terms import Privacy

#: What can be found without a pattern of the operator's own. ``image``: any picture, whatever it shows.
BuiltInEntity = Literal["card", "email", "iban", "image", "ip_address", "national_id", "phone", "secret"]
BUILT_IN_ENTITIES: tuple[BuiltInEntity, ...] = get_args(BuiltInEntity)

#: Bytes that a compiled pattern may take. More lets longer patterns in; each process holds all of them.
_PATTERN_BYTES = 4 << 20


class Detector(BaseModel):
    """What one kind of find does. Of one entity there may be several patterns; the strictest label counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    entity: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    #: RE2 syntax, for an entity of the operator's own. It runs in linear time: no look-around, no back references.
    pattern: str | None = Field(None, min_length=1, max_length=2_000)
    #: The weakest label of a job whose text has it; ``None`` leaves labels alone.
    raise_to: Privacy | None = None
    #: Whether labels with ``redact: true`` replace it before text goes to the cloud.
    redact: bool = True

    @model_validator(mode="after")
    def _does_something(self) -> Detector:
        if self.entity not in BUILT_IN_ENTITIES:
            if self.pattern is None:
                known = ", ".join(BUILT_IN_ENTITIES)
                raise ValueError(f"`{self.entity}` needs a `pattern`; without one there are {known}")
            _compiled(self.pattern)
            return self
        if self.pattern is not None:
            raise ValueError(f"`{self.entity}` is built in: leave `pattern` out, or give the entity another name")
        if self.raise_to is None and self.redact:
            raise ValueError(f"`{self.entity}` is found anyway: say what for with `raise_to`, or `redact: false`")
        if self.entity == "image" and not self.redact:
            raise ValueError("an image can't be redacted: leave `redact` out")
        return self


def _compiled(pattern: str) -> None:
    """
    Raises:
        ValueError: it isn't RE2 syntax, takes too much memory, or finds the empty text.
    """
    import re2  # only where there are patterns

    options = re2.Options()
    options.max_mem = _PATTERN_BYTES
    options.log_errors = False
    try:
        expression = re2.compile(pattern.encode(), options)
    except re2.error as error:
        said = error.args[0] if error.args else b""
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"the pattern isn't one of RE2, which takes no look-around or back references: {reason}"
        ) from None
    if expression.search(b"") is not None:
        raise ValueError("the pattern also finds the empty text, so it would find something everywhere")
