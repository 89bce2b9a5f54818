"""Shards written in parallel into a folder: each appears whole or not at all, and a second start does what is left.

A job reads a stretch of rows and writes a shard of it for each split that they are of. It writes below
`.shards/NAME.part`, moves the files to their places, and last of all writes `.shards/NAME.json`, which says that it is
done. A killed process leaves no more than a `.part` that the next start writes anew, to the same bytes.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from opensiglip.data.example import BrokenExample
from opensiglip.data.parallel import each
from opensiglip.data.sources.tar_index import tar_index
from opensiglip.data.writing.formats import FORMATS, ROWS, Shard
from opensiglip.data.writing.record import Record
from opensiglip.disk import unwritten
from opensiglip.errors import UserError
from opensiglip.json_file import load_json, write_json
from opensiglip.progress import progress

PLAN, SUMS, METADATA = "convert.json", "SHA256SUMS", "metadata.jsonl"
# A row's split, and a call that makes its record; the call raises BrokenExample where the row can't be used.
Rows = Iterable[tuple[str, Callable[[], Record]]]


@dataclass
class Done:
    """What was written: samples by split, files and their bytes; and what was left out, by reason."""

    rows: Counter[str] = field(default_factory=Counter)
    files: int = 0
    bytes: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Done") -> None:
        self.rows.update(other.rows)
        self.files += other.files
        self.bytes += other.bytes
        self.broken.update(other.broken)
        self.lost.update(other.lost)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "Done":
        """From JSON."""
        counts = [Counter[str](stored[name]) for name in ("rows", "broken", "lost")]
        return cls(counts[0], stored["files"], stored["bytes"], *counts[1:])


@dataclass(frozen=True)
class Job:
    """One stretch of rows on its way into shards of a format."""

    out: Path
    format: str
    rows: Callable[[int], Rows]
    first: Sequence[int]  # the number of each job's first sample

    def __call__(self, number: int) -> Done:
        """Write job `number` unless it is done. Raises UserError where the disk does not take it."""
        if (known := self._known(number)) is not None:
            return known
        part = self.out / ROWS / f"{number:05d}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            done = self._write(number, part)
            files = [checksum(file, part) for file in sorted(part.rglob("*")) if file.is_file()]
            done.files, done.bytes = len(files), sum(file["bytes"] for file in files)
            for file in files:
                place = self.out / file["name"]
                place.parent.mkdir(parents=True, exist_ok=True)
                (part / file["name"]).replace(place)
                if self.format == "tar" and place.suffix == ".tar":
                    tar_index(place)
            shutil.rmtree(part, ignore_errors=True)
            write_json(done_place(self.out, number), {"done": vars(done), "files": files})
        except OSError as error:
            raise UserError(
                f"can't write to {self.out}: {error.strerror or error}; fix the cause and run again."
            ) from None
        return done

    def _known(self, number: int) -> Done | None:
        """What the job has done before; None where it has not, or a file of it is gone or of another size."""
        try:
            stored = load_json(done_place(self.out, number))
            there = all((self.out / file["name"]).stat().st_size == file["bytes"] for file in stored["files"])
            return Done.of(stored["done"]) if there else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, number: int, part: Path) -> Done:
        done = Done()
        shards: dict[str, Shard] = {}
        try:
            for split, make in self.rows(number):
                try:
                    record = make()
                    if split not in shards:
                        name, first = f"{split}-{number:05d}", self.first[number]
                        shards[split] = FORMATS[self.format](part, name, first)
                    shards[split].add(record)
                except BrokenExample as reason:
                    done.broken[str(reason)] += 1
                else:
                    done.rows[split] += 1
                    done.lost.update(record.lost)
        finally:
            for shard in shards.values():
                shard.close()
        return done


def write_shards(
    out: Path, plan: dict[str, Any], format: str, rows: Callable[[int], Rows], counts: Sequence[int], workers: int
) -> Done:
    """Write shards of `counts` rows each below `out`; go on where a run of the same plan ended.

    `rows(number)` are those of a shard. Raises UserError where `out` holds something else.
    """
    done = Done()
    first = [0, *accumulate(counts)]
    with sole_writer(out, plan):
        if (out / SUMS).is_file():
            return Done.of(load_json(out / PLAN)["done"])
        jobs = each(Job(out, format, rows, first), len(counts), workers)
        with progress(total=sum(counts), unit="row", desc=out.name) as bar:
            for number, one in enumerate(jobs):
                done.add(one)
                bar.update(counts[number])
                if done.broken:
                    bar.set_postfix_str(f"{done.broken.total()} broken")
        finish(out, plan, done, len(counts))
    return done


@contextmanager
def sole_writer(out: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for this process, and its plan. Raises UserError where it has another plan or writer."""
    try:
        (out / ROWS).mkdir(parents=True, exist_ok=True)
        lock = (out / ROWS / "lock").open("w")
    except OSError as error:
        raise unwritten(out, error) from None
    with lock:
        try:
            ours = lock_descriptor(lock.fileno(), blocking=False)
        except OSError as error:
            raise UserError(f"{out} can't be locked ({error.strerror}); give an --out on another disk.") from None
        if not ours:
            raise UserError(f"another process is writing to {out}; wait for it, or give another --out.")
        place = out / PLAN
        try:
            known = load_json(place).get("plan") if place.is_file() else None
        except (OSError, ValueError, AttributeError):
            raise UserError(f"{place} is damaged, or of something else; give an --out that is empty.") from None
        others = [file for file in out.iterdir() if file.name not in (ROWS, PLAN)] if known is None else []
        if others or (known is not None and known != plan):
            held = "other files" if others else "a conversion of another source or with other flags"
            raise UserError(f"{out} holds {held}; give an --out that is empty, or the command it was begun with.")
        if known is None:
            write_json(place, {"plan": plan})
        yield
    if (out / SUMS).is_file():
        shutil.rmtree(out / ROWS, ignore_errors=True)


def finish(out: Path, plan: dict[str, Any], done: Done, jobs: int) -> None:
    """Join the rows of a folder; write the counts, and then the checksums, which say that all is done."""
    joined = out / ROWS / METADATA
    with joined.open("wb") as sink:
        for file in (file for file in files_of(out, jobs) if file["name"].startswith(f"{ROWS}/")):
            sink.write((out / file["name"]).read_bytes())
    whole = []
    if joined.stat().st_size:
        joined.replace(out / METADATA)
        whole = [checksum(out / METADATA, out)]
    kept = (file for file in chain(files_of(out, jobs), whole) if not file["name"].startswith(f"{ROWS}/"))
    write_json(out / PLAN, {"plan": plan, "done": vars(done)})
    write_text(out / SUMS, (f"{file['sha256']}  {file['name']}\n" for file in kept))


def files_of(out: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Every file that the jobs wrote, in order."""
    for number in range(jobs):
        yield from load_json(done_place(out, number))["files"]


def done_place(out: Path, number: int) -> Path:
    """Where a job says what it has done."""
    return out / ROWS / f"{number:05d}.json"


def checksum(file: Path, root: Path) -> dict[str, Any]:
    """A file's name below the root, its size in bytes and its SHA-256; its bytes are on disk after this."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
        return {"name": file.relative_to(root).as_posix(), "bytes": opened.tell(), "sha256": digest}


def write_text(place: Path, text: Iterable[str]) -> None:
    """Write a file, whole or not at all."""
    part = place.with_name(f".{place.name}.part")
    with part.open("w", encoding="utf-8") as sink:
        sink.writelines(text)
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(place)
