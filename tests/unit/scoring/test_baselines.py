"""The baselines: answers without sense, the same for the same poems and seed."""

import pytest

from verse.poem import Poem
from verse.poems.lines import in_form
from verse.scoring.baselines import another_rest, commonest_shape, constant, random_characters
from verse.scoring.scoring import score_answer

FIVE = Poem("國破山河在，城春草木深。", "感時花濺淚，恨別鳥驚心。")
SEVEN = Poem("朝辭白帝彩雲間，千里江陵一日還。", "兩岸猿聲啼不住，輕舟已過萬重山。")
LONG = Poem(FIVE.couplet, FIVE.rest + "烽火連三月，家書抵萬金。白頭搔更短，渾欲不勝簪。")
OTHER = Poem("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。")
TRAINING = [LONG, LONG, SEVEN, Poem("細草微風岸，危檣獨夜舟。", LONG.rest)]


@pytest.mark.parametrize("poem", [FIVE, SEVEN])
def test_random_characters_keep_tones_and_rhymes(poem):
    (answer,) = random_characters([poem], TRAINING, 1)
    scored = score_answer(answer, answer, ())
    assert scored.form and scored.tone > 0.9
    assert len(answer.lines) == 8, "as many lines as most training poems have"
    pool = {c for poem in TRAINING for c in poem.text}
    assert answer.couplet == poem.couplet and set(answer.rest) <= pool


def test_the_rhyme_words_are_the_training_poems_and_differ():
    training = [*TRAINING, Poem("春風，秋月。", "陰沉，今音。")]
    (answer,) = random_characters([FIVE], training, 1)
    ends = [line[-1] for line in answer.rest_lines[1::2]]
    assert len(set(ends)) == 3 and set(ends) <= set("心金簪沉音")


def test_the_seed_and_the_couplet_decide():
    one = random_characters([FIVE, SEVEN], TRAINING, 1)
    assert one == random_characters([FIVE, SEVEN], TRAINING, 1)
    assert one[1:] == random_characters([SEVEN], TRAINING, 1)
    assert one != random_characters([FIVE, SEVEN], TRAINING, 2)


@pytest.mark.parametrize(
    "couplet", ["", "。", "山。", "a，b。", "甲" * 40 + "，" + "乙" * 40 + "。"]
)
def test_any_couplet_is_answered(couplet):
    (answer,) = random_characters([Poem(couplet)], TRAINING, 1)
    assert answer.couplet == couplet and answer.rest


def test_the_constant_is_of_the_commonest_shape():
    assert commonest_shape(TRAINING) == (6, 5)
    assert constant([FIVE, SEVEN], TRAINING, 1) == [
        Poem(poem.couplet, LONG.rest) for poem in (FIVE, SEVEN)
    ]


def test_another_rest_is_of_the_same_shape_if_there_is_one():
    poems = [FIVE, SEVEN, OTHER]
    answers = [answer.rest for answer in another_rest(poems, TRAINING, 1)]
    assert answers[0] == OTHER.rest and answers[2] == FIVE.rest
    assert answers[1] == OTHER.rest, "the next, for want of another in seven characters"
    assert in_form(FIVE.couplet, answers[0])
    assert another_rest([FIVE], TRAINING, 1) == [FIVE]
