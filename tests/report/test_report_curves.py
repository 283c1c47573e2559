import numpy as np
import pytest
from report_samples import curves, run

from prolu_tune.report.best_at import best_at
from prolu_tune.report.curves import WIDEST_GAP, Planes, make_plane


def _at(plane, x: float) -> int:
    return int(np.argmin(np.abs(np.log(plane.grid) - np.log(x))))


def test_a_curve_is_straight_in_log_log_between_its_runs():
    plane = make_plane(curves(["relu+l1"]), "l0", "ce_degradation")
    np.testing.assert_allclose(plane.estimate["relu+l1"], 1 / plane.grid, rtol=1e-6)


def test_a_curve_ends_where_its_runs_end():
    rows = [
        run(0, "relu+l1", 10.1, 1.0),
        run(1, "relu+l1", 19.9, 0.5),
        run(2, "prolu_ste+l1", 5, 1.0),
        run(3, "prolu_ste+l1", 40, 0.1),
    ]
    plane = make_plane(rows, "l0", "ce_degradation")
    known = np.isfinite(plane.estimate["relu+l1"])
    assert np.array_equal(known, (plane.grid >= 10.1) & (plane.grid <= 19.9))


def test_runs_far_apart_are_not_joined():
    rows = [run(0, "relu+l1", 1, 1.0), run(1, "relu+l1", 2, 0.5), run(2, "relu+l1", 2 * WIDEST_GAP * 1.1, 0.1)]
    plane = make_plane(rows, "l0", "ce_degradation")
    known = np.isfinite(plane.estimate["relu+l1"])
    assert np.array_equal(known, (plane.grid <= 2) | (plane.grid >= plane.grid[-1]))


def test_a_dominated_setting_bends_no_frontier_but_counts_where_nothing_is_best():
    rows = [run(0, "relu+l1", 10, 1.0), run(1, "relu+l1", 20, 3.0), run(2, "relu+l1", 40, 0.25)]
    frontier, all_runs = (make_plane(rows, "l0", "ce_degradation", frontier=choice) for choice in (True, False))
    assert frontier.estimate["relu+l1"][_at(frontier, 20)] == pytest.approx(0.5, rel=0.02)
    assert all_runs.estimate["relu+l1"][_at(all_runs, 20)] == pytest.approx(3.0, rel=0.05)


def test_seeds_are_averaged_so_that_many_do_not_look_better_than_few():
    rows = [run(0, "relu+l1", 10, 1.0, seed=0, group="a"), run(1, "relu+l1", 10, 4.0, seed=1, group="a")]
    rows += [run(2, "relu+l1", 20, 0.5, seed=seed, group="b") for seed in (0, 1)]
    plane = make_plane(rows, "l0", "ce_degradation")
    assert plane.estimate["relu+l1"][0] == pytest.approx(2.0)


def test_one_seed_gives_no_intervals_and_counts_no_difference_under_five_per_cent():
    rows = curves(["relu+l1", "prolu_ste+l1"])
    plane = make_plane(rows, "l0", "ce_degradation")
    assert plane.replicates is None and plane.interval("relu+l1") is None and plane.chances() is None
    assert set(plane.advantage("relu+l1", ["prolu_ste+l1"])) == {1.0}
    assert set(plane.advantage("prolu_ste+l1", ["relu+l1"])) == {-1.0}
    for row in rows:
        row["ce_degradation"] = 1 / row["l0"] * (1.02 if row["architecture"] == "prolu_ste+l1" else 1.0)
    close = make_plane(rows, "l0", "ce_degradation")
    assert set(close.advantage("relu+l1", ["prolu_ste+l1"])) == {0.0}


def test_larger_is_better_where_the_axis_says_so():
    rows = [run(i, name, l0, 0.1, ce_loss_score=score) for i, (name, l0, score) in enumerate(
        [("relu+l1", 10, 0.8), ("relu+l1", 20, 0.9), ("prolu_ste+l1", 10, 0.6), ("prolu_ste+l1", 20, 0.7)]
    )]  # fmt: skip
    plane = make_plane(rows, "l0", "ce_loss_score")
    assert set(plane.advantage("relu+l1", ["prolu_ste+l1"])) == {1.0}


def _noisy(spread: float) -> list[dict]:
    """Two architectures a tenth apart whose seeds spread by a factor."""
    rows = []
    for place, name in enumerate(("relu+l1", "prolu_ste+l1")):
        for l0 in (5.0, 10.0, 20.0, 40.0):
            for seed, factor in enumerate((1 / spread, 1.0, 1.0, spread)):
                rows.append(run(len(rows), name, l0, (1 + 0.1 * place) / l0 * factor, seed=seed, group=f"{l0}"))
    return rows


def test_seeds_that_agree_settle_a_difference_and_seeds_that_spread_do_not():
    sure, unsure = (make_plane(_noisy(spread), "l0", "ce_degradation") for spread in (1.02, 2.0))
    assert (sure.advantage("relu+l1", ["prolu_ste+l1"]) == 1).all()
    assert (unsure.advantage("relu+l1", ["prolu_ste+l1"]) == 0).all()
    assert {row.words for row in best_at(sure)} == {"beyond noise"}
    assert {row.words for row in best_at(unsure)} == {"within noise"}


def test_intervals_hold_the_estimate_and_the_same_runs_give_the_same_intervals():
    first, second = (make_plane(_noisy(1.3), "l0", "ce_degradation") for _ in range(2))
    low, high = first.interval("relu+l1")
    assert (low <= first.estimate["relu+l1"]).all() and (first.estimate["relu+l1"] <= high).all() and (low < high).all()
    assert np.array_equal(low, second.interval("relu+l1")[0])


def test_chances_of_being_best_add_up_to_one():
    plane = make_plane(_noisy(1.1), "l0", "ce_degradation")
    total = sum(plane.chances().values())
    np.testing.assert_allclose(total, 1.0)
    assert plane.chances()["relu+l1"].mean() > 0.9


def test_the_ratio_at_equal_x_is_the_factor_between_two_curves():
    rows = curves(["relu+l1", "prolu_ste+l1"], seeds=3)
    for row in rows:
        row["l1"] *= 1.25 if row["architecture"] == "prolu_ste+l1" else 1.0
    value, low, high = make_plane(rows, "l0", "l1", frontier=False).ratio("prolu_ste+l1", "relu+l1")
    assert value == pytest.approx(1.25, rel=1e-6) and low < value < high and high / low < 1.02


def test_what_cannot_be_compared_gives_no_plane():
    assert Planes([]).get("l0", "ce_degradation") is None
    assert Planes([run(0, "relu+l1", 10, 1.0)]).get("l0", "ce_degradation") is None


def test_with_one_seed_close_architectures_are_not_told_apart_in_words():
    rows = curves(["relu+l1", "prolu_ste+l1"])
    assert {row.words for row in best_at(make_plane(rows, "l0", "ce_degradation"))} == {"one seed: noise unknown"}
    assert {row.architecture for row in best_at(make_plane(rows, "l0", "ce_degradation"))} == {"relu+l1"}
    for row in rows:
        row["ce_degradation"] = 1 / row["l0"] * (1.01 if row["architecture"] == "relu+l1" else 1.0)
    found = best_at(make_plane(rows, "l0", "ce_degradation"))
    assert {(row.architecture, row.words) for row in found} == {("prolu_ste+l1", "one seed: too close to tell")}
