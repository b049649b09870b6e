"""The words that the model learns: the common ones of WordNet, each with a short meaning that fits in a sentence."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tiny_model.wordnet import Entry, Wordnet

#: Little words that WordNet also lists as nouns or verbs (``in``: inch), where nobody would look for that.
_LITTLE_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about all am an and any are as at be being but by can could de did do does down for from genus had has have"
        " he her him his i if in is it its la may me might more most must my ness no nor not of off on one only or"
        " other our out over shall she should so some species such than that the their them then there these they this"
        " those to two three up us was we were what when where which who whose why will with would you your",
    )
)
_PREPOSITIONS = re.compile(
    r"\b(of|with|that|who|which|for|from|in|into|containing|used|having|by|to|on|at|made|as|or|and|where|when|consisting"
    r"|between|whose|worn|designed|about|produced|found|given|resulting|located|caused|held|during|done)\b|,"
)
_ARTICLES = (
    "a ",
    "an ",
    "the ",
    "any ",
    "some ",
    "one ",
    "someone ",
    "something ",
    "anything ",
    "that ",
    "what ",
    "your ",
    "all ",
)
#: "a noun of", "an old noun that": followed by a little word, so that "a stone wall" doesn't count for stone.
_COUNTED = re.compile(
    r"\ban? ((?:\w+ ){0,2}?\w+)(?= (?:of|that|with|in|for|to|and|or|is|was|on|by|who|which|from|at|having|used)\b|$|,)"
)
_FULL_SENTENCE = re.compile(
    r"^(he|she|it|they|we|I|you|there)\b|\b(is|are|was|were|has|had|have|will|can|could|did|does|do|would|must|should|went|came"
    r"|got|took|made|\w{3,}ed)\b"
)
_THINGS = {5, 6, 15, 17, 18, 20}  # lexicographer files: animals, artifacts, places, objects, people, plants
_TOUCHED = {5, 6, 13, 20}
_ACT, _FOOD, _PLACE, _OBJECT, PERSON, _PLANT = 4, 13, 15, 17, 18, 20
_TAXA = re.compile(r"\b(genus|genera|species|suborder|superfamily|phylum|taxonomic|formerly)\b|placed in|family [A-Z]")
_LONGEST_MEANING = 17  # words
_RARE_USES = 6  # at most, of the words that it is to know that it doesn't know
_CORE_USES = 100  # at least, so that even the newer ones of the everyday words come up


@dataclass(frozen=True, slots=True)
class Word:
    """``name``: how it stands in a sentence (``an apple``, ``water``, ``Paris``); ``meaning``: reads well after "is";
    ``kind``: what it is a kind of, in common words, or nothing."""

    text: str
    part: str
    name: str
    plural: str
    meaning: str
    kind: str
    examples: tuple[str, ...]
    uses: int
    entry: Entry | None


@dataclass(frozen=True)
class Lexicon:
    wordnet: Wordnet
    articles: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for entry in self.wordnet.entries.values():
            for text in (entry.gloss, *entry.examples):
                for phrase in _COUNTED.findall(text.lower()):
                    words = phrase.split()
                    self.articles.update({words[-1], " ".join(words[-2:])})

    @cached_property
    def core(self) -> list[Word]:
        """Everyday words, with meanings in everyday words."""
        found = []
        for line in (Path(__file__).parent / "core_words.txt").read_text().splitlines():
            if not line.startswith("#"):
                name, kind, meaning = line.split(" | ")
                text = re.sub(r"^(an?|the) ", "", name)
                senses = self.wordnet.senses.get((text, "n"))
                entry = self._usual(senses, "n") if senses else None
                plural = pluralize(text) if name.startswith("a") and name != text else text
                examples = self._examples(text, entry) if entry else ()
                uses = max(self.wordnet.uses[text], _CORE_USES)
                found.append(Word(text, "n", name, plural, meaning, kind, examples, uses, entry))
        return found

    @cached_property
    def core_texts(self) -> frozenset[str]:
        return frozenset(word.text for word in self.core)

    @cached_property
    def nouns(self) -> list[Word]:
        return self._words("n", least=9, most=3000)

    @cached_property
    def verbs(self) -> list[Word]:
        return self._words("v", least=12, most=900)

    @cached_property
    def adjectives(self) -> list[Word]:
        return self._words("a", least=12, most=1100)

    @cached_property
    def adverbs(self) -> list[Word]:
        return self._words("r", least=12, most=200)

    @cached_property
    def things(self) -> list[Word]:
        """What one can count and touch."""
        return [
            word
            for word in self.core + self.nouns
            if word.plural != word.text and word.entry and word.entry.field in _TOUCHED
        ]

    @cached_property
    def by_entry(self) -> dict[str, Word]:
        return {word.entry.id: word for word in [*reversed(self.nouns), *self.core] if word.entry}

    @cached_property
    def names(self) -> list[Word]:
        """Proper nouns: places, and people known for what they found or made."""
        names = self._proper()
        return [word for word in names if word.uses >= 8 or re.search("country|national capital", word.kind)]

    @cached_property
    def unknown(self) -> list[Word]:
        """Words and people that the model doesn't learn anything about, to know that it doesn't."""
        learned = (self.core, self.nouns, self.verbs, self.adjectives, self.adverbs, self.names)
        known = {word.text for words in learned for word in words}
        found = {}
        for entry in self.wordnet.entries.values():
            pattern = r"[A-Z][a-z]+ [A-Z][a-z]+" if entry.field == PERSON else r"[a-z]{5,}( [a-z]{4,})?"
            for text in entry.words if entry.part == "n" else ():
                if text not in known and self.wordnet.uses[text] <= _RARE_USES and re.fullmatch(pattern, text):
                    name = with_article(text) if text.islower() and self.countable(text, entry) else text
                    found[text] = Word(text, "n", name, pluralize(text), "", "", (), 0, entry)
        return list(found.values())

    def countable(self, noun: str, entry: Entry | None = None) -> bool:
        """Whether it is "a noun": read off how WordNet's own texts use it, or guessed from what it is."""
        seen, uses = self.articles[noun], self.wordnet.uses[noun]
        if entry is None:
            return seen > max(1, 0.03 * uses)
        if noun.endswith("ing") and entry.field == _ACT:
            return False
        return seen > 0.01 * uses if entry.field in _THINGS else seen > max(1, 0.05 * uses)

    def _words(self, part: str, least: int, most: int) -> list[Word]:
        found = []
        for (text, its_part), senses in self.wordnet.senses.items():
            if (
                its_part != part
                or not senses
                or text in _LITTLE_WORDS
                or not re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", text)
            ):
                continue
            if self.wordnet.uses[text] < least or self.wordnet.share(text, part) < 0.2:
                continue
            entry = self._usual(senses, part)
            if text not in entry.words or (text.endswith("s") and (text[:-1], part) in self.wordnet.senses):
                continue
            if text not in self.core_texts and (word := self._word(text, part, entry)):
                found.append(word)
        found.sort(key=lambda word: (-word.uses, word.text))
        return found[:most]

    def _usual(self, senses: tuple[str, ...], part: str) -> Entry:
        first = self.wordnet.entries[senses[0]]
        if part == "n" and first.field == _PLANT:
            return next((e for e in map(self.wordnet.entries.__getitem__, senses) if e.field == _FOOD), first)
        return first

    def _word(self, text: str, part: str, entry: Entry) -> Word | None:
        meaning = re.sub(r" (of|in) the (genus|family) \w+", "", entry.gloss)
        if (
            not meaning
            or len(meaning.split()) > _LONGEST_MEANING
            or _TAXA.search(meaning)
            or re.search(r"[^\w ,'-]", meaning)
        ):
            return None
        if re.search(rf"\b{re.escape(text)}\b", meaning):
            return None
        name = plural = text
        kind = ""
        if part == "n":
            if self.countable(text, entry):
                name, plural = with_article(text), pluralize(text)
            meaning = self._with_article(meaning)
            kind = self._kind(entry)
            head = _PREPOSITIONS.split(meaning)[0].split()
            if name != text and not meaning.startswith(_ARTICLES) and head and re.search(r"[^s]s$", head[-1]):
                return None  # "a bird is warm-blooded vertebrates"
        return Word(
            text, part, name, plural, meaning, kind, self._examples(text, entry), self.wordnet.uses[text], entry
        )

    def _with_article(self, meaning: str) -> str:
        """``fruit with red skin`` -> ``a fruit with red skin``, if a fruit is something that one can count."""
        if meaning.startswith(_ARTICLES):
            return meaning
        head = _PREPOSITIONS.split(meaning)[0].split()
        if head and not head[-1].endswith("s") and not head[0].endswith("ing") and self.countable(head[-1]):
            return with_article(meaning)
        return meaning

    def _kind(self, entry: Entry) -> str:
        for parent in self.wordnet.above(entry)[:3]:
            word = max(parent.words, key=lambda w: self.wordnet.uses[w])
            if self.wordnet.uses[word] >= 40 and re.fullmatch(r"[a-z ]+", word) and word not in entry.words:
                return word
        return ""

    def _examples(self, text: str, entry: Entry) -> tuple[str, ...]:
        fit = (e for e in entry.examples if re.search(rf"\b{re.escape(text)}", e) and 4 <= len(e.split()) <= 14)
        return tuple(sentence(e) for e in fit if re.fullmatch(r"[A-Za-z ,']+[.!?]?", e) and _FULL_SENTENCE.search(e))

    def _proper(self) -> list[Word]:
        found = []
        common = {(word, entry.part) for entry in self.wordnet.entries.values() for word in entry.words}
        for entry in self.wordnet.entries.values():
            parents = self.wordnet.linked(entry, "@i")
            if not parents or entry.field not in (_PLACE, _OBJECT, PERSON):
                continue
            person = entry.field == PERSON
            names = [
                name
                for name in entry.words
                if re.fullmatch(r"[A-Z][a-z]+( [A-Z][a-z]+)?", name) and (" " in name or not person)
            ]
            if not names or (person and not _KNOWN_FOR.match(parents[0].words[0])):
                continue
            text, kind = names[0], parents[0].words[0]
            if (text.lower(), "n") in common and not re.search("country|nation|capital", kind):
                continue
            if word := self._word(text, "n", entry):
                uses = self.wordnet.uses[text.split()[-1].lower() if person else text.lower()]
                meaning = word.meaning
                if not meaning.startswith(_ARTICLES):
                    meaning = f"the {meaning}" if meaning.startswith(("capital", "largest")) else with_article(meaning)
                found.append(Word(text, "n", text, text, meaning, kind, (), uses, entry))
        return sorted(found, key=lambda word: (-word.uses, word.text))


