"""`opensiglip serve`: the API gives what the model gives, refuses in sentences, and ends when all is answered."""

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import openai
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import opensiglip
from opensiglip.apps.cli import main
from opensiglip.apps.serve import app as app_module
from opensiglip.apps.serve import guard as guard_module
from opensiglip.apps.serve import requests as requests_module
from opensiglip.apps.serve import serve as serve_module
from opensiglip.apps.serve.app import Limits, Server
from opensiglip.apps.serve.batcher import Batcher, Question
from opensiglip.apps.serve.refusal import Refused
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.inference.predictor import Predictor, load
from opensiglip.models.model import Model

HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    """SigLIP 2 of random weights, with a vocabulary that prefers some tokens."""
    torch.manual_seed(0)
    model = Model.new(small("siglip2").architecture, len(pipeline)).eval()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.vocabulary.weight)
    known: dict[str, Any] = {"boxes": BoxFormat(top=60), "tasks": ("cap", "aref"), "languages": ("en",)}
    return Predictor(Pretrained.of(model, pipeline, name="tiny", **known))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    server = Server(predictor, Limits(wait=0.0), hosts=("127.0.0.1",))
    with TestClient(server.app, base_url=HERE) as client:
        yield client


def file_of(seed: int = 0, width: int = 48, height: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def url_of(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


FILES = [file_of(0), file_of(1, 20, 60), file_of(2, 32, 32)]


def test_openais_client_gets_the_models_embeddings_of_texts_and_images(
    client: TestClient, predictor: Predictor
) -> None:
    theirs = openai.OpenAI(base_url=f"{HERE}/v1", api_key="none", http_client=client, max_retries=0)
    assert [one.id for one in theirs.models.list()] == ["tiny"]
    mixed = ["a red fox", url_of(FILES[0]), "an apple", url_of(FILES[1])]
    for form in ("float", "base64"):
        found = theirs.embeddings.create(model="tiny", input=mixed, encoding_format=form)  # type: ignore[call-overload]
        vectors = [row.embedding for row in found.data]
        if form == "base64":
            vectors = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in vectors]
        texts, images = predictor.embed_texts(mixed[::2]), predictor.embed_images([picture(f) for f in FILES[:2]])
        expected = torch.stack([texts[0], images[0], texts[1], images[1]]).numpy()
        assert np.abs(np.array(vectors) - expected).max() < 1e-5
    assert found.usage.prompt_tokens > 4 and [row.index for row in found.data] == [0, 1, 2, 3]
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here; ask for 'tiny'"):
        theirs.embeddings.create(model="gpt", input="a fox")
    with pytest.raises(openai.UnprocessableEntityError, match="input.0. is no base64"):
        theirs.embeddings.create(model="tiny", input=["data:image/png;base64,!!"])


def test_images_are_classified_located_and_captioned_as_by_the_model(client: TestClient, predictor: Predictor) -> None:
    images = [picture(file) for file in FILES]
    many: dict[str, Any] = {"input": [url_of(file) for file in FILES]}
    rows = client.post("/v1/classify", json=many | {"labels": ["a fox", "a cat"]}).json()["data"]
    for row, shares in zip(rows, predictor.classify(images, ["a fox", "a cat"]), strict=True):
        assert {one["label"]: one["probability"] for one in row["labels"]} == pytest.approx(shares, abs=1e-5)
    rows = client.post("/v1/locate", json=many | {"phrase": "a fox"}).json()["data"]
    assert [row["box"] for row in rows] == [one.as_json()["box"] for one in predictor.locate(images, "a fox")]
    rows = client.post("/v1/caption", json=many | {"num_beams": 2}).json()["data"]
    assert [row["text"] for row in rows] == predictor.caption(images, num_beams=2)


def test_files_of_a_form_are_as_their_data_urls(client: TestClient) -> None:
    files = [("input", ("a.png", file, "image/png")) for file in FILES]
    form = client.post("/v1/classify", files=files, data={"labels": ["a fox", "a cat"]})
    urls = client.post("/v1/classify", json={"input": [url_of(f) for f in FILES], "labels": ["a fox", "a cat"]})
    assert form.status_code == 200 and form.json() == urls.json()
    loud = url_of(FILES[0]).replace("data:image/png", "DATA:IMAGE/PNG")
    assert client.post("/v1/classify", json={"input": loud, "labels": ["a"]}).status_code == 200, "of any case"
    part = {"type": "image_url", "image_url": {"url": url_of(FILES[0]), "detail": "low"}}
    parts = client.post("/v1/embeddings", json={"input": [part, {"type": "text", "text": "a fox"}]}).json()
    plain = client.post("/v1/embeddings", json={"input": [url_of(FILES[0]), "a fox"]}).json()
    assert parts == plain


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("embeddings", {}, 422, "input: field required; send it."),
        ("embeddings", {"input": []}, 422, "input: give at least one text or image."),
        ("embeddings", {"input": ["a"] * 257}, 422, "input: 257 are given and at most 256 are taken; send fewer."),
        ("embeddings", {"input": [1, 2]}, 422, "input: token ids are not taken; send the text."),
        ("embeddings", {"input": [[1, 2], [3]]}, 422, "input: token ids are not taken; send the text."),
        ("embeddings", {"input": ["a", None]}, 422, "input[1]: send a text, or an image as data:image/png;base64,..."),
        ("embeddings", {"input": [True]}, 422, "input[0]: send a text, or an image"),
        ("embeddings", {"input": [{"type": "audio"}]}, 422, 'input[0].type: send "text" or "image_url".'),
        ("embeddings", {"input": [{"type": []}]}, 422, "input[0].type: "),
        ("embeddings", {"input": [{"type": "image_url", "image_url": {}}]}, 422, "input[0].image_url.url: field"),
        ("embeddings", {"input": [{"type": "image_url", "image_url": "a"}]}, 422, "input[0].image_url: send an"),
        ("embeddings", {"input": "a", "dimensions": 8}, 400, "embeddings of tiny have 32 numbers, not 8; train with"),
        ("embeddings", {"input": "a", "dimensions": 0}, 422, "dimensions: send a whole number of at least 1."),
        ("embeddings", {"input": "a", "dimensions": True}, 422, "dimensions: send a whole number of at least 1."),
        ("embeddings", {"input": "a", "colour": 8}, 422, "colour: there is no such field; leave it out."),
        ("embeddings", {"input": "a", "encoding_format": "x"}, 422, 'encoding_format: send "float" or "base64".'),
        ("embeddings", {"input": "\ud800 fox"}, 422, "input[0] holds half of a surrogate pair; send whole letters."),
        ("embeddings", {"input": [{"type": "text", "text": "\ud800"}]}, 422, "input[0].text holds half of a surrogate"),
        ("embeddings", {"input": "a", "model": "\ud800"}, 404, "there is no model"),
        ("embeddings", {"input": "a", "\ud800": 1}, 422, "unicode"),
        ("embeddings", {"input": " "}, 422, "input[0] is empty; send a text."),
        ("embeddings", {"input": "data:text/plain;base64,QQ=="}, 422, "input[0] begins with data:text/plain; and"),
        ("embeddings", {"input": "data:image/png,QQ"}, 422, "and is not a base64 image; send data:image/png;base64,"),
        ("embeddings", {"input": "x" * 20_001}, 413, "input[0] has 20001 letters, and a text may have 20000; shorten"),
        ("embeddings", {"input": ["data:image/png;base64,AAAA"]}, 422, "input[0] can't be read (image can't be"),
        ("embeddings", {"input": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}, 422, "none is fetched"),
        ("classify", {"input": "a fox", "labels": ["a"]}, 422, "input[0] is not an image; send data:image/"),
        ("classify", {"input": url_of(FILES[0]), "labels": []}, 422, "labels: give at least one to choose from."),
        ("classify", {"input": url_of(FILES[0]), "labels": ["a", ""]}, 422, "labels[1] is empty; send a text."),
        ("classify", {"input": url_of(FILES[0]), "labels": ["\ud800"]}, 422, "labels[0] holds half of a surrogate"),
        ("classify", {"input": url_of(FILES[0]), "labels": [3]}, 422, "labels[0]: send a string."),
        ("classify", {"input": url_of(FILES[0]), "labels": "a"}, 422, "labels: send a list."),
        ("caption", {"input": url_of(FILES[0]), "language": "de"}, 400, "tiny never saw 'de'"),
        ("caption", {"input": url_of(FILES[0]), "num_beams": 9}, 422, "num_beams: send a whole number from 1 to 8."),
        ("caption", {"input": url_of(FILES[0]), "num_beams": True}, 422, "num_beams: send a whole number from 1 to 8."),
        ("caption", {"input": url_of(FILES[0]), "language": ""}, 422, "language is empty; send a text."),
        ("caption", {"input": url_of(FILES[0]), "language": "d" * 21}, 422, "language: string should have at most 20"),
        ("locate", {"input": url_of(FILES[0]), "phrase": " "}, 422, "phrase is empty; send a text."),
        ("locate", {"input": url_of(FILES[0]), "phrase": "fox " * 300}, 400, "leaves no room"),
        ("embeddings", {"input": [{"type": "text", "text": "x" * 20_001}]}, 413, "input[0].text has 20001 letters"),
        ("classify", {"input": url_of(FILES[0]), "labels": ["a"] * 1001}, 422, "labels: 1001 are given and at"),
        ("classify", {"input": url_of(FILES[0]), "labels": ["x" * 20_001]}, 413, "labels[0] has 20001 letters"),
        ("locate", {"input": url_of(FILES[0]), "phrase": "x" * 20_001}, 413, "phrase has 20001 letters"),
        ("fly", {}, 404, "there is no POST /v1/fly here; there are /health,"),
        ("embeddings/", {"input": "a"}, 404, "there is no POST /v1/embeddings/ here"),
        ("models", {}, 405, "/v1/models takes no POST; send GET."),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence_in_openais_form(
    path: str, body: dict[str, Any], status: int, sentence: str, client: TestClient
) -> None:
    said = client.post(f"/v1/{path}", content=json.dumps(body), follow_redirects=False)  # httpx takes no surrogates
    assert said.status_code == status, said.text
    assert sentence in said.json()["error"]["message"] and said.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_no_json_or_too_long_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.post("/v1/embeddings", content=b"[" * 100_000).status_code == 422
    assert client.post("/v1/embeddings", content=iter([b"{}"])).status_code == 411, "of unknown length"
    monkeypatch.setattr(guard_module, "BODY", 1000)
    said = client.post("/v1/embeddings", content=b"x" * 1001)
    assert said.status_code == 413 and "at most 0 are taken" in said.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("; boundary=b", b"--b\r\nno form", "the form can't be read (Invalid multipart data); send multipart"),
        ("", b"--b", "(Missing boundary in multipart); send multipart/form-data with an `input` file."),
        (
            "; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="input"\r\n\r\n\xff\r\n--b--',
            "input[0] is not UTF-8; send it so, or an image as a file.",
        ),
        ("; boundary=b; charset=idna", b"--b--", "input: field required"),
        (
            "; boundary=b; charset=undefined",
            b'--b\r\nContent-Disposition: form-data; name="phrase"\r\n\r\n\xff\r\n--b--',
            "phrase is not UTF-8; send it so",
        ),
    ],
)  # fmt: skip
def test_a_form_that_cant_be_read_is_a_sentence(kind: str, body: bytes, sentence: str, client: TestClient) -> None:
    said = client.post("/v1/locate", content=body, headers={"Content-Type": "Multipart/form-data" + kind})
    assert said.status_code == 422 and sentence in said.json()["error"]["message"], said.text


