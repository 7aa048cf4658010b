"""Messages of the protocol on Flower, for both sides.

`orders` has the order that a server sends and the answer of a client, `records` converts and measures Flower's
messages. `pieces` cuts what is too long for one record, `base_parts` are those of a pretrained base. `hub_pb2` and
`hub_pb2_grpc` are the protocol of the hub, generated from hub.proto by `make proto`. `flower_version` warns of a Flower
that is newer than tested.
"""

__all__ = ["base_parts", "flower_version", "hub_pb2", "hub_pb2_grpc", "orders", "pieces", "records"]
