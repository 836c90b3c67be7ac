"""Scoring, held against poems whose metrics can be counted by hand, and against hostile answers."""

import random
import unicodedata
from math import comb
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verse.poem import Poem, split_lines
from verse.poems.lines import in_form, lines_in
from verse.scoring import scoring
from verse.scoring.cooccurrence import rivals
from verse.scoring.metrics import INTERVALS, KEYS, METRICS
from verse.scoring.scoring import (
    COLUMNS,
    SHARES,
    gain,
    learnt,
    likenesses,
    summarise,
    tabulate,
    wilson,
)
from verse.scoring.terminal import side_by_side

COUPLET, REST = "白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"
OTHER_COUPLET, OTHER_REST = "紅豆生南國，春來發幾枝。", "願君多采擷，此物最相思。"
SIX_LINES = "感時花濺淚，恨別鳥驚心。烽火連三月，家書抵萬金。白頭搔更短，渾欲不勝簪。"

HOSTILE = [
    "",
    "\n",
    "。",
    "，，，。。。",
    " " * 10_000,
    "山" * 10_000,
    "山，水。" * 2_500,
    "\x1b[2J\x1b]0;title\x07，\x00\x7f。",
    "\u202e\u200b\ufeff欲窮千里目，更上一層樓。",
    "<script>alert(1)</script>",
    "欲窮千里目\u0301\u0301\u0301，更上一層樓。",
    "\ud800，\udfff。",
    "😀😀😀😀😀，😀😀😀😀😀。",
    "\U00020000" * 5 + "，" + "\U00030000" * 5 + "。",
]


OTHERS = rivals([["春眠不覺曉", "處處聞啼鳥"], ["空山不見人", "但聞人語響"]])
"""Couplets that a poem's own is compared with."""


def score_answer(couplet, answer, truth, training_lines):
    return scoring.score_answer(Poem(couplet, answer), Poem(couplet, truth), training_lines)


def tabulated(scored):
    """All as surprising as true poems are."""
    return tabulate(scored, OTHERS, [4.5 if one.verse else float("nan") for one in scored])


def table_of(*answers, couplet=COUPLET, truth=REST, training=()):
    known = likenesses(lines_in(training), 2)
    return tabulated([score_answer(couplet, answer, truth, known) for answer in answers])


def metrics_of(*answers, couplet=COUPLET, truth=REST, training=(), **options):
    known = likenesses(lines_in(training), 2)
    scored = [score_answer(couplet, answer, truth, known) for answer in answers]
    options = {"seed": 42, "resamples": 200} | options
    return summarise(scored, tabulated(scored), [Poem(couplet, truth)] * len(scored), **options)


# lines


def test_lines_end_at_marks_breaks_and_wide_blanks():
    assert split_lines(REST) == (("欲窮千里目", "，"), ("更上一層樓", "。"))
    assert split_lines("，山,水.\n月\u3000風") == (
        ("山", ","),
        ("水", ".\n"),
        ("月", "\u3000"),
        ("風", ""),
    )
    assert split_lines("  山  ！？") == (("山", "！？"),)
    assert split_lines(" \n。 ") == ()


# form


@pytest.mark.parametrize(
    "answer",
    [
        REST,
        SIX_LINES,
        "欲窮千里目？更上一層樓！",
        "欲窮千里目：更上一層樓？",
        SIX_LINES.replace("心。", "心；"),
        "\U00020000" * 5 + "，更上一層樓。",
    ],
)
def test_in_form(answer):
    assert in_form(COUPLET, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        REST + "\n",
        "\n" + REST,
        " " + REST,
        "。" + REST,
        REST + "。",
        REST + REST,  # four lines
        REST * 4,
        SIX_LINES[:18],
        REST[:-1],  # cut off
        "欲窮千里目。更上一層樓。",
        "欲窮千里目，更上一層樓，",
        "欲窮千里目，更上一層樓；",
        "欲窮千里目、更上一層樓。",
        "欲窮千里目,更上一層樓.",
        "欲窮千里目，\n更上一層樓。",
        "欲窮千 里目，更上一層樓。",
        "窮千里目，上一層樓。",  # four characters
        "欲窮千里目，更上高一層樓。",
        "欲窮千□目，更上一層樓。",
        "欲窮1里目，更上一層樓。",
        "봄잠에날이，새는줄몰라。",
        "欲窮\ue000里目，更上一層樓。",
        "欲窮千里目，更上一層樓。（王之渙）",
        *HOSTILE[:-1],
    ],
)
def test_out_of_form(answer):
    assert not in_form(COUPLET, answer)


