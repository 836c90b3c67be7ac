"""The rule by which a poem is found in what a chat model writes."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verse.chat.cleaning import clean, traditional
from verse.poems.lines import IDEOGRAPHS, LOOSE_MARKS, in_form, split_lines

COUPLET, REST = "白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"
OCTAVE = "長江流不盡，明月照高樓。" + REST + "故人何處去，獨坐對孤舟。"
POEMS = [
    poem
    for file in ("train", "test")
    for poem in json.loads(
        (Path(__file__).parents[3] / f"data/embedded/{file}.json").read_text("utf-8")
    )
]


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        (REST, ""),
        (f"{REST}\n", ""),
        ("欲窮千里目，\n更上一層樓。", "layout"),
        (f"<think>白日依山盡，接「{REST}」吧</think>\n\n{REST}", "thought"),
        (f"先想一想，{REST}</think>{REST}", "thought"),
        (f"{REST}<think>還有", "thought"),
        (f"**{REST}**", "markup"),
        (f"```\n{REST}\n```", "markup"),
        (f"「{REST}」", "markup"),
        (f"續詩：{REST}", "around"),
        (f"**續詩：**「{REST}」", "markup around"),
        (f"{REST}\n賞析：白日二句，寫景。", "around"),
        ("1. 欲窮千里目，\n2. 更上一層樓。", "markup layout"),
        (f"好的！\n{REST}", "around"),
        (f"當然可以，以下是續寫：\n\n{REST}\n\n希望您會喜歡！", "around"),
        (f"《登鸛雀樓》\n唐·王之渙\n{REST}", "around"),
        (f"登鸛雀樓\n王之渙\n{REST}", "around"),
        (f"春日憶李白\n{REST}", "around"),
        (f"{REST}\n\n這首詩描寫了登樓所見的景色，氣勢雄渾。", "around"),
        (f"{REST}\n（註：原作出自王之渙）", "around"),
        (f"{REST}\n\n賞析：\n白日二句寫景。", "around"),
        (f"Here is the poem:\n\n{REST}\n\nEnjoy!", "around"),
        (COUPLET + REST, "couplet"),
        (f"白日依山盡,\n黃河入海流.\n{REST}", "couplet"),
        ("欲穷千里目，更上一层楼。", "simplified"),
        ("白日依山尽，黄河入海流。\n欲穷千里目，\n更上一层楼。", "couplet simplified layout"),
        (f"## 登鸛雀樓\n\n> {COUPLET}\n> {REST}\n\n---\n以上。", "markup around couplet"),
    ],
)
def test_the_poem_is_found(text, trimmed):
    found = clean(COUPLET, text)
    assert (found.poem, " ".join(found.trimmed)) == (REST, trimmed)


@pytest.mark.parametrize(
    ("text", "poem"),
    [
        ("", ""),
        ("\n \n", ""),
        ("<think>還在想", ""),
        ("I cannot do that.", ""),
        ("這是一首很有名的唐詩的開頭兩句而已。", ""),
        ("對不起，我不能。", "對不起，我不能。"),
        ("欲窮千里目，更上一層。", "欲窮千里目，更上一層。"),
        ("欲窮千里目\n更上一層樓", "欲窮千里目更上一層樓"),
        ("欲窮千里目,更上一層樓.", "欲窮千里目,更上一層樓."),
        ("欲窮千里目，更上一層樓", "欲窮千里目，更上一層樓"),
        ("長安古道馬遲遲，高柳亂蟬嘶高柳。", "長安古道馬遲遲，高柳亂蟬嘶高柳。"),
        (f"{REST}\n六字的一句啊，\n{REST}", f"{REST}六字的一句啊，{REST}"),
        (f"{REST}\n錯。", f"{REST}錯。"),
        (f"{REST}\n希望你喜歡！", f"{REST}希望你喜歡！"),
    ],
)
def test_bad_verse_stays_bad(text, poem):
    found = clean(COUPLET, text).poem
    assert found == poem and not in_form(COUPLET, found)


def test_of_two_poems_the_first_counts():
    for between in ("另一種續法：", "或者是這個很好的版本也可以。", "---", "Or:"):
        assert clean(COUPLET, f"{REST}\n\n{between}\n\n{OCTAVE}").poem == REST
    assert clean(COUPLET, f"{OCTAVE[:12]}\n\n{OCTAVE[12:]}").poem == OCTAVE, "stanzas are one poem"


def test_true_poems_stay_as_they_are():
    """All but a few, which have no character that is traditional alone."""
    changed = [p for p in POEMS if clean(p["input"], p["output"]).poem != p["output"]]
    assert len(changed) <= 3 and all(
        clean(p["input"], p["output"]).trimmed == ("simplified",) for p in changed
    )


def test_simplified_poems_come_back():
    """OpenCC knows 98.8% of the characters of Tang poems from their simplified ones."""
    import opencc

    simplify = opencc.OpenCC("t2s").convert
    same = total = 0
    for poem in POEMS:
        back = traditional(simplify(poem["output"]))
        total += len(back)
        same += sum(a == b for a, b in zip(back, poem["output"], strict=True))
    assert same / total > 0.985


@given(
    st.text() | st.text("白日依山盡黃河入海流，。：\n <think>/*1.「」《》国"),
    st.sampled_from([COUPLET, "", "。"]),
)
def test_any_answer_has_a_poem_of_its_own_characters(text, couplet):
    found = clean(couplet, text)
    normal = unicodedata.normalize("NFC", text)
    # A piece may be simplified where the whole, which also holds traditional characters, is not.
    assert set(found.poem) <= {*normal, *traditional(normal), *"".join(map(traditional, normal))}
    assert all(IDEOGRAPHS.fullmatch("".join(line.split())) for line, _ in split_lines(found.poem))
    if not found.trimmed:
        assert found.poem == normal.strip()


@pytest.mark.parametrize(
    "piece", ["<think>", "\n", "白，\n", "**", "「", "白" * 9 + "，", "：\n", "1. ", "\u3000", ","]
)
def test_a_long_answer_takes_no_long_time(piece):
    """Linear: a million characters of what a rule looks for."""
    clean(COUPLET, piece * (10**6 // len(piece)))


def test_loose_marks_are_no_verse():
    assert clean(COUPLET, LOOSE_MARKS).poem == ""
