"""The statistics of Tang verse, and the figures that rest on them."""

import numpy as np
import pytest

from tools.known_lines import packed
from verse.scoring.cooccurrence import cooccurrence, fits, parallel, rivals, unrhymed, words
from verse.scoring.known_lines import stands_elsewhere, unpacked

MOON = ["牀前明月光", "疑是地上霜"]
WAR = ["烽火照西京", "心中自不平"]
FRONTIER = ["胡沙擁塞門", "單于夜射鵰"]


def test_the_company_of_characters_is_mutual_and_a_character_is_none_of_its_own():
    company = cooccurrence().company
    assert np.array_equal(company, company.T) and not company.diagonal().any()
    assert np.array_equal(company, np.rint(company)), "sums of it are exact"
    place = cooccurrence().place
    assert company[place["胡"], place["塞"]] > 0 > company[place["漁"], place["塞"]]


def test_pairs_are_attested():
    attested = cooccurrence().attested
    assert {"明月", "白雲", "春風"} <= attested and not {"甲甲", "鳥甲"} & attested
    assert words(["明月白雲"]) >= 2 / 3
    assert words([]) == words(["月"]) == words([""]) == 0


def test_rhyme_words_are_left_out():
    assert unrhymed(MOON) == "牀前明月光疑是地上"


def test_a_couplet_explains_what_belongs_to_it():
    others = rivals([MOON, ["春眠不覺曉", "處處聞啼鳥"], ["采蓮南塘秋", "蓮花過人頭"]])
    (fit,) = fits([WAR], [FRONTIER], others)
    assert fit == 1
    (strange,) = fits([["采蓮南塘秋", "蓮花過人頭"]], [FRONTIER], rivals([WAR] * 3))
    assert strange == 0


def test_a_tie_counts_half_and_a_couplet_among_its_rivals_ties():
    assert fits([WAR], [FRONTIER], rivals([WAR])) == [0.5]


def test_what_the_answer_took_from_its_couplet_counts_for_nothing():
    others = rivals([MOON])
    assert fits([WAR], [WAR], others) == [0]
    own, more = fits([WAR, WAR], [FRONTIER, [FRONTIER[0] + "烽火", FRONTIER[1]]], others)
    assert own == more


def test_couplets_of_the_same_length_are_compared_if_there_are_any():
    longer = ["獨在異鄉為異客", "每逢佳節倍思親"]
    assert fits([WAR], [FRONTIER], rivals([WAR, longer])) == [0.5]
    assert fits([WAR], [FRONTIER], rivals([longer]))[0] in (0, 1)


def test_nothing_fits_nothing():
    assert fits([WAR, [], WAR], [[], FRONTIER, ["\x00"]], rivals([MOON]))[::2] == [0, 0]
    assert fits([WAR], [FRONTIER], rivals([])) == [0]
    assert fits([], [], rivals([MOON])) == []


def test_middle_couplets_of_a_poem_are_parallel_and_the_last_is_not():
    assert parallel(["兩箇黃鸝鳴翠柳", "一行白鷺上青天"]) > 0.3
    assert parallel(["感時花濺淚", "恨別鳥驚心", "烽火連三月", "家書抵萬金"]) > 0.2
    assert parallel(["白頭搔更短", "渾欲不勝簪"]) < 0.1
    assert parallel(["山", "水"]) == parallel(["青山", "水"]) == parallel(["囗囗", "囗囗"]) == 0
    assert parallel([]) is parallel(["青山橫北郭"]) is None


@pytest.mark.parametrize("line", ["小樓一夜聽春雨", "不識廬山真面目", "牆角數枝梅"])  # of the Song
def test_lines_of_other_books_are_known_with_any_character_changed(line):
    assert stands_elsewhere(line)
    for place in range(len(line)):
        assert stands_elsewhere(line[:place] + "囗" + line[place + 1 :])


def test_lines_that_no_other_book_has():
    assert not stands_elsewhere("白日依山盡") and not stands_elsewhere("\ud800")


@pytest.mark.parametrize("hashes", [[], [0], [254, 255, 256, 5000], list(range(0, 9000, 255))])
def test_hashes_come_back_from_their_steps(hashes):
    assert unpacked(packed(np.array(hashes, np.int64))).tolist() == hashes