@pytest.mark.parametrize("couplet", ["", "白日依山盡。", "白日依山盡，黃河流。", COUPLET + COUPLET])
def test_nothing_is_in_form_after_what_is_no_couplet(couplet):
    assert not in_form(couplet, REST)


def test_lines_of_a_strange_length_are_in_form_but_have_no_tone():
    scored = score_answer("山高水長，月白風清。", "天寒地凍，海闊天平。", "", ())
    assert scored.form and scored.rhyme
    assert scored.analysis.form is None and scored.tone == 0


# each metric


def test_the_true_poem():
    scored = score_answer(COUPLET, REST, REST, lines_in([COUPLET]))
    assert scored.poem.rest_lines == ("欲窮千里目", "更上一層樓")
    assert scored.form and scored.lines and scored.clean and scored.rhyme
    assert scored.echo == (False, False) and scored.novel == (True, True)
    assert scored.tone == 1 and scored.analysis.form == "五絕"


def test_what_does_not_stop_is_out_of_form_and_judged_as_far_as_the_true_poem_goes():
    scored = score_answer(COUPLET, REST + SIX_LINES + "\n", REST, ())
    assert not scored.form and not scored.lines and scored.analysis is None
    assert scored.verse == ("欲窮千里目", "更上一層樓") and len(scored.poem.rest_lines) == 8
    assert scored.rhyme and scored.tone == 1
    metrics = metrics_of(REST, REST + "\n")
    assert metrics["form"] == metrics["clean"] == 0.5
    assert metrics["rhyme"] == metrics["tone"] == 1


def test_a_line_without_its_fellow_is_not_judged():
    assert score_answer(COUPLET, SIX_LINES[:18], SIX_LINES, ()).verse == (
        "感時花濺淚",
        "恨別鳥驚心",
    )


def test_an_answer_in_form_is_judged_whole():
    assert len(score_answer(COUPLET, SIX_LINES, REST, ()).verse) == 6


def test_a_poem_of_the_true_length_is_in_form():
    eight = "感時花濺淚，恨別鳥驚心。" * 4
    assert score_answer(COUPLET, eight, eight, ()).form
    assert not score_answer(COUPLET, eight, REST, ()).form


def test_lines_of_uneven_length_keep_no_tone_rule():
    scored = score_answer(COUPLET, "欲窮千里目，更上層樓。", REST, ())
    assert scored.tone == 0 and scored.rhyme


def test_the_couplet_is_no_merit():
    """The same answer has the same tone after a couplet that breaks every rule within itself."""
    broken = "白白依依盡，河河入入流。"
    assert score_answer(broken, "欲窮千里目，更上一層樓。", REST, ()).tone == pytest.approx(
        1, abs=0.25
    )
    assert score_answer("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。", REST, ()).tone == 1


def test_no_rhyme():
    scored = score_answer(COUPLET, OTHER_REST, REST, ())
    assert scored.form and not scored.rhyme  # 流 and 思


def test_a_rhyme_word_that_stands_twice_is_no_rhyme():
    assert not score_answer(COUPLET, "欲窮千里目，更上一層流。", REST, ()).rhyme
    assert not score_answer(COUPLET, "", REST, ()).rhyme


def test_length_is_that_of_the_true_poem():
    assert not score_answer(COUPLET, SIX_LINES, REST, ()).lines
    assert score_answer(COUPLET, SIX_LINES, SIX_LINES, ()).lines
    assert score_answer(COUPLET, "a\nb", REST, ()).lines  # out of form, yet two lines
    assert metrics_of(REST, SIX_LINES, "", REST)["lines"] == 0.5


def test_clean():
    assert score_answer(COUPLET, "，。？！；：、山", REST, ()).clean
    assert score_answer(COUPLET, "", REST, ()).clean
    for foreign in " \n,a1□（\ud800\ue000\u200b😀\u3000か한":
        assert not score_answer(COUPLET, f"山{foreign}水", REST, ()).clean
    assert metrics_of(REST, "", "a", "山 水")["clean"] == 0.5


def test_echo_of_the_couplet_and_of_itself_up_to_a_character():
    answer = "黃河入海流，更上一層樓。更上一重樓，欲窮千里目。"
    assert score_answer(COUPLET, answer, SIX_LINES, ()).echo == (True, False, True, False)
    assert metrics_of(answer, REST, "", truth=SIX_LINES)["echo"] == round(0.5 / 3, 4)


