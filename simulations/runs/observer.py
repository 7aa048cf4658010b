"""Who follows a run: a progress bar, event files, a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpress.compression.models.step import SearchProgress
    from fedpress.simulations.results.records import Results, RoundResult, StudentResult
    from fedpress.simulations.results.run_folder import RunFolder
    from fedpress.simulations.scenario.scenario import Scenario


class Observer:
    """Follows a run; a subclass overrides what it wants to be told."""

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """The run begins; nothing has been loaded yet."""

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """The run goes on after these rounds; comes after `on_start`, and not at all when there were none."""

    def on_round(self, result: RoundResult) -> None:
        """A round is over."""

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """The search for a tier's student goes on."""

    def on_student(self, result: StudentResult) -> None:
        """A student was made, downloaded and evaluated."""

    def on_end(self, results: Results) -> None:
        """The run is over, finished or interrupted; the folder holds these results."""