def test_text_of_a_form_is_utf8(client: TestClient) -> None:
    forms = client.post("/v1/embeddings", files={"input": (None, "ein süßer Fuchs")}).json()
    assert forms["data"] == client.post("/v1/embeddings", json={"input": "ein süßer Fuchs"}).json()["data"]


def test_a_form_has_room_for_a_large_image_and_for_as_many_labels_as_json_has(client: TestClient) -> None:
    large = client.post("/v1/locate", files={"input": (None, "data:image/png;base64," + "A" * 2_000_000)})
    assert large.status_code == 422 and "phrase: field required" in large.text
    many = [("labels", (None, f"label {number}")) for number in range(1001)]
    said = client.post("/v1/classify", files=[("input", ("a.png", FILES[0], "image/png")), *many])
    assert said.status_code == 422 and "labels: 1001 are given and at most 1000 are taken" in said.text


def test_errors_name_a_folder_not_where_it_lies(predictor: Predictor, tmp_path: Path) -> None:
    predictor.pretrained.save(tmp_path / "model")
    with TestClient(Server(load(tmp_path / "model"), Limits()).app) as client:
        said = client.post("/v1/caption", json={"input": url_of(FILES[0]), "language": "de"}).json()["error"]
        assert said["message"] == "model never saw 'de'; its captions are in en." and said["param"] == "language"
        assert client.get("/openapi.json").json()["info"]["version"] == opensiglip.__version__


