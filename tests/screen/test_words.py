"""Numbers, times and names as people read them."""

import pytest

from prolu_tune.screen.words import coefficient, count, duration, fit, number, signed, trial_label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (24.83, "24.8"), (1234.0, "1230"), (99999.0, "1e5"), (0.11312, "0.113"), (0.00032, "3.2e-4"),
        (-0.00032, "-3.2e-4"), (1e-12, "1e-12"), (7, "7"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3.2e-4, "3.2e-4"), (0.9216, "0.9216"), (0.32, "0.32"), (1.3824, "1.382"), (2.0, "2")]
)
def test_coefficients_keep_four_digits(value, text):
    assert coefficient(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.11, "+0.11"), (-0.5, "-0.50"), (0.0123, "+0.012"), (0.0, "+0.00"), (None, "-"), (12.0, "+12.00")]
)
def test_differences_have_their_sign(value, text):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(812, "812"), (999.6, "1k"), (31234, "31.2k"), (999_600, "1M"), (402_653_184, "403M"), (2e9, "2B"), (None, "-")],
)
def test_counts_have_units(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "0:07"), (59.6, "1:00"), (750, "12:30"), (11040, "3:04:00"), (183600, "2 d 3 h"), (None, "-"), (-1, "0:00")],
)
def test_times_have_units(seconds, text):
    assert duration(seconds) == text


def test_a_label_names_architecture_coefficient_and_seed():
    assert trial_label("prolu_ste+l1", 3.2e-4, 0) == "prolu_ste+l1 c=3.2e-4 s0"
    assert trial_label("relu+l1", 2.0) == "relu+l1 c=2"


def test_text_is_cut_with_a_mark():
    assert (fit("abcdef", 6), fit("abcdef", 4), fit("abc", 0)) == ("abcdef", "abc…", "")
