"""Messages of the protocol on Flower, for both sides.

`orders` has the order that a server sends and the answer of a client, `records` converts and measures Flower's
messages. `hub_pb2` and `hub_pb2_grpc` are the protocol of the hub, generated from hub.proto by `make proto`.
`flower_version` warns of a Flower that is newer than tested.
"""

__all__ = ["flower_version", "hub_pb2", "hub_pb2_grpc", "orders", "records"]
