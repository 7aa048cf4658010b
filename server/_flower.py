"""Names outside Flower's public API that the server uses; tests/test_flower_doors.py lists them."""

from flwr.common.constant import ErrorCode as ErrorCode
from flwr.supercore.run import Run as Run

from fedpress.compression.messages import flower_version

flower_version.warn_if_untested()
