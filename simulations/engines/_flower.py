"""What the engines take from Flower that Flower does not call public; tests/test_flower_doors.py lists it.

What needs Ray is in `_flower_on_ray`.
"""

from flwr.common.constant import ErrorCode as ErrorCode
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity


def identify(run: int, node: int, task: int) -> None:
    """Say who this process is: without, no message can be made."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, task
