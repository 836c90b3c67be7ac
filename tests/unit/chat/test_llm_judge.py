"""The judge: what it is asked, what is read of its answers, what it is not told."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from chat_server import FAULTS, Server, completion

from verse.chat.decoys import scrambled
from verse.chat.llm_judge import QUESTIONS, TIMES, TOOL, TRIES, mark_poems, read
from verse.errors import UserError
from verse.params import Judge, parse
from verse.poem import Poem, split_lines
from verse.poems.prosody import analyse, tone_bits

ROOT = Path(__file__).parents[3]
MACHINE = parse(yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))).machine
POEMS = [
    "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。",
    "紅豆生南國，春來發幾枝。願君多采擷，此物最相思。",
]


def marks(server, store, poems=POEMS, timeout=60.0, **options):
    judge = Judge(base_url=server.base_url, model="m", **options)
    return mark_poems(judge, poems, store, MACHINE.model_copy(update={"timeout": timeout}))


def tool(score, reason="好"):
    arguments = json.dumps({"score": score, "reason": reason})
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": TOOL["name"], "arguments": arguments},
    }
    return completion(None, tool_calls=[call])


def by_tool(body):
    return 200, tool(7)


def in_json(body):
    """A server that knows no tools, and ignores them."""
    return 200, completion('{"score": 6, "reason": "通順"}' if "JSON" in question(body) else "很好")


def question(body):
    return body["messages"][-1]["content"]


def test_three_marks_for_each_question(store):
    with Server(by_tool) as server:
        given = marks(server, store)
    assert list(given) == POEMS
    for of_one in given.values():
        assert list(of_one) == ["prosody", "fluency"]
        assert [[m["score"] for m in three] for three in of_one.values()] == [[7] * TIMES] * 2
        assert of_one["prosody"][0]["reason"] == "好"
    asked = [question(body) for body in server.asked]
    wanted = [text + poem for text in QUESTIONS.values() for poem in POEMS for _ in range(TIMES)]
    assert sorted(asked) == sorted(wanted)


def test_what_a_judge_is_told(store):
    """What the homework's grader tells it: a question and a poem, and that it must use the tool."""
    with Server(by_tool) as server:
        marks(server, store, POEMS[:1])
    body = server.asked[0]
    assert body.keys() == {"model", "messages", "temperature", "tools", "tool_choice"}
    assert body["temperature"] == 1.0 and len(body["messages"]) == 1
    assert body["tool_choice"] == {"type": "function", "function": {"name": "auto_grader"}}
    (function,) = [one["function"] for one in body["tools"]]
    assert function["parameters"]["required"] == ["score", "reason"]
    assert question(body).split("\n") in (
        ["請判斷以下詩句與唐詩格律相似程度，打0到10分的分數，分數越高越相似", POEMS[0]],
        ["請判斷以下唐詩語意通順程度，打0到10分的分數，分數越高越通順", POEMS[0]],
    )


def test_the_order_says_nothing(store):
    """Neither poems nor questions come one after another."""
    poems = [f"{name}日依山盡，黃河入海流。" for name in "甲乙丙丁戊己庚辛壬癸子丑寅卯"]
    with Server(by_tool) as server:
        mark_poems(
            Judge(base_url=server.base_url, model="m"),
            poems,
            store,
            MACHINE.model_copy(update={"max_concurrent_requests": 1}),
        )
    asked = [question(body) for body in server.asked]
    by_poem = sorted(asked, key=lambda text: text.split("\n")[1])
    assert asked not in (by_poem, sorted(asked)) and len(asked) == len(poems) * 6
    neighbours = sum(a == b for a, b in pairwise(asked))
    assert neighbours < len(asked) / 6


def test_one_poem_of_two_contestants_is_marked_once(store):
    with Server(by_tool) as server:
        marks(server, store, [*POEMS, *POEMS])
        marks(server, store, POEMS)
        assert len(server.asked) == len(POEMS) * 6


