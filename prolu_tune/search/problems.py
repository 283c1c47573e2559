"""Simulated architectures of all the kinds that real ones come in, to measure searches on.

Scale and shape follow 30 real trainings: log L0 falls by 1 to 2 per unit of log coefficient, bends, starts from half
the latents and sinks towards its end for most of a short training.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prolu_tune.search.coverage import CoverageTarget

KINDS = ("power", "bend", "saturation", "cliff", "collapse")


@dataclass(frozen=True)
class SimulatedArchitecture:
    """One response curve with its courses.

    Args:
        location: log coefficient at which the line crosses `middle`.
        middle: log L0 there.
        slope: of log L0 over log coefficient, negative.
        bend: how much steeper (negative) or flatter the curve gets past `location`.
        ceiling: log L0 that it saturates at.
        cliff: log coefficient of a sudden fall, infinite for none.
        drop: how far log L0 falls there; infinite for a collapse to 0.
        cliff_width: over which log coefficient it falls.
        noise: standard deviation of log L0 between seeds.
        divergence: share of trainings that turn NaN.
        start: log L0 at the start of a training.
        settling: share of the training in which the distance to the end falls to 1/e.
        drift: how far log L0 still moves after settling, upwards if negative.
        jitter: standard deviation of log L0 between reports of one training.
    """

    location: float
    middle: float
    slope: float
    bend: float
    ceiling: float
    cliff: float
    drop: float
    cliff_width: float
    noise: float
    divergence: float
    start: float
    settling: float
    drift: float
    jitter: float

    def curve(self, x: np.ndarray) -> np.ndarray:
        """Log L0 at the end of training without noise, at log coefficients `x`; -inf where L0 is 0."""
        moved = x - self.location
        level = self.middle + self.slope * moved + self.bend * np.logaddexp(0, moved / 0.5) * 0.5
        level = -np.logaddexp(-level / 0.3, -self.ceiling / 0.3) * 0.3
        if math.isfinite(self.cliff):
            depth = np.clip((x - self.cliff) / self.cliff_width, 0, 1)
            level = np.where(depth >= 1, -np.inf, level) if math.isinf(self.drop) else level - self.drop * depth
        return level

    def l0(self, coefficient: float, fraction: float, seed: int) -> float:
        """L0 after a share of a training with this seed; NaN from where it diverges on."""
        rng = np.random.default_rng([seed, zlib.crc32(repr(coefficient).encode())])
        fate, when, noise = rng.random(), rng.random(), rng.standard_normal()
        if fate < self.divergence and fraction >= when:
            return math.nan
        end = float(self.curve(np.array([math.log(coefficient)]))[0])
        dying = math.isinf(end)
        end = -4.0 if dying else end + self.noise * noise
        left = (math.exp(-fraction / self.settling) - math.exp(-1 / self.settling)) / (1 - math.exp(-1 / self.settling))
        level = end + max(self.start - end, 0.3) * left + self.drift * (1 - fraction)
        if fraction < 1:
            level += self.jitter * np.random.default_rng([seed, int(fraction * 1e6)]).standard_normal()
        return 0.0 if dying and level < -1.5 else math.exp(level)


@dataclass(frozen=True)
class Problem:
    """Architectures that share a task, with the careless range of coefficients a user gives."""

    architectures: dict[str, SimulatedArchitecture]
    span: tuple[float, float]

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        return dict.fromkeys(self.architectures, self.span)

    def response(self, architecture: str, l1_coefficient: float, fraction: float, seed: int) -> float:
        """L0 as `simulate` asks for it."""
        return self.architectures[architecture].l0(l1_coefficient, fraction, seed)

    def reachable(self, architecture: str, target: CoverageTarget, width: float = 0.03) -> set[int]:
        """Bins that at least `width` of log coefficient leads to."""
        xs = np.linspace(math.log(self.span[0]), math.log(self.span[1]), 40_001)
        places = np.floor((self.architectures[architecture].curve(xs) - target.log_low) / target.bin_width)
        share = {index: float((places == index).sum()) * (xs[1] - xs[0]) for index in range(target.bins)}
        return {index for index, covered in share.items() if covered >= width}


def make_problem(seed: int, *, num_architectures: int = 6, decades: float = 5.0) -> Problem:
    """A problem whose architectures are of mixed kinds, shifted against each other by up to a factor of about 10."""
    rng = np.random.default_rng([seed, 77])
    low = rng.uniform(-5.5, -3.0)
    span = (10.0**low, 10.0 ** (low + decades))
    inner = math.log(10) * decades
    centre = math.log(span[0]) + inner * rng.uniform(0.3, 0.7)
    settling = float(np.exp(rng.uniform(np.log(0.02), np.log(0.25))))
    start = math.log(rng.uniform(800, 6000))
    architectures = {}
    for index in range(num_architectures):
        kind = KINDS[int(rng.integers(len(KINDS)))]
        architectures[f"{kind}{index}"] = _draw(
            rng, kind, centre=centre, apart=1.2, middle=math.log(30), ceilings=(40, 250), start=start, settling=settling
        )
    return Problem(architectures, span)


def usual_problem(seed: int, ranges: Mapping[str, tuple[float, float]], target: CoverageTarget) -> Problem:
    """A problem as a user may expect it: every curve falls through the target within its range, bent or flat at one end.

    Args:
        seed: of the curves.
        ranges: range of `l1_coefficient` of each architecture.
        target: range of L0 that is wanted.
    """
    rng = np.random.default_rng([seed, 78])
    place, settling = rng.uniform(0.35, 0.65), float(np.exp(rng.uniform(np.log(0.04), np.log(0.25))))
    start = target.log_high + rng.uniform(1.4, 3.4)
    ceilings = target.high * 0.8, target.high * 2
    architectures = {}
    for name, (low, high) in ranges.items():
        kind = ("power", "bend", "saturation")[int(rng.integers(3))]
        inner = math.log(high / low)
        architectures[name] = _draw(
            rng,
            kind,
            centre=math.log(low) + place * inner,
            apart=min(1.2, 0.1 * inner),
            middle=target.log_middle,
            ceilings=ceilings,
            start=start,
            settling=settling,
        )
    lows, highs = zip(*ranges.values(), strict=True)
    return Problem(architectures, (min(lows), max(highs)))


def _draw(
    rng: np.random.Generator,
    kind: str,
    *,
    centre: float,
    apart: float,
    middle: float,
    ceilings: tuple[float, float],
    start: float,
    settling: float,
) -> SimulatedArchitecture:
    """An architecture of a kind, which crosses about log L0 `middle` at most `apart` from the log coefficient `centre`."""
    slope = -rng.uniform(1.0, 2.0)
    location = centre + rng.uniform(-apart, apart)
    return SimulatedArchitecture(
        location=location,
        middle=middle + rng.uniform(-0.3, 0.3),
        slope=slope,
        bend=rng.uniform(-0.8, 0.5) if kind == "bend" else 0.0,
        ceiling=math.log(rng.uniform(*ceilings)) if kind == "saturation" else start - 0.1,
        cliff=location + rng.uniform(-1.0, 1.0) if kind in ("cliff", "collapse") else math.inf,
        drop=math.inf if kind == "collapse" else rng.uniform(0.5, 3.0),
        cliff_width=rng.uniform(0.005, 0.3),
        noise=rng.uniform(0.02, 0.06),
        divergence=0.06,
        start=start,
        settling=settling * rng.uniform(0.8, 1.25),
        drift=rng.uniform(-0.15, 0.35) if rng.random() < 0.5 else 0.0,
        jitter=rng.uniform(0.0, 0.02),
    )