def test_novel_against_the_training_lines_up_to_a_character():
    training = [OTHER_COUPLET + OTHER_REST, "欲窮萬里目"]
    known = likenesses(lines_in(training), 2)
    assert score_answer(COUPLET, REST, REST, known).novel == (False, True)
    assert score_answer(COUPLET, REST.replace("里", "山"), REST, known).novel == (True, True)
    assert metrics_of(REST, SIX_LINES, training=training)["novel"] == 0.75


def test_plain_training_lines_find_what_is_the_same():
    assert score_answer(COUPLET, REST, REST, {"欲窮千里目"}).novel == (False, True)


def test_shared_with_another_answer_up_to_a_character():
    table = table_of(REST, "欲窮千里目，夜夜望西樓。", "欲窮萬里目，一一上高樓。", OTHER_REST)
    assert table["shared"].tolist() == [0.5, 0.5, 0.5, 0]


def test_a_line_that_an_answer_has_twice_is_echo_and_not_shared():
    twice = table_of("欲窮千里目，欲窮千里目。", OTHER_REST)
    assert twice["echo"].tolist() == [0.5, 0] and twice["shared"].tolist() == [0, 0]


@given(st.lists(st.text("山水雲月，", max_size=12)), st.lists(st.text("山水雲月，", max_size=12)))
def test_what_is_learnt_of_training_poems_judges_as_all_of_them_do(answers, training):
    known = learnt(*([Poem("", text) for text in texts] for texts in (answers, training)))
    assert known <= likenesses(lines_in(answers), 2)
    everything = likenesses(lines_in(training), 2)
    for answer in answers:
        assert score_answer(COUPLET, answer, REST, known) == score_answer(
            COUPLET, answer, REST, everything
        )


def test_likenesses_meet_where_one_character_differs():
    def near(a, b):
        return not likenesses([a]).isdisjoint(likenesses([b]))

    assert near("欲窮千里目", "欲窮千里目") and near("欲窮千里目", "欲窮萬里目")
    assert not near("欲窮千里目", "欲望萬里目") and not near("山", "水") and near("山", "山")
    assert not near("欲窮千里目", "窮千里目欲")


def test_words_are_attested_pairs():
    assert (
        score_answer(COUPLET, "白雲明月，", "一，二。", ()).words == 0
    )  # no pair of lines to judge
    assert score_answer(COUPLET, "白雲，明月。", REST, ()).words == 1
    assert score_answer(COUPLET, "白雲，鼾竈。", REST, ()).words == 0.5


def test_repeats_within_the_answer():
    assert score_answer(COUPLET, "山水山水，山水山水。", REST, ()).repeats == 0.75
    assert score_answer(COUPLET, REST, REST, ()).repeats == 0


def test_fit_is_chance_without_company_and_0_without_characters():
    assert table_of("白日依山盡，黃河入海流。", "")["fit"].tolist() == [0, 0]
    known = [c for c in REST if c not in "，。"]
    assert table_of(REST, "".join(known))["fit"].between(0, 1).all()


def test_distinct_bigrams_in_the_first_two_lines():
    # 山水 水山 | 山水 | 欲窮 窮千 千里 里目 ... of the 8 that a true rest has, twice.
    assert metrics_of("山水山，山水。", "月。")["distinct2"] == round(2 / 16, 4)
    assert metrics_of(SIX_LINES, truth=SIX_LINES)["distinct2"] == 1
    assert metrics_of("月。")["distinct2"] == 0
    endless = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))  # counts as far as a true line goes
    assert metrics_of(f"{endless}，月。", "月。")["distinct2"] == round(4 / 16, 4)


def test_whole_asks_for_everything():
    couplet, rest = "國破山河在，城春草木深。", SIX_LINES
    first, second = (table_of(a, couplet=couplet, truth=rest).iloc[0] for a in (rest, OTHER_REST))
    assert first["whole"] == 1 and second["whole"] == 0
    faults = [
        rest + "\n",  # form
        rest[:12] + "",  # lines
        rest.replace("金", "錢"),  # rhyme
        rest.replace("簪", "金"),  # one rhyme word twice
        "感淚花濺時，恨別驚鳥心。烽火三月連，家萬書抵金。白更頭短搔，渾欲不勝簪。",  # tone
        rest.replace("烽火連三月", "感時花濺雨"),  # echo
        rest.replace("感時花濺淚", "國破山河有"),  # echo of the couplet
        "甪彧乂爨淚，甪彧鳥驚心。甪彧連三月，甪彧抵萬金。甪彧搔更短，甪彧不勝簪。",  # words
    ]
    for answer in faults:
        assert table_of(answer, couplet=couplet, truth=rest)["whole"].tolist() == [0], answer
    assert table_of(rest, rest, couplet=couplet, truth=rest)["whole"].tolist() == [0, 0]  # shared
    assert table_of(rest, couplet=couplet, truth=rest, training=[rest])["whole"].tolist() == [0]


