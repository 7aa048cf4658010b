"""Checkpoints of a run: `checkpoint_folder` keeps the files, `state` is the content of one as a typed value."""

__all__ = ["checkpoint_folder", "state"]
