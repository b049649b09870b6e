"""The built-in recognizers: an expression that finds candidates in linear time, and a check that lets few pass.

Texts are UTF-8; spans count bytes. A check looks at no more than a candidate and what stands right beside it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from fabric.privacy.checksums import luhn, mod97
from fabric.privacy.credentials import ASSIGNED, BEARER, IN_URL, PRIVATE_KEY, TOKENS, random_looking
from fabric.privacy.national_ids import NATIONAL_IDS

Range = tuple[int, int]


class Match(Protocol):
    """Of an RE2 expression."""

    def span(self, group: int = 0) -> Range: ...


class Recognizer(NamedTuple):
    """``ranges`` answers what of a candidate is a find; ``None``: all of it."""

    entity: str
    pattern: bytes
    ranges: Callable[[bytes, Match], Iterator[Range]] | None = None


_DIGITS = re.compile(rb"\d+")
_NO_DIGITS = re.compile(rb"\D+")
_DATE = re.compile(rb"\d{1,2}[./-]\d{1,2}[./-]\d{4}|\d{4}[./-]\d{1,2}[./-]\d{1,2}")
#: How cards are written: in one, or in these groups.
_CARD_GROUPS = frozenset(
    tuple(map(int, groups))
    for groups in ("4444", "465", "464", "445", "88", "4441", "4442", "4443", "44441", "44442", "44443")
)
_CARD_FIRST = {13: "4", 14: "3", 15: "3", 16: "23456", 17: "56", 18: "56", 19: "456"}

#: Length by country, of the SWIFT registry (ISO 13616).
_IBAN_LENGTH = {
    country: int(length)
    for length, countries in (
        ("15", "NO"),
        ("16", "BE BI"),
        ("18", "DK FI FO GL NL SD FK"),
        ("19", "MK SI"),
        ("20", "AT BA EE KZ LT LU XK MN"),
        ("21", "CH HR LI LV"),
        ("22", "BG BH CR DE GB GE IE ME RS VA"),
        ("23", "AE GI IL IQ OM SO TL"),
        ("24", "AD CZ ES MD PK RO SA SE SK TN VG"),
        ("25", "LY PT ST"),
        ("26", "IS TR"),
        ("27", "FR GR IT MC MR SM DJ BY"),
        ("28", "AL AZ CY DO GT HU LB NI PL SV"),
        ("29", "BR EG PS QA UA"),
        ("30", "JO KW MU YE"),
        ("31", "MT SC"),
        ("32", "LC"),
        ("33", "RU"),
    )
    for country in countries.split()
}
# Burundi's are longer than Belgium's.
_IBAN_LENGTH["BI"] = 27
_IBAN_LENGTH["BY"] = 28


def _word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"


def _phone(text: bytes, match: Match, *, least: int) -> Iterator[Range]:
    start, end = match.span()
    if text[end : end + 1].isdigit() or _word(text[start - 1 : start]) or text[start - 1 : start] in (b"+", b"-", b"."):
        return
    found = text[start:end]
    digits = len(_NO_DIGITS.sub(b"", found))
    if least <= digits <= 15 and not _DATE.match(found):
        yield start, end


def _trunk_phone(text: bytes, match: Match) -> Iterator[Range]:
    start = match.span()[0]
    # Of a number written in groups one may begin with 0.
    if not (text[start - 1 : start] in (b" ", b"/") and text[start - 2 : start - 1].isdigit()):
        yield from _phone(text, match, least=9)


def _us_phone(text: bytes, match: Match) -> Iterator[Range]:
    start, end = match.span()
    digits = _NO_DIGITS.sub(b"", text[start:end])
    # Neither area codes nor exchanges begin with 0 or 1.
    if digits[0] in b"23456789" and digits[3] in b"23456789":
        yield from _phone(text, match, least=10)


def _cards(text: bytes, match: Match) -> Iterator[Range]:
    """Every window of groups that is written like a card: numbers may stand beside it."""
    offset, end = match.span()
    groups = [(m.start() + offset, m.end() + offset) for m in _DIGITS.finditer(text[offset:end])]
    done = 0
    for first, (start, _) in enumerate(groups):
        if start < done:
            continue
        lengths: tuple[int, ...] = ()
        for last in range(first, min(first + 5, len(groups))):
            lengths += (groups[last][1] - groups[last][0],)
            size = sum(lengths)
            if size > 19:
                break
            if size < 13 or (len(lengths) > 1 and lengths not in _CARD_GROUPS):
                continue
            stop = groups[last][1]
            digits = _NO_DIGITS.sub(b"", text[start:stop]).decode()
            if digits[0] in _CARD_FIRST[size] and len(set(digits)) > 1 and luhn(digits):
                yield start, stop
                done = stop
                break


def _iban(text: bytes, match: Match) -> Iterator[Range]:
    start = match.span()[0]
    length = _IBAN_LENGTH.get(text[start : start + 2].decode().upper())
    if length is None:
        return
    characters = bytearray()
    at = start
    while len(characters) < length and at < len(text):
        byte = text[at : at + 1]
        if byte.isalnum():
            characters += byte
        elif byte not in (b" ", b"-") or text[at - 1 : at] in (b" ", b"-"):
            return
        at += 1
    if len(characters) == length and not _word(text[at : at + 1]) and mod97(characters.decode().upper()):
        yield start, at


def _ipv4(text: bytes, match: Match) -> Iterator[Range]:
    start, end = match.span()
    if text[start - 1 : start] == b"." or (text[end : end + 1] == b"." and text[end + 1 : end + 2].isdigit()):
        return  # a longer version number
    if _somebodys(text[start:end]):
        yield start, end


def _ipv6(text: bytes, match: Match) -> Iterator[Range]:
    start, end = match.span()
    found = text[start:end]
    if _word(text[start - 1 : start]) or text[start - 1 : start] == b":" or _word(text[end : end + 1]):
        return
    if _somebodys(found):
        yield start, end


def _somebodys(address: bytes) -> bool:
    try:
        parsed = ipaddress.ip_address(address.decode())
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified)


def _national(text: bytes, match: Match, check: Callable[[str], bool]) -> Iterator[Range]:
    start, end = match.span(1) if match.span(1)[0] >= 0 else match.span()
    # A part of a longer number written with the same separators is none.
    before, after = text[start - 1 : start], text[end : end + 1]
    if (before and before in b"-." and text[start - 2 : start - 1].isdigit()) or (
        after and after in b"-." and text[end + 1 : end + 2].isdigit()
    ):
        return
    number = "".join(c for c in text[start:end].decode().upper() if c.isalnum())
    if check(number):
        yield start, end


def _national_plain(text: bytes, match: Match, check: Callable[[str], bool]) -> Iterator[Range]:
    yield from _national(text, _Whole(match), check)


class _Whole:
    """A match of an expression without a group."""

    __slots__ = ("_match",)

    def __init__(self, match: Match) -> None:
        self._match = match

    def span(self, group: int = 0) -> Range:
        return (-1, -1) if group else self._match.span()


def _group(text: bytes, match: Match) -> Iterator[Range]:
    yield match.span(1)


def _assigned(text: bytes, match: Match) -> Iterator[Range]:
    start, end = match.span(1)
    if random_looking(text[start:end]):
        yield start, start + len(text[start:end].rstrip(b".)]}>"))


def _private_key(text: bytes, match: Match) -> Iterator[Range]:
    """To the end of the block; of one that is cut off, to the end of the text."""
    start, end = match.span()
    close = text.find(b"-----END", end)
    if close < 0:
        yield start, len(text)
        return
    stop = text.find(b"-----", close + 8)
    yield start, len(text) if stop < 0 else stop + 5


#: Of shortened IPv6 addresses those that begin as networks' do: names in programs have double colons, too.
RECOGNIZERS: tuple[Recognizer, ...] = (
    Recognizer("email", rb"[\pL\pN._%+'-]+@(?:[\pL\pN-]+\.)+\pL{2,}"),
    Recognizer("email", rb"[\pL\pN._%+'-]+@xn--[A-Za-z0-9.-]+"),
    Recognizer("phone", rb"(?:\+|\b00)[1-9](?:[ .\-/()]{0,2}\d){7,14}", partial(_phone, least=8)),
    Recognizer("phone", rb"(?:\(\d{3}\) ?|\b\d{3}[ .-])\d{3}[ .-]\d{4}\b", _us_phone),
    Recognizer("phone", rb"(?:\(0[1-9]\d{0,4}\) ?|\b0[1-9]\d{0,4}[ /.-])(?:[ /.-]?\d){5,10}", _trunk_phone),
    Recognizer("card", rb"\b\d(?:[ .-]?\d){12,}", _cards),
    Recognizer("iban", rb"\b[A-Za-z]{2}\d{2}[ -]?[A-Za-z0-9]{4}", _iban),
    Recognizer("ip_address", rb"\b\d{1,3}(?:\.\d{1,3}){3}\b", _ipv4),
    Recognizer("ip_address", rb"\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7}", _ipv6),
    Recognizer("ip_address", rb"\b[23fF][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{1,4})*::(?:[0-9A-Fa-f:]*[0-9A-Fa-f])?", _ipv6),
    *(
        Recognizer("national_id", form, partial(_national if b"(\\d{9}" in form else _national_plain, check=check))
        for _, form, check in NATIONAL_IDS
    ),
    Recognizer("secret", PRIVATE_KEY, _private_key),
    *(Recognizer("secret", shape) for _, shape in TOKENS),
    Recognizer("secret", BEARER, _group),
    Recognizer("secret", IN_URL, _group),
    Recognizer("secret", ASSIGNED, _assigned),
)