# groups


def test_keys_and_order():
    assert list(metrics_of(REST)) == KEYS
    assert [key for key in KEYS if not key.endswith("_ci95")] == [
        "poems",
        *(m.name for m in METRICS),
    ]
    assert KEYS[1:3] == ["whole", "whole_ci95"]
    assert [key.removesuffix("_ci95") for key in KEYS if key.endswith("_ci95")] == INTERVALS


def test_a_row_a_poem_whose_mean_is_the_metric():
    answers = [REST, "黃河入海流，\n更上一層樓，更上一層樓。", "", SIX_LINES]
    scored = [score_answer(COUPLET, answer, REST, {"更上一層樓"}) for answer in answers]
    table = tabulated(scored)
    assert list(table) == COLUMNS
    names = "poem written form lines clean rhyme tone novel echo shared".split()
    assert table[names].to_numpy().tolist()[:3] == [
        [1, 2, 1, 1, 1, 1, 1.0, 0.5, 0, 0.5],
        [2, 3, 0, 0, 0, 1, pytest.approx(0.9, abs=0.15), 0.5, 0.5, 0.5],
        [3, 0, 0, 0, 1, 0, 0.0, 0, 0, 0],
    ]
    metrics = summarise(scored, table, [Poem(COUPLET, REST)] * 4, seed=1, resamples=100)
    for metric in METRICS:
        if metric.name != "distinct2":
            assert metrics[metric.name] == round(table[metric.name].mean(), 4)


def test_a_group_of_true_poems():
    truths = [Poem(COUPLET, REST), Poem(OTHER_COUPLET, OTHER_REST)]
    scored = [scoring.score_answer(poem, poem, ()) for poem in truths]
    metrics = summarise(scored, tabulated(scored), truths, seed=42, resamples=100)
    assert all(metrics[key] == 1 for key in ("form", "lines", "clean", "novel", "rhyme"))
    assert metrics["poems"] == 2 and metrics["echo"] == metrics["shared"] == 0
    assert metrics["distinct2"] == 1 and metrics["tone"] > 0.9


@pytest.mark.parametrize("answers", [(), ("",), ("", "", "")])
def test_nothing_written_scores_0(answers):
    metrics = metrics_of(*answers)
    assert metrics.pop("poems") == len(answers)
    assert metrics.pop("clean") == bool(answers)
    assert {value for key, value in metrics.items() if not key.endswith("_ci95")} == {0}


def test_the_interval_of_a_share_is_wilsons():
    assert wilson(300, 300) == pytest.approx((1 - 0.98736) / 2, abs=2e-5)  # 0.98736 to 1
    assert wilson(81, 263) == pytest.approx(
        (0.3662 - 0.2553) / 2, abs=5e-5
    )  # Newcombe 1998, table I
    metrics = metrics_of(*[REST] * 50, *["x"] * 150)
    assert metrics["form"] == 0.25 and metrics["form_ci95"] == round(wilson(50, 200), 4)
    assert metrics_of(*[REST] * 20)["form_ci95"] > 0.05, "20 of 20 are not all there are"


def test_the_interval_of_a_mean_is_the_normal_one():
    metrics = metrics_of(*[REST] * 50, *["x"] * 150, resamples=4000)
    assert metrics["tone"] == 0.25
    normal = 1.96 * (0.25 * 0.75 / 200) ** 0.5  # 0.06
    assert metrics["tone_ci95"] == pytest.approx(normal, rel=0.08)


def test_wilsons_interval_holds_the_truth_19_times_in_20():
    """On average over truths, and never much less, where the share +- two standard errors fails."""
    z = 1.959964**2 / 100
    held = []
    for truth in [number / 200 for number in range(1, 200)]:
        chances = [comb(100, n) * truth**n * (1 - truth) ** (100 - n) for n in range(101)]
        near = [abs((n / 100 + z / 2) / (1 + z) - truth) <= wilson(n, 100) for n in range(101)]
        held.append(sum(chance for chance, inside in zip(chances, near, strict=True) if inside))
    assert mean(held) == pytest.approx(0.95, abs=0.005) and min(held) > 0.83


