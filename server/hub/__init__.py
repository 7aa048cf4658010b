"""The hub: a gRPC service from which devices download students (`service`), with its access control (`admission`)."""

__all__ = ["admission", "service"]
