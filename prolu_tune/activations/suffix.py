"""The layers after a hook alone: the blocks before it are passed over while given activations take their place."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

# Names of the hook points themselves; `hook_resid_pre` and `hook_resid_post` are TransformerLens's aliases for them.
BLOCK_HOOK = re.compile(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)")


class SuffixPass:
    """Turns a bridge's forward pass into one of the layers after a residual-stream hook, for a while.

    Embeddings, masks and rotary angles are computed as always; blocks before the hook hand their input on, the last
    of them hands on the given activations.
    """

    def __init__(self, bridge: Any, hook: str) -> None:
        """Args:
        bridge: a TransformerBridge.
        hook: the hook point's own name.
        """
        found = BLOCK_HOOK.fullmatch(hook)
        self._blocks: list[Any] = []
        if found is not None and hasattr(bridge, "blocks"):
            after = found.group(2) in ("hook_out", "hook_resid_post")
            self._blocks = list(bridge.blocks)[: int(found.group(1)) + after]
        self._as_tuple: bool | None = None
        self.possible = bool(self._blocks)
        """Whether there is anything to pass over; False also after `observed` saw a block that cannot be imitated."""
        self.checked: bool | None = None
        """Whether the shortened pass gave the full pass's losses; None: not compared yet."""

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Watches a full pass inside the block to learn in which form blocks hand on their output."""

        def watch(_module: object, _inputs: object, output: Any) -> None:
            if isinstance(output, tuple):
                self._as_tuple = True
                self.possible = len(output) == 1
            else:
                self._as_tuple = False
                self.possible = isinstance(output, Tensor)

        handle = self._blocks[0].register_forward_hook(watch)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def injected(self, activations: Float[Tensor, "rows ctx d_in"]) -> Iterator[None]:
        """Forward passes inside the block go on from these activations at the hook."""
        # Straight into the instance: a bridge's own __setattr__ would hand the name on to the module it wraps.
        for block in self._blocks[:-1]:
            block.__dict__["forward"] = self._hand_on
        self._blocks[-1].__dict__["forward"] = lambda *args, **kwargs: self._formed(activations)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.__dict__["forward"]

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        return self._formed(args[0] if args else kwargs["hidden_states"])

    def _formed(self, tensor: Tensor) -> Any:
        return (tensor,) if self._as_tuple else tensor
