"""Observers of a run, such as a progress bar or event files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpress.compression.models.step import SearchProgress
    from fedpress.simulations.results.records import Results, RoundResult, StudentResult
    from fedpress.simulations.results.run_folder import RunFolder
    from fedpress.simulations.scenario.scenario import Scenario


class Observer:
    """Observer of a run that ignores everything; a subclass overrides the methods that it needs."""

    def on_notes(self, notes: Sequence[str]) -> None:
        """The checks before the run have found nothing that forbids it, and this that is unusual."""

    def on_start(self, scenario: Scenario, folder: RunFolder) -> None:
        """A run begins; neither data nor model are loaded yet.

        Args:
            scenario: The scenario.
            folder: Of the run.
        """

    def on_resume(self, rounds: list[RoundResult]) -> None:
        """A run goes on after these rounds; called after `on_start`, and not at all if there were none."""

    def on_round(self, result: RoundResult) -> None:
        """A round has ended."""

    def on_search(self, tier: str, step: SearchProgress) -> None:
        """The search for a student has made progress.

        Args:
            tier: Name of the student's tier.
            step: Progress of the search.
        """

    def on_student(self, result: StudentResult) -> None:
        """A student was made, downloaded and evaluated."""

    def on_end(self, results: Results) -> None:
        """The run has ended, finished or interrupted; the folder holds these results."""
