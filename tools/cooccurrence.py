"""Make what Tang verse tells of characters.

verse/scoring/cooccurrence.npz, which verse/scoring/cooccurrence.py reads: which follow each other,
keep company, and face each other in parallel couplets; and verse/poems/tones.tsv, which
verse/poems/prosody.py reads: those of several readings that regulated verse has in one tone.

    .venv/bin/pip install -r tools/pretrain/requirements.txt
    npm pack chinese-poetry@2.0.1 --pack-destination /tmp
    pip download --no-deps --dest /tmp qieyun==0.13.3
    python -m tools.cooccurrence /tmp/chinese-poetry-2.0.1.tgz FOLDER_OF_THE_HOMEWORK \\
        /tmp/qieyun-0.13.3-py3-none-any.whl

Counts whole Tang poems of the npm package `chinese-poetry` (MIT) that share no line, however it
is printed, with any embedded poem or any poem of the homework, be it for training or for the
test: the poems that are judged have no say in it, nor have those that a model learns from.
"""

import json
import re
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.pretrain.poetry import TANG_EDITION, han_runs, line_keys, poems, whole
from tools.rhymes import Entry, guangyun
from verse.files import write_text
from verse.poems.prosody import READINGS

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "verse" / "scoring" / "cooccurrence.npz"
TONES = ROOT / "verse" / "poems" / "tones.tsv"
EMBEDDED = ROOT / "data" / "embedded"

POEMS = 2  # that a pair must stand in, so that a poem counted by mistake attests none of its own
CHARACTERS = 2500  # the commonest, whose company is kept; the rest have too few poems to tell
NEAR = 3  # couplets before and after, whose characters count as company
PRIOR = 5.0  # co-occurrences by chance that are added to the counted and the expected ones
STEP = 0.25  # of the logarithm, to which it is rounded; it is kept in one byte
DIMENSIONS = 64  # of the vectors whose cosine says how well two characters face each other

PLACES = 20  # in which a character of several readings must stand for its tone to be told
USUALLY = 0.95  # least share of them in one tone
ALONE = 0.75  # least share where the Guangyun has that tone alone, of as many places as there are
WORD_PLACES, IN_WORD = 3, 0.8  # the same, and least share, in which a word has the other tone
REGULAR = 0.9  # least share of a poem's unambiguous characters that lie as regulated verse has them


def main(package: Path, homework: Path, qieyun: Path) -> None:
    chosen = held_out(package, homework)
    pairs = Counter(pair for lines in chosen for pair in pairs_of(lines))
    attested = sorted(pair for pair, count in pairs.items() if count >= POEMS)
    common = Counter(c for lines in chosen for c in sorted(set("".join(lines))))
    vocabulary = [c for c, _ in sorted(common.items(), key=lambda one: (-one[1], one[0]))]
    vocabulary = vocabulary[:CHARACTERS]
    table = company(chosen, vocabulary)
    np.savez_compressed(
        TARGET,
        pairs=np.array([ord(c) for pair in attested for c in pair], np.uint32).reshape(-1, 2),
        characters=np.array([ord(c) for c in vocabulary], np.uint32),
        company=table[np.triu_indices(len(vocabulary), 1)],
        facing=facing(chosen, vocabulary),
        step=np.float32(STEP),
    )
    tones = usual_tones(chosen, guangyun(zipfile.ZipFile(qieyun)))
    write_text(TONES, tones_header() + "".join(f"{key}\t{tones[key]}\n" for key in "平仄詞"))
    print(
        f"{TARGET.name}: {len(chosen)} poems, {len(attested)} pairs, {TARGET.stat().st_size} bytes"
    )


def held_out(package: Path, homework: Path) -> list[list[str]]:
    """The lines of each poem that is counted."""
    known: set[str] = set()
    for file in (*EMBEDDED.glob("*.json"), *homework.glob("*.json")):
        for poem in json.loads(file.read_text("utf-8")):
            known |= line_keys(poem["input"] + poem.get("output", ""))
    for file in homework.glob("*.txt"):
        known |= line_keys(file.read_text("utf-8"))
    texts = sorted({poem["text"] for poem in poems(package, TANG_EDITION)})
    return [han_runs(t) for t in texts if whole(t) and known.isdisjoint(line_keys(t))]


def pairs_of(lines: list[str]) -> set[str]:
    """Characters that follow each other in a line."""
    return {line[at : at + 2] for line in lines for at in range(len(line) - 1)}


def company(chosen: list[list[str]], vocabulary: list[str]) -> npt.NDArray[np.int8]:
    """How much oftener than by chance two characters stand in couplets near each other.

    The logarithm of the counted co-occurrences over those expected by chance, in steps of STEP.
    Rhyme words are left out, or rhyme would pass for a topic.
    """
    place = {character: number for number, character in enumerate(vocabulary)}
    counts = np.zeros((len(vocabulary), len(vocabulary)), np.float32)
    for lines in chosen:
        couplets = [
            [place[c] for c in sorted({*first, *second[:-1]}) if c in place]
            for first, second in zip(lines[::2], lines[1::2], strict=False)
        ]
        for number, one in enumerate(couplets):
            for other in couplets[number + 1 : number + 1 + NEAR]:
                counts[np.ix_(one, other)] += 1
    counts += counts.T
    np.fill_diagonal(counts, 0)
    each = counts.sum(axis=1)
    chance = np.outer(each, each) / each.sum()
    ratio = np.log((counts + PRIOR) / (chance + PRIOR))
    return np.rint(ratio / STEP).clip(-127, 127).astype(np.int8)


