"""Reading the files of strangers.

Every fault is a ``ValueError`` with the file's name, and sizes are known before memory is asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GZIP = b"\x1f\x8b"
_ROOM = 2**26  # bytes that a small compressed file may become
_RATIO = 20  # a larger file may grow so many times: weights shrink by less, properties are small
_LARGEST = 2**31 - 1  # bytes, the limit of ONNX's own format


@contextmanager
def named(name: str) -> Iterator[None]:
    """What goes wrong inside is a ``ValueError`` that begins with the file's name."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"{name}: needs more memory than there is") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise error if str(error).startswith(f"{name}: ") else ValueError(f"{name}: {error}") from error


def read_file(path: Path) -> bytes:
    """The bytes of a file, which may be compressed with gzip.

    Raises:
        ValueError: naming the file, if it cannot be read, or inflates to more than a small file or 20 times its size.
    """
    with named(path.name):
        if not path.is_file():
            raise ValueError(f"want a file, got {'a folder or a device' if path.exists() else 'none'} at {path}")
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"want at most 2 GiB, got {path.stat().st_size:,} bytes")
            raw = path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error
        return inflated(raw)


def inflated(raw: bytes) -> bytes:
    """Bytes as they are or, if they begin like a gzip file, uncompressed.

    Raises:
        ValueError: if they are cut short or damaged, or inflate beyond measure.
    """
    if not raw.startswith(_GZIP):
        return raw
    most = min(max(_ROOM, _RATIO * len(raw)), _LARGEST)
    parts, total = [], 0
    try:
        while raw:
            unzip = zlib.decompressobj(wbits=31)
            while not unzip.eof:
                part = unzip.decompress(raw, 2**20)
                raw = unzip.unconsumed_tail or unzip.unused_data
                parts.append(part)
                total += len(part)
                if total > most:
                    raise ValueError(f"want a gzip file of at most {most:,} bytes when inflated, got more")
                if not part and not raw and not unzip.eof:
                    raise ValueError("want a whole gzip file, got one that is cut short")
            raw = raw.lstrip(b"\0")  # padding behind the last member
    except zlib.error as error:
        raise ValueError(f"want a gzip file, got a damaged one: {error}") from error
    return b"".join(parts)
