"""Presidio's recognizers over spaCy pipelines: names, places, and whatever else it has. The extra ``presidio``.

It runs on a thread of its own, one for each configuration, since it takes milliseconds a text. Nothing is fetched:
the models are there, or it is as good as broken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary, finalize

from fabric.contracts.catalog import PrivacyRules
from fabric.contracts.detector import PresidioSettings

log = logging.getLogger(__name__)

#: Seconds that texts wait for models which are being loaded; big ones take ten.
_LOAD_S = 60.0
#: Characters that are read in one go. More sees more of what belongs together; less notices sooner that nobody waits.
_PIECE = 10_000
#: Seconds between two lines of the log about texts that weren't read.
_LOG_S = 10.0


class Unread(Exception):
    """Presidio is missing, broken or too slow: what the texts hold isn't known."""


class Part(NamedTuple):
    """Characters of a text, from ``start`` to ``end``, and what Presidio calls them."""

    start: int
    end: int
    kind: str


class Reads(Protocol):
    """Finds in one text."""

    def __call__(self, text: str) -> Iterable[Part]: ...


@dataclass(eq=False)
class _Task:
    texts: tuple[str, ...]
    done: Future[dict[str, list[Part]]] = field(default_factory=Future)
    given_up: bool = False


class _Thread:
    """Loads, then reads task after task; it ends when it gets ``None`` for one."""

    def __init__(self, settings: PresidioSettings, asked: frozenset[str]) -> None:
        self._settings = settings
        self._asked = asked
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.loaded: Future[None] = Future()
        #: When the piece was begun that is being read; ``None`` between two.
        self.since: float | None = None

    def run(self) -> None:
        try:
            reads = load(self._settings, self._asked)
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            hint = "install 'inference-fabric[presidio]'" if isinstance(error, ImportError) else "see `fabric doctor`"
            log.error("Presidio can't work (%s): texts count as if all of it were in them; %s", _kind(error), hint)
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        while (task := self.tasks.get()) is not None:
            self._serve(task, reads)

    def _serve(self, task: _Task, reads: Reads) -> None:
        found: dict[str, list[Part]] = {}
        try:
            for text in task.texts:
                parts = found[text] = []
                for offset, piece in pieces(text):
                    if task.given_up:
                        return
                    self.since = time.monotonic()
                    parts += [Part(one.start + offset, one.end + offset, one.kind) for one in reads(piece)]
        except BaseException as error:  # noqa: BLE001 - as above
            task.done.set_exception(error)
        else:
            task.done.set_result(found)
        finally:
            self.since = None


class Presidio:
    def __init__(self, settings: PresidioSettings, asked: frozenset[str]) -> None:
        self._timeout_s = settings.timeout_s
        self._thread = _Thread(settings, asked)
        self._said_at = float("-inf")
        threading.Thread(target=self._thread.run, name="presidio", daemon=True).start()
        finalize(self, self._thread.tasks.put, None).atexit = False

    def read(self, texts: Iterable[str]) -> Mapping[str, list[Part]]:
        """Text -> what is in it.

        Raises:
            Unread: it failed, or took longer than it may.
        """
        task = _Task(tuple(dict.fromkeys(texts)))
        try:
            self._thread.loaded.result(_LOAD_S)
            since = self._thread.since
            if since is not None and time.monotonic() - since > 2 * self._timeout_s:
                raise TimeoutError  # it hangs: to wait once more helps nobody
            self._thread.tasks.put(task)
            return task.done.result(self._timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, the texts aren't read
            task.given_up = True
            self._say(error)
            raise Unread from None

    def _say(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._said_at >= _LOG_S:
            self._said_at = now
            log.warning("Presidio didn't read a text (%s): it counts as if all of it were in there", _kind(error))


_running: WeakValueDictionary[str, Presidio] = WeakValueDictionary()
_starting = threading.Lock()


def presidio_of(privacy: PrivacyRules) -> Presidio | None:
    """The one for these rules; rules that ask for the same share it, so that a reload loads no model again."""
    if privacy.presidio is None:
        return None
    asked = kinds(privacy)
    key = f"{privacy.presidio.model_dump_json()} {sorted(asked)}"
    with _starting:
        running = _running.get(key)
        if running is None:
            running = _running[key] = Presidio(privacy.presidio, asked)
        return running


def kinds(privacy: PrivacyRules) -> frozenset[str]:
    """What detectors have it look for, as it calls that."""
    return frozenset(one.presidio for one in privacy.detectors if one.presidio is not None)


def load(settings: PresidioSettings, asked: frozenset[str]) -> Reads:
    """Reads texts in every language of ``settings``.

    Raises:
        ImportError: the extra isn't installed.
        OSError: a model isn't there.
        ValueError: nothing that was loaded can find one of ``asked``.
    """
    import spacy
    import tldextract.tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # It would fetch the list of public suffixes, and keep it in the home directory: the list that it has is enough.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    languages = sorted(settings.models)
    engine = SpacyNlpEngine([{"lang_code": language, "model_name": name} for language, name in settings.models.items()])
    # Not by its own `load`, which downloads what it doesn't find.
    engine.nlp = {language: spacy.load(settings.models[language]) for language in languages}
    registry = RecognizerRegistry(supported_languages=languages)
    registry.load_predefined_recognizers(languages=languages, nlp_engine=engine)
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=languages)
    able = {language: set(analyzer.get_supported_entities(language)) & asked for language in languages}
    if unknown := sorted(asked.difference(*able.values())):
        raise ValueError(f"Presidio has nothing that finds {', '.join(unknown)} in {', '.join(languages)}")

    least = settings.min_score

    def reads(text: str) -> Iterator[Part]:
        for language in languages:
            if able[language]:
                results: list[Any] = analyzer.analyze(text, language, sorted(able[language]), score_threshold=least)
                yield from (Part(one.start, one.end, one.entity_type) for one in results)

    return reads


def pieces(text: str, most: int = _PIECE) -> Iterator[tuple[int, str]]:
    """Pieces of at most ``most`` characters, each with where it begins: cut after lines where it can be, or words."""
    start = 0
    while len(text) - start > most:
        end = start + most
        for gap in ("\n", " "):
            at = text.rfind(gap, start + most // 2, end)
            if at >= 0:
                end = at + 1
                break
        yield start, text[start:end]
        start = end
    if start < len(text):
        yield start, text[start:]


def _kind(error: BaseException) -> str:
    """What may be logged: messages may quote texts."""
    return type(error).__name__
