"""States of a frozen tower, found by a hash of what they are of: equal rows in one file that only grows.

`states.bin` holds the rows of one block after the other; `blocks.jsonl` has a line for each block, written after its
rows: where they begin, their checksum, and their keys. A writer that is killed leaves whole blocks and at most rows
without a line, which the next writer overwrites. A reader maps the rows that were there when it was opened, so another
run may go on writing.
"""

import hashlib
import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

STATES_FILE, BLOCKS_FILE = "states.bin", "blocks.jsonl"
KEY_BYTES = 16
Fact = Any  # what JSON holds of a key, beside its states


class Block(NamedTuple):
    """Rows [count, ...] that were written at once."""

    first: int  # rows of the file before them
    shape: tuple[int, ...]  # of all of them
    dtype: str
    checksum: str  # of their bytes, XXH3 of 128 bits
    keys: list[bytes]
    facts: list[Fact]

    @property
    def end(self) -> int:
        return self.first + len(self.keys)


class StateStore:
    """The rows of a folder by key, for reading: mapped, so that processes of a machine share their pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        blocks = read_blocks(folder)
        keys = np.array([key for block in blocks for key in block.keys], f"S{KEY_BYTES}")[::-1]
        rows = np.concatenate([np.arange(0), *(np.arange(block.first, block.end) for block in blocks)])[::-1]
        self.keys, newest = np.unique(keys, return_index=True)  # of a key written twice the last counts
        self.rows = rows[newest]
        self.shape = (max((block.end for block in blocks), default=0), *(blocks[0].shape[1:] if blocks else ()))
        self.dtype = blocks[0].dtype if blocks else "uint8"
        self._map()

    def _map(self) -> None:
        self.states = np.memmap(self.folder / STATES_FILE, self.dtype, "r", shape=self.shape) if self.shape[0] else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "states"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __getitem__(self, key: bytes) -> np.ndarray:
        """The states of that key, a view of the file. Raises KeyError."""
        wanted = np.array(key, self.keys.dtype)  # no `bytes`: numpy compares those of an array without zeros at the end
        at = int(np.searchsorted(self.keys, wanted))
        if self.states is None or at == len(self.keys) or self.keys[at] != wanted:
            raise KeyError(key.hex())
        found: np.ndarray = self.states[self.rows[at]].view(np.ndarray)
        return found


class StoreWriter:
    """The same for writing, by one process at a time; a block is compared with its checksum before it is relied on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.blocks = folder, read_blocks(folder)
        self.places = {key: (block, at) for block in self.blocks for at, key in enumerate(block.keys)}
        self.sound: dict[int, bool] = {}  # by a block's first row, of those that were compared
        self.end = max((block.end for block in self.blocks), default=0)

    def __contains__(self, key: bytes) -> bool:
        """Are there states of that key, as they were written?"""
        if key not in self.places:
            return False
        block, _ = self.places[key]
        if block.first not in self.sound:
            self.sound[block.first] = checksum_of(self._bytes(block)) == block.checksum
        return self.sound[block.first]

    def fact(self, key: bytes) -> Fact:
        """What was noted with the states of that key. Raises KeyError."""
        block, at = self.places[key]
        return block.facts[at]

    @property
    def damaged(self) -> bool:
        """Was a block found that is not as it was written?"""
        return not all(self.sound.values())

    def append(self, keys: Sequence[bytes], states: np.ndarray, facts: Sequence[Fact]) -> None:
        """Add states [n, ...] of n keys, with a fact for each."""
        states = np.ascontiguousarray(states)
        block = Block(self.end, states.shape, str(states.dtype), checksum_of(states), list(keys), list(facts))
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STATES_FILE).touch()
        with (self.folder / STATES_FILE).open("r+b") as file:
            file.seek(block.first * row_bytes(block))
            file.write(states.data)
        with (self.folder / BLOCKS_FILE).open("ab") as lines:
            lines.write(to_line(block))
        self.places |= {key: (block, at) for at, key in enumerate(keys)}
        self.sound[block.first] = True
        self.end = block.end

    def _bytes(self, block: Block) -> bytes:
        with (self.folder / STATES_FILE).open("rb") as file:
            file.seek(block.first * row_bytes(block))
            return file.read(len(block.keys) * row_bytes(block))


def read_blocks(folder: Path) -> list[Block]:
    """The blocks of a folder whose line is as it was written and whose rows the file is long enough for."""
    if not (folder / STATES_FILE).is_file() or not (folder / BLOCKS_FILE).is_file():
        return []
    size = (folder / STATES_FILE).stat().st_size
    with (folder / BLOCKS_FILE).open("rb") as lines:
        found = [block for line in lines if (block := of_line(line)) is not None]
    return [block for block in found if block.end * row_bytes(block) <= size]


def to_line(block: Block) -> bytes:
    """A line of `BLOCKS_FILE`. It begins on a new line, whatever a killed writer has left before it."""
    facts = json.dumps({**block._asdict(), "keys": b"".join(block.keys).hex()}).encode()
    return b"\n" + checksum_of(facts).encode() + b" " + facts + b"\n"


def of_line(line: bytes) -> Block | None:
    """The inverse of `to_line`; None of a line that is not whole."""
    checksum, _, facts = line.strip().partition(b" ")
    if checksum != checksum_of(facts).encode():
        return None
    read = json.loads(facts)
    keys = bytes.fromhex(read["keys"])
    read["keys"] = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
    return Block(**read | {"shape": tuple(read["shape"])})


def row_bytes(block: Block) -> int:
    """Of one row."""
    return prod(block.shape[1:]) * np.dtype(block.dtype).itemsize


def checksum_of(data: bytes | np.ndarray) -> str:
    """A hash that is made for damage, not for forgery."""
    return xxhash.xxh3_128_hexdigest(data if isinstance(data, bytes) else data.data)


def key_of(data: bytes) -> bytes:
    """A key of `KEY_BYTES`; no image can be made to have another's."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()