def test_an_image_of_too_many_pixels_is_refused_by_its_header(client: TestClient) -> None:
    """A PNG that says 10,000 x 10,000 and holds nothing."""
    said = client.post("/v1/embeddings", json={"input": url_of(header(10_000, 10_000))})
    assert said.status_code == 413
    assert "input[0] can't be read (image over 64 megapixels); make it smaller." in said.json()["error"]["message"]


def test_the_decoded_images_of_one_request_and_of_all_are_bounded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 48 x 24 takes 3,456 bytes."""
    server = Server(predictor, Limits())
    body = {"input": [url_of(FILES[0])] * 3, "labels": ["a"]}
    with TestClient(server.app) as client:
        monkeypatch.setattr(app_module, "REQUEST", 2 * 3456)
        said = client.post("/v1/classify", json=body)
        assert said.status_code == 413 and "megapixels in all; send fewer" in said.json()["error"]["message"]
        monkeypatch.setattr(app_module, "REQUEST", 10**6)
        monkeypatch.setattr(app_module, "HELD", 5 * 3456)
        assert client.post("/v1/classify", json=body).status_code == 200
        server.held += 3 * 3456  # of another request
        assert client.post("/v1/classify", json=body).status_code == 429
        assert server.held == 3 * 3456, "what was refused or answered is held no longer"


def header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    said = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", said) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_who_has_not_the_key_or_another_host_is_refused_but_may_ask_for_health(predictor: Predictor) -> None:
    server = Server(predictor, Limits(), hosts=("127.0.0.1", "api.example"), key="secret")
    with TestClient(server.app, base_url=HERE) as client:
        body = {"input": "a fox"}
        assert client.post("/v1/embeddings", json=body).status_code == 401
        wrong = client.post("/v1/embeddings", json=body, headers={"Authorization": "Bearer secreT"})
        assert wrong.json()["error"]["type"] == "authentication_error"
        right = {"Authorization": "Bearer secret"}
        assert client.post("/v1/embeddings", json=body, headers=right).status_code == 200
        assert client.get("/health").json() == {"status": "ok"} and client.get("/metrics").status_code == 401
        for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert client.post("/v1/embeddings", json=body, headers=right | foreign).status_code == 403
        named = client.post("/v1/embeddings", json=body, headers=right | {"Host": "api.example:8000"})
        assert named.status_code == 200


def test_metrics_count_requests_inputs_and_batches(predictor: Predictor) -> None:
    with TestClient(Server(predictor, Limits()).app) as client:
        client.post("/v1/embeddings", json={"input": ["a", "b", url_of(FILES[0])]})
        client.post("/v1/embeddings", json={})
        text = client.get("/metrics").text
    for line in (
        'opensiglip_requests_total{path="/v1/embeddings",status="200"} 1.0',
        'opensiglip_requests_total{path="/v1/embeddings",status="422"} 1.0',
        'opensiglip_inputs_total{kind="text"} 2.0',
        'opensiglip_inputs_total{kind="image"} 1.0',
        "opensiglip_batch_inputs_sum 3.0",
        "opensiglip_queue_inputs 0.0",
    ):
        assert f"\n{line}\n" in text
    assert "process_resident_memory_bytes" in text


# Batches


class Doubles:
    """Doubles numbers; remembers its batches; waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, question: Question, items: Sequence[int]) -> list[int]:
        self.go.wait(30)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


