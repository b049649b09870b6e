"""Secrets by the shapes that their makers gave them, and values that stand behind words such as ``password``."""

from __future__ import annotations

import math
from collections import Counter

#: Whose, and the shape. Makers give their keys a fixed start so that they can be found.
TOKENS: tuple[tuple[str, bytes], ...] = (
    ("aws", rb"\b(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA|ANVA|ASCA)[A-Z2-7]{16}\b"),
    ("github", rb"\bgh[oprsu]_[A-Za-z0-9]{36,}"),
    ("github", rb"\bgithub_pat_[A-Za-z0-9_]{22,}"),
    ("gitlab", rb"\bgl(?:pat|ptt|dt|rt|soat|ft)-[A-Za-z0-9_-]{20,}"),
    ("slack", rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{10,}"),
    ("slack", rb"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,}"),
    ("stripe", rb"\b[prs]k_(?:live|test)_[A-Za-z0-9]{10,}|\bwhsec_[A-Za-z0-9+/=]{20,}"),
    ("openai, anthropic", rb"\bsk-[A-Za-z0-9_-]{20,}"),
    ("google", rb"\bAIza[A-Za-z0-9_-]{35}|\bya29\.[A-Za-z0-9_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    ("hugging face, replicate", rb"\b(?:hf|r8)_[A-Za-z0-9]{30,}"),
    ("npm", rb"\bnpm_[A-Za-z0-9]{36}"),
    ("pypi", rb"\bpypi-[A-Za-z0-9_-]{50,}"),
    ("sendgrid", rb"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("twilio", rb"\b(?:SK|AC)[0-9a-f]{32}\b"),
    ("digitalocean", rb"\bdo[oprt]_v1_[0-9a-f]{64}"),
    ("shopify", rb"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    ("telegram", rb"\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b"),
    ("groq, xai, perplexity", rb"\b(?:gsk_|xai-|pplx-)[A-Za-z0-9]{32,}"),
    ("this fabric", rb"\bfab_[A-Za-z0-9]{49}\b"),
    ("jwt", rb"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
)
#: The value is in the group.
BEARER = rb"(?i)\bbearer\s{1,4}([A-Za-z0-9._~+/=-]{16,})"
IN_URL = rb"(?i)\b[a-z][a-z0-9+.-]*://[^\s:/@\"'<>]*:([^\s/@\"'<>]+)@[A-Za-z0-9\[]"
ASSIGNED = (
    rb"(?i)(?:passw(?:or)?d|passphrase|passwort|pwd|secret|token|api_?-?key|access_?-?key|private_?-?key|credential)s?"
    rb"[A-Za-z0-9_-]*[\"'`]?\s{0,4}(?::=|=>|==|[:=]|\bis\b)\s{0,4}[\"'`]?([^\s\"'`,;]{6,})"
)
PRIVATE_KEY = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"

#: Bits per character. Words have about 2 to 3, passwords that machines made from 3 on.
_ENTROPY = 2.75
_LONGEST = 512


def random_looking(value: bytes) -> bool:
    """Whether it is more like a secret than a word, a number or an expression of a program."""
    text = value[:_LONGEST].rstrip(b".)]}>")
    if len(text) < 8 or text[:1] in b"$<{[(&*%" or b"(" in text or b"://" in text:
        return False
    letters = any(c in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" for c in text)
    others = any(c not in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-." for c in text)
    return letters and others and _entropy(text) >= _ENTROPY


def _entropy(text: bytes) -> float:
    length = len(text)
    return -sum(n / length * math.log2(n / length) for n in Counter(text).values())
