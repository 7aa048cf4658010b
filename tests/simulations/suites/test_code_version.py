"""The code that a run's figures come from."""

from fedpress.simulations.suites import code_version


def test_the_code_of_a_run_is_what_it_can_reach() -> None:
    reached = set(code_version.sources())
    assert {
        "fedpress.client.training.train", "fedpress.compression.wire.payloads", "fedpress.server.strategies.sparse_fed",
        "fedpress.simulations.engines.inline",
        "fedpress.simulations.tasks.digits",
    } <= reached  # fmt: skip
    assert not any("bench" in name or "report" in name or name.endswith("cli") for name in reached)


def test_references_in_texts_and_imports_in_functions_count() -> None:
    text = """
REFERENCE = "fedpress.server.app:app"
NO_REFERENCE = "see fedpress.client.app:app"
def work():
    import fedpress.client.probe
    from . import sibling
"""
    assert code_version.imported("m", text) == {"fedpress.server.app", "fedpress.client.probe"}


def test_the_hash_is_short_and_stays() -> None:
    version = code_version.code_version()
    assert len(version) == 10 and set(version) <= set("0123456789abcdef")
    code_version.code_version.cache_clear()
    assert code_version.code_version() == version