def test_a_gain_is_the_mean_of_the_differences():
    better, worse = table_of(REST, SIX_LINES, "x"), table_of(REST, "x", "x")
    found = gain(better, worse, seed=1, resamples=100)
    told = [key for key in found if not key.endswith("_ci95")]
    assert told == [key for key in INTERVALS if key != "parallel"]  # which no poem has of both
    assert found["form"] == 0.3333 and found["lines"] == 0
    assert found["form_ci95"] > 0 and found["lines_ci95"] > 0


def test_a_gain_knows_that_poems_are_hard_alike():
    """Half of the poems are failed by both: the paired interval is narrower than two apart."""
    table, other = table_of(*[REST, "x"] * 50), table_of(*[REST, "x"] * 49, "x", "x")
    found = gain(table, other, seed=1, resamples=1000)
    assert found["form"] == 0.01
    assert found["form_ci95"] < 0.05 < 2**0.5 * wilson(50, 100)
    assert found["tone_ci95"] < 0.05


def test_two_runs_without_a_difference_seldom_tell_one():
    """The interval of the gain holds 0 in 19 of 20 pairs of equally good contestants."""
    rng = random.Random(2)
    alarms = 0
    for _ in range(200):
        tables = [table_of(*(rng.choice([REST, "x"]) for _ in range(40))) for _ in range(2)]
        found = gain(*tables, seed=1, resamples=100)
        alarms += abs(found["form"]) > found["form_ci95"]
    assert alarms / 200 < 0.1


def test_the_interval_depends_on_the_seed_alone():
    answers = [REST, SIX_LINES, "x", OTHER_REST] * 8
    assert metrics_of(*answers) == metrics_of(*answers)
    moved = metrics_of(*answers, seed=43)
    assert moved["tone"] == metrics_of(*answers)["tone"]
    assert moved["tone_ci95"] != metrics_of(*answers)["tone_ci95"]
    assert moved["form_ci95"] == metrics_of(*answers)["form_ci95"]


def test_shares_are_columns_of_0_and_1():
    table = table_of(REST, SIX_LINES, "x", OTHER_REST, "", REST + "\n")
    assert table[[*SHARES, "clean"]].isin([0, 1]).all(axis=None)


def test_known_numbers():
    """The same on every machine; a change here changes everyone's metrics."""
    metrics = metrics_of(REST, SIX_LINES, "x", OTHER_REST, "", REST + "\n", resamples=1000)
    assert metrics == KNOWN


KNOWN = {
    **{"poems": 6, "whole": 0.0, "whole_ci95": 0.1952, "form": 0.5, "form_ci95": 0.3124},
    **{"lines": 0.5, "lines_ci95": 0.3124, "clean": 0.6667, "rhyme": 0.3333, "rhyme_ci95": 0.3016},
    **{"tone": 0.6458, "tone_ci95": 0.3333, "fit": 0.25, "fit_ci95": 0.1667},
    **{"words": 0.5764, "words_ci95": 0.3021, "novel": 0.6667, "echo": 0.0},
    **{"any_length": 0.0, "any_length_ci95": 0.1952},
    **{"parallel": 0.3174, "parallel_ci95": 0.0, "surprise": 4.5, "surprise_ci95": 0.0},
    **{
        "in_band": 0.6667,
        "in_band_ci95": 0.3016,
        "near_copies": 0.2222,
        "near_copies_ci95": 0.2778,
    },
    **{"shared": 0.3333, "shared_ci95": 0.3333, "repeats": 0.0, "repeats_ci95": 0.0},
    "distinct2": 0.5,
}


# hostile answers


@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_are_judged(answer):
    scored = score_answer(COUPLET, answer, REST, lines_in([answer]))
    assert len(scored.verse) == len(scored.echo) == len(scored.novel)
    assert not any(scored.novel)
    metrics = metrics_of(answer, REST, couplet=answer or COUPLET)
    assert metrics.pop("poems") == 2 and metrics.pop("surprise") == 4.5
    assert -1 <= metrics.pop("parallel") <= 1
    assert all(0 <= value <= 1 for value in metrics.values())
    shown = side_by_side({"prompt": answer, "true": answer})
    assert_safe(shown)


@given(st.text(st.characters(exclude_categories=()), max_size=80), st.text(max_size=30))
def test_any_answer_is_judged(answer, couplet):
    scored = score_answer(couplet, answer, REST, ())
    assert not scored.form or scored.clean
    assert all(line and line == line.strip() for line in scored.poem.rest_lines)
    assert_safe(side_by_side({"a": answer, "b": couplet}))


def assert_safe(shown):
    text = shown.replace("\n", "")
    assert not {c for c in text if unicodedata.category(c)[0] in "CM" or c in "\u2028\u2029"}
