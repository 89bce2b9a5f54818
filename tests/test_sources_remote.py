"""Shards on web servers and in object stores: cached, fetched ahead, retried, named; and no secret is told."""

import http.server
import json
import multiprocessing
import os
import re
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
from test_sources_tables import write_parquet
from test_sources_tar import samples, write

from opensiglip.data.example import BrokenExample, Caption
from opensiglip.data.sources import ahead as ahead_module
from opensiglip.data.sources import remote as remote_module
from opensiglip.data.sources.disk_cache import DiskCache
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.shards import check_cache
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.tar_index import tar_index
from opensiglip.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no pauses, nothing failed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(remote_module, "failed", {})
    return tmp_path / "cache" / "opensiglip"


class Server(SimpleNamespace):
    """A folder served over http; `asked` counts whole files sent, `broken` how often a name is yet to fail."""

    root: Path
    url: str
    asked: Counter[str]
    broken: Counter[str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "served"
    root.mkdir()
    served = Server(root=root, url="", asked=Counter(), broken=Counter())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            name = self.path.partition("?")[0].lstrip("/")
            if served.broken[name] > 0:
                served.broken[name] -= 1
                self.send_error(503)
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked is None:
                served.asked[name] += (root / name).exists()
                super().do_GET()
                return
            part = (root / name).read_bytes()[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def end_headers(self) -> None:
            self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    with Threads(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{running.server_port}"
        yield served
        running.shutdown()
        thread.join(timeout=60)


def test_tars_on_a_web_server_are_fetched_once_and_are_the_same_examples(server: Server, tmp_path: Path) -> None:
    for shard in range(3):
        write(server.root / f"{shard:05d}.tar", samples(20, 20 * shard))
    spec = f"{server.url}/{{00000..00002}}.tar"
    for _ in range(2):
        source, here = open_source(spec), open_source(str(server.root))
        assert all(source.example(i).captions == here.example(i).captions for i in range(0, 59, 7))
        assert source.shards == here.shards and source.fetches and not here.fetches
    assert {name: n for name, n in server.asked.items() if name.endswith(".tar")} == {
        f"{shard:05d}.tar": 1 for shard in range(3)
    }
    (tmp_path / "list.txt").write_text(f"{server.url}/00001.tar?signature=secret\n")
    listed = open_source(f"tar:{tmp_path}/list.txt")
    assert listed.example(0).captions == (Caption("picture 20"),) and "secret" not in json.dumps(listed.describe())


def test_an_index_that_was_uploaded_beside_a_tar_spares_its_fetching(server: Server) -> None:
    path = write(server.root / "0.tar", samples(5))
    tar_index(path)
    os.utime(path, (1, 1))  # as uploading does
    source = open_source(f"{server.url}/0.tar")
    assert len(source) == 5
    assert source.example(4).captions == (Caption("picture 4"),)
    assert server.asked == {"0.tar.index": 1, "0.tar": 1}


def test_parquet_elsewhere_is_opened_by_its_footer_and_fetched_when_it_is_read(server: Server, cache: Path) -> None:
    write_parquet(server.root / "0.parquet", 0, 50)
    source = open_source(f"{server.url}/0.parquet")
    assert source.example(20).captions == open_source(str(server.root)).example(20).captions
    assert server.asked["0.parquet"] == 1 and len(list((cache / "shards").glob("*[!k]"))) == 1


def test_a_server_that_fails_for_a_while_is_asked_again_and_one_that_fails_for_good_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(2):
        write(server.root / f"{shard}.tar", samples(3, 3 * shard))
        tar_index(server.root / f"{shard}.tar")
    source = open_source(f"{server.url}/{{0..1}}.tar")
    for descriptor in source.opened.values.values():
        descriptor.close()
    source.opened.values.clear()
    for file in (Path(os.environ["XDG_CACHE_HOME"]) / "opensiglip" / "shards").iterdir():
        file.unlink()
    server.broken["0.tar"], server.broken["1.tar"] = 2, 99
    assert source.example(0).captions == (Caption("picture 0"),)
    for _ in range(3):
        with pytest.raises(BrokenExample, match=r"^1.tar can't be fetched \(\w+\)$"):
            source.example(3)
    assert server.broken["1.tar"] == 99 - remote_module.TRIES, "once, not for each of its rows"
    monkeypatch.setattr(remote_module, "FORGET", 0.0)
    server.broken["1.tar"] = 0
    write(server.root / "1.tar", samples(9))
    with pytest.raises(BrokenExample, match=r"^1.tar has changed$"):
        source.example(3)
    (server.root / "1.tar").unlink()
    with pytest.raises(BrokenExample, match=r"^1.tar is missing$"):
        source.example(3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("https://ann:pass@host.example/a.tar", "--data https://host.example/a.tar: a password or a signature"),
        ("s3://KEY:SECRET@bucket/a.tar=3", "a password or a signature"),
        ("https://host.example/a.tar?X-Amz-Signature=SECRET", "tar:LIST.txt"),
        ("tar:https://host.example/a.tar?sig=SECRET&text=a", "tar:LIST.txt"),
    ],
)
def test_a_secret_in_a_spec_is_refused_and_not_repeated(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        open_source(spec)
    assert not any(secret in str(error.value) for secret in ("pass@", "SECRET", "KEY"))


def test_what_is_not_there_or_not_read_from_afar_is_one_sentence(server: Server) -> None:
    with pytest.raises(UserError, match=r"none.tar is missing; name .tar files that are there"):
        open_source(f"{server.url}/none.tar")
    with pytest.raises(UserError, match="only tars and parquet files are read where they lie"):
        open_source(f"{server.url}/captions.csv")


def test_a_cache_that_is_smaller_than_what_is_read_at_once_is_refused(tmp_path: Path) -> None:
    files = [remote_module.RemoteFile(f"s3://b/{n}.tar", 10**9, 0, DiskCache(tmp_path, 1)) for n in range(500)]
    check_cache(Spec("s3://b/", "tar", "s3://b/", cache_gb=192.0), files, 64)
    with pytest.raises(UserError, match=r"--cache-gb 191 is less than the 192 GB .*fewer lanes as \?lanes=16"):
        check_cache(Spec("s3://b/", "tar", "s3://b/", cache_gb=191.0), files, 64)


def test_the_cache_keeps_to_its_bound_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache, made = DiskCache(tmp_path, 25), []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"x" * 10)

    held = cache.open("0", make)
    for name in "1021":
        os.close(cache.open(name, make))
        time.sleep(0.01)
    assert len(made) == 4 and cache.holds("1") and cache.holds("2") and not cache.holds("0")
    assert os.pread(held, 10, 0) == b"x" * 10, "what is open can be read to the end"
    os.close(held)


def many(root: Path, made: Path, seed: int) -> None:
    """Open a few files of a cache again and again; whoever makes one says so."""

    def make(path: Path) -> None:
        with made.open("ab") as log:
            log.write(b".")
        path.write_bytes(path.stem.encode() * 1000)

    cache = DiskCache(root, 10**9)
    for number in np.random.default_rng(seed).permutation(np.arange(40) % 8).tolist():
        descriptor = cache.open(str(number), make)
        assert (
            len(set(os.pread(descriptor, 10**6, 0).decode().split(root.name))) and os.fstat(descriptor).st_size == 32000
        )
        os.close(descriptor)


def test_processes_of_a_node_share_the_cache_and_make_each_file_once(tmp_path: Path) -> None:
    made, context = tmp_path / "made", multiprocessing.get_context("fork")
    workers = [context.Process(target=many, args=(tmp_path / "cache", made, seed), daemon=True) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4 and made.stat().st_size == 8


def test_a_process_that_is_killed_while_it_fetches_leaves_no_half_file(tmp_path: Path) -> None:
    def die(path: Path) -> None:
        path.write_bytes(b"half")
        os._exit(9)

    worker = multiprocessing.get_context("fork").Process(target=lambda: DiskCache(tmp_path, 99).open("a", die))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 9
    descriptor = DiskCache(tmp_path, 99).open("a", lambda path: path.write_bytes(b"whole") and None)
    assert os.read(descriptor, 9) == b"whole"
    os.close(descriptor)


def test_shards_are_fetched_ahead_of_the_rows_that_need_them(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for shard in range(4):
        write(server.root / f"{shard}.tar", samples(3, 3 * shard))
        tar_index(server.root / f"{shard}.tar")
    source = open_source(f"{server.url}/{{0..3}}.tar")
    for file in (cache / "shards").iterdir():
        file.unlink()
    server.asked.clear()
    monkeypatch.setattr(ahead_module, "started", {})
    source.prepare([0, 1, 9, 3])
    deadline = time.monotonic() + 30
    while sum(server.asked.values()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for running in ahead_module.started.values():
        running.stop()
    assert server.asked == {"0.tar": 1, "3.tar": 1, "1.tar": 1}
    source.example(9)
    assert server.asked["3.tar"] == 1


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[pafs.FileSystem]:
    """An S3 of this process's own, with one bucket."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    settings |= {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "own", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    remote_module.by_arrow.cache_clear()
    filesystem = pafs.S3FileSystem(endpoint_override=settings["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
    filesystem.create_dir("bucket")
    yield filesystem
    remote_module.by_arrow.cache_clear()
    s3.stop()


@pytest.mark.filterwarnings("ignore")  # moto's own
def test_tars_and_parquet_in_an_s3_are_listed_globbed_and_read(bucket: pafs.FileSystem, tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", samples(4, 4 * shard))
    write_parquet(tmp_path / "train.parquet", 0, 9)
    for path in tmp_path.glob("*.*"):
        with bucket.open_output_stream(f"bucket/data/{path.name}") as sink:
            sink.write(path.read_bytes())
    for spec in ("tar:s3://bucket/data/", "s3://bucket/data/*.tar", "s3://bucket/data/{0..2}.tar=2"):
        source = open_source(spec)
        assert [source.example(i).captions[0].text for i in (0, 5, 11)] == ["picture 0", "picture 5", "picture 11"]
    assert open_source("s3://bucket/data/train.parquet").example(3).captions == (Caption("picture 3"),)
    with pytest.raises(UserError, match="gone.tar is missing"):
        open_source("s3://bucket/data/gone.tar")
