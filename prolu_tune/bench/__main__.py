"""`python -m prolu_tune.bench NAME ...` runs the measurement of that name and imports no other; `step` needs torch only."""

import runpy
import sys

from prolu_tune.errors import InputError, SurroundingsError

NAMES = ("all", "crossover", "evaluate", "frontier", "memory", "overhead", "search", "step", "stream", "sweep", "trial")


def main() -> int:
    """Returns the exit code: 0; 2 or 3 with one sentence on what was wrong with the arguments or the surroundings."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        asked = f"{name!r} is no measurement" if name else "which measurement?"
        print(f"{asked}; write python -m prolu_tune.bench NAME with one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    try:
        runpy.run_module(f"prolu_tune.bench.{name}", run_name="__main__")
    except (InputError, SurroundingsError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