@pytest.fixture
def batches() -> Iterator[Callable[..., tuple[Doubles, Batcher]]]:
    made: list[tuple[Doubles, Batcher]] = []

    def make(**changes: Any) -> tuple[Doubles, Batcher]:
        model = Doubles()
        settings: dict[str, Any] = {"most": 4, "room": 8, "wait": 0.0}
        made.append((model, Batcher(model, **settings | changes)))
        return made[-1]

    yield make
    for model, batcher in made:
        model.go.set()
        batcher.close()


def busy(batcher: Batcher) -> Any:
    """One job that the model has taken and waits with."""
    future = batcher.submit(Question("first"), [0])
    while batcher.jobs:
        time.sleep(0.001)
    return future


def test_what_waits_for_one_question_is_asked_at_once_in_order(batches: Any) -> None:
    model, batcher = batches()
    first = busy(batcher)
    asked = [batcher.submit(Question("a"), [1, 2]), batcher.submit(Question("b"), [5])]
    asked += [batcher.submit(Question("a"), [3]), batcher.submit(Question("a"), [4, 6])]
    model.go.set()
    assert [future.result(30) for future in (first, *asked)] == [[0], [2, 4], [10], [6], [8, 12]]
    assert model.batches == [[0], [1, 2, 3], [5], [4, 6]], "no more than 4, the oldest question first"


