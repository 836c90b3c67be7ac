"""What a terminal shows: aligned in cells, and no character that steers it."""

from verse.scoring.metrics import METRICS
from verse.scoring.terminal import metrics_table, shown, side_by_side, width_of

COUPLET, REST = "白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"


def test_columns_line_up_in_cells():
    columns = side_by_side({"prompt": COUPLET, "base": "a\x1b[31mb, c", "tuned": "", "true": REST})
    assert columns.split("\n") == [
        "prompt            base              tuned             true",
        "白日依山盡，      a␛[31mb,          (empty)           欲窮千里目，",
        "黃河入海流。      c                                   更上一層樓。",
    ]


def test_what_is_too_wide_or_too_long_is_cut():
    lines = side_by_side({"x": "山" * 10_000 + "，" + "水，" * 2_500}, width=8, height=3).split(
        "\n"
    )
    assert lines == ["x", "山山山…", "水，", "水，", "…"]
    assert max(width_of(line) for line in lines) < 8


def test_what_steers_a_terminal_becomes_a_picture():
    assert shown("\x00\x1b\n山") == "␀␛␊山"
    assert shown("\x7f\x9b\u202e\u0301\ud800") == "\ufffd" * 5
    assert shown("\ufe00\u3164\u2800\u115f") == "\ufffd" * 4


def test_the_table_has_a_row_a_metric():
    values = {m.name: 0.5 for m in METRICS} | {
        f"{m.name}_ci95": 0.0123 for m in METRICS if m.interval
    }
    table = metrics_table({"base": {"poems": 3, **values}, "tuned": {"poems": 3, **values}}).split(
        "\n"
    )
    assert table[0].split() == ["base", "tuned"]
    assert table[1].split() == ["poems", "3", "3"]
    assert [row.split()[0] for row in table[2:]] == [metric.name for metric in METRICS]
    assert table[2].split() == ["whole", "0.500±.012", "0.500±.012"]
    assert table[6].split() == ["clean", "0.500", "0.500"]
    marks = {"poems": 3, "surprise": 6.0, "surprise_ci95": 1.2, "agreement": -0.07}
    wide = metrics_table({"base": marks | {"agreement_ci95": 0.1}, "tuned": marks})
    assert ["surprise", "6.000±1.20", "6.000±1.20"] in [row.split() for row in wide.split("\n")]
