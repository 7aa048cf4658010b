"""What fedpress touches of Flower beyond its public API, file by file: what to look at for a new version of Flower.

Public is what Flower's own `__init__` files call so: `flwr.app`, `flwr.clientapp`, `flwr.serverapp` with `strategy`,
`mod` and `typing`, and the logger that `flwr.supercore` lists in its `__all__`.
"""

import ast
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("client", "compression", "server", "simulations")
PUBLIC = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.clientapp.mod",
    "flwr.clientapp.typing",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
}
LISTED = {("flwr", "__version__"), ("flwr.supercore", "log")}

DOORS: dict[str, dict[str, set[str]]] = {
    "compression/messages/records.py": {  # both sides: messages as bytes
        "flwr.common": {"serde"},
        "flwr.proto.message_pb2": {"Message"},
        "flwr.proto.recorddict_pb2": {"Array", "RecordDict"},
    },
    "client/_flower.py": {"flwr.supernode.cli.flwr_clientapp": {"flwr_clientapp"}},
    "server/_flower.py": {
        "flwr.app.message": {"make_message"},
        "flwr.common.constant": {"ErrorCode"},
        "flwr.proto.message_pb2": {"ObjectTree"},
        "flwr.proto.runtime_pb2": {"PullAppMessagesRequest", "PullAppMessagesResponse"},
        "flwr.supercore.inflatable.inflatable_object": {
            "get_object_body",
            "get_object_head_values_from_object_content",
        },
        "flwr.supercore.inflatable.inflatable_utils": {"inflatable_class_registry"},
        "flwr.supercore.run": {"Run"},
    },
    "simulations/engines/_flower.py": {
        "flwr.common.constant": {"ErrorCode"},
        "flwr.supercore.run": {"Run"},
        "flwr.supercore.task_identity": {"TaskIdentity"},
    },
    "simulations/engines/_flower_on_ray.py": {
        "flwr.common.constant": {"SUPERLINK_NODE_ID"},
        "flwr.proto.task_pb2": {"Task"},
        "flwr.server.superlink.fleet.vce": {"vce_api"},
        "flwr.server.superlink.fleet.vce.backend.raybackend": {"RayBackend"},
        "flwr.server.superlink.fleet.vce.metrics": {"VceMetrics"},
        "flwr.server.superlink.linkstate": {"InMemoryLinkState", "LinkStateFactory"},
        "flwr.server.superlink.linkstate.in_memory_linkstate": {"RunRecord"},
        "flwr.supercore.constant": {"FLWR_IN_MEMORY_DB_NAME", "NOOP_FEDERATION_ID"},
        "flwr.supercore.object_store": {"ObjectStoreFactory"},
        "flwr.supercore.run": {"Run"},
        "flwr.superlink.federation": {"NoOpFederationManager"},
        "flwr.superlink.grid": {"InMemoryGrid"},
    },
    "simulations/deploy/_flower.py": {
        "flwr.common.constant": {"SYSTEM_TIME_TOLERANCE", "TIMESTAMP_HEADER", "TIMESTAMP_TOLERANCE", "ErrorCode"},
        "flwr.supercore.constant": {
            "FLEET_HTTP_PUBLIC_KEY_HEADER",
            "FLEET_HTTP_SIGNATURE_HEADER",
            "TASK_TOKEN_HEADER",
            "TaskType",
        },
        "flwr.supercore.date": {"now"},
        "flwr.supercore.primitives.asymmetric": {"bytes_to_public_key", "verify_signature"},
        "flwr.supercore.run": {"RunNotRunningException"},
        "flwr.superlink": {"extensions"},
        "flwr.superlink.cli.flower_superlink": {"flower_superlink"},
        "flwr.supernode": {"start_client_internal"},
        "flwr.supernode.cli": {"flower_supernode"},
    },
    "simulations/deploy/control.py": {
        "flwr.cli.build": {"build_fab_from_disk"},
        "flwr.common.serde": {"fab_to_proto", "user_config_to_proto"},
        "flwr.proto": {"control_pb2"},
        "flwr.supercore.control": {"ControlHttpClient"},
        "flwr.supercore.error": {"FlowerError"},
        "flwr.supercore.fab": {"Fab"},
        "flwr.supercore.interceptors": {"RuntimeVersionHttpInterceptor"},
    },
}

PRIVATE: dict[str, set[str]] = {
    "server/_flower.py": {"_client", "_runtime_client"},  # of an HttpGrid: Flower's client of the SuperLink
    "compression/messages/records.py": {"_message_id", "_src_node_id"},  # keys of a Metadata's __dict__
    "simulations/engines/_flower_on_ray.py": {"_future_to_actor", "_register_node_info_stores", "_register_nodes"},
    "simulations/deploy/_flower.py": {"_insert_message", "_pull_and_store_message"},
}
"""Names with an underscore that the doors use of Flower's objects and modules."""


def sources() -> dict[str, ast.Module]:
    """Return every module of the four folders, parsed, by its path."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(files)
        if not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    }


def touched(module: ast.Module) -> dict[str, set[str]]:
    """Return what a module imports of Flower that is not public: names by module."""
    found = defaultdict(set)
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("flwr.") and alias.name not in PUBLIC:
                    found[alias.name].add("")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            for alias in node.names:
                if node.module not in PUBLIC and (node.module, alias.name) not in LISTED:
                    found[str(node.module)].add(alias.name)
    return dict(found)


def test_each_door_touches_what_is_listed_and_no_other_file_anything() -> None:
    found = {path: names for path, module in sources().items() if (names := touched(module))}
    assert found == DOORS


@pytest.mark.parametrize("door", DOORS)
def test_what_is_listed_is_there(door: str) -> None:
    """A new Flower that has moved a name fails here, with that name, before anything else."""
    if door.endswith("_on_ray.py"):
        pytest.importorskip("ray", reason="Flower's simulation engine needs Ray: pip install 'flwr[simulation]'")
    for module, names in DOORS[door].items():
        for name in names:
            if not hasattr(import_module(module), name):
                import_module(f"{module}.{name}")


def test_private_names_are_used_where_they_are_listed() -> None:
    for path, names in PRIVATE.items():
        module = sources()[path]
        used = {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)} | {
            node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert names <= used, path
    dictionaries = [
        path
        for path, module in sources().items()
        if any(
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "__dict__"
            and ast.unparse(node.value.value).endswith("metadata")
            for node in ast.walk(module)
        )
    ]
    assert dictionaries == ["compression/messages/records.py"]
