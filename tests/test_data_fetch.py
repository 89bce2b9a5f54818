"""`data fetch`, against a server of this machine: dead, slow and huge links, and those that lead inside, counted."""

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.data.example import BrokenExample, Caption
from opensiglip.data.fetch import Limits, fetch
from opensiglip.data.sources.registry import open_source

asked = Counter[str]()


def picture(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (shade, 60, 60)).save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 - the library's name
        asked[self.path] += 1
        kind, _, rest = self.path[1:].partition("/")
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", f"/image/{rest}")
        elif kind == "file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
        elif kind == "flaky" and asked[self.path] < 3:
            self.send_response(503)
        elif kind in ("image", "flaky", "slow", "huge", "text"):
            self.send_response(200)
        else:
            self.send_response(404)
        self.end_headers()
        try:
            if kind in ("image", "flaky") and (kind == "image" or asked[self.path] >= 3):
                self.wfile.write(picture(int(rest)))
            elif kind == "text":
                self.wfile.write(b"<html>not found</html>")
            elif kind == "huge":
                for _ in range(64):
                    self.wfile.write(b"x" * 65536)
            elif kind == "slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    asked.clear()
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join(timeout=60)
    made.server_close()


LIMITS = Limits(seconds=0.5, megabytes=0.5, retries=2, private=True)


def test_a_list_of_links_becomes_tars_and_what_is_dead_is_counted(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [*(f"image/{n}" for n in range(7)), "moved/9", "gone/1", "gone/2", "text/1", "huge/1"]
    lines = [f'{server}/{path},"text, of {path}"' for path in paths] + ["ftp://somewhere/a.png,x", ",nothing"]
    (tmp_path / "links.csv").write_text("\n".join(["url,caption", *lines]))
    out = tmp_path / "out"
    words = f"--out {out} --rows-per-shard 5 --threads 3 --seconds 5 --megabytes 0.5 --retries 0 --private".split()
    assert main(["data", "fetch", str(tmp_path / "links.csv"), *words]) == 0
    said = capsys.readouterr().out
    assert "train 8" in said and "left out: link answers 404: 2" in said
    for reason in ("image can't be decoded: 1", "image file over 0.5 MB: 1", "link is neither http nor https: 2"):
        assert f"left out: {reason}" in said
    assert len(list(out.glob("*.tar"))) == 2
    source = open_source(str(out))
    found = {source.example(i).captions: source.example(i) for i in range(len(source))}
    assert set(found) == {(Caption(f"text, of {path}"),) for path in paths[:8]}
    assert found[(Caption("text, of image/3"),)].image[:, 0, 0].tolist() == [3, 60, 60]
    before, again = asked.total(), capsys.readouterr()
    assert main(["data", "fetch", str(tmp_path / "links.csv"), *words]) == 0
    assert asked.total() == before and again.err == ""


@pytest.mark.parametrize("link_first", [False, True], ids=["cc3m", "cc12m"])
def test_lists_of_conceptual_captions_have_neither_header_nor_quotes(
    server: str, tmp_path: Path, link_first: bool
) -> None:
    rows = [('"the sign says', f"{server}/image/1"), ("a fox", f"{server}/image/2"), ("gone", f"{server}/gone/1")]
    lines = ["\t".join(reversed(row) if link_first else row) for row in rows]
    (tmp_path / "links.tsv").write_text("\n".join([*lines, ""]))
    words = ["--out", str(tmp_path / "out"), "--seconds", "5", "--retries", "0", "--private"]
    assert main(["data", "fetch", str(tmp_path / "links.tsv"), *words]) == 0
    source = open_source(str(tmp_path / "out"))
    assert [source.example(at).captions for at in range(2)] == [(Caption('"the sign says'),), (Caption("a fox"),)]


def test_images_are_made_smaller_where_that_is_asked(server: str, tmp_path: Path) -> None:
    (tmp_path / "links.tsv").write_text(f"caption\turl\na\t{server}/image/1\n" + f"b\t{server}/image/2\n" * 60)
    words = f"--out {tmp_path / 'out'} --resize 30 --private".split()
    assert main(["data", "fetch", str(tmp_path / "links.tsv"), *words]) == 0
    assert open_source(str(tmp_path / "out")).example(0).image.shape == (3, 30, 40)


def test_a_link_that_fails_for_now_is_tried_again_and_one_that_is_gone_is_not(server: str) -> None:
    assert fetch(f"{server}/flaky/5", LIMITS) == picture(5)
    assert asked["/flaky/5"] == 3
    with pytest.raises(BrokenExample, match="link answers 404"):
        fetch(f"{server}/gone/77", LIMITS)
    assert asked["/gone/77"] == 1


def test_a_link_that_drips_is_left_after_its_time(server: str) -> None:
    began = time.monotonic()
    with pytest.raises(BrokenExample, match="link takes over 0.5 s"):
        fetch(f"{server}/slow/1", Limits(seconds=0.5, retries=0, private=True))
    assert time.monotonic() - began < 3


def test_a_huge_answer_is_not_read_to_its_end(server: str) -> None:
    with pytest.raises(BrokenExample, match="image file over 0.1 MB"):
        fetch(f"{server}/huge/1", Limits(megabytes=0.1, private=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_links_into_this_machine_are_refused_before_anything_is_sent(server: str, host: str) -> None:
    before = asked.total()
    with pytest.raises(BrokenExample, match="own network"):
        fetch(f"{server.replace('127.0.0.1', host)}/image/1", Limits())
    assert asked.total() == before


def test_a_link_may_not_lead_to_a_file(server: str) -> None:
    for url in (f"{server}/file/1", "file:///etc/hostname"):
        with pytest.raises(BrokenExample):
            fetch(url, LIMITS)


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:1/x", "http://a b/", "https://127.0.0.1:99999/"])
def test_a_link_that_is_none_does_not_answer(url: str) -> None:
    with pytest.raises(BrokenExample, match="link does not answer"):
        fetch(url, Limits(seconds=0.5, retries=0, private=True))


def test_a_table_without_links_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("file,caption\n1,2\n")
    assert main(["data", "fetch", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")]) == 2
    assert "has no column of links" in capsys.readouterr().err