def test_a_server_that_fails_now_and_then(store):
    def fault(number):
        return FAULTS[number // 10 % len(FAULTS)] if number % 10 == 3 else None

    poems = [f"{name}日依山盡，黃河入海流。" for name in "甲乙丙丁戊己庚辛壬癸子丑寅卯"]
    with Server(by_tool, fault) as server:
        given = marks(server, store, poems, timeout=5.0)
    scores = [m["score"] for of_one in given.values() for three in of_one.values() for m in three]
    assert scores == [7] * len(poems) * 6 == [7] * len(server.answered)


# Servers without tools


def test_a_server_that_ignores_tools(store):
    with Server(in_json) as server:
        given = marks(server, store)
    assert given[POEMS[0]]["fluency"][0]["score"] == 6
    plain = [body for body in server.asked if "JSON" not in question(body)]
    assert len(plain) <= 2 * MACHINE.max_concurrent_requests


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_tools_and_schemas(store, status):
    def answer(body):
        if "tools" in body or "response_format" in body:
            return status, {"error": {"message": "unknown field"}}
        return in_json(body)

    with Server(answer) as server:
        given = marks(server, store)
    assert [m["score"] for three in given[POEMS[1]].values() for m in three] == [6] * 6
    assert len(server.asked) <= 12 + 3 * MACHINE.max_concurrent_requests


def test_a_server_that_never_gives_a_mark(store):
    with Server(lambda body: (200, completion("這首詩很好。"))) as server:
        with pytest.raises(UserError, match=r"no mark can be read .*'這首詩很好。'"):
            marks(server, store)
        assert len(server.asked) <= MACHINE.max_concurrent_requests * 6


# Marks that cannot be read


def test_an_unreadable_mark_is_asked_again(store):
    seen = {}

    def answer(body):
        seen[question(body)] = seen.get(question(body), 0) + 1
        return (200, completion("不打分")) if seen[question(body)] == 2 else by_tool(body)

    with Server(answer) as server:
        given = marks(server, store)
    assert [m["score"] for of in given.values() for three in of.values() for m in three] == [7] * 12
    assert len(server.asked) == 12 + 4


def test_a_mark_that_never_can_be_read_is_none(store):
    def answer(body):
        return (200, completion("不打分")) if "紅豆" in question(body) and ready else by_tool(body)

    ready = False
    with Server(answer) as server:
        marks(server, store, POEMS[:1])  # the server can give marks
        ready = True
        given = marks(server, store, [POEMS[0], "春眠不覺曉，處處聞啼鳥。", POEMS[1]])
        count = len(server.asked)
        ready = False
        assert marks(server, store, POEMS[1:])[POEMS[1]]["fluency"][2]["score"] == 7
        assert len(server.asked) == count + 6, "what was no mark is not kept"
    scores = [m["score"] for three in given[POEMS[1]].values() for m in three]
    assert set(scores) <= {None, 7} and None in scores
    assert count <= 6 + 6 + 6 * (TRIES + 2)


def test_of_an_answer_cut_off_words_are_no_mark(store):
    """1 may be the half of 10; JSON has its end."""

    def answer(body):
        seen.append(body)
        said = "我給這首詩打 1 分" if len(seen) == 1 else '評分：{"score": 7} 因為'
        cut = completion(said)
        cut["choices"][0]["finish_reason"] = "length"
        return 200, cut

    seen = []
    with Server(answer) as server:
        given = marks(server, store, POEMS[:1])
    assert [m["score"] for three in given[POEMS[0]].values() for m in three] == [7] * 6
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('{"score": 7, "reason": "好"}', (7, "好")),
        ('{"score": 0}', (0, "")),
        ('{"score": 10.0, "reason": 3}', (10, "3")),
        ('{"score": "8.5", "reason": ""}', (8.5, "")),
        ('```json\n{"score": 7, "reason": "好"}\n```', (7, "好")),
        ('<think>{"score": 1}</think>\n{"score": 7, "reason": "好"}', (7, "好")),
        ('我給 {"score": 7}', (7, "")),
        (
            '<tool_call>{"name": "x", "arguments": {"score": 7, "reason": "好"}}</tool_call>',
            (7, "好"),
        ),
        ('{"分數": "八分", "理由": "好"}', (8, "好")),
        ('{"score": "7/10"}', (7, "")),
        ("｛＂score＂：８｝", (8, "")),
        ('Analysis: {"score": 3}\n\n## Score\n{"score": 7}', (7, "")),
        ('{"score": 7, "reason": "好{甚}"}', (7, "好{甚}")),
        ('{"score": 7, "reason": "好", "detail": {"韻": 9}}', (7, "好")),
        ('{"score": 7, "reason": "好"}\n{"score": 7}', (7, "好")),
        *((text, None) for text in ('{"score": 4, "rubric": {"score": 10}}', '{"score": "4/5"}')),
        ('{"score": 4}\n{"score": 6}', None),
        *((text, None) for text in ("", "[7]", '{"score": 11}', '{"score": -1}')),
        *((text, None) for text in ('{"score": true}', '{"score": null}', '{"score": "高"}')),
        *(
            (text, None)
            for text in ('{"score": NaN}', '{"score": Infinity}', '{"score": 7', "null")
        ),
        *((text, None) for text in ('{"mark": 7}', "[" * 10**5)),
        *((text, None) for text in ('{"score": 1' + "0" * 5000 + "}", '{"score": [7]}')),
    ],
)
def test_a_mark_in_json(text, mark):
    assert read(text) == mark


