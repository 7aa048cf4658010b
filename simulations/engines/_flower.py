"""Private parts of Flower that the engines use; tests/test_flower_doors.py lists them.

Parts that need Ray are in `_flower_on_ray`.
"""

from flwr.common.constant import ErrorCode as ErrorCode
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity


def identify(run: int, node: int, task: int) -> None:
    """Set the identity of this process, without which Flower makes no message.

    Args:
        run: Id of the run.
        node: Id of the node.
        task: Id of the task.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, task
