"""The server's state on disk: `checkpoint_folder` are the files, `state` is what goes into one."""

__all__ = ["checkpoint_folder", "state"]
