"""Checkpoints of a run: `checkpoint_folder` keeps the files, `state` is the content of one as a typed value.

`journal` has the rounds since the last one, and `settings` the share of the time that checkpoints may take.
"""

__all__ = ["checkpoint_folder", "journal", "settings", "state"]