@pytest.mark.parametrize(
    ("text", "score"),
    [
        *((text, 8) for text in ("8", "8分", "８分。", "８／１０", "八分", "eight", "8 out of 10")),
        *(
            (text, 8)
            for text in ("評分：8", "分數是八", "**Score:** 8/10", "我給這首詩8分。", "打個8分吧")
        ),
        *(
            (text, 8)
            for text in ("這首詩十分通順，我打8分", "在0到10分之間，我給 8 分", "滿分10分，8分")
        ),
        *(
            (text, 8.5)
            for text in ("八分半", "８．５分", "八點五分", "格律8分，意境9分，總分8.5分")
        ),
        *((text, 10) for text in ("十分", "10/10")),
        *(
            (text, None)
            for text in ("這首詩很好", "不打分", "格律8分，意境7分", "三分之一", "十一分")
        ),
        *((text, None) for text in ("-3", "Score: -1", "85/100", "Score: 85/100")),
        *((text, 8) for text in ("8/10分", "8 / 10。", "Score: 8/10.\nLines 3-4 break the tones.")),
        *(
            (text, 8)
            for text in ("評分：8（滿分10）", "評分：8\n第三、四句失粘", "10分制，我給8分")
        ),
        *((text, None) for text in ("Score: 4/5", "評分：5／5", "9/100", "9 out of 100", "8/20")),
        *((text, None) for text in ("7～8分", "Score: 7-8", "七、八分", "7 to 8", "給 3 顆星")),
        *((text, None) for text in ("評分：4 星", "Score: 9%", "評分：一百", "評分：八十分滿意")),
        *((text, None) for text in ("第一項4分", "我會打 7 分，扣除 2 分後為 5 分。", "扣2分")),
        *(
            (text, 8)
            for text in ("評分：8分\n- 五言句式工整", "8分\n- 兩聯對仗", "評分：8\n- 一、平仄合律")
        ),
        *(
            (text, 8)
            for text in ("8.0/10.0", "8 out of 10.0", "滿分10.0，8分", "滿分（10分）中給8分")
        ),
        *((text, 8) for text in ("評分：8/10（平仄扣1分）", "本詩第一項和第二項都好。評分：8")),
        *((text, None) for text in ("評分：4（滿分5）", "滿分5分，評分：4", "評分（5分制）：4")),
        *((text, None) for text in ("Rating (0-100): 9", "Score: 4 (out of 5)")),
    ],
)
def test_a_mark_in_words(text, score):
    assert (read(text) or [None])[0] == score


# Poems without sense


def test_scrambled_poems_keep_tones_and_rhyme_and_no_sense():
    rows = json.loads((ROOT / "data/embedded/test.json").read_text("utf-8"))
    truths = [Poem(row["input"], row["output"]) for row in rows]
    decoys = scrambled(truths)
    assert scrambled(truths) == decoys
    same = total = 0
    for truth, decoy in zip(truths, decoys, strict=True):
        assert decoy.couplet == truth.couplet
        true_lines, lines = split_lines(truth.rest), split_lines(decoy.rest)
        assert [marks for _, marks in lines] == [marks for _, marks in true_lines]
        for (a, _), (b, _) in zip(true_lines, lines, strict=True):
            assert list(map(tone_bits, a)) == list(map(tone_bits, b))
            same += sum(x == y for x, y in zip(a, b, strict=True))
            total += len(a)
        was, now = (analyse(poem.lines) for poem in (truth, decoy))
        assert (now.rhyme, now.tone) == (was.rhyme, pytest.approx(was.tone, abs=0.2))
    assert same / total < 0.15, "the rhymes, and a few by chance"
