"""A SentencePiece model file read without its library: pieces, scores and normalisation, by protobuf's wire format.

(sentencepiece_model.proto: ModelProto 1 pieces, 2 trainer_spec, 3 normalizer_spec)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opensiglip.errors import UserError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
UNIGRAM = 1  # TrainerSpec.model_type
UNKNOWN = 2  # SentencePiece.type


@dataclass(frozen=True)
class SentencePiece:
    """A unigram model: each piece with its log-probability, its place being its id."""

    pieces: tuple[tuple[str, float], ...]
    unknown_id: int
    characters: bytes  # how characters are normalised, as the library compiles it (NFKC and more); may be empty
    byte_fallback: bool


def read_sentencepiece(path: Path) -> SentencePiece:
    """The model in a spiece.model. Raises UserError where it is none, or none of unigrams."""
    try:
        pieces: list[tuple[str, float]] = []
        unknown, fallback, characters = 0, False, b""
        kind: int | bytes = UNIGRAM
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                if piece.get(3) == UNKNOWN:
                    unknown = len(pieces)
                pieces.append((_bytes(piece[1]).decode(), struct.unpack("<f", _bytes(piece.get(2, b"\0" * 4)))[0]))
            elif number == 2 and isinstance(value, bytes):
                trainer = dict(_fields(value))
                kind, fallback = trainer.get(3, UNIGRAM), bool(trainer.get(35, 0))
            elif number == 3 and isinstance(value, bytes):
                characters = _bytes(dict(_fields(value)).get(2, b""))
        if not pieces:
            raise ValueError("it has no pieces")
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise UserError(f"{path} is not a readable SentencePiece model ({error}); fetch it again.") from error
    if kind != UNIGRAM:
        raise UserError(f"{path} is not a unigram model; put the tokenizer.json of that checkpoint beside it.")
    return SentencePiece(tuple(pieces), unknown, characters, fallback)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, each (number, value)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if wire == BYTES:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"it breaks off at byte {at}")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a field has another type")
    return value
