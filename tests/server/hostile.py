"""What a node can send, as Hypothesis draws it: records of every kind and form, and metadata that say anything."""

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

from fedpress.compression.messages import orders

INTEGERS = st.integers(-(2**63), 2**64 - 1)
NUMBERS = INTEGERS | st.floats()
TEXTS = st.text(max_size=20) | st.sampled_from(["\x1b[2J\n", "x" * 5000, "NaN", ""])
ENTRIES = st.one_of(
    st.booleans(), NUMBERS, TEXTS, st.binary(max_size=60), st.sampled_from([bytes(200_000), 2**62, 2**63 - 1]),
    st.lists(st.floats(), max_size=5), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(TEXTS, max_size=3), st.lists(st.binary(max_size=9), max_size=3),
)  # fmt: skip
NAMES = TEXTS | st.sampled_from(
    [
        "ticket", "version", "update", "buffers", "vote", "tag", "tier", "error", "answered", "needs-model",
        "lost-state", "metric.metrics.num-examples", "metric.metrics.staleness-max", "metric.metrics.fedpress.replies",
        "needs-base", "base-bytes", "update/fedpress.pieces",
        "/fedpress.pieces", "piece", "metric.fedpress.a", "metric..",
        "num-examples", "replies", "fedpress.staleness-max", "accuracy", "mask",
    ]
)  # fmt: skip
CONFIGS = st.dictionaries(NAMES, ENTRIES, max_size=6).map(ConfigRecord)
METRICS = st.dictionaries(NAMES, NUMBERS | st.lists(st.floats(), max_size=9), max_size=6).map(MetricRecord)
ARRAYS = st.builds(
    lambda dtype, shape, stype, data: ArrayRecord({"weight": Array(dtype, tuple(shape), stype, data)}),
    st.sampled_from(["float32", "int8", "object", "nonsense"]), st.lists(st.integers(-2, 2**40), max_size=70),
    st.sampled_from(["numpy.ndarray", "other"]), st.binary(max_size=99),
)  # fmt: skip
CONTENTS = st.dictionaries(
    st.sampled_from([
            orders.ANSWER, "metrics", "arrays", "config", orders.VOTE, orders.BASE, "fedpress.piece/fedpress/update/0",
            "fedpress.piece/", "a" * 5000, "\n\x1b", "\ud800",
        ]),
    CONFIGS | METRICS | ARRAYS, max_size=4,
).map(RecordDict)  # fmt: skip
SAYS = st.fixed_dictionaries(
    {},
    optional={
        "src_node_id": st.sampled_from([1, 2, 3, 0, 2**64 - 1]),
        "reply_to_message_id": st.sampled_from(["message-0", "message-1", "", "x" * 5000]),
        "message_type": st.sampled_from(["train", "evaluate", "query", "query.student", "train.other"]),
        "group_id": TEXTS, "ttl": st.floats(), "created_at": st.floats(),
    },
)  # fmt: skip
FAILURES = st.sampled_from(
    [
        ValueError("x" * 20_000_000),
        KeyError("\x1b[2J"),
        RecursionError(),
        MemoryError(),
        UnicodeDecodeError("a", b"", 0, 1, "b"),
    ]
)
