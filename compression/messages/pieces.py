"""Long entries of a message, cut into pieces: a message may have any size, a record of it may not.

Flower sends each record of a message as one object, in one request. protobuf holds at most 2 GiB of it, SQLite, where a
SuperLink keeps it, at most 1 GB, and a server sets a limit of its own. Flower cuts arrays by itself, into chunks of
5 MiB, but not the bytes in a ConfigRecord, which payloads, masks and bundles are. Here these become records:

    config                                   fedpress.delta/pieces: number of pieces, length and SHA-256 of the whole
    fedpress.piece/config/fedpress.delta/0   piece: its first bytes
    fedpress.piece/config/fedpress.delta/1   piece: those that follow

Law: `join(cut(content, limit)) == content`, and no piece in `cut(content, limit)` is longer than the limit.
Pieces that are missing, doubled, swapped, damaged, or of another message are a `MessageError`, never other bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from flwr.app import ConfigRecord, RecordDict

from fedpress.compression.messages.orders import LEAST_PIECE, MessageError

LIMIT = 1 << 24
"""Bytes of an entry that stays whole, and of a piece of one that does not."""
_MARK = "/fedpress.pieces"
"""Follows the name of an entry that is in pieces."""
_PREFIX = "fedpress.piece/"
_DATA = "piece"
_WHOLE = struct.Struct("<IQ32s")


class Pieces(NamedTuple):
    """An entry in pieces.

    Attributes:
        whole: The entry, which stays alive with its pieces: they are known by its identity.
        mark: What stands in its place.
        records: The pieces.
    """

    whole: bytes
    mark: bytes
    records: list[ConfigRecord]


def cut(content: RecordDict, limit: int = LIMIT, known: dict[int, Pieces] | None = None) -> RecordDict:
    """Return a message's records with long entries in pieces; the same where there are none.

    Args:
        content: The records; not changed.
        limit: Bytes of the longest entry that stays whole, and of the longest piece.
        known: Pieces of entries by their `id`, so that what goes to many clients is cut once; is added to. None: each
            entry is cut anew.

    Raises:
        ValueError: The limit is below `LEAST_PIECE`.
    """
    if limit < LEAST_PIECE:
        raise ValueError(f"pieces of {limit} bytes: expected at least {LEAST_PIECE}")
    known = {} if known is None else known
    items: dict[str, ConfigRecord] = {}
    for key, record in content.config_records.items():
        for name, value in list(record.items()):
            if isinstance(value, bytes) and len(value) > limit:
                if id(value) not in known:
                    known[id(value)] = _pieces(value, limit)
                if key not in items:
                    items[key] = ConfigRecord(dict(record))
                del items[key][name]
                items[key][name + _MARK] = known[id(value)].mark
                items |= {_key(key, name, index): piece for index, piece in enumerate(known[id(value)].records)}
    return RecordDict({**content, **items}) if items else content


def join(content: RecordDict) -> RecordDict:
    """Return a message's records with each entry whole; the same where all are.

    Args:
        content: The records as they came; not changed.

    Raises:
        MessageError: A piece is missing, belongs to nothing, or the whole is not what was cut.
    """
    pieces = {key: record for key, record in content.config_records.items() if key.startswith(_PREFIX)}
    whole: dict[str, ConfigRecord] = {}
    for key, record in content.config_records.items():
        for marked in [name for name in record if name.endswith(_MARK)]:
            if key not in whole:
                whole[key] = ConfigRecord(dict(record))
            name = marked.removesuffix(_MARK)
            whole[key][name] = _joined(key, name, record[marked], pieces)
            del whole[key][marked]
    if pieces:
        raise MessageError(f"{len(pieces)} pieces belong to no entry of the message, such as {min(pieces)[:200]!r}")
    if not whole:
        return content
    return RecordDict({key: whole.get(key, record) for key, record in content.items() if not key.startswith(_PREFIX)})


def entry_of(key: str) -> str:
    """Return the name of the entry that a record is a piece of; empty: it is none.

    >>> entry_of("fedpress.piece/config/fedpress.delta/12"), entry_of("config")
    ('fedpress.delta', '')
    """
    return key.rsplit("/", 2)[1] if is_piece(key) else ""


def record_of(key: str) -> str:
    """Return the key of the record that a record is a piece of an entry of; empty: it is none.

    >>> record_of("fedpress.piece/config/fedpress.delta/12"), record_of("config")
    ('config', '')
    """
    return key.removeprefix(_PREFIX).rsplit("/", 2)[0] if is_piece(key) else ""


def is_piece(key: str) -> bool:
    """Return whether a record of this key is a piece."""
    return key.startswith(_PREFIX) and key.count("/") > 2


def data_of(record: ConfigRecord) -> bytes:
    """Return the bytes of a piece; empty where it has none."""
    data = record.get(_DATA)
    return data if isinstance(data, bytes) else b""


def _key(record: str, entry: str, index: int) -> str:
    return f"{_PREFIX}{record}/{entry}/{index}"


def _pieces(value: bytes, limit: int) -> Pieces:
    records = [ConfigRecord({_DATA: value[start : start + limit]}) for start in range(0, len(value), limit)]
    return Pieces(value, _WHOLE.pack(len(records), len(value), hashlib.sha256(value).digest()), records)


def _joined(key: str, name: str, mark: object, pieces: dict[str, ConfigRecord]) -> bytes:
    """Return an entry; its pieces are taken out of `pieces`."""
    if not isinstance(mark, bytes) or len(mark) != _WHOLE.size:
        raise MessageError(f"entry {name!r} of {key!r} is in pieces, and what says how many is malformed")
    count, length, digest = _WHOLE.unpack(mark)

    def parts() -> Iterator[bytes]:
        for index in range(count):
            record = pieces.pop(_key(key, name, index), None)
            if record is None or not data_of(record):
                raise MessageError(f"entry {name!r} of {key!r}: piece {index + 1} of {count} is missing")
            yield data_of(record)

    whole = b"".join(parts())
    if len(whole) != length or hashlib.sha256(whole).digest() != digest:
        raise MessageError(
            f"entry {name!r} of {key!r}: its {count} pieces of {len(whole):,} bytes are not the {length:,} that were"
            " cut; are they damaged, swapped, or of another message?"
        )
    return whole
