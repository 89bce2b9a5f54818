"""The members of a tar by its headers: ustar, GNU and PAX, read by hand so that no header can do harm."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_HEADER = 1 << 20  # bytes of a long name or of PAX records that are read


class Member(NamedTuple):
    """A regular file in a tar: its name, the byte it begins at and its size in bytes."""

    name: str
    offset: int
    size: int


class BrokenTar(Exception):
    """The tar can't be read further; the message is the reason."""


def members_of(file: BinaryIO, length: int) -> Iterator[Member]:
    """The regular files of a tar of `length` bytes: ustar, GNU (long names) or PAX (path, size). Raises BrokenTar."""
    at, long_name, pax_size = 0, b"", None
    while at + BLOCK <= length:
        file.seek(at)
        header = file.read(BLOCK)
        if not any(header):
            return
        kind, size, data = header[156:157], parse_number(header[124:136]), at + BLOCK
        if size is None or parse_number(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise BrokenTar("tar has no header where one should stand")
        if kind in b"LKxg":
            text = file.read(min(size, MAX_HEADER))
            if kind == b"L":
                long_name = text.split(b"\0", 1)[0]
            elif kind == b"x":
                records = dict(pax_records(text))
                long_name = records.get(b"path", long_name)
                digits = records.get(b"size", b"")
                pax_size = int(digits) if digits.isdigit() and len(digits) < 20 else pax_size
        else:
            size = size if pax_size is None else pax_size
            if data + size > length:
                raise BrokenTar("tar is cut off")
            if kind in b"0\0007":
                prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
                short = header[:100].split(b"\0", 1)[0]
                name = long_name or (prefix + b"/" + short if prefix else short)
                yield Member(name.decode("utf-8", "backslashreplace"), data, size)
            elif kind in b"123456":
                size = 0  # a link's size is its target's; devices and folders have no data
            long_name, pax_size = b"", None
        at = data + -(-size // BLOCK) * BLOCK
    raise BrokenTar("tar is cut off")


def parse_number(field: bytes) -> int | None:
    """A header's number: octal digits, or GNU's base 256; None where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    return None if digits.strip(b"01234567") else int(digits, 8)


def pax_records(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """PAX records: "length key=value" and a newline each; up to the first that is malformed."""
    while text:
        length, _, rest = text.partition(b" ")
        if not length.isdigit() or len(length) > 9 or not len(length) + 1 < int(length) <= len(text):
            return
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        yield key, value
        text = text[int(length) :]
