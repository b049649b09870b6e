"""The errors of the fabric: whose fault, whether to try again here, whether to go elsewhere.

Every error that leaves a process is one of these. ``ErrorInfo`` is its form on the wire and in
the job record; ``FabricError`` its form as an exception. Messages say what to do and never hold
prompt text, keys or payloads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Fault = Literal["caller", "policy", "engine", "provider", "fabric"]
#: Where a request may go after a failure: to any other permitted place, only to a larger context window, or only
#: if its policy says so.
FallBackTo = Literal["any", "larger_window", "by_policy"]


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What went wrong with a request or an attempt, as stored and as sent."""

    message: str
    code: str
    type: str
    status: int
    fault: Fault
    param: str | None = None
    retry: bool = False
    fall_back: bool = False
    retry_after_s: float | None = None
    #: Where to, if it falls back.
    fall_back_to: FallBackTo = "any"
    #: The place takes no more for now: waiting for it isn't a failed try.
    waits: bool = False
    #: It says that the place is sick, not only this request: it counts towards the place's breaker.
    breaker: bool = False

    def body(self) -> dict[str, Any]:
        """The OpenAI error shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


class FabricError(Exception):
    """Base of all errors that the fabric raises on purpose."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    fault: ClassVar[Fault] = "fabric"
    retry: ClassVar[bool] = False
    fall_back: ClassVar[bool] = False
    fall_back_to: ClassVar[FallBackTo] = "any"
    waits: ClassVar[bool] = False
    breaker: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.retry_after_s = retry_after_s

    @property
    def info(self) -> ErrorInfo:
        return ErrorInfo(
            message=self.message,
            code=self.error_code,
            type=self.type,
            status=self.status,
            fault=self.fault,
            param=self.param,
            retry=self.retry,
            fall_back=self.fall_back,
            retry_after_s=self.retry_after_s,
            fall_back_to=self.fall_back_to,
            waits=self.waits,
            breaker=self.breaker,
        )


# The caller's fault: never retried, and falls back only where another place may see it otherwise.


class InvalidRequest(FabricError):
    """The request can't be understood or asks for something that the fabric doesn't do."""

    status, type, code, fault = 400, "invalid_request_error", "invalid_request", "caller"


class NotAuthenticated(FabricError):
    """No key, or one that is unknown, expired or revoked."""

    status, type, code, fault = 401, "authentication_error", "invalid_api_key", "caller"


class PermissionDenied(FabricError):
    """The key is known, but its scopes don't cover this."""

    status, type, code, fault = 403, "permission_error", "permission_denied", "caller"


class NotFound(FabricError):
    """No such thing, or not this tenant's."""

    status, type, code, fault = 404, "invalid_request_error", "not_found", "caller"


class ModelNotFound(NotFound):
    """The model isn't in the catalogue."""

    code = "model_not_found"


class ModelNotPermitted(ModelNotFound):
    """The key doesn't permit the model. Its holder is told what everybody is told of a model that isn't there."""

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message, param="model")
        self.model = model


class Conflict(FabricError):
    """The thing is in a state that doesn't allow this."""

    status, type, code, fault = 409, "invalid_request_error", "conflict", "caller"


class TooLarge(FabricError):
    """A body, file or batch over its limit."""

    status, type, code, fault = 413, "invalid_request_error", "request_too_large", "caller"


class ContextOverflow(FabricError):
    """Prompt plus answer don't fit the deployment's context window."""

    status, type, code, fault = 400, "invalid_request_error", "context_length_exceeded", "caller"
    fall_back, fall_back_to = True, "larger_window"


class Cancelled(FabricError):
    """The caller cancelled the job or went away."""

    status, type, code, fault = 499, "cancelled", "cancelled", "caller"


# Policy: nowhere to run, or not any more.


class NoEligibleDeployment(FabricError):
    """Every candidate was eliminated; the message lists why."""

    status, type, code, fault = 422, "policy_error", "no_eligible_deployment", "policy"


class LabelForbids(FabricError):
    """A job was sent where its label doesn't let it be, and the worker there refused it. Another place may be right."""

    status, type, code, fall_back = 422, "policy_error", "label_forbids", True


class DeadlineExceeded(FabricError):
    """The deadline passed before the job was finished."""

    status, type, code, fault = 504, "timeout_error", "deadline_exceeded", "policy"


class BudgetExceeded(FabricError):
    """The job could go beyond a budget; ``retry_after_s`` says when its next window begins."""

    status, type, code, fault = 429, "insufficient_quota", "budget_exceeded", "policy"
    #: Whose budget it is and what it counts, ``("tenant", "usd")``, where that is known.
    of: tuple[str, str] | None = None


class BudgetUsedUp(BudgetExceeded):
    """The same, of a budget that doesn't begin again."""

    status = 402


