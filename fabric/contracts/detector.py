"""What texts are searched for, as ``fabric.yaml`` says it. The search itself is ``fabric.privacy``."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

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
    #: What Presidio calls it (``PERSON``); ``privacy.presidio`` says which models read the texts.
    presidio: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9_]{0,63}$")
    #: The weakest label of a job whose text has it; ``None`` leaves labels alone.
    raise_to: Privacy | None = None
    #: Whether labels with ``redact: true`` replace it before text goes to the cloud.
    redact: bool = True

    @model_validator(mode="after")
    def _does_something(self) -> Detector:
        if self.presidio is not None:
            if self.pattern is not None or self.entity == "image":
                raise ValueError("`presidio` finds in texts, by its own means: leave `pattern` out, and images alone")
            return self
        if self.entity not in BUILT_IN_ENTITIES:
            if self.pattern is None:
                known = ", ".join(BUILT_IN_ENTITIES)
                raise ValueError(f"`{self.entity}` needs a `pattern` or `presidio`; without either there are {known}")
            _compiled(self.pattern)
            return self
        if self.pattern is not None:
            raise ValueError(f"`{self.entity}` is built in: leave `pattern` out, or give the entity another name")
        if self.raise_to is None and self.redact:
            raise ValueError(f"`{self.entity}` is found anyway: say what for with `raise_to`, or `redact: false`")
        if self.entity == "image" and not self.redact:
            raise ValueError("an image can't be redacted: leave `redact` out")
        return self


Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
SpacyModel = Annotated[str, Field(min_length=1, max_length=1_000)]


class PresidioSettings(BaseModel):
    """By what Presidio reads texts. Nothing is downloaded: a model is installed, or a folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Language -> a spaCy pipeline, by its package's name or its folder. Every text is read in each language.
    models: dict[Language, SpacyModel] = Field(min_length=1, max_length=8)
    #: Of 1, how sure a find has to be. spaCy's own all have 0.85, those by patterns from 0.05 on.
    min_score: float = Field(0.5, ge=0, le=1)
    #: Seconds for the texts of one request, waiting for others' included. More holds requests up longer while
    #: many come; less counts more of them as texts in which everything was found.
    timeout_s: float = Field(5.0, gt=0, le=60)


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
