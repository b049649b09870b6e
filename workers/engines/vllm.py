"""vLLM over HTTP: a server of our own, started and watched, or one that runs already (``base_url``).

vLLM accepts every request and lets it wait inside, where it can't go elsewhere any more. So its load is
looked at once a second, and ``slots`` follows (``vllm_load``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import orjson

from fabric.contracts.catalog import Deployment
from fabric.contracts.errors import ConfigError, EngineAway, EngineUnavailable, FabricError
from fabric.fit.memory import gpu_memory
from workers.engines.api_failures import OWN_ENGINE
from workers.engines.api_options import api_key, options_of
from workers.engines.engine import Answer, Emit, Engine, EngineState, Request
from workers.engines.http import Api
from workers.engines.openai import OpenAICalls
from workers.engines.vllm_load import Load, parse_load, slots_for
from workers.engines.vllm_options import VllmOptions, check, in_vllms_words, missing_for_tools, serve_command
from workers.engines.vllm_process import VllmProcess
from workers.engines.vllm_room import check_room

log = logging.getLogger(__name__)

#: Requests side by side where the deployment doesn't say: vLLM's batches are smaller, the rest is its queue.
SLOTS = 512
_LOOK_S = 1.0
#: How long a look may take. A busy server answers late, a dead one never.
_LOOK_TIMEOUT_S = 5.0
#: Looks in a row that fail before a server counts as gone, and before one of our own is started again.
_GONE_LOOKS = 3
_HUNG_S = 60.0
#: Waits before starting again: doubled with every death, up to the cap. A GPU needs a while to be free.
_BACKOFF_S = 1.0
_BACKOFF_CAP_S = 60.0
#: A server that was up for this long had started well: its death is the first again.
_STABLE_S = 120.0
#: What a shell says to a command that isn't there or can't be run.
_NO_COMMAND = (126, 127)
_WRONG_ARGUMENTS = 2
_SAID_ABOVE = "what is in its output above"


@dataclass(frozen=True, slots=True)
class _Link:
    """A server that answers."""

    api: Api
    calls: OpenAICalls


class VllmEngine(Engine):
    """One vLLM server."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self._options = options_of(deployment, VllmOptions)
        check(deployment, self._options)
        self._configured = deployment.slots or SLOTS
        self._slots = self._configured
        self._link: _Link | None = None
        self._context: int | None = None
        self._loading = False
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def slots(self) -> int:
        """What the server can take at the moment; none while it isn't there."""
        return self._slots if self._link is not None else 0

    @property
    def context(self) -> int | None:
        return self._context if self._link is not None else None

    @property
    def state(self) -> EngineState:
        if self._link is not None:
            return "loaded"
        return "loading" if self._loading else "away"

    async def start(self) -> None:
        if (missing := missing_for_tools(self.deployment, self._options)) is not None:
            log.warning("deployment %s: %s", self.deployment.name, missing)
        if not self.deployment.base_url:
            await asyncio.to_thread(check_room, self.deployment, self._options, gpu_memory())
        self._keeper = asyncio.create_task(self._attach() if self.deployment.base_url else self._keep_running())
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait((up, self._keeper), return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if not self._up.is_set():
            await self._keeper  # raises

    async def run(self, request: Request, emit: Emit) -> Answer:
        link = self._link
        if link is None:
            raise EngineAway(f"{self._who} isn't up: it is being started, or waited for.")
        return await link.calls.run(request, emit)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    @property
    def _who(self) -> str:
        return f"The engine of deployment {self.deployment.name!r}"

    async def _attach(self) -> None:
        """Follows a server that someone else runs, as it comes and goes. Until cancelled."""
        base = str(self.deployment.base_url).rstrip("/").removesuffix("/v1")
        key = api_key(self.deployment)
        while True:
            api = self._api(base, key.get_secret_value() if key else None)
            try:
                if await self._healthy(api, None):
                    await self._check_model(api)
                    self._connect(api)
                    await self._watch(api, None)
                elif not self._up.is_set():
                    raise self._late()
            except FabricError as error:
                if not self._up.is_set():
                    raise
                log.error("%s can't be used: %s", self._who, error)
                await asyncio.sleep(_BACKOFF_CAP_S)
            finally:
                await self._disconnect(api)

    async def _keep_running(self) -> None:
        """Starts the server, and again whenever it ends or hangs. Until cancelled."""
        deaths = 0
        while True:
            started = time.monotonic()
            server = VllmProcess(
                lambda port: serve_command(self.deployment, self._options, port),
                self._options.env,
                self._options.stop_timeout_s,
            )
            api = self._api(server.url, server.key)
            self._loading = True
            try:
                if await self._healthy(api, server):
                    server.is_up()
                    log.info("%s is up after %.0f s", self._who, time.monotonic() - started)
                    await self._read_context(api)
                    self._connect(api)
                    await self._watch(api, server)
                elif not self._up.is_set():
                    raise self._failed_to_start(server) if server.exited.is_set() else self._late()
                elif server.exited.is_set():
                    log.error("%s isn't up again: %s", self._who, server.reason or _SAID_ABOVE)
            finally:
                await self._disconnect(api)
                await server.stop()
            deaths = 1 if time.monotonic() - started >= _STABLE_S else deaths + 1
            delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2.0 ** (deaths - 1))
            log.warning("%s ended with status %s; starts again in %g s", self._who, server.status, delay_s)
            await asyncio.sleep(delay_s)

    async def _healthy(self, api: Api, server: VllmProcess | None) -> bool:
        """Waits for the server's first answer. Not, when it ends before, or takes too long."""
        give_up = time.monotonic() + self._options.start_timeout_s
        while time.monotonic() < give_up:
            try:
                status, _ = await api.get("/health", _LOOK_TIMEOUT_S)
                if status == 200:
                    return True
            except FabricError:
                pass
            if await _ends(server, _LOOK_S):
                return False
        return False

    async def _check_model(self, api: Api) -> None:
        """
        Raises:
            ConfigError: the server has another model, or a smaller context window, than the deployment says.
        """
        status, body = await api.get("/v1/models", _LOOK_TIMEOUT_S)
        name = f"Deployment {self.deployment.name!r}"
        if status in (401, 403):
            raise ConfigError(f"{name}: the server at {api.place} refuses its key: check `api_key_env`.")
        served = _models(body)
        if self.deployment.model not in served:
            others = ", ".join(sorted(served)) or "no model"
            raise ConfigError(f"{name}: the server at {api.place} serves {others}, not {self.deployment.model}.")
        window = self._context = served[self.deployment.model]
        if window is not None and window < self.deployment.context_window:
            raise ConfigError(
                f"{name}: its `context_window` is {self.deployment.context_window}, but the server at {api.place} "
                f"has {window}: set `context_window: {window}`."
            )

    async def _read_context(self, api: Api) -> None:
        """Of a server of our own: as ``args`` say, and not as the deployment does."""
        try:
            status, body = await api.get("/v1/models", _LOOK_TIMEOUT_S)
        except FabricError:
            return  # then nobody says
        if status == 200:
            self._context = _models(body).get(self.deployment.model)

    async def _watch(self, api: Api, server: VllmProcess | None) -> None:
        """Looks at the load until the server is gone."""
        failed = 0
        answered = time.monotonic()
        before: Load | None = None
        while not await _ends(server, _LOOK_S):
            try:
                status, metrics = await api.get("/metrics", _LOOK_TIMEOUT_S)
            except FabricError:
                failed += 1
                if server is None and failed >= _GONE_LOOKS:
                    log.warning("%s is gone from %s", self._who, api.place)
                    return
                if time.monotonic() - answered > _HUNG_S:
                    log.error("%s hasn't answered for %.0f s and is stopped", self._who, time.monotonic() - answered)
                    return
                continue
            failed = 0
            answered = time.monotonic()
            load = parse_load(metrics) if status == 200 else None
            if load is None:
                self._slots = self._configured
                continue
            first_token_s = load.first_token_s(before)
            goal_s = self._options.first_token_goal_s
            self._slots = slots_for(load, self._configured, first_token_s=first_token_s, goal_s=goal_s)
            before = load

    def _api(self, base_url: str, key: str | None) -> Api:
        api = Api(self.deployment, base_url, self._options, OWN_ENGINE)
        api.authorize({"authorization": f"Bearer {key}"} if key else {})
        return api

    def _connect(self, api: Api) -> None:
        self._slots = self._configured
        ours = self.deployment.tier != "cloud"
        calls = OpenAICalls(self.deployment.model, api, self._options, prefix="/v1", ours=ours, said=in_vllms_words)
        self._link = _Link(api, calls)
        self._up.set()

    async def _disconnect(self, api: Api) -> None:
        self._link = None
        self._loading = False
        await api.close()

    def _late(self) -> EngineUnavailable:
        return EngineUnavailable(f"{self._who} wasn't up in {self._options.start_timeout_s:g} s (start_timeout_s).")

    def _failed_to_start(self, server: VllmProcess) -> FabricError:
        name = f"Deployment {self.deployment.name!r}"
        command, status = self._options.command[0], server.status
        if status in _NO_COMMAND:
            return ConfigError(
                f"{name}: there is no command {command!r} here: install vLLM (the extra `gpu`), or set "
                "`options.command`."
            )
        if status == _WRONG_ARGUMENTS:
            said = server.reason or _SAID_ABOVE
            return ConfigError(f"{name}: {command} refuses its arguments: check `options.args`. It says: {said}.")
        return EngineUnavailable(
            f"{self._who} ended with status {status} before it was up. It says: {server.reason or _SAID_ABOVE}."
        )


async def _ends(server: VllmProcess | None, within_s: float) -> bool:
    """Waits so long; whether the server ended meanwhile."""
    if server is None:
        await asyncio.sleep(within_s)
        return False
    try:
        async with asyncio.timeout(within_s):
            await server.exited.wait()
    except TimeoutError:
        return False
    return True


def _models(body: bytes) -> dict[str, int | None]:
    """The served names and their context windows, where the server tells them."""
    try:
        listed: Any = orjson.loads(body)["data"]
        return {str(model["id"]): model.get("max_model_len") for model in listed}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return {}