def facing(chosen: list[list[str]], vocabulary: list[str]) -> npt.NDArray[np.int8]:
    """(characters, DIMENSIONS) vectors of length 127: the nearer two are, the oftener their
    characters, or such as these, stand at the same place of the two lines of a middle couplet.

    The leading eigenvectors of the logarithm of counted over expected pairs.
    """
    place = {character: number for number, character in enumerate(vocabulary)}
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    for lines in chosen:
        if len(lines) == 8 and {len(line) for line in lines} in ({5}, {7}):
            for first, second in (lines[2:4], lines[4:6]):
                for a, b in zip(first, second, strict=True):
                    if a in place and b in place:
                        counts[place[a], place[b]] += 1
    counts += counts.T
    each = counts.sum(axis=1)
    chance = np.outer(each, each) / max(each.sum(), 1)
    values, vectors = np.linalg.eigh(np.log((counts + 1) / (chance + 1)))
    vectors = (vectors * np.sqrt(values.clip(0)))[:, ::-1][:, :DIMENSIONS]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.rint(127 * vectors / np.maximum(norms, 1e-9)).astype(np.int8)


def usual_tones(chosen: list[list[str]], entries: list[Entry]) -> dict[str, str]:
    """平 and 仄 -> the characters of several readings that are nearly always read so, or that the
    Guangyun reads only so, if verse agrees; 詞 -> the words in which one of them is not: by verse,
    or since the Guangyun explains its other reading by the other character (勞: 慰).

    Where a character stands at the 2nd, 4th or 6th place of a poem whose other such places lie as
    regulated verse has them, its tone is known from its place.
    """
    places: dict[str, Counter[str]] = defaultdict(Counter)
    within: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for lines in chosen:
        if len(lines) not in (4, 8) or {len(line) for line in lines} not in ({5}, {7}):
            continue
        cells = [  # opposition and adhesion: the pattern turns at every couplet's second line
            (line[beat], ((number + 1) // 2 + beat // 2) % 2, line[beat - 1 : beat + 2])
            for number, line in enumerate(lines)
            for beat in range(1, len(line) - 1, 2)
        ]
        votes = [(book_tone(c) == "平") != bool(turn) for c, turn, _ in cells if book_tone(c)]
        straight = sum(votes) * 2 >= len(votes)
        if not votes or votes.count(straight) < REGULAR * len(votes):
            continue
        for c, turn, around in cells:
            if READINGS.get(c) and not book_tone(c):
                tone = "平" if straight != bool(turn) else "仄"
                places[c][tone] += 1
                for word in (around[:2], around[1:]):
                    within[c][word][tone] += 1
    known: dict[str, dict[str, str]] = defaultdict(lambda: defaultdict(str))
    for entry in entries:
        known[entry.character]["平" if entry.tone == "平" else "仄"] += entry.gloss + "，"
    usual = {
        c: tone
        for c in sorted(READINGS)
        for tone in "平仄"
        if not book_tone(c)
        and (
            (places[c].total() >= PLACES and places[c][tone] >= USUALLY * places[c].total())
            or ([*known[c]] == [tone] and places[c][tone] >= ALONE * places[c].total())
        )
    }
    words = set()
    for c, tone in usual.items():
        other = "仄" if tone == "平" else "平"
        if other in known[c]:
            glosses = re.findall(f"(?:^|，){c}?(.){c}?[也又]", known[c][other])
            words |= {word for gloss in glosses for word in (gloss + c, c + gloss)}
            words |= {
                word
                for word, found in within[c].items()
                if found[other] >= max(WORD_PLACES, IN_WORD * found.total())
            }
    tones = {tone: "".join(c for c, usually in usual.items() if usually == tone) for tone in "平仄"}
    return tones | {"詞": " ".join(sorted(words))}


def book_tone(character: str) -> str | None:
    """平 or 仄; None for a character of both or of no reading."""
    tones = {"平" if reading.tone == "平" else "仄" for reading in READINGS.get(character, ())}
    return tones.pop() if len(tones) == 1 else None


def tones_header() -> str:
    return (
        "# Characters with readings of both kinds that regulated Tang verse has in one of them in\n"
        f"# {USUALLY:.0%} of its places or more; made by tools/cooccurrence.py.\n"
        "# 平 level or 仄 oblique, the characters; 詞 words in which all readings count.\n"
        "# The Guangyun (廣韻) has a say: PyPI qieyun 0.13.3 (CC0)\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(
            "usage: python -m tools.cooccurrence chinese-poetry-2.0.1.tgz HOMEWORK QIEYUN_WHEEL"
        )
    main(*map(Path, sys.argv[1:]))
