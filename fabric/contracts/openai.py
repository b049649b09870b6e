"""The OpenAI request bodies that the fabric takes, field by field.

Strict: a number in quotes is no number, ``true`` is no 1, an unknown field is an error. Every
parameter here is honoured; what the fabric can't honour is in ``UNSUPPORTED`` or limited to the
value that means "off". ``fabric.contracts.request`` turns a refusal into an ``InvalidRequest``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fabric.contracts.catalog import Privacy
from fabric.contracts.job import Priority

#: Nesting that a tool's or a format's JSON schema may have.
SCHEMA_DEPTH = 64
#: Answers to one request. More is cheaper and safer as several requests.
MAX_CHOICES = 16

#: OpenAI parameters that the fabric doesn't do, and what to do instead.
UNSUPPORTED: dict[str, str] = {
    "audio": "The fabric answers with text only.",
    "best_of": "Ask for `n` answers and choose among them.",
    "dimensions": "The embedding has the model's own size.",
    "echo": "The prompt isn't repeated in the answer.",
    "function_call": "Use `tool_choice`.",
    "functions": "Use `tools`.",
    "metadata": "Use `fabric.tags`.",
    "modalities": "The fabric answers with text only.",
    "moderation": "The fabric doesn't moderate.",
    "prediction": "The fabric has no predicted outputs.",
    "prompt_cache_key": "Engines find shared prefixes by themselves.",
    "prompt_cache_options": "Engines find shared prefixes by themselves.",
    "prompt_cache_retention": "Engines find shared prefixes by themselves.",
    "reasoning_effort": "The models' own setting applies.",
    "safety_identifier": "Use `user`.",
    "service_tier": "Use `fabric.priority`.",
    "store": "The fabric doesn't keep conversations.",
    "stream": "This endpoint doesn't stream.",
    "stream_options": "This endpoint doesn't stream.",
    "suffix": "The fabric doesn't fill in the middle.",
    "verbosity": "Say in a message how long the answer should be.",
    "web_search_options": "The fabric doesn't search the web.",
}


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Bounds the depth of free JSON: engines walk schemas recursively."""
    level: list[Any] = [value]
    for _ in range(SCHEMA_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    raise PydanticCustomError("too_deep", "Nested deeper than {depth} levels", {"depth": SCHEMA_DEPTH})


JsonSchema = Annotated[dict[str, Any], AfterValidator(_shallow)]
Text = str
Name = Annotated[str, Field(min_length=1, max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=128)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class FabricOptions(Shape):
    """The ``fabric`` object of a body: what OpenAI's API has no word for."""

    privacy: Privacy | None = None
    policy: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    #: Runs there or nowhere: every other rule holds, and there is no fallback.
    deployment: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    deadline_s: Annotated[float, Field(gt=0, le=2_592_000)] | None = None
    max_cost_usd: Annotated[float, Field(ge=0)] | None = None
    priority: Priority | None = None
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=16)] | None = None


# Messages.


class TextPart(Shape):
    type: Literal["text"]
    text: Text


class ImageUrl(Shape):
    #: Only data travels: an address would be fetched from inside the operator's network.
    url: Annotated[str, Field(pattern=r"^data:image/[a-z0-9.+-]+;base64,")]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Shape):
    type: Literal["image_url"]
    image_url: ImageUrl


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=2_048)]
UserParts = Annotated[list[UserPart], Field(min_length=1, max_length=2_048)]


class SystemMessage(Shape):
    role: Literal["system"]
    content: Text | TextParts
    name: Name | None = None


class DeveloperMessage(Shape):
    role: Literal["developer"]
    content: Text | TextParts
    name: Name | None = None


class UserMessage(Shape):
    role: Literal["user"]
    content: Text | UserParts
    name: Name | None = None


class CalledFunction(Shape):
    name: FunctionName
    arguments: str


class ToolCall(Shape):
    id: Name
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape):
    """Takes what the official SDK gives back of an earlier answer, its empty fields included."""

    role: Literal["assistant"]
    content: Text | TextParts | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("empty_message", "Needs `content` or `tool_calls`")
        return self


class ToolMessage(Shape):
    role: Literal["tool"]
    content: Text | TextParts
    tool_call_id: Name


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


# Tools and formats.


class Function(Shape):
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Shape):
    type: Literal["function"]
    function: Function


class ChosenFunction(Shape):
    name: FunctionName


class ToolChoice(Shape):
    type: Literal["function"]
    function: ChosenFunction


class TextFormat(Shape):
    type: Literal["text"]


class JsonObjectFormat(Shape):
    type: Literal["json_object"]


class NamedSchema(Shape):
    name: FunctionName
    description: str | None = None
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Shape):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class GrammarFormat(Shape):
    """A grammar in the engine's own notation: GBNF for llama.cpp."""

    type: Literal["grammar"]
    grammar: Annotated[str, Field(min_length=1, max_length=65_536)]


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat, Field(discriminator="type")
]


class StreamOptions(Shape):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


# Bodies.


class _Sampled(Shape):
    """What chat completions and completions share."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[BiasToken, Bias], Field(max_length=1_024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    user: Name | None = None
    fabric: FabricOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> _Sampled:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "`stream_options` is only allowed with `stream: true`")
        return self


class ChatCompletionRequest(_Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # Accepted at the one value that changes nothing.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError("max_tokens", "Set only one of `max_tokens` and `max_completion_tokens`")
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "`top_logprobs` is only allowed with `logprobs: true`")
        if not self.tools:
            if self.tool_choice not in (None, "none"):
                raise PydanticCustomError("tool_choice", "`tool_choice` is only allowed with `tools`")
            if self.parallel_tool_calls is not None:
                raise PydanticCustomError("parallel_tool_calls", "`parallel_tool_calls` is only allowed with `tools`")
        return self


class CompletionRequest(_Sampled):
    """``POST /v1/completions``. A prompt is text or token ids; a list of either asks for several answers."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    # Accepted at the one value that changes nothing.
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None


class EmbeddingRequest(Shape):
    """``POST /v1/embeddings``. Up to 2,048 inputs, text or token ids."""

    model: ModelName
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2_048)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=2_048)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Name | None = None
    fabric: FabricOptions | None = None
