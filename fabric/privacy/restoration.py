"""Back from placeholders to what they hide: in whole answers, and in streams that cut them anywhere.

Put back are the texts of an answer: ``content``, ``reasoning_content``, ``refusal``, ``text``, and the arguments
of function calls (as part of a JSON string). Log probabilities stay as they came: they tell of the tokens that
the model chose, which are those of the placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

_TEXTS = ("content", "reasoning_content", "refusal")
#: JSON of some makers writes ``<`` and ``>`` like this, also inside of arguments.
_ESCAPES = (str.maketrans({"<": "\\u003c", ">": "\\u003e"}), str.maketrans({"<": "\\u003C", ">": "\\u003E"}))
_TOKEN = b'{"type":"token","chunk":'
_FINAL_STATES = (b"succeeded", b"failed", b"cancelled", b"expired", b"dead")
#: A new run's log begins with the first, a job's end is one of the others.
_BOUNDS = tuple(b'{"type":"%b"' % name for name in (b"queued", b"requeued", *_FINAL_STATES))


class Placeholders:
    """One job's, ready to be looked for."""

    def __init__(self, hidden: Mapping[str, str]) -> None:
        """``hidden``: placeholder -> what it hides."""
        self.text = _Forms(dict(hidden))
        arguments: dict[str, str] = {}
        for name, value in hidden.items():
            inside = orjson.dumps(value).decode()[1:-1]
            arguments |= dict.fromkeys((name, *(name.translate(escape) for escape in _ESCAPES)), inside)
        self.arguments = _Forms(arguments)

    def restored(self, result: bytes) -> bytes:
        """An engine's whole answer (JSON)."""
        if not result or not self._may_have(result):
            return result
        values = orjson.loads(result)
        for choice in values.get("choices") or ():
            if isinstance(text := choice.get("text"), str):
                choice["text"] = self.text.put_back(text)
            message = choice.get("message") or {}
            for field in _TEXTS:
                if isinstance(text := message.get(field), str):
                    message[field] = self.text.put_back(text)
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                if isinstance(text := function.get("arguments"), str):
                    function["arguments"] = self.arguments.put_back(text)
        return orjson.dumps(values)

    def _may_have(self, data: bytes) -> bool:
        return b"<" in data or b"\\u003" in data


class _Forms:
    """Written forms of placeholders, and what stands in their place afterwards."""

    def __init__(self, hidden: dict[str, str]) -> None:
        self._hidden = hidden
        self._pattern = re.compile("|".join(map(re.escape, hidden)) or r"(?!)")
        self._longest = max(map(len, hidden), default=0)
        self._starts = {form[:size] for form in hidden for size in range(1, len(form))}

    def put_back(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._hidden[found[0]], text)

    def split(self, text: str) -> tuple[str, str]:
        """What can be said already, put back, and the end that may be the start of a placeholder."""
        last = 0
        pieces = []
        for found in self._pattern.finditer(text):
            pieces += [text[last : found.start()], self._hidden[found[0]]]
            last = found.end()
        rest = text[last:]
        for size in range(min(self._longest - 1, len(rest)), 0, -1):
            if rest[-size:] in self._starts:
                return "".join((*pieces, rest[:-size])), rest[-size:]
        return "".join((*pieces, rest)), ""


#: Choice, field, number of the call for arguments.
_Channel = tuple[int, str, int]


class StreamRestorer:
    """One reader's stream of a job, from its first event on. Each event's outcome depends on those before it only,
    so that a reader who comes back gets the same."""

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders
        #: Ends of what was said, not yet told: starts of placeholders.
        self._held: dict[_Channel, str] = {}

    def event(self, body: bytes) -> bytes:
        """One event of the job's log."""
        if not body.startswith(_TOKEN):
            if body.startswith(_BOUNDS):
                self._held.clear()
            return body
        chunk = body[len(_TOKEN) : -1]
        # A backslash may be the first piece of such an escape.
        if not self._held and b"<" not in chunk and b"\\u003" not in chunk and b"\\\\" not in chunk:
            return body
        return _TOKEN + self.chunk(chunk) + b"}"

    def chunk(self, chunk: bytes) -> bytes:
        values = orjson.loads(chunk)
        for choice in values.get("choices") or ():
            self._choice(choice)
        return orjson.dumps(values)

    def rest(self) -> bytes | None:
        """A chunk with what is still held, for a stream that ends without saying so."""
        if not self._held:
            return None
        choices = []
        for index in sorted({channel[0] for channel in self._held}):
            chat = all(field != "text" for i, field, _ in self._held if i == index)
            choice: dict[str, Any] = {
                "index": index,
                **({"delta": {}} if chat else {"text": ""}),
                "finish_reason": None,
            }
            self._flush(choice)
            choices.append(choice)
        return orjson.dumps({"choices": choices})

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        if isinstance(text := choice.get("text"), str):
            choice["text"] = self._said((index, "text", 0), text)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for field in _TEXTS:
                if isinstance(text := delta.get(field), str):
                    delta[field] = self._said((index, field, 0), text)
            for call in delta.get("tool_calls") or ():
                function = call.get("function") or {}
                if isinstance(text := function.get("arguments"), str):
                    function["arguments"] = self._said((index, "arguments", call.get("index", 0)), text)
        if choice.get("finish_reason"):
            self._flush(choice)

    def _said(self, channel: _Channel, piece: str) -> str:
        forms = self._placeholders.arguments if channel[1] == "arguments" else self._placeholders.text
        said, held = forms.split(self._held.pop(channel, "") + piece)
        if held:
            self._held[channel] = held
        return said

    def _flush(self, choice: dict[str, Any]) -> None:
        """What was held was no placeholder after all."""
        index = choice.get("index", 0)
        for channel in [one for one in self._held if one[0] == index]:
            _, field, number = channel
            held = self._held.pop(channel)
            if field == "text":
                choice["text"] = (choice.get("text") or "") + held
                continue
            delta = choice["delta"] = choice.get("delta") or {}
            if field != "arguments":
                delta[field] = (delta.get(field) or "") + held
                continue
            calls = delta["tool_calls"] = delta.get("tool_calls") or []
            call = next((one for one in calls if one.get("index", 0) == number), None)
            if call is None:
                call = {"index": number, "function": {}}
                calls.append(call)
            function = call["function"] = call.get("function") or {}
            function["arguments"] = (function.get("arguments") or "") + held
