"""A screen that shows nothing: it remembers what a person was told, because that must stay true."""

from typing import Any

from prolu_tune.screen.screen import Screen


class QuietScreen(Screen):
    """What the driver says goes to the world."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.notes: list[str] = []

    def start(self, sweep: Any, architectures: Any, total: Any, done: int = 0, l0_range: Any = None, records: Any = ()) -> None:
        shown = {record["trial"]: record["state"] for record in records}
        for index, state in self._world.acknowledged.items():
            if shown.get(index) != state:
                self._world.violation(f"trial {index} was shown as {state}, a later start knows it as {shown.get(index)}")

    def trial_started(self, index: int, label: str, architecture: str) -> None:
        if index in self._world.acknowledged:
            self._world.violation(f"trial {index} was started again after its end had been shown")

    def trial_progress(self, index: int, row: Any) -> None:
        """Shows nothing."""

    def trial_ended(self, record: Any, state: str, message: str | None = None) -> None:
        if record["trial"] in self._world.acknowledged:
            self._world.violation(f"the end of trial {record['trial']} was shown twice")
        self._world.acknowledged[record["trial"]] = state

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._world.say(f"note: {text}")

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Shows nothing."""

    def finish(self, records: Any, frontier: Any, next_commands: Any) -> None:
        """Shows nothing."""

    def stop(self) -> None:
        """Has nothing to give back."""
