"""The formats that samples are written in: a shard's files below a folder, the same bytes for the same records."""

import io
import json
import shutil
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from datasets import Image as ImageColumn

from opensiglip.data.example import BrokenExample
from opensiglip.data.writing.record import Record

ROWS = ".shards"  # below the folder: what `convert` has done so far
GROUP_BYTES = 4 << 20  # of a parquet row group, which is what the order of training moves about
FEATURES = Features({"key": Value("string"), "image": ImageColumn(), "json": Value("large_string")})


class Shard(ABC):
    """A shard being written below `folder`, named `name`; its samples are numbered from `first`."""

    def __init__(self, folder: Path, name: str, first: int) -> None:
        self.folder, self.name, self.next = folder, name, first
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, record: Record) -> None:
        """Write a sample. Raises BrokenExample where a file of it can't be read, OSError where none can be written."""
        key = f"{self.next:09d}"
        row = dict(record.row)
        if "depth" in row:
            row["depth"] = self._copied(Path(row["depth"]), f"depth/{self.name}/{key}.png")
        self.write(key, record, row)
        self.next += 1

    @abstractmethod
    def write(self, key: str, record: Record, row: dict[str, object]) -> None:
        """Write a sample whose files are named by `key`."""

    @abstractmethod
    def close(self) -> None:
        """End the shard's files."""

    def _copied(self, file: Path, name: str) -> str:
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, place)
        except FileNotFoundError:
            raise BrokenExample("depth file is missing") from None
        return name


class Tar(Shard):
    """`NAME.tar`, as img2dataset writes them: KEY.jpg, KEY.txt with the first caption, KEY.json with all else."""

    def __init__(self, folder: Path, name: str, first: int) -> None:
        super().__init__(folder, name, first)
        self.tar = tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed below

    def write(self, key: str, record: Record, row: dict[str, object]) -> None:
        self._member(f"{key}.{record.extension}", record.image)
        if caption := plain_caption(row):
            self._member(f"{key}.txt", caption.encode())
        self._member(f"{key}.json", to_json(row).encode())

    def close(self) -> None:
        self.tar.close()

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))


class ParquetFile(Shard):
    """`NAME.parquet` with columns `key`, `image` ({bytes, path}, which `datasets` decodes) and `json`."""

    def __init__(self, folder: Path, name: str, first: int) -> None:
        super().__init__(folder, name, first)
        self.schema = FEATURES.arrow_schema
        self.file = pq.ParquetWriter(folder / f"{name}.parquet", self.schema, compression="zstd")
        self.rows: list[dict[str, object]] = []
        self.bytes = 0

    def write(self, key: str, record: Record, row: dict[str, object]) -> None:
        image = {"bytes": record.image, "path": f"{key}.{record.extension}"}
        self.rows.append({"key": row.get("key", key), "image": image, "json": to_json(row)})
        self.bytes += len(record.image)
        if self.bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.file.close()

    def _flush(self) -> None:
        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows, self.bytes = [], 0


class FolderPart(Shard):
    """`images/NAME/KEY.jpg`, and the rows, which are joined to metadata.jsonl when all are there."""

    def __init__(self, folder: Path, name: str, first: int) -> None:
        super().__init__(folder, name, first)
        self.split = name.rpartition("-")[0]
        place = rows_file(folder, name)
        place.parent.mkdir(exist_ok=True)
        self.rows = place.open("w", encoding="utf-8")

    def write(self, key: str, record: Record, row: dict[str, object]) -> None:
        name = f"images/{self.name}/{key}.{record.extension}"
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(record.image)
        self.rows.write(to_json({"file_name": name, "split": self.split, **row}) + "\n")

    def close(self) -> None:
        self.rows.close()


FORMATS: dict[str, type[Shard]] = {"tar": Tar, "parquet": ParquetFile, "folder": FolderPart}


def rows_file(folder: Path, name: str) -> Path:
    """Where a folder's shard has its rows until they are joined."""
    return folder / ROWS / f"{name}.jsonl"


def to_json(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def plain_caption(row: dict[str, object]) -> str:
    """The text for loaders that know one text an image: the first, unless a reader would take it for another one."""
    captions = row.get("captions_i18n")
    if not isinstance(captions, list) or not captions:
        return str(row.get("caption", ""))
    plain = {"lang": "en", "text": captions[0]["text"], "source": "human"}
    return "" if plain in captions[1:] and plain != captions[0] else str(plain["text"])
