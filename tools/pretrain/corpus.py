"""Song-dynasty verse to pretrain on, free of every Tang line.

    python -m tools.pretrain.corpus

Reads the npm package `chinese-poetry` 2.0.1 and writes, under tools/pretrain/data/:
`song.txt`, a poem a line, a blank line between poets; `heldout.txt`, poems of the same kind
kept apart; `tang.txt`, whole Tang poems to measure the finished model on, never to train on.
A Song poem goes if it shares a line with any Tang poem of the package or with a test poem of
the homework, or if it has lacunae. The Song files print some characters in other forms than
the Tang files (黄 for 黃, 顔 for 顏); those forms are brought to the Tang files' ones.
"""

import hashlib
import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import yaml

from tools.pretrain.poetry import (
    SONG,
    TANG,
    TANG_EDITION,
    files,
    han_runs,
    line_keys,
    modern_form,
    poems,
    texts,
    whole,
)
from verse.files import cache_dir, write_json, write_text
from verse.params import Data
from verse.poems import sources

HERE = Path(__file__).parent
PARAMS = HERE.parents[1] / "params.yaml"

# Printed forms that OpenCC's tables do not relate.
FORMS = dict(
    """
    顔顏 卧臥 隠隱 况況 摇搖 鬰鬱 瑶瑤 别別 頼賴 横橫 浄淨 鶑鶯 閲閱 决決 虚虛 鳬鳧
    髙高 馿驢 潜潛 産產 餠餅 脱脫 閙鬧 寛寬 鎸鐫 温溫 户戶 凛凜 没沒 歳歲 侣侶 毎每
    壮壯 懐懷 秃禿 渇渴 艶艷 闗關 奬獎 毁毀 巌巖 戯戲 娱娛 寜寧 减減 醤醬 穏穩 堕墮
    勲勳 鐡鐵 逰遊 悦悅 装裝 釡釜 歴歷 謡謠 黙默 奥奧 参參 痩瘦 専專 数數 叠疊 掲揭
    覧覽 曵曳 帯帶 濵濱 纎纖 捜搜 聨聯 税稅 蜕蛻 寝寢 飢饑
    """.split()
)


def rank(text: str) -> str:
    """A random but lasting order: by the hash of the text itself."""
    return hashlib.sha256(text.encode()).hexdigest()


def spelling(song: list[dict], tang: list[dict]) -> dict[int, str]:
    """The forms of the Song files that the Tang files hardly print, to the ones they do."""
    used, printed = (Counter("".join(p["text"] for p in group)) for group in (song, tang))
    table = {}
    for character, count in used.items():
        form = FORMS.get(character) or modern_form(character)
        rare = printed[character] < 0.003 * count
        if form != character and rare and printed[form] > printed[character]:
            table[ord(character)] = form
    return table


def main() -> None:
    params = yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8"))["corpus"]
    package = HERE / "data" / params["package"]
    tang = poems(package, TANG_EDITION)
    song = poems(package, SONG)
    table = spelling(song, tang)

    tang_lines: set[str] = set()
    for file in files(package, TANG):
        tang_lines |= line_keys("\n".join(texts(file)))
    data = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["data"]
    homework = sources.fetch(
        Data(**data | {"source": "hw5"}), embedded=HERE, cache=cache_dir() / "downloads"
    )
    for one in homework.test:
        tang_lines |= line_keys(one.text)

    counts = Counter(read=len(song))
    kept = []
    for author, group in groupby(song, key=lambda poem: poem["author"]):
        works = []
        for poem in group:
            text = poem["text"].translate(table)
            if not whole(text):
                counts["lacunae or notes"] += 1
            elif max(map(len, han_runs(text))) > params["longest_line"]:
                counts["lines too long"] += 1
            elif not tang_lines.isdisjoint(line_keys(text)):
                counts["shares a Tang line"] += 1
            else:
                works.append(text)
        kept.append((author, works))

    every = [text for _, works in kept for text in works]
    heldout = set(sorted(every, key=rank)[: params["heldout"]])
    # A poem printed twice, or under two poets, must not stand on both sides.
    heldout_lines = {line for text in heldout for line in line_keys(text)}
    seen: set[str] = set()
    scrolls = []
    for _author, works in kept:
        scroll = []
        for text in works:
            if text in seen or not heldout_lines.isdisjoint(line_keys(text)):
                counts["repeated or held out"] += 1
                continue
            seen.add(text)
            scroll.append(text)
        if scroll:
            scrolls.append("\n".join(scroll))
    counts["kept"] = len(seen)
    counts["poets"] = len(scrolls)
    counts["characters"] = sum(map(len, seen))

    evaluation = sorted({p["text"] for p in tang if whole(p["text"])}, key=rank)
    write_text(HERE / "data" / "song.txt", "\n\n".join(scrolls) + "\n")
    write_text(HERE / "data" / "heldout.txt", "\n".join(sorted(heldout, key=rank)) + "\n")
    write_text(HERE / "data" / "tang.txt", "\n".join(evaluation[: params["tang"]]) + "\n")
    write_json(HERE / "metrics" / "corpus.json", dict(counts))
    print(json.dumps(dict(counts), indent=1))


if __name__ == "__main__":
    main()
