"""Princeton WordNet 3.0 as values: entries (synsets) with their words, glosses, examples and links."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import urllib.request
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

#: Debian's packing of WordNet 3.0; any mirror or snapshot of Debian has it under this name.
URL = "https://deb.debian.org/debian/pool/main/w/wordnet/wordnet-base_3.0-37_all.deb"
SHA256 = "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"

_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
#: Entries that mention these are left out: a model that greets strangers needn't know them.
_UNFIT = re.compile(
    r"offensive|obscen|slur|sexual|\bsex\b|intercourse|genital|vulgar|\brap(e|ist)\b|disparag|prostitu|nud(e|ity)\b|penis|vagina"
    r"|erotic|porn|excre|urin|\bfec|anus|buttock|\bbreast|testic|semen|contracept|insult|derog|suicid|negro|nazi|jew|muslim"
    r"|racis|slave|\bkill|murder|tortur|behead|lynch|terroris|heroin|cocaine|orgasm|masturbat|menstr|abortion|ethnic"
    r"|lesbian|homosex|whore|bastard|bitch|damn|hell\b|drunk|corpse|execut|incest",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Link:
    """``kind`` is WordNet's symbol (``@`` hypernym, ``~`` hyponym, ``!`` antonym …); word 0: the whole entry."""

    kind: str
    entry: str
    word: int
    target_word: int


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    part: str
    field: int
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Wordnet:
    """``senses``: the entries of a word and part of speech, most usual first; ``uses``: how common a word is."""

    entries: dict[str, Entry]
    senses: dict[tuple[str, str], tuple[str, ...]]
    uses: Counter[str]
    tagged: Counter[tuple[str, str]]

    def linked(self, entry: Entry, *kinds: str) -> list[Entry]:
        found = (self.entries.get(link.entry) for link in entry.links if link.kind in kinds)
        return [other for other in found if other is not None]

    def above(self, entry: Entry) -> list[Entry]:
        """Everything that ``entry`` is a kind of, nearest first."""
        chain: list[Entry] = []
        while (parents := self.linked(entry, "@", "@i")) and parents[0] not in chain:
            entry = parents[0]
            chain.append(entry)
        return chain

    def below(self, entry: Entry, depth: int = 3) -> list[Entry]:
        """Everything that is a kind of ``entry``, ``depth`` links down at most."""
        found: list[Entry] = []
        level = [entry]
        for _ in range(depth):
            level = [kind for parent in level for kind in self.linked(parent, "~")]
            found += level
        return found

    def share(self, word: str, part: str) -> float:
        """How often ``word`` is this part of speech, of the times that it was tagged; 1 if it never was."""
        total = sum(self.tagged[word, other] for other in "nvar")
        return self.tagged[word, part] / total if total else 1.0


def load(package: Path) -> Wordnet:
    """``package`` is the .deb; it is downloaded there if missing. Raises ValueError if it isn't the expected file."""
    if not package.exists():
        package.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=60) as answer:
            package.write_bytes(answer.read())
    data = package.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{package} isn't wordnet-base 3.0-37; hint: delete it, or fetch it from {URL}")
    files = _unpack(data)
    entries: dict[str, Entry] = {}
    for name, part in _PARTS.items():
        for line in files[f"data.{name}"].splitlines():
            if not line.startswith(" "):
                entry = _entry(line, part)
                if not _UNFIT.search(f"{' '.join(entry.words)} {entry.gloss} {' '.join(entry.examples)}"):
                    entries[entry.id] = entry
    senses: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, part in _PARTS.items():
        for line in files[f"index.{name}"].splitlines():
            if not line.startswith(" "):
                columns = line.split()
                found = (part + offset for offset in columns[-int(columns[2]) :])
                senses[columns[0].replace("_", " "), part] = tuple(id_ for id_ in found if id_ in entries)
    tagged = _tagged(files["cntlist.rev"])
    return Wordnet(entries, senses, _uses(entries, tagged), tagged)


def _unpack(deb: bytes) -> dict[str, str]:
    """A .deb is an ``ar`` archive: 60-byte headers (the name first, the size at 48), members on even offsets."""
    at = 8
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[at + 60 : at + 60 + size])) as archive:
                members = [m for m in archive.getmembers() if m.isfile() and "/share/wordnet/" in m.name]
                return {Path(m.name).name: archive.extractfile(m).read().decode() for m in members}
        at += 60 + size + size % 2
    raise ValueError("the package holds no data")


def _entry(line: str, part: str) -> Entry:
    head, _, text = line.partition(" | ")
    columns = head.split()
    count = int(columns[3], 16)
    words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in columns[4 : 4 + 2 * count : 2])
    links = []
    at = 4 + 2 * count
    for i in range(at + 1, at + 1 + 4 * int(columns[at]), 4):
        kind, offset, target_part, ends = columns[i : i + 4]
        links.append(Link(kind, target_part.replace("s", "a") + offset, int(ends[:2], 16), int(ends[2:], 16)))
    examples = tuple(example.strip() for example in re.findall(r'"([^"]+)"', text))
    gloss = re.sub(r'(["`]|(^| )\').*', "", text.split('; "')[0])
    gloss = re.sub(r"\s+", " ", re.sub(r"\([^)]*\)", "", gloss)).split(";")[0].strip(" ,:.")
    return Entry(part + columns[0], part, int(columns[1]), words, gloss, examples, tuple(links))


def _tagged(counts: str) -> Counter[tuple[str, str]]:
    """Occurrences, by part of speech, in the texts that WordNet's authors tagged by hand."""
    tagged: Counter[tuple[str, str]] = Counter()
    for line in counts.splitlines():
        key, _, count = line.split()
        word, _, rest = key.partition("%")
        tagged[word.replace("_", " "), "?nvara"[int(rest[0])]] += int(count)
    return tagged


def _uses(entries: dict[str, Entry], tagged: Counter[tuple[str, str]]) -> Counter[str]:
    """Occurrences in all glosses and examples and in the tagged texts."""
    uses: Counter[str] = Counter()
    for entry in entries.values():
        seen = re.findall(r"[a-z]+", f"{entry.gloss} | {' | '.join(entry.examples)}".lower())
        uses.update(seen)
        uses.update(f"{a} {b}" for a, b in pairwise(seen))
        uses.update(word[:-1] for word in seen if word.endswith("s"))
    for (word, _), count in tagged.items():
        uses[word] += count
    return uses
