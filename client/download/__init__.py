"""Students on a device: fetched from a hub, verified, run. Needs neither torch nor Flower.

`pull` downloads from a hub, `receive` verifies a bundle that came in a Flower message, `infer` runs one in ONNX
Runtime, `certificates` explains why a hub's certificate is not trusted.
"""

__all__ = ["certificates", "infer", "pull", "receive"]
