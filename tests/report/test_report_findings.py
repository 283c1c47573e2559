"""Each finding on sweeps that were made to confirm it, to contradict it, and to leave it open."""

from typing import Any

import pytest
from report_samples import ALL, curves, run

from prolu_tune.report.curves import Planes
from prolu_tune.report.findings import FAILS, HOLDS, UNKNOWN, Finding, check_findings

SIDES = {"prolu_ste+l1": (3.0, 24.0), "prolu_relu+sqrt_l1": (12.0, 100.0)}


def finding(number: int, rows: list[dict[str, Any]]) -> Finding:
    return check_findings(Planes(rows))[number - 1]


def as_the_post_says() -> list[dict[str, Any]]:
    """Returns a sweep in which all five findings hold."""
    rows: list[dict[str, Any]] = []
    for name in ALL:
        low, high = SIDES.get(name, (5.0, 90.0))
        if name == "prolu_ste+l1":
            low, high = 3.0, 24.0
        for i in range(6):
            l0 = low * (high / low) ** (i / 5)
            factor = {"prolu_ste+l1": 0.7, "prolu_relu+sqrt_l1": 0.8}.get(name, 1.0)
            l1 = 10 * l0**0.5 * (1.2 if name.startswith("prolu") else 1.0)
            mse = 3 / l1 * {"relu+l1": 1.0, "prolu_ste+sqrt_l1": 1.0 if i >= 3 else 1.2}.get(name, 1.3)
            bias = 0.9 if name.startswith("prolu") else 0.5
            rows.append(run(len(rows), name, l0, factor / l0, l1=l1, mse=mse, frac_negative_bias=bias))
    return rows


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_sweep_made_to_the_post_s_words_confirms_every_finding(number):
    found = finding(number, as_the_post_says())
    assert found.number == number and found.verdict == HOLDS, found.parts
    assert all(part.numbers for part in found.parts)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_nothing_can_be_told_from_no_runs(number):
    assert finding(number, []).verdict == UNKNOWN


def test_one_dense_run_of_prolu_ste_contradicts_the_first_finding_and_is_named():
    rows = [*as_the_post_says(), run(99, "prolu_ste+l1", 31.4, 0.1, l1_coefficient=0.05)]
    found = finding(1, rows)
    assert found.verdict == FAILS
    assert "6 of 7 runs" in found.parts[0].numbers and "31.4 at 0.05" in found.parts[0].numbers


def test_another_architecture_that_is_better_contradicts_the_second_finding_and_is_named():
    rows = as_the_post_says()
    for row in rows:
        if row["architecture"] == "relu+sqrt_l1":
            row["ce_degradation"] *= 0.5
    found = finding(2, rows)
    assert found.verdict == FAILS
    assert all("relu+sqrt_l1" in part.numbers for part in found.parts)


def test_the_second_finding_needs_something_to_compare_with_on_both_sides_of_25():
    rows = [row for row in as_the_post_says() if row["l0"] < 25]
    below, above = finding(2, rows).parts
    assert below.verdict == HOLDS and above.verdict == UNKNOWN


def test_a_tie_leaves_the_second_finding_open():
    rows = as_the_post_says()
    for row in rows:
        row["ce_degradation"] = 1 / row["l0"]
    assert finding(2, rows).verdict == UNKNOWN


def test_relu_off_the_frontier_contradicts_the_third_finding():
    rows = as_the_post_says()
    for row in rows:
        if row["architecture"] == "prolu_relu+l1":
            row["mse"] *= 0.5
    everywhere, _ = finding(3, rows).parts
    assert everywhere.verdict == FAILS and "prolu_relu+l1 is lower" in everywhere.numbers


def test_prolu_ste_that_stays_behind_contradicts_the_third_finding():
    rows = as_the_post_says()
    for row in rows:
        if row["architecture"].startswith("prolu_ste"):
            row["mse"] *= 1.5
    everywhere, joins = finding(3, rows).parts
    assert everywhere.verdict == HOLDS and joins.verdict == FAILS


def test_a_lower_l1_contradicts_the_fourth_finding_and_an_equal_one_leaves_it_open():
    rows = as_the_post_says()
    for row in rows:
        row["l1"] = 10 * row["l0"] ** 0.5 * (0.9 if row["architecture"] == "prolu_ste+l1" else 1.0)
    parts = {part.claim.split()[0]: part for part in finding(4, rows).parts}
    assert parts["prolu_ste+l1"].verdict == FAILS and "0.90 times" in parts["prolu_ste+l1"].numbers
    assert parts["prolu_relu+l1"].verdict == UNKNOWN


def test_biases_are_counted_to_whole_per_cent():
    rows = [run(i, "prolu_ste+l1", 10 + i, 0.1, frac_negative_bias=0.994) for i in range(10)]
    assert finding(5, rows).verdict == HOLDS
    rows = [run(i, "prolu_ste+l1", 10 + i, 0.1, frac_negative_bias=0.996) for i in range(10)]
    found = finding(5, rows)
    assert found.verdict == FAILS and "0 of 10 ProLU runs" in found.parts[0].numbers


def test_relu_s_biases_do_not_count():
    rows = [run(i, name, 10 + i, 0.1, frac_negative_bias=bias) for i, (name, bias) in enumerate(
        [("relu+l1", 0.1), ("prolu_relu+l1", 0.85), ("prolu_ste+l1", 0.95)]
    )]  # fmt: skip
    assert finding(5, rows).verdict == HOLDS


def test_with_seeds_the_fourth_finding_carries_an_interval():
    rows = curves(seeds=3)
    for row in rows:
        row["l1"] *= 1.3 if row["architecture"].startswith("prolu") else 1.0
    found = finding(4, rows)
    assert found.verdict == HOLDS and all("95 % interval" in part.numbers for part in found.parts)
