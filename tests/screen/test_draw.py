"""Strips, axes and scatters, character by character."""

import pytest

from prolu_tune.config.names import ALL_ARCHITECTURES
from prolu_tune.screen.draw import axis_line, legend, letter, log_range, scatter, strip, style

AXIS = (1.0, 1000.0)


def test_a_strip_marks_where_trials_landed_and_where_running_ones_are():
    # Thirty columns over three decades, ten to each.
    line = strip([1.0, 10.0, 999.0], [100.0, None], axis=AXIS, width=32)
    assert line == " " + "●" + "·" * 9 + "●" + "·" * 9 + "○" + "·" * 8 + "●" + " "


def test_a_landed_trial_hides_a_running_one_and_what_is_outside_stands_at_the_ends():
    assert strip([10.0, 0.0, 0.5], [10.5, 5000.0], axis=AXIS, width=5) == "<·●·>"


def test_an_empty_strip_and_an_ascii_one():
    assert strip([5.0], [], axis=None, width=6) == " ···· "
    assert strip([1.0], [999.0], axis=AXIS, width=6, ascii_only=True) == " #..o "


def test_the_ticks_of_an_axis_stand_above_their_columns():
    # 200 and 500 would touch their neighbours: powers of ten go first.
    assert axis_line(AXIS, 32) == " 1  2  5  10 20 50  100     1000"
    assert axis_line(None, 30) == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([None, 0.0], None), ([33.0, 330.0], (20, 500)), ([3.0], (1, 10)), ([50.0, 50.0], (10, 100))],
)
def test_the_range_of_an_axis_encloses_its_values_and_a_decade(values, expected):
    assert log_range(values) == expected


def test_letters_and_colours_of_the_six_architectures_are_six():
    assert len({letter(name) for name in ALL_ARCHITECTURES}) == len({style(name) for name in ALL_ARCHITECTURES}) == 6
    assert letter("gated+l1").isupper()


def _record(run_id: str, architecture: str, l0: float | None, ce: float | None) -> dict:
    return {"run_id": run_id, "architecture": architecture, "l0": l0, "ce_degradation": ce}


def test_a_scatter_has_a_capital_for_each_run_of_the_frontier_and_small_letters_for_others():
    records = [
        _record("a", "relu+l1", 5.0, 1.0),
        _record("b", "prolu_ste+l1", 50.0, 0.1),
        _record("c", "relu+sqrt_l1", 49.0, 1.0),
        _record("d", "relu+l1", None, 0.5),
    ]
    lines = scatter(records, records[:2], width=60, height=8)
    area = [line.partition("|")[2] for line in lines]
    assert max(map(len, lines)) <= 60
    assert sum(line.count("A") for line in area) == sum(line.count("E") for line in area) == 1
    assert sum(line.count("b") for line in area) == 1 and not any("a" in line for line in area)
    top, bottom = next(i for i, s in enumerate(area) if "A" in s), next(i for i, s in enumerate(area) if "E" in s)
    assert top < bottom and area[top].index("A") < area[bottom].index("E")
    assert "(l0, log)" in lines[-1]


def test_a_single_run_and_none_have_a_scatter_too():
    one = _record("a", "relu+l1", 5.0, 1.0)
    assert any("A" in line for line in scatter([one], [one]))
    assert scatter([], []) == []
    zero = _record("b", "relu+l1", 0.0, 1.0)
    assert "log" not in scatter([one, zero], [zero])[-1]


def test_a_scatter_of_another_plane_can_do_without_braille():
    records = [{"run_id": str(i), "architecture": "relu+l1", "l1": float(i), "mse": 9.0 - i} for i in range(1, 4)]
    lines = scatter(records, records, x="l1", y="mse", width=70, ascii_only=True)
    assert all(line.isascii() for line in lines) and any("..." in line for line in lines)


def test_a_legend_keeps_to_its_width():
    lines = legend(ALL_ARCHITECTURES, 60)
    assert len(lines) == 3 and all(len(line) <= 60 for line in lines)
    assert lines[0] == "A relu+l1             B relu+sqrt_l1"