def test_an_input_waits_for_others_to_share_its_batch(batches: Any) -> None:
    model, batcher = batches(wait=30.0, most=2)
    model.go.set()
    futures = [batcher.submit(Question("a"), [1]), batcher.submit(Question("a"), [2])]
    assert [future.result(20) for future in futures] == [[2], [4]] and model.batches == [[1, 2]]


def test_one_that_fails_spoils_no_other(batches: Any) -> None:
    model, batcher = batches()
    busy(batcher)
    bad, good = batcher.submit(Question("a"), [13]), batcher.submit(Question("a"), [1])
    model.go.set()
    assert good.result(30) == [2]
    with pytest.raises(ValueError, match="13"):
        bad.result(30)


def test_a_full_queue_refuses_with_429_and_empties_before_the_end(batches: Any) -> None:
    model, batcher = batches()
    busy(batcher)
    kept = batcher.submit(Question("a"), list(range(7)))
    with pytest.raises(Refused, match="7 inputs are waiting and 8 may") as refused:
        batcher.submit(Question("a"), [1, 2])
    assert refused.value.status == 429
    ending = threading.Thread(target=batcher.close)
    ending.start()
    while not batcher.closing:
        time.sleep(0.001)
    with pytest.raises(Refused, match="stopping") as refused:
        batcher.submit(Question("a"), [1])
    assert refused.value.status == 503
    model.go.set()
    assert kept.result(30) == [2 * item for item in range(7)], "answered, though the end was asked for"
    ending.join(30)


# The command


def test_beyond_this_machine_a_key_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("OPENSIGLIP_API_KEY", raising=False)
    for host, sentence in {
        "0.0.0.0": "--host 0.0.0.0 opens the model to whoever reaches this machine; set OPENSIGLIP_API_KEY",
        "256.1.1.1": "--host 256.1.1.1 can't be bound (",
        "a..b": "--host a..b can't be bound (",
        "": "--host is empty, which would be every address; give one",
    }.items():
        assert main(["serve", "nothing", "--host", host, "--port", free_port()]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["serve", "nothing", "--batch", "0"]) == 2


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def command(predictor: Predictor, folder: Path, *words: str, change: str = "") -> Iterator[tuple[Any, httpx.Client]]:
    """`opensiglip serve` after some changes of its modules `requests` and `serve`; what it says on stderr is piped."""
    predictor.pretrained.save(folder / "model")
    port = free_port()
    line = ["serve", str(folder / "model"), "--port", port, *words]
    code = f"""
import sys
from opensiglip.apps.cli import main
from opensiglip.apps.serve import requests, serve
{change}
sys.exit(main({line}))
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENSIGLIP_API_KEY": "k"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer k"}, timeout=60) as client,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"model on http://127.0.0.1:{port}/v1; the API: /openapi.json\n"
            patiently(lambda: client.get("/health"))
            yield process, client
        finally:
            process.kill()


def half_sent(client: httpx.Client) -> socket.socket:
    """A request that stops within its body."""
    connection = socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=60)
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k\r\nContent-Length: 100\r\n\r\n"
    connection.sendall(head.encode() + b'{"input"')
    return connection


def said_by(connection: socket.socket) -> str:
    """All that comes until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def test_the_command_ends_with_0_when_all_is_answered_and_no_half_sent_request_keeps_it(
    predictor: Predictor, tmp_path: Path
) -> None:
    """SIGTERM comes while one request waits three seconds for others to share its batch, and one is half sent."""
    served = command(predictor, tmp_path, "--wait-ms", "3000", change="requests.STALL = 1.5")
    with served as (process, client), ThreadPoolExecutor() as pool:
        half_sent(client).close()
        asked = pool.submit(client.post, "/v1/embeddings", json={"input": "a"})
        while "opensiglip_queue_inputs 1.0" not in client.get("/metrics").text:
            assert not asked.done()
        with half_sent(client) as stalled:
            process.send_signal(signal.SIGTERM)
            said = said_by(stalled)
            assert said.startswith("HTTP/1.1 408 ") and "the body stopped for 1.5 seconds; send it again" in said
        assert asked.result(60).status_code == 200
        assert process.wait(60) == 0
        assert process.stderr.read() == "", "nor is a traceback written for the one who went"