class Busy(FabricError):
    """The backlog is full: come back later."""

    status, type, code, fault = 429, "rate_limit_error", "backlog_full", "policy"


class RateLimitExceeded(FabricError):
    """A limit of the key or the tenant; ``retry_after_s`` says when there is room again."""

    status, type, code, fault = 429, "rate_limit_error", "rate_limit_exceeded", "policy"


class LargerThanLimit(FabricError):
    """One request needs more than a limit gives in all: waiting doesn't help."""

    status, type, code, fault = 413, "rate_limit_error", "request_over_limit", "policy"


# Engines and providers.


class EngineError(FabricError):
    """The engine failed on this request; another try may work."""

    status, type, code, fault = 502, "engine_error", "engine_error", "engine"
    retry, fall_back, breaker = True, True, True


class EngineRejected(FabricError):
    """The engine understood the request and refused it: the same request fails again."""

    status, type, code, fault = 400, "invalid_request_error", "engine_rejected", "caller"


class EngineUnsupported(EngineRejected):
    """This engine can't do what a parameter asks for; another one may."""

    code, fall_back = "unsupported_parameter", True


class EngineUnavailable(EngineError):
    """The engine isn't there (not started, crashed, being restarted)."""

    status, code = 503, "engine_unavailable"


class EngineAway(EngineUnavailable):
    """The engine wasn't there when the job's turn came, and nothing was tried."""

    code = "engine_away"
    waits, breaker = True, False


class EngineTimeout(EngineError):
    """The engine took longer than the deployment's time-outs allow."""

    status, code = 504, "engine_timeout"


class WorkerLost(EngineError):
    """The worker that ran the job died."""

    status, code = 502, "worker_lost"


class StreamBroken(EngineError):
    """The stream ended after its first token and before its last; it can't be resumed elsewhere."""

    status, code = 502, "stream_broken"
    retry, fall_back = False, False


class ProviderError(FabricError):
    """A hosted API failed."""

    status, type, code, fault = 502, "provider_error", "provider_error", "provider"
    retry, fall_back, breaker = True, True, True


class ProviderUnavailable(ProviderError):
    """The hosted API can't be reached: no address, no connection, no TLS."""

    status, code = 503, "provider_unavailable"


class ProviderTimeout(ProviderError):
    """The hosted API took longer than the deployment's time-outs allow."""

    status, code = 504, "provider_timeout"


class ProviderBatchLate(ProviderError):
    """The provider's batch isn't done, and the job's deadline is near: it was pulled back."""

    status, code, retry, breaker = 504, "provider_batch_late", False, False


class ProviderBatchExpired(ProviderError):
    """The provider gave its batch up before it had come to the request."""

    status, code, retry, breaker = 504, "provider_batch_expired", False, False


class ProviderStreamBroken(ProviderError):
    """As ``StreamBroken``, by a hosted API."""

    code = "stream_broken"
    retry, fall_back = False, False


class RateLimited(ProviderError):
    """The hosted API takes no more requests from us for now; ``retry_after_s`` says how long, where it is known."""

    status, type, code = 429, "rate_limit_error", "provider_rate_limited"
    waits, breaker = True, False


class BeyondProviderLimit(EngineUnsupported):
    """One request is more than the hosted API takes of us in a minute: waiting doesn't help, a smaller request does."""

    status, type, code = 413, "rate_limit_error", "beyond_provider_limit"


class QuotaExhausted(ProviderError):
    """The operator's account with the hosted API is out of credit: only a payment helps."""

    code, retry = "provider_quota_exhausted", False


class ProviderAuth(ProviderError):
    """The hosted API refuses the deployment's key. Not the caller's key: hence no 401."""

    code, retry = "provider_auth", False


class ProviderMisconfigured(ProviderError):
    """The hosted API doesn't know the deployment's address or model."""

    code, retry = "provider_misconfigured", False


class ContentRefused(FabricError):
    """A provider's content filter refused the request. Going elsewhere with it is for a policy to decide."""

    status, type, code, fault = 400, "invalid_request_error", "content_refused", "caller"
    fall_back, fall_back_to = True, "by_policy"


# Ours.


class Unavailable(FabricError):
    """A part of the fabric (broker, ledger) can't be reached right now."""

    status, type, code = 503, "server_error", "unavailable"
    retry = True


class BrokenSeal(FabricError):
    """Content at rest that can't be opened: altered, moved, or sealed with a secret that isn't held."""

    code = "broken_seal"


class ConfigError(FabricError):
    """A setting, file or environment variable is wrong; the message names it and says what to do."""

    code = "configuration_error"


class ModelFileError(ConfigError):
    """A model file is missing, cut short or not in the format that the engine reads."""

    code = "model_file_error"


def where(error: BaseException) -> str:
    """File and line of the innermost frame: enough to look, nothing of the values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
