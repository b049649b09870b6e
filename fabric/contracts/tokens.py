"""How many tokens a text has, roughly and quickly: for routing and context checks, never for the bill.

Every byte of the text is mapped to its class (letter, digit, space, script, …) and the tokens are the
weighted counts of the classes and of their borders. A word costs one token where it starts and a part
of one per letter; a space before a word is part of the word; digits go in threes; marks cost about one
each. Scripts outside of Latin cost a fixed part of a token per character, known from the lead byte of
its UTF-8 form. The weights follow what today's vocabularies of 100,000 to 200,000 entries do.
"""

from __future__ import annotations

#: Longer texts are judged by a sample of this many characters, so that the cost stays bounded.
SAMPLE_CHARS = 16_384
_SLICES = 16

#: One class a byte: ``a`` small letter, ``A`` capital, ``0`` digit, space, newline, ``_``, ``.`` other
#: marks; lead bytes of UTF-8 get the class of their script and the bytes that follow them ``~``.
_CLASSES = bytearray(b"." * 256)
for _first, _last, _class in (
    (0x61, 0x7A, "a"),
    (0x41, 0x5A, "A"),
    (0x30, 0x39, "0"),
    (0x20, 0x20, " "),
    (0x09, 0x09, "\t"),
    (0x0A, 0x0D, "\n"),
    (0x80, 0xBF, "~"),
    (0xC2, 0xCD, "l"),  # Latin with accents, IPA
    (0xCE, 0xD5, "c"),  # Greek, Cyrillic, Armenian
    (0xD6, 0xDF, "r"),  # Hebrew, Arabic, Syriac
    (0xE0, 0xE1, "i"),  # Indic, Thai, Georgian, Ethiopic, Khmer
    (0xE2, 0xE2, "p"),  # typographic marks, arrows, boxes
    (0xE3, 0xE3, "k"),  # kana, CJK marks
    (0xE4, 0xE9, "h"),  # CJK ideographs
    (0xEA, 0xED, "g"),  # Hangul
    (0xEE, 0xEF, "p"),  # private use, full-width forms
    (0xF0, 0xFF, "e"),  # emoji, rare planes
):
    _CLASSES[_first : _last + 1] = _class.encode() * (_last - _first + 1)
_TABLE = bytes(_CLASSES)

#: Tokens per character of each script.
_SCRIPTS = (
    *((b"l", 0.5), (b"c", 0.29), (b"r", 0.33), (b"i", 0.34), (b"p", 0.95)),
    *((b"k", 0.7), (b"h", 0.82), (b"g", 0.58), (b"e", 1.6)),
)


def estimate_tokens(text: str) -> int:
    """Tokens of ``text``, as a guess: 0 for the empty text, else at least 1."""
    if not text:
        return 0
    if len(text) > SAMPLE_CHARS:
        step = len(text) // _SLICES
        size = SAMPLE_CHARS // _SLICES
        sample = "".join(text[at : at + size] for at in range(0, step * _SLICES, step))
        return max(1, round(_weigh(sample) * len(text) / len(sample)))
    return max(1, round(_weigh(text)))


def _weigh(text: str) -> float:
    if text.isascii():
        return _latin(text.encode().translate(_TABLE))
    classes = text.encode("utf-8", "replace").translate(_TABLE)
    return _latin(classes) + sum(classes.count(script) * tokens for script, tokens in _SCRIPTS)


def _latin(classes: bytes) -> float:
    """Tokens of plain letters, digits, marks and white space."""
    count = classes.count
    capitals = count(b"A")
    letters = count(b"a") + capitals
    words = count(b" a") + count(b".a") + count(b"\na") + count(b"0a") + capitals - count(b"AA")
    marks = count(b".") - 0.4 * count(b"..")
    blanks = 0.45 * count(b"\n") + 0.5 * count(b"\t") + 0.06 * count(b"  ")
    return 0.66 * words + 0.1 * letters + 0.42 * count(b"0") + 0.74 * marks + blanks