def test_the_end_comes_in_bounded_time_whatever_a_client_does(predictor: Predictor, tmp_path: Path) -> None:
    with command(predictor, tmp_path, change="serve.ENDING = 1") as (process, client), half_sent(client) as stalled:
        assert client.get("/health").status_code == 200, "the other has arrived"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert "503 " in said_by(stalled)[:15]
        assert process.wait(60) == 0 and time.monotonic() - began < requests_module.STALL
        assert "Traceback" not in process.stderr.read()


def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer, as soon as the server listens."""
    while True:
        try:
            return ask()
        except httpx.ConnectError:
            time.sleep(0.05)


def test_the_limits_are_what_the_page_says() -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/serve.md").read_text(encoding="utf-8")
    for number in (requests_module.INPUTS, requests_module.LABELS, guard_module.BODY // 1_000_000):
        assert f"{number:,}" in page


def test_the_bodies_of_all_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 of 100 bytes are here while another request brings 60; when they are gone it may."""
    monkeypatch.setattr(guard_module, "BODIES", 100)
    scope = {"type": "http", "path": "/v1/embeddings", "headers": [(b"content-length", b"60")]}
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message.get("status"))

    async def inner(asked: Any, receive: Any, answer: Any) -> None:
        if "within" not in asked:
            await guard(scope | {"within": True}, receive, send)
        await answer({"status": 200})

    guard = guard_module.Guard(inner, hosts=None, key=None)
    for _ in range(2):
        said.clear()
        anyio.run(guard, scope, None, send)
        assert said == [429, None, 200] and guard.bodies == 0


def test_no_more_images_are_decoded_at_once_than_there_are_decoders(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most, plain = [0], [0], app_module.image_of

    def slow(*given: Any) -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.05)
        now[0] -= 1
        return plain(*given)

    monkeypatch.setattr(app_module, "image_of", slow)
    assert client.post("/v1/embeddings", json={"input": [url_of(FILES[0])] * 8}).status_code == 200
    assert 0 < most[0] <= app_module.DECODERS


def test_questions_of_one_kind_share_no_batch_where_what_is_given_differs(batches: Any) -> None:
    model, batcher = batches()
    busy(batcher)
    asked = [batcher.submit(Question("a", (word,)), [1]) for word in ("fox", "cat")]
    model.go.set()
    assert [one.result(30) for one in asked] == [[2], [2]] and model.batches == [[0], [1], [1]]


def test_a_request_that_is_gone_does_not_end_the_batches(batches: Any) -> None:
    model, batcher = batches()
    busy(batcher)
    gone, later = batcher.submit(Question("a"), [1]), batcher.submit(Question("b"), [2])
    assert gone.cancel()
    model.go.set()
    assert later.result(10) == [4] and model.batches == [[0], [2]]


def test_the_command_hands_on_its_flags_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(Exception):
        pass

    def server(model: Any, limits: Limits, **given: Any) -> None:
        raise Made(limits, given)

    monkeypatch.setenv("OPENSIGLIP_API_KEY", "k")
    monkeypatch.setattr(app_module, "Server", server)
    monkeypatch.setattr(serve_module, "load", lambda name: name)
    monkeypatch.setattr(serve_module, "check_port", lambda *_: None)
    with pytest.raises(Made) as made:
        serve_module.serve("m", batch=3, queue=5, wait_ms=7.0, allow_host=("api.example",))
    hosts = ("localhost", "127.0.0.1", "::1", "api.example")
    assert made.value.args == (Limits(3, 5, 0.007), {"hosts": hosts, "key": "k"})