_KNOWN_FOR = re.compile(
    r"physicist|chemist|writer|poet|composer|painter|mathematician|astronomer|philosopher|inventor|biologist|naturalist|explorer"
    r"|sculptor|architect|physician|novelist|dramatist|nurse|economist|botanist|computer scientist"
)


def with_article(noun: str) -> str:
    vowel = re.match(r"[aeioAEIO]|u(?!n[ai]|s[ei]|tens|tili|bi|ra|ro|kr)", noun) and not re.match(
        r"eu|one\b|once\b|ew", noun.lower()
    )
    vowel = vowel or re.match(r"hour|honest|honor|heir\b|heirloom", noun)
    return f"an {noun}" if vowel else f"a {noun}"


_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth", "mouse": "mice",
    "goose": "geese", "person": "people", "fish": "fish", "sheep": "sheep", "deer": "deer", "ox": "oxen",
    "knife": "knives", "wife": "wives", "life": "lives", "leaf": "leaves", "wolf": "wolves", "half": "halves",
    "shelf": "shelves", "loaf": "loaves",
}  # fmt: skip


def pluralize(noun: str) -> str:
    before, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("man") and last != "human":
        last = last[:-3] + "men"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    else:
        last += "s"
    return f"{before} {last}".strip()


def sentence(text: str) -> str:
    """Capital first, a full stop last."""
    text = text.strip()
    text = re.sub(r"\bi\b", "I", text[:1].upper() + text[1:])
    return text if text.endswith((".", "!", "?")) else text + "."
