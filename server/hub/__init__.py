"""The hub: a gRPC service that hands out students' bundles, and who may take them (`admission`)."""

__all__ = ["admission", "service"]
