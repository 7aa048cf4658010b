"""Results of a run: `run_folder` (its files), `records` (its figures), `start` (a new folder, or one to go on with)."""

__all__ = ["records", "run_folder", "start"]
