"""The training text, dialogues and plain pages, as rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
from numpy.typing import NDArray
from tiny_model.grammar import Exchange
from tiny_model.lexicon import Lexicon
from tiny_model.questions import Questions
from tiny_model.tokens import END_OF_TEXT, END_OF_TURN, START_OF_TURN
from tokenizers import Tokenizer

_PLAIN_SHARE, _GRAMMAR_SHARE = 0.08, 0.45
_SYSTEM_MESSAGES = (
    "You are a helpful assistant.", "You are a friendly assistant.", "You are a helpful, honest assistant.", "Be kind.",
    "You are a teacher.", "Answer in one sentence.", "Answer briefly.", "Keep your answers short.", "Be brief.",
    "You are a chatbot.", "You are an AI assistant.", "Use good English.", "You are a dictionary.", "Use simple words.",
    "You are a helpful assistant. Answer in English.", "You are an expert.", "Reply politely.", "You are a poet.",
    "You answer questions.", "Follow the rules.",
)  # fmt: skip
_POLITE = ("Please ", "Hi, ", "Hello! ", "Can you help me? ", "Question: ", "I have a question. ", "Hey, ")
_MANNERS = (" Thanks!", " Thank you.", " Please.", " Answer in one sentence.", " Be brief.", " Keep it short.")

#: Pieces of one document, and whether the model learns to write them: the answers, not what the user says.
Document = list[tuple[str, bool]]


class Corpus:
    def __init__(self, lexicon: Lexicon, seed: int) -> None:
        self.rng = Random(seed)
        self.questions = Questions(lexicon, self.rng)

    def documents(self) -> Iterator[Document]:
        while True:
            yield self._plain() if self.rng.random() < _PLAIN_SHARE else self._chat()

    def rows(self, tokenizer: Tokenizer, count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """``count`` rows of ``length`` tokens, and which of them to learn; every row begins with a document."""
        end = tokenizer.token_to_id(END_OF_TEXT)
        tokens = np.full((count, length), end, dtype=np.int64)
        learned = np.zeros((count, length), dtype=np.bool_)
        documents = self.documents()
        for row in range(count):
            at = 0
            while at < length:
                for piece, answer in next(documents):
                    ids = tokenizer.encode(piece).ids[: length - at]
                    tokens[row, at : at + len(ids)] = ids
                    learned[row, at : at + len(ids)] = answer
                    at += len(ids)
        return tokens, learned

    def _chat(self) -> Document:
        document: Document = []
        if self.rng.random() < 0.35:
            document.append((_turn("system", self._system()), False))
        for _ in range(self.rng.choice((1, 1, 1, 1, 2, 3))):
            for user, answer in self._exchanges():
                document.append((_turn("user", self._as_typed(user)), False))
                document.append((f"{START_OF_TURN}assistant\n", False))
                document.append((f"{answer}{END_OF_TURN}", True))
                document.append(("\n", False))
        return [*document, (END_OF_TEXT, False)]

    def _system(self) -> str:
        """Half of them usual ones, half of them about anything."""
        if self.rng.random() < 0.5:
            return self.rng.choice(_SYSTEM_MESSAGES)
        said = [
            f"You are {self.questions.pick('things').name}.",
            *self.questions.noun().examples,
            *self.questions.noun().examples,
        ]
        return " ".join(self.rng.sample(said, self.rng.randint(1, len(said))))

    def _exchanges(self) -> list[Exchange]:
        if self.rng.random() < _GRAMMAR_SHARE:
            return self.questions.grammar.dialogue(self.rng)
        return self.questions.dialogue()

    def _as_typed(self, text: str) -> str:
        """People aren't tidy."""
        chance = self.rng.random
        if chance() < 0.06:
            text = self.rng.choice(_POLITE) + (text[0].lower() + text[1:] if text[:2] != "I " else text)
        if chance() < 0.05 and text.endswith((".", "?")):
            text += self.rng.choice(_MANNERS)
        if chance() < 0.15:
            text = text[0].lower() + text[1:]
        if chance() < 0.12:
            text = text.rstrip(".?!")
        return text

    def _plain(self) -> Document:
        """A page without roles, for completions: statements and stories from the answers of the dialogues."""
        answers = [answer for _ in range(self.rng.randint(1, 4)) for _, answer in self._exchanges() if len(answer) > 25]
        return [(" ".join(answers) + END_OF_TEXT, True)] if answers else self._plain()


def _turn(role: str, text: str) -> str:
    return f"{START_OF_TURN}{role}\n{text}{END_OF_TURN}\n"
