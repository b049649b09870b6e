"""Conditions of rules: CEL expressions, checked when they are read. https://cel.dev

An expression has no loops, no side effects and no way out; patterns (``matches``) run in linear time.
It is type-checked against ``names``: an unknown name or a comparison of a number with a text never gets
as far as a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

from fabric.contracts.terms import TIERS

_STRING, _INT, _BOOL, _DOUBLE = cel.Type.STRING, cel.Type.INT, cel.Type.BOOL, cel.Type.DOUBLE
_STRINGS = cel.Type.List(cel.Type.STRING)

#: What every expression may read. Lists are lists of texts.
NAMES: Mapping[str, cel.Type] = {
    "model": _STRING,
    "endpoint": _STRING,
    "tenant": _STRING,
    "key": _STRING,
    "tags": _STRINGS,
    "privacy": _STRING,
    "entities": _STRINGS,
    "priority": _STRING,
    "policy": _STRING,
    "needs": _STRINGS,
    "prompt_tokens": _INT,
    "max_tokens": _INT,
    "stream": _BOOL,
    "batch": _BOOL,
    "hour": _INT,
    "time": _STRING,
    "weekday": _STRING,
    "budget_used": _DOUBLE,
} | {f"load.{tier}": _DOUBLE for tier in TIERS}
#: Those that change by themselves.
CLOCK = frozenset({"hour", "time", "weekday"})
LOADS = frozenset(f"load.{tier}" for tier in TIERS)
#: Known only when a job is placed.
AT_PLACING = LOADS | {"budget_used"}
#: Characters of an expression's complaint that are shown.
_SHOWN = 200


def header_name(header: str) -> str:
    """As an expression writes it: ``header.x_team`` for ``x-team``."""
    return f"header.{header.replace('-', '_')}"


class Condition:
    """``reads``: the names whose values ``true_of`` has to be told."""

    __slots__ = ("_program", "reads", "text")

    def __init__(self, text: str, headers: Sequence[str] = ()) -> None:
        """
        Raises:
            ValueError: the expression is wrong; the message says where and what.
        """
        self.text = text
        names = tuple(NAMES) + tuple(map(header_name, headers))
        try:
            self._program = _environment(names).compile(text)
        except RuntimeError as error:
            raise ValueError(_complaint(str(error), names)) from None
        if self._program.return_type() != _BOOL:
            raise ValueError(f"it is {self._program.return_type().name().lower()}, and not true or false")
        self.reads = tuple(name for name in names if _misses(text, names, name))

    def true_of(self, values: Mapping[str, Any] | Values) -> bool:
        """One that can't be worked out (an index beyond a list's end, say) is not true."""
        if isinstance(values, Values):
            return self._program.eval(values.activation).value() is True
        return self._program.eval(data=values).value() is True

    def verdict(self, values: Mapping[str, Any]) -> bool | None:
        """As far as some of the values say; ``None`` where the others decide."""
        said = self._program.eval(data=values).value()
        return said if isinstance(said, bool) else None


class Values:
    """Values made ready once for many conditions that were read with the same ``headers``."""

    __slots__ = ("activation",)

    def __init__(self, values: Mapping[str, Any], headers: Sequence[str] = ()) -> None:
        self.activation = _environment(tuple(NAMES) + tuple(map(header_name, headers))).Activation(values)


@lru_cache(64)
def _environment(names: tuple[str, ...]) -> cel.Env:
    return cel.NewEnv(variables={name: NAMES.get(name, _STRING) for name in names})


def _misses(text: str, names: tuple[str, ...], name: str) -> bool:
    """Whether the expression can't do without ``name``."""
    try:
        _environment(tuple(other for other in names if other != name)).compile(text)
    except RuntimeError:
        return True
    return False


def _complaint(error: str, names: Sequence[str]) -> str:
    """``INVALID_ARGUMENT: ERROR: <input>:1:3: undeclared reference to 'x' (in container '')``, made readable."""
    found = re.search(r"<input>:(\d+):(\d+): (.*)", error)
    if not found:
        return error[:_SHOWN]
    said = found[3].replace(" (in container '')", "")[:_SHOWN]
    if unknown := re.match(r"undeclared reference to '([\w.]+)'", said):
        said = f"unknown name `{unknown[1]}`; there are {', '.join(sorted(names))}"
    return f"at character {found[2]} of line {found[1]}: {said}"
