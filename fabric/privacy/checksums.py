"""Check digits: what tells a number of a kind from any other number. Pure; digits as ASCII bytes or text."""

from __future__ import annotations

from collections.abc import Sequence

_LUHN_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

#: Verhoeff's scheme (1969): multiplication in the dihedral group of order 10, and its permutations.
_VERHOEFF_D = (
    *("0123456789", "1234067895", "2340178956", "3401289567", "4012395678"),
    *("5987604321", "6598710432", "7659821043", "8765932104", "9876543210"),
)
_VERHOEFF_P = (
    *("0123456789", "1576283094", "5803796142", "8916043527"),
    *("9453126870", "4286573901", "2793806415", "7046913258"),
)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        total += _LUHN_DOUBLED[value] if position % 2 else value
    return total % 10 == 0


def mod97(text: str) -> bool:
    """ISO/IEC 7064, MOD 97-10, of an IBAN with its first four characters moved to the end."""
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of the digits times their weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def mod11_10(digits: str) -> bool:
    """ISO/IEC 7064, MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def mod11_2(text: str) -> bool:
    """ISO/IEC 7064, MOD 11-2; the last character may be X."""
    total = 0
    for character in text[:-1]:
        total = (total + int(character)) * 2 % 11
    return "0123456789X"[(12 - total) % 11] == text[-1]


def verhoeff(digits: str) -> bool:
    check = 0
    for position, digit in enumerate(reversed(digits)):
        check = int(_VERHOEFF_D[check][int(_VERHOEFF_P[position % 8][int(digit)])])
    return check == 0


def ean13(digits: str) -> bool:
    """GS1's check digit."""
    return weighted(digits, (1, 3) * 6 + (1,)) % 10 == 0
