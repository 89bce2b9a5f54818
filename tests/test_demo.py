"""The web page's answers, without a browser: tests/browser clicks through it with one."""

import base64
import gc
import io
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.cli import main
from opensiglip.apps.demo.demo import check_port, launch
from opensiglip.apps.demo.guard import RATE, WAITING, Guard
from opensiglip.apps.demo.labels import labels_table
from opensiglip.apps.demo.layout import build, shown_errors
from opensiglip.apps.demo.page import Page, drawn
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.images import load_image
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.reports.maps import heat_map, range_text, scaled_map
from opensiglip.reports.probability import probability_text, shares_by_odds

gradio = pytest.importorskip("gradio")
# gradio leaves event loops open, and says nothing of it.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def loops_gone() -> Iterator[None]:
    """Collect them while their warnings are ignored, not at the end of all tests."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    torch.manual_seed(0)
    model = Model.new(small("siglip2").architecture, len(pipeline)).eval()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.vocabulary.weight)
    tasks = ("cap", "aref", "gcap")
    return Predictor(
        Pretrained.of(model, pipeline, name="a <run>", boxes=BoxFormat(top=60), tasks=tasks, languages=("en",))
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for place in range(5):
        pixels = np.random.default_rng(place).integers(0, 256, (24, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def page(predictor: Predictor, photos: Path) -> Page:
    return Page(predictor, predictor.index(photos))


def test_buttons_answer_as_python_does(page: Page, predictor: Predictor, photos: Path) -> None:
    image = str(photos / "2.png")
    table, numbers = page.classify(image, "a fox\nan apple, a <pear>")
    assert numbers == pytest.approx(predictor.classify(image, ["a fox", "an apple", "a <pear>"]), rel=1e-3)
    assert [table.index(label.replace("<pear>", "&lt;pear&gt;")) for label in numbers] == sorted(
        table.index(label) for label in ("a fox", "an apple", "a &lt;pear&gt;")
    ), "likeliest first, and escaped"
    assert page.caption(image) == predictor.caption(image)
    assert page.caption(image, 3) == predictor.caption(image, num_beams=3)
    picture, found = page.locate(image, " a   fox ")
    assert found["phrase"] == "a fox" and found["box"] == pytest.approx(predictor.locate(image, "a fox").box, abs=0.05)
    assert picture.size == (640, 320)
    _, proposals = page.propose(image)
    assert [p["phrase"] for p in proposals] == [p.phrase for p in predictor.propose(image)]
    assert page.describe(image, 4, 4, 40, 20)[1] == predictor.describe(image, (4, 4, 40, 20))


def test_search_finds_the_image_itself_first_and_counts_what_is_broken(page: Page, photos: Path) -> None:
    hits = page.search_by_image(str(photos / "3.png"))
    assert hits[0][1] == "3.png  1.000" and len(hits) == 5
    assert [name for _, name in page.search_by_text("a fox")] != []
    assert page.index is not None and [path.name for path in page.index.unreadable] == ["broken.png"]


def test_the_feature_map_has_a_heat_map_for_a_phrase(page: Page, photos: Path) -> None:
    colours, nothing = page.features(str(photos / "0.png"))
    assert colours.size == (640, 640) and nothing is None
    heat = page.features(str(photos / "0.png"), "a fox")[1]
    assert heat.size == (640, 320 + 32 + 42)
    near, nothing = (page.predictor.similarity(str(photos / "0.png"), text)[0] for text in ("a fox", ""))
    plain = heat_map(load_image(drawn(load_image(photos / "0.png"), [])), near - nothing)
    assert heat.crop((0, 0, 640, 320)) == plain
    assert heat.getpixel((0, 321)) == (0, 0, 4) and heat.getpixel((639, 321)) == (252, 255, 164), "inferno's two ends"


def test_a_scale_stands_below_a_heat_map_with_its_least_and_greatest() -> None:
    values = torch.tensor([[0.25, 1.0], [0.5, -3.5]])
    scaled = scaled_map(heat_map(torch.zeros(3, 100, 200, dtype=torch.uint8), values), values)
    other = scaled_map(heat_map(torch.zeros(3, 100, 200, dtype=torch.uint8), values), 2 * values)
    assert scaled.size == (200, 123) and range_text(values) == "-3.50 – 1.00"
    changed = np.argwhere((np.asarray(scaled, int) != np.asarray(other, int)).any(-1))
    assert changed[:, 0].min() >= 110, "only the numbers differ"
    assert (changed[:, 1] < 50).any() and (changed[:, 1] > 150).any(), "at both ends"


def test_small_probabilities_can_be_read_and_told_apart() -> None:
    said = {
        0.34: "34 %",
        0.0342: "3.4 %",
        0.00321: "0.32 %",
        0.000034: "0.0034 %",
        1e-9: "< 0.0001 %",
        0.0: "< 0.0001 %",
    }
    said |= {1.0: "> 99.9 %", 0.996: "99.6 %", 0.99: "99 %"}
    assert {one: probability_text(one) for one in said} == said
    logits = torch.tensor([-8.0, -10.0, -30.0])
    shares = shares_by_odds(dict(zip("abc", logits.double().sigmoid().tolist(), strict=True)))
    assert list(shares.values()) == pytest.approx(logits.softmax(0).tolist(), rel=1e-5)
    assert shares_by_odds({"a": 1.0, "b": 0.0})["a"] > 0.999 and shares_by_odds({"a": 0.0, "b": 0.0})["a"] == 0.5
    table = labels_table({"a fox": 0.0031, "a cat": 0.00001}, own=True)
    assert "0.31 %" in table and "0.001 %" in table and "Among these" in table and "width: 99.7%" in table
    assert "Among these" not in labels_table({"a fox": 0.9, "a cat": 0.1}, own=False)


def test_images_of_the_folder_are_offered_and_may_be_served(
    page: Page, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [path.name for path in page.examples()] == [f"{place}.png" for place in range(5)]
    assert Page(page.predictor).examples() == []
    settings: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda _, **given: settings.update(given))
    launch(page, host="127.0.0.1", port=0, wait=False)
    assert settings["allowed_paths"] == [str(path) for path in page.examples()]


def test_the_picture_to_drag_on_is_the_image(page: Page, photos: Path) -> None:
    data = base64.b64decode(page.picture(str(photos / "1.png")).removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.size == (640, 320)
    assert page.picture(None) == ""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda page, image: page.caption(None), "give an image first"),
        (lambda page, image: page.locate(image, "  "), "type a text first"),
        (lambda page, image: page.classify(image, " ,"), "type labels"),
        (lambda page, image: page.describe(image, None, 1, 2, 3), "give all four corners"),
        (lambda page, image: page.describe(image, 40, 4, 99, 9), "is not a box of an image"),
        (lambda page, image: page.caption(__file__), "is not a readable image"),
        (lambda page, image: Page(page.predictor).search_by_text("fox"), "start the demo with --images"),
    ],
)
def test_what_goes_wrong_is_shown_shown_errors(page: Page, photos: Path, call: Any, said: str) -> None:
    with pytest.raises(gradio.Error) as error:
        shown_errors(call)(page, str(photos / "0.png"))
    assert said in error.value.message and "<" not in error.value.message


def test_the_page_names_the_model_and_documents_its_buttons(page: Page) -> None:
    assert "a &lt;run&gt;" in page.abilities() and "search by text" in page.abilities()
    endpoints = build(page).get_api_info()["named_endpoints"]
    assert set(endpoints) == {
        "/classify", "/search_by_text", "/search_by_image", "/caption", "/locate", "/propose", "/describe", "/features",
        "/ask",
    }  # fmt: skip
    assert all(facts["description"] for facts in endpoints.values())


def test_a_port_in_use_and_an_empty_folder_are_said(
    page: Page, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use; give another, such as --port {port + 1}"):
            launch(page, host="127.0.0.1", port=port, wait=False)
        assert main(["demo", "nowhere", "--port", str(port)]) == 2  # before the model is loaded
        assert capsys.readouterr().err.startswith(f"opensiglip: port {port} is in use; give another")
    with pytest.raises(UserError, match="no image in"):
        predictor.index(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images"):
        predictor.index(tmp_path)
    for host, port, said in (("127.0.0.1", 99999, "can't be served"), ("256.1.1.1", 0, "can't be bound")):
        with pytest.raises(UserError, match=said):
            check_port(host, port)
    assert main(["demo", str(tmp_path), "--port", "0"]) == 2


def test_the_page_is_served_to_this_machine_alone(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda _, **given: settings.update(given))
    launch(page, host="127.0.0.1", port=0, wait=False)
    assert settings["share"] is False and settings["server_name"] == "127.0.0.1"
    assert settings["enable_monitoring"] is False and settings["run_history"] is False


@pytest.fixture
def address(page: Page) -> Iterator[str]:
    """The page, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = launch(page, host="127.0.0.1", port=port, wait=False)
    yield f"http://127.0.0.1:{port}"
    blocks.close(verbose=False)


