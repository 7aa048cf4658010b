"""Flower messages as both sides read them: `orders` (what a server asks), `records` (how content travels).

`hub_pb2` and `hub_pb2_grpc` are the protocol of the hub, generated from hub.proto by `make proto`.
"""

__all__ = ["hub_pb2", "hub_pb2_grpc", "orders", "records"]
