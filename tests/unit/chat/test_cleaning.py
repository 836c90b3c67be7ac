"""The rule by which a poem is found in what a chat model writes."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verse.chat.cleaning import clean, traditional
from verse.poem import LOOSE_MARKS, split_lines
from verse.poems.lines import IDEOGRAPHS, in_form

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
        ("欲窮\u3000千里目，更上一\n層樓。", "layout"),
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
        ("欲窮千里目\n更上一層樓", "欲窮千里目\n更上一層樓"),
        ("欲窮千里目\n\n更上一層樓\n", "欲窮千里目\n更上一層樓"),
        ("欲窮千里目\u3000更上一層樓。", "欲窮千里目\n更上一層樓。"),
        ("白日依山盡\n黃河入海流\n欲窮千里目\n更上一層樓", "欲窮千里目\n更上一層樓"),
        ("欲窮千里目,更上一層樓.", "欲窮千里目,更上一層樓."),
        ("欲窮千里目，更上一層樓", "欲窮千里目，更上一層樓"),
        ("長安古道馬遲遲，高柳亂蟬嘶高柳。", "長安古道馬遲遲，高柳亂蟬嘶高柳。"),
        (f"{REST}\n六字的一句啊，\n{REST}", f"{REST}六字的一句啊，{REST}"),
        (f"{REST}\n錯。", f"{REST}錯。"),
        (f"{REST}\n更上一層樓，六字的一句啊：好。", f"{REST}更上一層樓，六字的一句啊：好。"),
        (f"{REST}\n希望你喜歡！", f"{REST}希望你喜歡！"),
    ],
)
def test_bad_verse_stays_bad(text, poem):
    found = clean(COUPLET, text).poem
    assert found == poem and not in_form(COUPLET, found)


DRAFT = "明月照高樓，長江流不盡。"
# As models and servers are reported to write: Qwen, Kimi, DeepSeek, Mistral, Cohere, Seed, GLM,
# gpt-oss, Gemma, OpenThinker, Open WebUI, and the tokens that end a turn of each.
FORMS = [
    # thoughts between marks
    f"<think>\n試寫：\n{DRAFT}\n不好。\n</think>\n\n{REST}",
    f"<thinking>\n{DRAFT}\n</thinking>\n{REST}",
    f"<thought>{DRAFT}</thought>{REST}",
    f"<reasoning>\n{DRAFT}\n</reasoning>\n\n{REST}",
    f"<analysis>{DRAFT}</analysis>\n{REST}",
    f"<scratchpad>{DRAFT}</scratchpad>\n{REST}",
    f"<ant_thinking>{DRAFT}</ant_thinking>{REST}",
    f"<seed:think>{DRAFT}</seed:think>{REST}",
    f"[THINK]{DRAFT}[/THINK]{REST}",
    f"◁think▷{DRAFT}◁/think▷{REST}",
    f"<|begin_of_thought|>\n{DRAFT}\n<|end_of_thought|>\n<|begin_of_solution|>\n{REST}\n<|end_of_solution|>",
    f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>{REST}<|END_RESPONSE|>",
    f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{REST}<|return|>",
    f"<|channel>thought\n{DRAFT}<channel|>{REST}",
    f"<unused94>thought\n{DRAFT}<unused95>{REST}",
    f"<think>{DRAFT}</think><answer>{REST}</answer>",
    f"<think>{DRAFT}</think>\n<answer>\n{REST}\n</answer>\n希望您喜歡！",
    f"<inner_voice>{DRAFT}</inner_voice>\n{REST}",
    f"<foo>{DRAFT}</foo><bar>{REST}</bar>",
    f"{DRAFT}\n</think>\n\n{REST}",
    f"{DRAFT}</reasoning>{REST}",
    f'<details type="reasoning">\n<summary>Thought</summary>\n> {DRAFT}\n</details>\n{REST}',
    f"【思考】{DRAFT}【答案】{REST}",
    f"＜思考＞{DRAFT}＜/思考＞{REST}",
    f"**思考過程：**\n{DRAFT}\n\n**續詩：**\n{REST}",
    f"### 思考\n{DRAFT}\n\n### 最終答案\n{REST}",
    f"思考：先寫\n{DRAFT}\n\n答案：\n{REST}",
    f"草稿：{DRAFT}\n定稿：{REST}",
    f"<output><thinking>{DRAFT}</thinking>\n<poem>{REST}</poem></output>",
    # end tokens
    *(
        f"{REST}{end}"
        for end in (
            "<|im_end|>",
            "<|endoftext|>",
            "<|eot_id|>",
            "</s>",
            "<eos>",
            "<end_of_turn>",
            "<|end|>",
            "<|return|>",
            "<｜end▁of▁sentence｜>",
            "<|end_of_text|>",
            " [end of text]",
            "<|eom_id|>",
            "[EOS]",
        )
    ),
    f"{REST}<|im_end|>\n<|im_start|>user\n再來一首\n<|im_end|>\n<|im_start|>assistant\n{DRAFT}",
    f"{REST}<|user|>\n再來一首<|assistant|>{DRAFT}",
    f"<s>[INST] 續 [/INST] {REST}</s>",
    f"<|im_start|>assistant\n{REST}<|im_end|>",
    # wraps
    f"<answer>{REST}</answer>",
    f"<poem>\n{REST}\n</poem>",
    f"<answer>\n{REST}",
    f"{REST}\n</answer>",
    f"<|begin_of_box|>{REST}<|end_of_box|>",
    f"<final_answer>{REST}</final_answer>",
    f"<續詩>{REST}</續詩>",
    f"【續詩】{REST}",
    f"【續詩】\n{REST}\n【賞析】\n登高望遠，氣象雄渾。",
    f"<title>登鸛雀樓</title>\n<poem>{REST}</poem>\n<explanation>登高望遠。</explanation>",
    "<p>欲窮千里目，</p><p>更上一層樓。</p>",
    "欲窮千里目，<br>更上一層樓。",
    f"<b>{REST}</b>",
    "<ruby>欲<rt>yù</rt></ruby>窮千里目，更上一層樓。",
    f"```\n{REST}\n```",
    f"```text\n{REST}\n```",
    f"```poem\n{REST}\n```\n",
    f"『{REST}』",
    f"\u200b{REST}\ufeff",
    # pinyin/translations
    "欲窮千里目，\nYù qióng qiān lǐ mù,\n更上一層樓。\nGèng shàng yī céng lóu.",
    "欲窮千里目（yù qióng qiān lǐ mù），更上一層樓（gèng shàng yī céng lóu）。",
    "欲窮千里目，(yu qiong qian li mu)\n更上一層樓。(geng shang yi ceng lou)",
    "欲窮千里目，\nTo see a thousand miles,\n更上一層樓。\nclimb one more storey.",
    f"{REST}\n\nTranslation:\nTo see a thousand miles, climb one more storey.",
    f"{REST}\n\n譯文：\n想要看盡千里風光，\n請再登上一層高樓。",
    f"{REST}\n（Yù qióng qiān lǐ mù, gèng shàng yī céng lóu.）",
    "上句：欲窮千里目，\n下句：更上一層樓。",
    "第一句：欲窮千里目，\n第二句：更上一層樓。",
    "### 登鸛雀樓\n" + REST,
    "《登鸛雀樓》\n\n" + REST,
    "標題：登鸛雀樓\n\n" + REST,
    f"好的，以下是續寫的詩句：\n\n**{REST}**\n\n---\n**解析**：\n- 「欲窮千里目」寫登高。",
    f"Okay, the user wants a poem. Let me think.\n</think>\n{REST}",
    # drafts and thoughts under headings, each of its own style
    f"<|reasoning_start|>{DRAFT}<|reasoning_end|>{REST}",
    f"[thinking]\n{DRAFT}\n[/thinking]\n{REST}",
    f"〈思考〉{DRAFT}〈／思考〉{REST}",
    f"《思考》\n{DRAFT}\n《答案》\n{REST}",
    f"```thinking\n{DRAFT}\n```\n\n```\n{REST}\n```",
    f"*Thinking...*\n\n> {DRAFT}\n\n*...done thinking.*\n\n{REST}",
    f"Thinking Process:\n\n1. {DRAFT}\n\nFinal Answer:\n{REST}",
    f"Draft:\n{DRAFT}\n\nFinal version:\n{REST}",
    f"初稿：\n{DRAFT}\n\n修改後：\n{REST}",
    f"# 推敲過程\n\n{DRAFT}\n\n# 成詩\n\n{REST}",
    f"## 1. 分析\n{DRAFT}\n\n## 2. 續詩\n{REST}",
    f"**一、構思**\n{DRAFT}\n**二、成品**\n{REST}",
    f"1. 構思：{DRAFT}\n2. 定稿：{REST}",
    f"Analysis: {DRAFT}\n\n## 登鸛雀樓\n{REST}",
    f"嗯，先試一句：\n{DRAFT}\n不好，換一個。\n\n最終答案：\n{REST}",
    # JSON, tables, LaTeX
    f'{{"poem": "{REST}"}}',
    f'```json\n{{"續詩": "{REST}", "賞析": "登高望遠。"}}\n```',
    f'{{"thought": "{DRAFT}", "poem": "{REST}"}}',
    f'{{"title": "登鸛雀樓作", "author": "王之渙", "content": "{REST}"}}',
    f'<think>{{"poem": "{DRAFT}"}}</think>{{"poem": ["欲窮千里目，", "更上一層樓。"]}}',
    '{"poem": {"line3": "欲窮千里目，", "line4": "更上一層樓。"}}',
    "| 句 | 內容 | 譯文 |\n|---|---|---|\n| 三 | 欲窮千里目， | Far |\n| 四 | 更上一層樓。 | Up |",
    f"$$\\boxed{{\\text{{{REST}}}}}$$",
    # numbers, places, and what stands around
    "①欲窮千里目，\n②更上一層樓。",
    "(1) 欲窮千里目，\n(2) 更上一層樓。",
    "三、欲窮千里目，\n四、更上一層樓。",
    "句三：欲窮千里目，\n句四：更上一層樓。",
    "Line 3: 欲窮千里目，\nLine 4: 更上一層樓。",
    "<verse>欲窮千里目，</verse>\n<verse>更上一層樓。</verse>",
    "+ 欲窮千里目，\n+ 更上一層樓。",
    "欲窮千里目，\\n更上一層樓。",
    f"……{REST} 🙏",
    f"{REST}——王之渙《登鸛雀樓》",
    f"{REST} （押尤韻）",
    f"好的，續詩如下：{REST}",
    f"Sure! Here it is: {REST}",
    f"題：{COUPLET}\n答：{REST}",
    f"您給的上聯：{COUPLET}\n我續的下聯：{REST}",
    f"{REST}\n\n### Instruction:\n再來一首\n\n### Response:\n{DRAFT}",
    f"{REST}<extra_id_1>User\n{DRAFT}",
]
NOTHING_BUT_THOUGHTS = [
    f"<think>{DRAFT}",
    f"<think>{DRAFT}</think>",
    f"<thinking>{DRAFT}</thinking>\n",
    f"[THINK]{DRAFT}",
    f"<|channel|>analysis<|message|>{DRAFT}",
    f"◁think▷{DRAFT}",
    f"<|START_THINKING|>{DRAFT}",
    f"【思考】{DRAFT}",
    f"<reasoning>\n{DRAFT}\n</reasoning>",
    f"Thinking Process:\n\n1. {DRAFT}\n2. ",
    f"初稿：\n**望月**\n{DRAFT}",
    f"### 初稿\n《望月》\n{DRAFT}",
    f"```thinking\n{DRAFT}",
    f"> 思考：先寫\n> {DRAFT}\n\n",
    f'{{"thinking": "{DRAFT}"}}',
    f'{{"thinking": "{DRAFT}", "poem": "',
]


@pytest.mark.parametrize("text", FORMS)
def test_the_poem_is_what_follows_thoughts_and_marks(text):
    assert clean(COUPLET, text).poem == REST


@pytest.mark.parametrize("text", NOTHING_BUT_THOUGHTS)
def test_a_draft_never_counts(text):
    assert clean(COUPLET, text).poem == ""


@pytest.mark.parametrize(
    "text",
    [
        "（頷聯）\n{}\n（頸聯）\n{}\n（尾聯）\n{}",
        "**頷聯**\n{}\n\n**頸聯**\n{}\n\n**尾聯**\n{}",
        "【頷聯】\n{}\n【頸聯】\n{}\n【尾聯】\n{}",
        "### 頷聯\n{}\n### 頸聯\n{}\n### 尾聯\n{}",
        "續詩：\n頷聯：{}\n頸聯：{}\n尾聯：{}\n\n賞析：\n佳作。",
    ],
)
def test_couplets_under_their_places_are_one_poem(text):
    assert clean(COUPLET, text.format(OCTAVE[:12], OCTAVE[12:24], OCTAVE[24:])).poem == OCTAVE


def test_whether_anything_follows_the_poem():
    """What is cut off within the poem is cut off; what is cut off in talk behind it is not."""
    assert clean(COUPLET, f"好的：\n{REST[:8]}").last
    assert not clean(COUPLET, f"{REST}\n\n這首詩描寫了登樓所見的景").last


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
    "piece",
    [
        "<think>",
        "</think>",
        "<a>",
        "[THINK]",
        "思考：",
        "<rt",
        "<rp ",
        "</s>",
        "（a）",
        "\n",
        "白，\n",
        "**",
        "「",
        "白" * 9 + "，",
        "：\n",
        "1. ",
        "\u3000",
        ",",
    ],
)
def test_a_long_answer_takes_no_long_time(piece):
    """Linear: a million characters of what a rule looks for."""
    clean(COUPLET, piece * (10**6 // len(piece)))


def test_loose_marks_are_no_verse():
    assert clean(COUPLET, LOOSE_MARKS).poem == ""
