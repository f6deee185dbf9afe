"""CRC-32C, the checksum in the files of TensorBoard.

The CRC is linear, so that of a block is the XOR of one table entry for each byte and its distance from the end, which
NumPy looks up at once. A loop over the bytes in Python takes longer than all the rest of a record.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

_BLOCK = 1024
_xor: Any = np.bitwise_xor.reduce  # of which the stubs of some NumPy versions know no call without `out`


@functools.cache
def _tables() -> np.ndarray:
    """`uint32[_BLOCK, 256]`: the CRC of a byte that is followed by so many zero bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    tables = [table]
    for _ in range(_BLOCK - 1):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 255])
    return np.stack(tables)


def checksums(rows: np.ndarray) -> np.ndarray:
    """Returns the CRC-32C of byte strings of one length.

    Args:
        rows: `uint8[count, length]`.

    Returns:
        `uint32[count]`.

    Example:
        >>> hex(checksums(np.frombuffer(b"123456789", np.uint8)[None])[0])
        '0xe3069283'
    """
    tables = _tables()
    state = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].copy()
        length = block.shape[1]
        first = min(length, 4)  # the state acts on the first four bytes, the rest of it remains
        block[:, :first] ^= (state[:, None] >> (8 * np.arange(first, dtype=np.uint32))).astype(np.uint8)
        rest = state >> np.uint32(8 * length) if length < 4 else np.uint32(0)
        found = tables[np.arange(length - 1, -1, -1), block]
        state = _xor(found.T) ^ rest
    return ~state


def masked_checksums(events: Sequence[bytes]) -> list[bytes]:
    """Returns the masked checksums of events, as the files have them."""
    lengths: dict[int, list[int]] = {}
    for k, event in enumerate(events):
        lengths.setdefault(len(event), []).append(k)
    found = [b""] * len(events)
    for length, places in lengths.items():
        data = np.frombuffer(b"".join([events[k] for k in places]), np.uint8).reshape(len(places), length)
        for k, masked in zip(places, _masked(checksums(data)), strict=True):
            found[k] = masked
    return found


def _masked(values: np.ndarray) -> list[bytes]:
    masked = ((values >> np.uint32(15)) | (values << np.uint32(17))) + np.uint32(0xA282EAD8)
    data = masked.astype("<u4").tobytes()
    return [data[k : k + 4] for k in range(0, len(data), 4)]
