"""What is found in texts, what is left alone, and how long that may take."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.contracts.detector import BUILT_IN_ENTITIES, Detector
from fabric.privacy.recognizers import Recognizer
from fabric.privacy.scanner import Scanner

SCANNER = Scanner()

#: Made up, or published as samples by those who issue them.
FOUND = [
    ("email", "ada.lovelace+x@mail.example.com"),
    ("email", "jürgen@bücher.example"),
    ("email", "O'Brien@example.ie"),
    ("phone", "+49 171 1234567"),
    ("phone", "+1 (415) 555-2671"),
    ("phone", "0049 30 901820"),
    ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"),
    ("phone", "030/9018 2010"),
    ("phone", "01 42 68 53 00"),
    ("phone", "020 7946 0958"),
    ("card", "4111 1111 1111 1111"),
    ("card", "4111-1111-1111-1111"),
    ("card", "5555555555554444"),
    ("card", "3782 822463 10005"),
    ("card", "30569309025904"),
    ("card", "6011111111111117"),
    ("card", "3530111333300000"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB29NWBK60161331926819"),
    ("iban", "fr14 2004 1010 0505 0001 3m02 606"),
    ("iban", "NL91ABNA0417164300"),
    ("ip_address", "192.0.2.17"),
    ("ip_address", "2001:db8::8a2e:370:7334"),
    ("ip_address", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
    ("ip_address", "fe80::1ff:fe23:4567:890a"),
    ("national_id", "536-22-1234"),
    ("national_id", "AB 12 34 56 C"),
    ("national_id", "943 476 5919"),
    ("national_id", "1 85 05 78 006 084 91"),
    ("national_id", "65 929 970 489"),
    ("national_id", "12345678Z"),
    ("national_id", "X1234567L"),
    ("national_id", "RSSMRA85T10A562S"),
    ("national_id", "44051401359"),
    ("national_id", "85.07.30-033.28"),
    ("national_id", "529.982.247-25"),
    ("national_id", "811228-9874"),
    ("national_id", "131052-308T"),
    ("national_id", "756.9217.0769.85"),
    ("national_id", "11010519491231002X"),
    ("national_id", "130 692 544"),
    ("secret", "AKIAIOSFODNN7EXAMPLE"),
    ("secret", "ghp_" + "a1B2" * 9),
    ("secret", "github_pat_" + "11ABCDE" * 6),
    ("secret", "glpat-" + "x1Y2" * 5),
    ("secret", "xoxb-123456789012-abcdefABCDEF"),
    ("secret", "sk_live_" + "a1B2c3D4" * 3),
    ("secret", "sk-proj-" + "aB3_" * 10),
    ("secret", "sk-ant-api03-" + "aB3-" * 10),
    ("secret", "AIza" + "Sy0123456789" * 2 + "ABCDEFGHIJK"),
    ("secret", "hf_" + "aBcDeFgHiJ" * 3),
    ("secret", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_123"),
    ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----"),
]
#: Text with one find in it, and what of it is the find.
INSIDE = [
    ("secret", "password=Tr0ub4dor&3x!", "Tr0ub4dor&3x!"),
    ("secret", 'api_key: "a8f5f167f44f4964e6c998dee827110c"', "a8f5f167f44f4964e6c998dee827110c"),
    ("secret", "Authorization: Bearer abcdef0123456789abcd", "abcdef0123456789abcd"),
    ("secret", "postgres://app:s3cr3t-pw@db/main", "s3cr3t-pw"),
    ("card", "1 4111 1111 1111 1111 2", "4111 1111 1111 1111"),
    ("iban", "IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "DE89 3704 0044 0532 0130 00"),
    ("national_id", "BSN: 111222333", "111222333"),
    ("secret", "x -----BEGIN PRIVATE KEY----- cut off", "-----BEGIN PRIVATE KEY----- cut off"),
]
LEFT_ALONE = [
    "4111 1111 1111 1112",  # no card: its check digit is wrong
    "1111111111111111",
    "DE88370400440532013000",
    "version 1.2.3.4.5 of 256.1.1.1",
    "127.0.0.1 and 0.0.0.0",
    "12:30:45, std::vector, a::b, dead::beef",
    "on 01.02.2024 12:30 and 2024-01-02 10:00:00",
    "666-12-3456, 000-12-3456",
    "12345678A",
    "password = get_password(user)",
    "password: str = Field(...), token=None, secret=changeme, api_key=${API_KEY}",
    "the token is important and the secret is safe",
    "https://example.com/path?x=1#part and user@localhost",
    "order 123456789 of 2024, 10000000 pieces, 3.14159265358979",
    "sk-learn, AKIA, ghp_short, hf_x",
    "a <EMAIL_1> stays",
]


@pytest.mark.parametrize(("entity", "text"), FOUND, ids=lambda value: value[:24])
@pytest.mark.parametrize("around", ["{}", "see {} please", "({}),", "ü: {} – ß", '{{"x": "{}"}}', "…\n{}\n…"])
def test_what_it_finds(entity: str, text: str, around: str) -> None:
    whole = around.format(text).encode()
    finds, failed = SCANNER.find(whole)
    assert not failed
    assert entity in SCANNER.names(whole)[0]
    covered = {whole[f.start : f.end].decode() for f in finds}
    # One that is cut off goes to the end of the text; here it has its end.
    assert any(text in found for found in covered), covered


@pytest.mark.parametrize(("entity", "text", "part"), INSIDE, ids=lambda value: value[:24])
def test_only_the_part_that_matters(entity: str, text: str, part: str) -> None:
    assert [(f.entity, text[f.start : f.end]) for f in SCANNER.find(text.encode()).finds] == [(entity, part)]


@pytest.mark.parametrize("text", LEFT_ALONE, ids=lambda text: text[:24])
def test_what_it_leaves_alone(text: str) -> None:
    assert SCANNER.find(text.encode()) == ([], frozenset())


def test_every_digit_of_a_card_counts() -> None:
    """A checksum that lets any number pass would be worse than none."""
    number = "5555555555554444"
    for place in range(16):
        for digit in "0123456789":
            other = number[:place] + digit + number[place + 1 :]
            assert ("card" in SCANNER.names(other.encode())[0]) == (other == number)


def test_patterns_of_the_operators_own_know_unicode() -> None:
    scanner = Scanner([Detector(entity="file_number", pattern=r"Aktenzeichen\s+\pL{2}-\d{4}")])
    text = "das Aktenzeichen ÄÖ-1234 und mehr".encode()
    (found,) = scanner.find(text).finds
    assert (found.entity, text[found.start : found.end].decode()) == ("file_number", "Aktenzeichen ÄÖ-1234")


EVIL = [
    *("1", "1 ", "4111 ", "1234 5678 ", "AA11", "DE89 3704 ", "a", "a@", "a.a@a.aa,", "@", "a.", "://a:", "::1"),
    *("1.2.3.4.", "12:30:45 ", "+1234567 ", "01234/", "password=", "token: abcdefg1;", "bearer ", "eyJaaaaaaaaa."),
    *("-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "ü@ü.", "\\u0040", "<EMAIL_1>", "'\"`", "0", "\x00", "756."),
]


@pytest.mark.parametrize("piece", EVIL)
def test_no_text_takes_long(piece: str) -> None:
    """Half a million characters: whatever grows faster than the text doesn't come back within the test's time."""
    text = (piece * (500_000 // len(piece))).encode()
    SCANNER.names(text)
    SCANNER.find(text)


def test_no_pattern_takes_long() -> None:
    """The classic ones, and one that a backtracking engine needs years for."""
    patterns = [r"(a+)+x", r"(a|aa)+x", r"(a|a?)+x", r"(.*a){20}x", r"(?:\w+\s?)+x"]
    scanner = Scanner([Detector(entity="evil", pattern=pattern) for pattern in patterns])
    assert "evil" not in scanner.names(b"a" * 200_000 + b"!")[0]


@given(st.text(max_size=400))
def test_no_text_breaks_it(text: str) -> None:
    data = text.encode(errors="surrogatepass")
    found, failed = SCANNER.names(data)
    finds, broken = SCANNER.find(data)
    assert not failed and not broken
    assert {f.entity for f in finds} <= found
    assert all(a.end <= b.start for a, b in itertools.pairwise(finds))
    for find in finds:
        data[find.start : find.end].decode(errors="surrogatepass")  # never half a character


@given(st.text(alphabet="0123456789 -./:@+abAB_eyJ<>=", max_size=200))
def test_no_number_breaks_it(text: str) -> None:
    finds, failed = SCANNER.find(text.encode())
    assert not failed
    assert all(0 <= f.start < f.end <= len(text) for f in finds)


def test_a_recognizer_that_breaks_counts_as_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(text: bytes, match: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr("fabric.privacy.scanner.RECOGNIZERS", (Recognizer("card", rb"\d{4}", breaks),))
    scanner = Scanner()
    assert scanner.names(b"nothing") == (frozenset(), frozenset())
    assert scanner.names(b"1234") == (frozenset(), {"card"})
    assert scanner.find(b"1234") == ([], {"card"})


def test_a_search_that_breaks_off_counts_as_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner()

    class Exhausted:
        def Match(self, text: bytes) -> None:
            return None

    monkeypatch.setattr(scanner, "_set", Exhausted())
    assert scanner.names(b"nothing")[1] == set(BUILT_IN_ENTITIES) - {"image"}
    assert scanner.find(b"nothing").failed == set(BUILT_IN_ENTITIES) - {"image"}


def test_random_numbers_are_rarely_taken_for_somebodys() -> None:
    """Order numbers and the like: at most a few in a hundred of a length that some state uses, too."""
    generator = random.Random(7)
    for length in (6, 7, 8, 9, 10, 12):
        numbers = [str(generator.randrange(10 ** (length - 1), 10**length)) for _ in range(1_000)]
        assert sum(bool(SCANNER.names(number.encode())[0]) for number in numbers) == 0
    for length, most in ((11, 100), (13, 200), (16, 120)):
        numbers = [str(generator.randrange(10 ** (length - 1), 10**length)) for _ in range(1_000)]
        assert sum(bool(SCANNER.names(number.encode())[0]) for number in numbers) <= most
