"""Dialogues about words: meanings, kinds, examples, opposites, parts, places and people, and a little arithmetic."""

from __future__ import annotations

import json
import re
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random

from tiny_model.grammar import Exchange, Grammar, capitalize
from tiny_model.lexicon import PERSON, Lexicon, Word, pluralize, with_article

_FOLDER = Path(__file__).parent
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
#: How often each form is tried; one that has nothing to say about its word makes way for another.
_WEIGHTS = {
    "meaning": 42, "longer": 7, "difference": 4, "kind": 4, "is_a": 4, "kinds": 12, "parts": 3, "example": 8, "same": 4,
    "opposite": 6, "name": 7, "capital": 6, "sum": 7, "as_json": 2, "summary": 5, "statement": 6, "unknown": 8,
}  # fmt: skip


class Questions:
    def __init__(self, lexicon: Lexicon, rng: Random) -> None:
        self.lexicon = lexicon
        self.rng = rng
        texts = ((_FOLDER / name).read_text() for name in ("dialogues.txt", "questions.txt"))
        self.grammar = Grammar("\n".join(texts), self.draw)
        self._pools: dict[str, tuple[list[Word], list[float]]] = {}
        self._kinds: dict[str, list[str]] = {}

    def dialogue(self) -> list[Exchange]:
        while True:
            form = self.rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            if exchanges := getattr(self, form)():
                return [(user, capitalize(answer)) for user, answer in exchanges]

    def pick(self, pool: str) -> Word:
        """Common words come up more often: by the root of how often they are used."""
        if pool not in self._pools:
            words = getattr(self.lexicon, pool)
            self._pools[pool] = words, list(accumulate((word.uses + 10) ** 0.5 for word in words))
        words, weights = self._pools[pool]
        return self.rng.choices(words, cum_weights=weights)[0]

    def noun(self) -> Word:
        return self.pick("core" if self.rng.random() < 0.35 else "nouns")

    def any_word(self) -> Word:
        pool = self.rng.choices(("nouns", "verbs", "adjectives", "adverbs"), (6, 2, 2, 0.5))[0]
        return self.noun() if pool == "nouns" else self.pick(pool)

    def draw(self, slot: str) -> Word | None:
        """For the slots of the grammar."""
        pool = {"thing": "things", "core": "core", "verb": "verbs", "adjective": "adjectives"}.get(slot)
        return self.noun() if slot == "noun" else self.pick(pool) if pool else None

    def ask(self, phrases: str, **words: Word | str) -> str:
        bound = {(name, "1"): word for name, word in words.items()}
        return self.grammar.expand(self.rng.choice(self.grammar.lists[phrases]), self.rng, bound)

    def meaning(self) -> list[Exchange]:
        word = self.noun() if self.rng.random() < 0.75 else self.any_word()
        special = {"v": "ask_verb", "n": "ask_noun"}.get(word.part) if self.rng.random() < 0.6 else None
        exchanges = [(self.ask(special or "ask_meaning", word=word), self._tell(word))]
        chance = self.rng.random()
        if chance < 0.25:
            other = self.noun()
            exchanges.append((self.ask("ask_and", other=other), self._tell(other)))
        elif chance < 0.4 and word.examples:
            exchanges.append((self.ask("ask_use"), self.rng.choice(word.examples)))
        elif chance < 0.6 and word.kind:
            exchanges.append((self.ask("ask_more"), f"{word.name} is a kind of {word.kind}."))
        return exchanges

    def _tell(self, word: Word) -> str:
        if word.part == "v":
            return f"To {word.text} is to {word.meaning.removeprefix('to ')}."
        if word.part == "n" and self.rng.random() < 0.9:
            return f"{word.name} is {word.meaning}."
        return f'The word "{word.text}" means {word.meaning}.'

    def longer(self) -> list[Exchange]:
        """Two or three sentences about a word."""
        word = self.noun()
        parts = [f"{word.name} is {word.meaning}."]
        if word.kind:
            parts.append(f"It is a kind of {word.kind}.")
        if word.examples:
            parts.append(f"Here is an example: {self.rng.choice(word.examples)}")
        if len(kinds := self._kinds_of(word)) > 1:
            parts.append(f"{_list(kinds[:4])} are kinds of {word.text}.")
        if len(pieces := self._parts_of(word)) > 1:
            parts.append(f"Its parts are {_list(pieces[:3])}.")
        asked = self.ask("ask_longer", of=self.rng.choice((word.plural, word.text)))
        return [(asked, " ".join(parts))] if len(parts) > 1 else []

    def difference(self) -> list[Exchange]:
        word, other = self.noun(), self.noun()
        answer = f"{word.name} is {word.meaning}. {other.name} is {other.meaning}."
        return [(self.ask("ask_difference", word=word, other=other), answer)] if word.text != other.text else []

    def kind(self) -> list[Exchange]:
        word = self.noun()
        return [(self.ask("ask_kind", word=word), f"{word.name} is a kind of {word.kind}.")] if word.kind else []

    def is_a(self) -> list[Exchange]:
        word, other = self.noun(), self.noun()
        if not word.kind or not other.kind:
            return []
        truth = f"{word.name} is a kind of {word.kind}."
        if self.rng.random() < 0.5:
            return [(f"Is {word.name} {with_article(word.kind)}?", self.rng.choice((f"Yes, {truth}", "Yes.")))]
        above = self.lexicon.wordnet.above(word.entry) if word.entry else []
        if other.kind == word.kind or any(other.kind in entry.words for entry in above):
            return []
        return [(f"Is {word.name} {with_article(other.kind)}?", self.rng.choice((f"No, {truth}", "No.")))]

    def kinds(self) -> list[Exchange]:
        word = self.noun()
        found = self._kinds_of(word)
        if len(found) < 3:
            return []
        count = self.rng.randint(1, min(5, len(found)))
        chosen = sorted(self.rng.sample(found[: count + 3], count), key=found.index)
        if count == 1:
            one = self._with_article(chosen[0])
            answer = self.rng.choice((f"{one}.", f"{one} is a kind of {word.text}."))
            return [(self.ask("ask_one_kind", word=word), answer)]
        number = self.rng.choice((_NUMBERS[count], str(count)))
        of = self.rng.choice((word.plural, pluralize(word.text), f"kinds of {word.text}"))
        asked = self.ask("ask_kinds", number=number, of=of)
        lines = "\n".join(f"{i}. {text}" for i, text in enumerate(chosen, 1))
        return [(asked, lines if self.rng.random() < 0.4 else f"{_list(chosen)}.")]

    def parts(self) -> list[Exchange]:
        word = self.noun()
        pieces = self._parts_of(word)
        return [(self.ask("ask_parts", word=word), f"{word.name} has {_list(pieces[:4])}.")] if len(pieces) > 1 else []

    def example(self) -> list[Exchange]:
        word = self.any_word()
        return [(self.ask("ask_example", word=word), self.rng.choice(word.examples))] if word.examples else []

    def same(self) -> list[Exchange]:
        word = self.any_word()
        others = [w for w in (word.entry.words if word.entry else ()) if w != word.text and re.fullmatch(r"[a-z ]+", w)]
        if not others:
            return []
        other = max(others, key=lambda w: self.lexicon.wordnet.uses[w])
        answer = self.rng.choice((f"Another word for {word.text} is {other}.", f"{other}."))
        return [(self.ask("ask_same", word=word), answer)]

    def opposite(self) -> list[Exchange]:
        word = self.any_word()
        entries = self.lexicon.wordnet.entries
        for link in word.entry.links if word.entry else ():
            if link.kind == "!" and word.entry.words[link.word - 1] == word.text and link.entry in entries:
                other = entries[link.entry].words[link.target_word - 1]
                answer = self.rng.choice((f"The opposite of {word.text} is {other}.", f"{other}."))
                return [(self.ask("ask_opposite", word=word), answer)]
        return []

    def name(self) -> list[Exchange]:
        word = self.pick("names")
        if word.entry and word.entry.field == PERSON:
            return [(self.ask("ask_person", word=word), f"{word.text} was {word.meaning}.")]
        exchanges = [(self.ask("ask_place", word=word), f"{word.text} is {word.meaning}.")]
        if word.text in self._capitals and self.rng.random() < 0.5:
            exchanges.append(("What is its capital?", f"The capital of {word.text} is {self._capitals[word.text]}."))
        return exchanges

    def capital(self) -> list[Exchange]:
        country, capital = self.rng.choice(list(self._capitals.items()))
        if self.rng.random() < 0.2:
            return [(self.ask("ask_country", capital=capital), f"{capital} is the capital of {country}.")]
        answers = (f"The capital of {country} is {capital}.",) * 3 + (f"{capital}.",)
        return [(self.ask("ask_capital", country=country), self.rng.choice(answers))]

    @cached_property
    def _capitals(self) -> dict[str, str]:
        found = {}
        for word in self.lexicon.names:
            if word.kind == "national capital" and word.entry:
                for country in self.lexicon.wordnet.linked(word.entry, "#p"):
                    found[country.words[0]] = word.text
        return found

    def unknown(self) -> list[Exchange]:
        word = self.rng.choice(self.lexicon.unknown)
        if word.text[0].isupper():
            return [(self.ask("ask_person", word=word), self.ask("unknown_person", word=word))]
        asked = self.ask(self.rng.choice(("ask_meaning", "ask_noun", "ask_noun")), word=word)
        return [(asked, self.ask("unknown_word", word=word))]

    def sum(self) -> list[Exchange]:
        a, b = self.rng.randint(0, 12), self.rng.randint(0, 12)
        if self.rng.random() < 0.15:
            sign = self.rng.choice("+-*/")
            return [(f"What is {self.rng.randint(13, 99999)} {sign} {b + 13}?", "These numbers are too large for me.")]
        sign, spoken, result = self.rng.choice((("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b)))
        words = {"a": str(a), "b": str(b), "a_word": _NUMBERS[a], "b_word": _NUMBERS[b], "sign": sign, "spoken": spoken}
        answers = (f"{a} {spoken} {b} is {result}.", f"{a} {sign} {b} = {result}", f"{result}")
        return [(self.ask("ask_sum", **words), self.rng.choice(answers))]

    def as_json(self) -> list[Exchange]:
        word = self.noun()
        answer = json.dumps({"word": word.text, "kind": word.kind, "meaning": word.meaning})
        return [(self.ask("ask_json", word=word), answer)] if word.kind else []

    def summary(self) -> list[Exchange]:
        """A text about one thing, among other sentences; the answer names the thing."""
        word = self.noun()
        others = [self.noun() for _ in range(self.rng.choice((1, 2, 2, 3, 3, 4, 30)))]
        about = f"{word.name} is {word.meaning}."
        rest = [*word.examples, *(self.rng.choice(other.examples) for other in others if other.examples)]
        text = " ".join(capitalize(line) for line in (about, *self.rng.sample(rest, len(rest))))
        answer = self.rng.choice((f"The text is about {word.text}.", f"The text says that {about}"))
        return [(self.ask("ask_summary", text=text), answer)]

    def statement(self) -> list[Exchange]:
        word = self.any_word()
        if not word.examples:
            return []
        return [(self.rng.choice(word.examples), self.ask("react", told=capitalize(self._tell(word))))]

    def _kinds_of(self, word: Word) -> list[str]:
        """The best known first."""
        if word.text not in self._kinds:
            known = self.lexicon.by_entry
            below = self.lexicon.wordnet.below(word.entry) if word.entry and word.part == "n" else []
            uses = {known[entry.id].text: known[entry.id].uses for entry in below if entry.id in known}
            uses.pop(word.text, None)
            self._kinds[word.text] = sorted(uses, key=lambda text: -uses[text])[:12]
        return self._kinds[word.text]

    def _parts_of(self, word: Word) -> list[str]:
        pieces = self.lexicon.wordnet.linked(word.entry, "%p") if word.entry else []
        known = self.lexicon.by_entry
        return [self._with_article(known[piece.id].text) for piece in pieces if piece.id in known]

    def _with_article(self, text: str) -> str:
        return with_article(text) if self.lexicon.countable(text) else text


def _list(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
