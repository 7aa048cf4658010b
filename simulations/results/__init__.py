"""What a run leaves: `run_folder` (the files), `records` (the figures), `start` (where one begins or goes on)."""

__all__ = ["records", "run_folder", "start"]