@pytest.mark.filterwarnings("ignore")  # gradio's own, in the threads that serve
def test_a_bad_upload_gets_our_sentence(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that gradio would open itself: empty, text, cut, another kind, larger than the page takes."""
    client, error = (getattr(pytest.importorskip("gradio_client"), name) for name in ("Client", "exceptions"))
    handle_file = pytest.importorskip("gradio_client").handle_file
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    files = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": picture.getvalue()[:60],
        "photo.heic": b"\0\0\0\x18ftypheic" + bytes(100),
        "large.png": picture.getvalue(),
    }
    visitor = client(address, verbose=False)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        if name == "large.png":
            monkeypatch.setattr("opensiglip.apps.demo.page.FILE", 10)
        with pytest.raises(error.AppError) as said:
            visitor.predict(handle_file(str(tmp_path / name)), "red,blue", api_name="/classify")
        expected = "the page takes" if name == "large.png" else f"{name} is not a readable image"
        assert expected in str(said.value) and str(said.value).startswith(name)


def test_boxes_are_drawn_where_they_lie(photos: Path) -> None:
    plain, boxed = (
        np.asarray(drawn(load_image(photos / "0.png"), found), int) for found in ([], [("", (12, 6, 36, 18))])
    )
    changed = np.argwhere((plain != boxed).any(-1))
    assert changed.min(0).tolist() == [80, 160] and changed.max(0).tolist() == [240, 480]


def scope(method: str = "GET", path: str = "/", client: str = "1.2.3.4", **headers: str) -> dict[str, Any]:
    """A request as ASGI has it."""
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "client": (client, 1)}


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("127.0.0.1:7860", None, True),
        ("localhost:7860", "http://localhost:7860", True),
        ("[::1]:7860", "http://127.0.0.1:7860", True),
        ("evil.example:7860", None, False),
        ("127.0.0.1:7860", "https://evil.example", False),
        ("127.0.0.1:7860", "null", False),
        ("127.0.0.1.evil.example", None, False),
        ("[", None, False),
        ("", None, False),
    ],
)
def test_a_page_of_this_machine_answers_no_other_host_or_origin(host: str, origin: str | None, passes: bool) -> None:
    """A website that is open in the same browser can point its name here, or send requests across."""
    given = scope(host=host) if origin is None else scope(host=host, origin=origin)
    refused = Guard(None, local=True, largest=10).refusal(given)
    assert (refused is None) == passes and (passes or refused[0] == 403)
    assert Guard(None, local=False, largest=10).refusal(given) is None


def test_an_address_that_asks_too_often_and_a_file_too_large_are_refused() -> None:
    now = [0.0]
    guard = Guard(None, local=False, largest=100_000_000, clock=lambda: now[0])
    ask = scope("POST", "/gradio_api/queue/join", host="x")
    assert [guard.refusal(ask) for _ in range(RATE)] == [None] * RATE
    status, sentence = guard.refusal(ask) or (0, "")
    assert status == 429 and f"{RATE} questions and files a minute" in sentence
    assert guard.refusal(scope("POST", "/gradio_api/queue/join", client="other")) is None
    assert guard.refusal(scope("GET", "/")) is None
    now[0] = 61.0
    assert guard.refusal(ask) is None
    upload = scope("POST", "/gradio_api/upload", client="third", content_length="100000001")
    assert (guard.refusal(upload) or (0, ""))[0] == 413


@pytest.mark.filterwarnings("ignore")
def test_the_served_page_is_guarded_and_calls_nobody(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        called.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = launch(page, host="127.0.0.1", port=port, wait=False)
    try:
        httpx = pytest.importorskip("httpx")
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(url).status_code == 200
        refused = httpx.get(url, headers={"host": "evil.example"})
        assert refused.status_code == 403 and refused.json()["detail"].startswith("this page is for the machine")
        large = HTTPConnection("127.0.0.1", port)
        large.putrequest("POST", "/gradio_api/upload")
        large.putheader("content-length", "200000000")
        large.endheaders()
        answer = large.getresponse()
        assert answer.status == 413 and b"the page takes 100" in answer.read()
        large.close()
        assert blocks._queue.max_size == WAITING and not blocks.api_open
    finally:
        blocks.close(verbose=False)
    assert {address[0] for address in called if isinstance(address, tuple)} <= {"127.0.0.1", "::1"}


def test_a_fault_of_ours_and_an_upload_that_is_gone_are_sentences(page: Page, photos: Path) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("inner words")

    with pytest.raises(gradio.Error, match=r"can't answer this \(ZeroDivisionError\)") as error:
        shown_errors(fails)(page)
    assert "inner words" not in error.value.message
    with pytest.raises(UserError, match="no longer here"):
        page.caption(str(photos / "gone.png"))
