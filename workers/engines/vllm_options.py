"""What ``options`` of a vLLM deployment may hold, and the command that serves it. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError
from workers.engines.api_options import CompatibleOptions, Seconds

Arg = bool | int | float | str
Word = Annotated[str, Field(min_length=1)]
Args = tuple[str, ...] | dict[Word, Arg | tuple[Arg, ...]]

#: Written by the engine.
_OWN_ARGS = frozenset(("host", "port", "uds", "model", "served-model-name", "api-key", "ssl-keyfile", "root-path"))
#: Would put prompts into the log.
_TELLING_ARGS = frozenset(("enable-log-requests", "enable-log-outputs"))


class VllmOptions(CompatibleOptions):
    """``args``, ``command`` and ``env`` are for a server that the worker starts (no ``base_url``)."""

    #: vLLM's chat templates know what to do with it.
    send_reasoning: bool = True
    #: Arguments of ``vllm serve``: as a list, word for word, or by name: ``{max-model-len: 8192}``;
    #: ``true`` for a switch, ``false`` for its ``--no-`` form, a list for several values.
    args: Args = ()
    #: How vLLM is called here. A bare name is looked for in the worker's own environment first, then on the PATH.
    command: tuple[Word, ...] = Field(("vllm",), min_length=1)
    #: Environment variables on top of the worker's own.
    env: dict[Word, str] = Field(default_factory=dict)
    #: Nothing is added to a server whose first tokens take longer than this, on the mean of a second.
    first_token_goal_s: Seconds = 10.0
    #: How long it may take until the server answers: reading the weights takes minutes.
    start_timeout_s: Seconds = 1800.0
    #: From asking the server to stop to making it.
    stop_timeout_s: Seconds = 15.0

    @field_validator("args")
    @classmethod
    def _no_own_args(cls, args: Args) -> Args:
        for name in _names(args):
            if name in _OWN_ARGS:
                raise ValueError(f"`{name}` is written by the fabric")
            if name in _TELLING_ARGS:
                raise ValueError(f"`{name}` would write prompts to the log")
        return args


def check(deployment: Deployment, options: VllmOptions) -> None:
    """
    Raises:
        ConfigError: something is set that would do nothing, or missing.
    """
    name = f"Deployment {deployment.name!r}"
    if not deployment.model:
        raise ConfigError(f"{name}: `model` is missing: a Hugging Face name or a folder.")
    if deployment.base_url:
        for option in ("args", "command", "env", "stop_timeout_s"):
            if option in options.model_fields_set:
                raise ConfigError(f"{name}: `options.{option}` does nothing for a server that runs at `base_url`.")
    elif deployment.api_key_env or deployment.api_key_file:
        raise ConfigError(f"{name}: a key is for a server that runs at `base_url`; one started here gets its own.")


def missing_for_tools(deployment: Deployment, options: VllmOptions) -> str | None:
    """What a server of our own would need to take the tools that the deployment claims to."""
    if deployment.base_url or "tools" not in deployment.capabilities or not is_plain(options.args):
        return None
    given = set(_names(options.args))
    missing = [f"`{name}`" for name in ("enable-auto-tool-choice", "tool-call-parser") if name not in given]
    if not missing or "config" in given:
        return None
    return (
        "`tools` is among the capabilities, but vLLM refuses tools that a model may choose to call: set "
        f"{' and '.join(missing)} in `options.args`, or leave `tools` out"
    )


def serve_command(deployment: Deployment, options: VllmOptions, port: int) -> list[str]:
    """``vllm serve …``. The context window and the slots are the deployment's, unless ``args`` say otherwise,
    so that the scheduler and vLLM count alike."""
    command = [*options.command, "serve", deployment.model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", deployment.model]
    given = set(_names(options.args))
    if "max-model-len" not in given:
        command += ["--max-model-len", str(deployment.context_window)]
    if "max-num-seqs" not in given and deployment.slots:
        command += ["--max-num-seqs", str(deployment.slots)]
    if "disable-uvicorn-access-log" not in given:
        # A line for every request, and for every look at the load, would hide what is news.
        command.append("--disable-uvicorn-access-log")
    return command + (_words(options.args) if isinstance(options.args, dict) else list(options.args))


def in_vllms_words(body: dict[str, Any]) -> dict[str, Any]:
    """A grammar goes to vLLM beside what OpenAI knows, and not as a format of the answer."""
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "grammar":
        return body
    rest = {name: value for name, value in body.items() if name != "response_format"}
    return rest | {"structured_outputs": {"grammar": wanted["grammar"]}}


def argument(args: Args, name: str) -> str | None:
    """The value that ``args`` give an argument, the last one where there are several; ``None`` where they don't."""
    if isinstance(args, dict):
        found = [value for key, value in args.items() if _plain(key) == name]
        return str(found[-1]) if found else None
    value = None
    for word, after in zip(args, (*args[1:], ""), strict=False):
        if word.startswith("--") and _plain(word.partition("=")[0]) == name:
            value = word.partition("=")[2] or after
    return value


def is_plain(args: Args) -> bool:
    """Whether ``argument`` sees all of them: none is given by a letter (``-tp 2``)."""
    return isinstance(args, dict) or not any(re.match(r"-[a-z]", word) for word in args)


def _words(args: dict[str, Arg | tuple[Arg, ...]]) -> list[str]:
    words = []
    for name, value in args.items():
        plain = _plain(name)
        if isinstance(value, bool):
            words.append(f"--{plain}" if value else f"--no-{plain}")
        else:
            words += [f"--{plain}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def _names(args: Args) -> list[str]:
    """The arguments' names as vLLM's documentation has them: ``max-model-len``."""
    named = args if isinstance(args, dict) else (word for word in args if word.startswith("--"))
    return [_plain(name.partition("=")[0]) for name in named]


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("_", "-")
