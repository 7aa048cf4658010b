"""Flower messages as both sides read them: `orders` (what a server asks), `records` (messages as bytes and arrays).

`hub_pb2` and `hub_pb2_grpc` are the protocol of the hub, generated from hub.proto by make proto. `flower_version`
warns of a Flower that is newer than tested.
"""

__all__ = ["flower_version", "hub_pb2", "hub_pb2_grpc", "orders", "records"]
