"""Numbers, times and names as people read them: one way everywhere, on the screen, in tables and as run names."""

import re


def number(value: float | None, *, digits: int = 3) -> str:
    """Returns a measurement in a few significant digits (`24.8`, `0.113`, `3.2e-4`), `-` for none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10 ** max(digits, 4):
        rounded = f"{value:.{digits}g}"
        return f"{float(rounded):.0f}" if "e" in rounded else rounded
    return _short_exponent(f"{value:.{digits - 1}e}")


def signed(value: float | None) -> str:
    """Returns a difference with its sign and two decimals, as `+0.11`; smaller ones keep two digits."""
    if value is None:
        return "-"
    return f"{value:+.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:+.2g}"


def coefficient(value: float | None) -> str:
    """Returns a coefficient so that neighbours of a grid stay apart: `0.9216`, `3.2e-4`."""
    return number(value, digits=4)


def count(value: float | None) -> str:
    """Returns a count in thousands, millions, billions: `812`, `31.2k`, `402M`."""
    if value is None:
        return "-"
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (float("inf"), 1e9, "B")):
        # 999.6k rounds to 1.00M: the limit is where three digits end, not where the unit does.
        if abs(value) < limit * 0.9995:
            return f"{value:.0f}" if divisor == 1 else f"{value / divisor:.3g}{unit}"
    raise AssertionError(f"no unit for {value}")


def duration(seconds: float | None) -> str:
    """Returns a time as `0:07`, `12:30`, `3:04:00` or `2 d 3 h`, `-` for none."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def trial_label(architecture: str | None, l1_coefficient: float | None, seed: int | None = None) -> str:
    """Returns the name of a trial and of its MLflow run, such as `prolu_ste+l1 c=3.2e-4 s0`."""
    label = f"{architecture or '?'} c={coefficient(l1_coefficient)}"
    return label if seed is None else f"{label} s{seed}"


def fit(text: str, width: int) -> str:
    """Returns the text cut to `width` columns; a cut one ends in `…`."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"[: max(0, width)]


def _short_exponent(text: str) -> str:
    """Returns `3.20e-04` as `3.2e-4`."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)e([+-])0*(\d+)", text)
    assert match, text
    mantissa, sign, power = match.groups()
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{'-' if sign == '-' else ''}{power}"
