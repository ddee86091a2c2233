"""Columns of a terminal stay columns, whatever names are in them."""

from stedm.columns import aligned, fitted, width


def test_wide_letters_and_accents_are_counted_as_terminals_show_them():
    assert [width(text) for text in ("abc", "患者", "e\u0301", "a\u200bb")] == [3, 4, 1, 2]
    rows = [["patient", "n"], ["患者", "1"], ["e\u0301mile", "22"]]
    lines = aligned(rows, right={1}, rule=True).splitlines()
    assert lines == ["patient   n", "-------  --", "患者      1", "e\u0301mile    22"]


def test_long_names_keep_both_ends_and_stay_on_a_line():
    assert fitted("x" * 60, 10) == "xxxxx…xxxx"
    assert fitted("experiment-0001-of-many", 12) == "experim…many"
    assert fitted("a\tb\nc") == "a b c"
    assert width(fitted("患" * 40, 20)) <= 20
    assert fitted("short") == "short"
