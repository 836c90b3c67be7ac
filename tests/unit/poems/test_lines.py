"""Which characters count as Chinese, and how a text falls into lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verse.poem import split_lines
from verse.poems.lines import IDEOGRAPHS, in_form, outgrown, parse_lines, write_lines


@pytest.mark.parametrize("code", [0x3007, 0x3400, 0x4E00, 0x9FFF, 0xF900, 0xFAFF, 0x20000, 0x3FFFF])
def test_ideographs(code):
    assert IDEOGRAPHS.fullmatch(chr(code))


@pytest.mark.parametrize(
    "code",
    [
        0x33FF,
        0x4DC0,  # a hexagram
        0xA000,  # Yi
        0xAC00,  # Hangul
        0xD800,  # half a surrogate pair
        0xE000,  # private use
        0xF8FF,
        0xFB00,  # a Latin ligature
        0x1F600,  # an emoji
        0x40000,
    ],
)
def test_other_characters(code):
    assert not IDEOGRAPHS.search(chr(code))


COUPLET = "白日依山盡，黃河入海流。"
LINES = [("白日依山盡", "，"), ("黃河入海流", "。")]


def test_a_couplet_in_form_is_read_alike():
    assert list(split_lines(COUPLET)) == parse_lines(COUPLET) == LINES
    assert write_lines(LINES) == COUPLET


@given(st.text("山\n，。"), st.text("山\n，。"))
def test_what_has_outgrown_every_form_comes_back_to_none(begun, more):
    if outgrown(begun):
        assert outgrown(begun + more) and not in_form(COUPLET, begun + more)


def test_a_form_is_outgrown_by_a_line_break_or_a_seventh_line():
    whole = COUPLET * 3
    assert in_form(COUPLET, whole)
    assert not any(outgrown(whole[:length]) for length in range(len(whole) + 1))
    assert outgrown(whole + "山") and outgrown(COUPLET + "\n")


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ("山，，水。", [("山", "，，"), ("水", "。")], [("山", "，"), ("", "，"), ("水", "。")]),
        ("山\n水", [("山", "\n"), ("水", "")], [("山\n水", "。")]),
        ("山 ,\n水", [("山", ",\n"), ("水", "")], [("山", ","), ("水", "。")]),
        ("山｡水", [("山｡水", "")], [("山", "｡"), ("水", "。")]),
        ("\uf90a", [("\uf90a", "")], [("金", "。")]),
        ("", [], []),
        ("。", [], [("", "。")]),
    ],
)
def test_out_of_form_a_poem_is_read_more_strictly_than_an_answer(text, loose, strict):
    assert list(split_lines(text)) == loose
    assert parse_lines(text) == strict


def test_only_questions_and_exclamations_keep_their_marks():
    marks = "，。、；：？！,.､｡．;:?!"
    assert write_lines(("山", mark) for mark in marks) == "山，山。山，山。山，山？山！" + (
        "山。山，山。山，山。山，山。山？山！"
    )


@given(st.lists(st.tuples(st.text("山水\U00020000", min_size=1), st.sampled_from("，。？！"))))
def test_what_is_written_is_read_as_it_was(lines):
    text = write_lines(lines)
    assert parse_lines(text) == list(split_lines(text))
    assert [line for line, _ in parse_lines(text)] == [line for line, _ in lines]
