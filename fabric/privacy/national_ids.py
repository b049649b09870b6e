"""Numbers that states give to people, by form and check digits. Where the form is that of any other number,
separators or the number's name in front of it are asked for, too: half of all finds would be wrong otherwise."""

from __future__ import annotations

from collections.abc import Callable

from fabric.privacy.checksums import ean13, luhn, mod11_2, mod11_10, verhoeff, weighted

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"
#: Of the characters at odd places of a codice fiscale (DM 23 December 1976); at even ones their own value.
_FISCALE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _day(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def _us(n: str) -> bool:
    return n[:3] not in ("000", "666") and n[0] != "9" and n[3:5] != "00" and n[5:] != "0000"


def _gb_nhs(n: str) -> bool:
    return (11 - weighted(n[:9], range(10, 1, -1)) % 11) % 11 == int(n[9])


def _fr(n: str) -> bool:
    number = int(n[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(n[13:])


def _de(n: str) -> bool:
    """One digit of the first ten comes twice or three times, so that at least one is missing."""
    counts = sorted(n[:10].count(digit) for digit in set(n[:10]))
    return counts[-1] in (2, 3) and counts[-2] == 1 and mod11_10(n)


def _es(n: str) -> bool:
    return _DNI[int(n[:-1].translate({88: "0", 89: "1", 90: "2"})) % 23] == n[-1]


def _it(n: str) -> bool:
    values = [int(c) if c.isdigit() else ord(c) - 65 for c in n[:15]]
    total = sum(_FISCALE_ODD[v] if place % 2 == 0 else v for place, v in enumerate(values))
    return chr(65 + total % 26) == n[15]


def _pl(n: str) -> bool:
    born = _day(f"{int(n[2:4]) % 20:02}", n[4:6])
    return born and (10 - weighted(n[:10], (1, 3, 7, 9) * 3) % 10) % 10 == int(n[10])


def _no(n: str) -> bool:
    first = weighted(n[:10], (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
    return first and _day(n[2:4], n[:2]) and weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _be(n: str) -> bool:
    check = int(n[9:])
    old, new = 97 - int(n[:9]) % 97, 97 - int("2" + n[:9]) % 97
    return _day(n[2:4], n[4:6]) and check in (old, new)


def _br(n: str) -> bool:
    if len(set(n)) == 1:
        return False
    return all(weighted(n[:k], range(k + 1, 1, -1)) * 10 % 11 % 10 == int(n[k]) for k in (9, 10))


def _se(n: str) -> bool:
    ten = n[-10:]
    return _day(ten[2:4], f"{(int(ten[4:6]) - 1) % 60 + 1:02}") and luhn(ten)


def _fi(n: str) -> bool:
    return _day(n[2:4], n[:2]) and _HETU[int(n[:6] + n[-4:-1]) % 31] == n[-1]


def _nl(n: str) -> bool:
    return weighted(n, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _pt(n: str) -> bool:
    return (11 - weighted(n[:8], range(9, 1, -1)) % 11) % 11 % 10 == int(n[8])


def _cn(n: str) -> bool:
    return n[6:8] in ("19", "20") and _day(n[10:12], n[12:14]) and mod11_2(n)


def _kr(n: str) -> bool:
    return _day(n[2:4], n[4:6]) and (11 - weighted(n[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10 == int(
        n[12]
    )


def _ca(n: str) -> bool:
    return n[0] not in "08" and luhn(n)


def _au(n: str) -> bool:
    return weighted(n, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _za(n: str) -> bool:
    return _day(n[2:4], n[4:6]) and n[10] in "01" and luhn(n)


#: Country, the form (where it has a group, the number is in it), and the check of the number without separators.
NATIONAL_IDS: tuple[tuple[str, bytes, Callable[[str], bool]], ...] = (
    ("us", rb"\b\d{3}-\d{2}-\d{4}\b", _us),
    ("gb", rb"(?i)\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b", lambda n: True),
    ("gb", rb"\b\d{3}[ -]\d{3}[ -]\d{4}\b", _gb_nhs),
    ("fr", rb"(?i)\b[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b", _fr),
    ("de", rb"\b[1-9]\d ?\d{3} ?\d{3} ?\d{3}\b", _de),
    ("es", rb"(?i)\b(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]\b", _es),
    ("it", rb"(?i)\b[A-Z]{6} ?\d{2}[A-EHLMPRST]\d{2} ?[A-Z]\d{3}[A-Z]\b", _it),
    ("pl", rb"\b\d{11}\b", _pl),
    ("no", rb"\b\d{6} ?\d{5}\b", _no),
    ("be", rb"\b\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}\b", _be),
    ("br", rb"\b\d{3}\.?\d{3}\.?\d{3}-?\d{2}\b", _br),
    ("se", rb"\b(?:\d{2})?\d{6}[-+]\d{4}\b", _se),
    ("fi", rb"(?i)\b\d{6}[-+A-FU-Y]\d{3}[0-9A-Z]\b", _fi),
    ("ch", rb"\b756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}\b", ean13),
    ("nl", rb"(?i)\b(?:bsn|burgerservicenummer)\W{0,5}(\d{9}|\d{4}[. ]\d{2}[. ]\d{3})\b", _nl),
    ("pt", rb"(?i)\bnif\W{0,5}(\d{9}|\d{3} \d{3} \d{3})\b", _pt),
    ("in", rb"\b[2-9]\d{3}[ -]\d{4}[ -]\d{4}\b", verhoeff),
    ("cn", rb"(?i)\b[1-9]\d{16}[0-9X]\b", _cn),
    ("kr", rb"\b\d{6}-[1-8]\d{6}\b", _kr),
    ("ca", rb"\b\d{3}[ -]\d{3}[ -]\d{3}\b", _ca),
    ("au", rb"\b\d{3}[ -]\d{3}[ -]\d{3}\b", _au),
    ("za", rb"\b\d{6} ?\d{4} ?\d{3}\b", _za),
)
