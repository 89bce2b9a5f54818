"""Clicks through every tab of the demo in a headless Chromium, at desktop and at phone width: `make test-browser`.

OPENSIGLIP_MODEL and OPENSIGLIP_IMAGES name another model and folder than the random one and its noise, OPENSIGLIP_IMAGE
and OPENSIGLIP_PHRASE what is looked at and asked for there; OPENSIGLIP_SHOTS is where screenshots are kept.
"""

import base64
import gc
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.demo.demo import launch
from opensiglip.apps.demo.page import Page
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.inference.predictor import Predictor, load
from opensiglip.models.model import Model

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own, in the threads that serve
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SIZES = {"desktop": (1200, 900), "phone": (400, 844)}
PATIENCE = 300  # seconds
# The texts in sight whose contrast is below WCAG 2.2 AA: 4.5 to 1, and 3 to 1 for large ones. Colours are read off a
# canvas, which knows every way to write one; what has no ground of its own stands on its parents'.
FAINT = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = (colour) => {
    const linear = (v) => v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2]);
};
const ground = (element) => {
    for (; element; element = element.parentElement) {
        const colour = rgba(getComputedStyle(element).backgroundColor);
        if (colour[3] > 250) return colour;
    }
    return [255, 255, 255];
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    const seen = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!text || !seen || ["STYLE", "SCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const [low, high] = [luminance(rgba(style.color)), luminance(ground(element))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) faint.push([text, ratio.toFixed(2)]);
}
return faint;"""


@pytest.fixture(scope="module", autouse=True)
def loops_gone() -> Iterator[None]:
    """gradio leaves event loops and sockets open: collect them while their warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("OPENSIGLIP_IMAGES"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("photos")
    for place in range(6):
        pixels = np.random.default_rng(place).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    if given := os.environ.get("OPENSIGLIP_MODEL"):
        return load(given)
    torch.manual_seed(0)
    model = Model.new(small("siglip2").architecture, len(pipeline)).eval()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.vocabulary.weight)
    tasks = ("cap", "aref", "gcap")
    return Predictor(
        Pretrained.of(model, pipeline, name="tiny", boxes=BoxFormat(top=60), tasks=tasks, languages=("en",))
    )


@pytest.fixture(scope="module")
def address(predictor: Predictor, photos: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = launch(Page(predictor, predictor.index(photos)), host="127.0.0.1", port=port, wait=False)
    yield f"http://127.0.0.1:{port}"
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Visitor:
    """Someone at the page, who finds things by what they read."""

    def __init__(self, browser: Any, address: str, size: str) -> None:
        width, height = SIZES[size]
        self.browser, self.size = browser, size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(address)
        self.wait(lambda: self.find("button[role=tab]"))

    def wait(self, what: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE, ignored_exceptions=[Exception]).until(lambda _: what())

    def find(self, css: str) -> list[Any]:
        return [element for element in self.browser.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]

    def tab(self, name: str) -> None:
        """Open a tab; on a narrow page those that do not fit stand behind a button."""
        found = [tab for tab in self.find("button[role=tab]") if tab.text.strip() == name]
        if not found:
            self.find(".overflow-menu > button")[0].click()
            found = self.wait(lambda: [b for b in self.find(".overflow-dropdown button") if b.text.strip() == name])
        found[0].click()
        self.wait(lambda: self.find("div[role=tabpanel]"))

    def press(self, name: str) -> None:
        buttons = "div[role=tabpanel] button"
        button = self.wait(lambda: next(button for button in self.find(buttons) if button.text.strip() == name))
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def type(self, label: str, text: str, *more: str) -> None:
        field = self.field(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        self.wait(lambda: field.get_attribute("value") == text)
        for key in more:
            field.send_keys(key)

    def field(self, label: str) -> Any:
        labelled = [block for block in self.find("label") if block.text.strip().startswith(label)]
        return labelled[0].find_element(By.CSS_SELECTOR, "textarea, input")

    def give(self, path: Path) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "#image input[type=file]").send_keys(str(path))
        self.wait(lambda: self.find("#image img"))

    def pick(self, path: Path) -> None:
        """Give an image of the folder by its thumbnail."""
        named = {one.text.strip(): one for one in self.wait(lambda: self.find("#examples button"))}
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", named[path.name])
        named[path.name].click()
        self.wait(lambda: self.find("#image img"))

    def wait_for_hits(self, least: int) -> None:
        """Wait until every thumbnail of the search has come; a browser fetches those first that are in sight."""
        loaded = """
            const hits = [...document.querySelectorAll("#hits img")];
            hits.toReversed().forEach((hit) => hit.scrollIntoView());
            return hits.length >= arguments[0] && hits.every((hit) => hit.complete && hit.naturalWidth);"""
        self.wait(lambda: self.browser.execute_script(loaded, least))

    def wait_for_pictures(self, count: int) -> None:
        """Wait until so many pictures of the open tab have come."""

        def all_there() -> bool:
            pictures = self.find("div[role=tabpanel] img")
            return len(pictures) == count and all(int(one.get_property("naturalWidth")) for one in pictures)

        self.wait(all_there)

    def shot(self, name: str) -> None:
        """Keep a screenshot of the whole page, and see that nothing lies beside it."""
        folder = os.environ.get("OPENSIGLIP_SHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            height = self.browser.execute_script("return document.documentElement.scrollHeight")
            width = SIZES[self.size][0]
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            data = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            Path(folder, f"{name}-{self.size}.png").write_bytes(base64.b64decode(data["data"]))
        beside = self.browser.execute_script("return document.documentElement.scrollWidth") - SIZES[self.size][0]
        assert beside <= 0, f"{name} is {beside} pixels wider than the {self.size} page"


@pytest.fixture(params=SIZES)
def visitor(request: pytest.FixtureRequest, browser: Any, address: str) -> Visitor:
    return Visitor(browser, address, request.param)


def first(photos: Path) -> Path:
    return photos / os.environ.get("OPENSIGLIP_IMAGE", sorted(photos.glob("*.png"))[0].name)


def test_every_tab_answers(visitor: Visitor, photos: Path, predictor: Predictor) -> None:
    visitor.pick(first(photos))
    phrase = os.environ.get("OPENSIGLIP_PHRASE", "fox")

    visitor.tab("Classify")
    visitor.type("Labels", f"{phrase}, red apple, ghost")
    visitor.press("Classify")
    visitor.wait(lambda: "%" in visitor.find("div[role=tabpanel]")[0].text)
    visitor.shot("classify")

    visitor.tab("Search")
    visitor.press("Search by the image")
    visitor.wait_for_hits(least=6)
    if predictor.has_text:
        visitor.type("Text to search for", phrase, Keys.ENTER)
        visitor.wait(lambda: "1.000" not in visitor.find("#hits")[0].text)  # the image itself is no longer there
        visitor.wait_for_hits(least=6)
    visitor.shot("search")

    visitor.tab("Caption")
    visitor.press("Caption")
    visitor.wait(lambda: visitor.field("Caption").get_attribute("value"))
    visitor.shot("caption")

    visitor.tab("Locate")
    visitor.type("Phrase", phrase, Keys.ENTER)  # by keyboard
    visitor.wait(lambda: "score" in visitor.find("div[role=tabpanel]")[0].text)
    visitor.wait_for_pictures(1)
    visitor.shot("locate")

    visitor.tab("Describe")
    pad = visitor.wait(lambda: visitor.find("#pad .pad img"))[0]
    visitor.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    width, height = pad.size["width"], pad.size["height"]
    drag = ActionChains(visitor.browser).move_to_element_with_offset(pad, -width // 4, -height // 4)
    drag.click_and_hold().move_by_offset(width // 4, height // 4).move_by_offset(
        width // 8, height // 8
    ).release().perform()
    visitor.wait(lambda: visitor.field("Description").get_attribute("value"))
    with Image.open(first(photos)) as image:
        expected = [image.width / 4, image.height / 4, image.width * 5 / 8, image.height * 5 / 8]
    corners = [float(visitor.field(name).get_attribute("value")) for name in ("x1", "y1", "x2", "y2")]
    assert corners == pytest.approx(expected, abs=4)  # the mouse moves by whole pixels of the page
    visitor.wait_for_pictures(2)  # that to drag on, and that with the box drawn
    visitor.shot("describe")

    visitor.tab("Ask")
    visitor.type("Question", f"ARef: {phrase} :")
    visitor.press("Ask")
    visitor.wait(lambda: visitor.field("Answer").get_attribute("value"))
    visitor.wait_for_pictures(1)
    visitor.shot("ask")

    visitor.tab("Feature map")
    if predictor.has_text:
        visitor.type("Phrase for the heat map", phrase)
    visitor.press("Draw")
    visitor.wait_for_pictures(1 + predictor.has_text)
    visitor.shot("features")


def test_what_goes_wrong_is_shown_in_words(visitor: Visitor, tmp_path: Path) -> None:
    visitor.tab("Caption")
    visitor.press("Caption")
    said = visitor.wait(lambda: visitor.find(".toast-wrap"))[0]
    visitor.wait(lambda: "give an image first" in said.text)
    visitor.shot("error")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(browser: Any, address: str, photos: Path, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        visitor = Visitor(browser, address, "desktop")
        visitor.pick(first(photos))
        visitor.type("Labels", "fox, red apple")
        visitor.press("Classify")
        visitor.wait(lambda: visitor.find(".labels"))
        faint = visitor.browser.execute_script(FAINT)
        assert faint == [], "text and its contrast"
        visitor.browser.execute_script("document.querySelector('.labels td').style = 'color: #888; background: #777'")
        assert len(visitor.browser.execute_script(FAINT)) == 1, "the check sees grey on grey"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_works_by_keyboard_alone(visitor: Visitor, photos: Path) -> None:
    visitor.give(first(photos))
    body = visitor.browser.find_element(By.TAG_NAME, "body")
    reached = set()
    for _ in range(40):
        body.send_keys(Keys.TAB) if not reached else ActionChains(visitor.browser).send_keys(Keys.TAB).perform()
        active = visitor.browser.switch_to.active_element
        reached.add(active.text.strip() or active.get_attribute("type") or active.tag_name)
    assert {"Classify", "textarea"} <= reached


def test_nothing_is_fetched_from_elsewhere(browser: Any, address: str) -> None:
    browser.get_log("performance")
    Visitor(browser, address, "desktop")
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [a for a in addresses if not a.startswith((address, "data:", "blob:"))] == []
