"""The names an architecture is put together from.

Each name is also the name of a function: nonlinearities stand in `prolu_tune.sae.nonlinearities`, penalties in
`prolu_tune.sae.penalties`. A new one is that function and one line here.
"""

NONLINEARITIES: tuple[str, ...] = (
    "relu",
    "prolu_relu",
    "prolu_ste",
)

PENALTIES: tuple[str, ...] = (
    "l1",
    "sqrt_l1",
)


def architecture_name(nonlinearity: str, penalty: str) -> str:
    """Returns the post's word for the pair, such as `prolu_ste+sqrt_l1`."""
    return f"{nonlinearity}+{penalty}"


def split_architecture(architecture: str) -> tuple[str, str]:
    """Returns (nonlinearity, penalty) of `nonlinearity+penalty`.

    Raises:
        ValueError: if either half is not a known name.
    """
    nonlinearity, _, penalty = architecture.partition("+")
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"{nonlinearity!r} is not a nonlinearity; choose one of {', '.join(NONLINEARITIES)}")
    if penalty not in PENALTIES:
        raise ValueError(f"{penalty!r} is not a penalty; write nonlinearity+penalty with one of {', '.join(PENALTIES)}")
    return nonlinearity, penalty


ALL_ARCHITECTURES: tuple[str, ...] = tuple(architecture_name(n, p) for n in NONLINEARITIES for p in PENALTIES)


def place(architecture: str) -> int:
    """Returns the place of an architecture in every list, legend and palette."""
    if architecture in ALL_ARCHITECTURES:
        return ALL_ARCHITECTURES.index(architecture)
    return len(ALL_ARCHITECTURES) + sum(architecture.encode()) % 20
