"""Which partition a key belongs to: the same as Kafka's own Java producer would choose (hazard C2)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_M = 0x5BD1E995
_SEED = 0x9747B28C

_BY_LENGTH: dict[int, Callable[[bytes], int]] = {}
_UNROLLED_BYTES = 128


def partition_for(key: bytes, n: int) -> int:
    """The partition of `key` among `n`, as `org.apache.kafka.common.utils.Utils.murmur2` has it."""
    return 0 if n == 1 else (murmur2(key) & 0x7FFFFFFF) % n


def murmur2(data: bytes) -> int:
    """Kafka's murmur2, as an unsigned 32-bit number. Unrolled for each length of up to 128 bytes."""
    unrolled = _BY_LENGTH.get(len(data))
    if unrolled is None:
        if len(data) > _UNROLLED_BYTES:
            return _murmur2(data)
        unrolled = _BY_LENGTH[len(data)] = _unroll(len(data))
    return unrolled(data)


def _murmur2(data: bytes) -> int:
    length = len(data)
    h = (_SEED ^ length) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", data[: length & ~3]):
        k = word * _M & 0xFFFFFFFF
        h = (h * _M ^ (k ^ k >> 24) * _M) & 0xFFFFFFFF
    if length & 3:
        h = (h ^ int.from_bytes(data[length & ~3 :], "little")) * _M & 0xFFFFFFFF
    h = (h ^ h >> 13) * _M & 0xFFFFFFFF
    return h ^ h >> 15


def _unroll(length: int) -> Callable[[bytes], int]:
    """The loop above as straight code for one length."""
    words = length >> 2
    rest = {0: "", 1: "B", 2: "H", 3: "HB"}[length & 3]
    names = ", ".join([*(f"k{i}" for i in range(words)), *(f"t{i}" for i in range(len(rest)))])
    lines = ["def unrolled(data):", f"    {names}, = unpack(data)"] if names else ["def unrolled(data):"]
    # The last multiplication of a word is kept wide: only its low 32 bits reach h.
    h = str((_SEED ^ length) & 0xFFFFFFFF)
    for i in range(words):
        lines.append(f"    k{i} = k{i} * {_M} & 0xFFFFFFFF")
        lines.append(f"    h = ({h} * {_M} ^ (k{i} ^ k{i} >> 24) * {_M}) & 0xFFFFFFFF")
        h = "h"
    if rest:
        tail = "t0 | t1 << 16" if rest == "HB" else "t0"
        lines.append(f"    h = ({h} ^ ({tail})) * {_M} & 0xFFFFFFFF")
        h = "h"
    lines += [f"    h = ({h} ^ {h} >> 13) * {_M} & 0xFFFFFFFF", "    return h ^ h >> 15"]
    namespace: dict[str, Any] = {"unpack": struct.Struct(f"<{words}I{rest}").unpack}
    exec(compile("\n".join(lines), f"<murmur2 of {length} bytes>", "exec"), namespace)
    unrolled: Callable[[bytes], int] = namespace["unrolled"]
    return unrolled
