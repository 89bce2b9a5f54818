"""Layout of the demo's page: its fields and buttons, and the answer of each button. Only this file uses gradio."""

import html
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from opensiglip.apps.demo.page import LETTERS, Page, opened, thumbnail
from opensiglip.errors import UserError

# gradio lays a picture's name over its upper left corner and a thumbnail's over its lower right one; here they stand
# above and below it.
CSS = """
.gradio-container, .gradio-container > .main { width: 100%; max-width: 1100px !important; margin: 0 auto; }
.block:not(#image) > label.float { position: static; border: none; box-shadow: none; }
button[role=tab] { padding-left: 8px; padding-right: 8px; }
button[role=tab].selected { color: var(--primary-600); }
.dark button[role=tab].selected { color: var(--primary-400); }
.thumbnails-below .grid-wrap { min-height: 0; max-height: none; }
.thumbnails-below .thumbnail-lg:hover .caption-label { opacity: 1; }
.thumbnails-below .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)) !important; grid-auto-rows: auto !important;
}
.thumbnails-below .thumbnail-lg { aspect-ratio: auto; height: auto; }
.thumbnails-below .thumbnail-lg > img { aspect-ratio: 1; height: auto; border-radius: 0; }
.thumbnails-below .caption-label {
  position: static; max-width: 100%; padding: 1px 5px; border: none; font-size: 11px; text-align: center;
}
#hits { --least: 130px; }
#examples { --least: 80px; }
.json-node * { color: var(--body-text-color) !important; }
.labels tr { border: none !important; border-top: 1px solid var(--border-color-primary) !important; }
.labels { width: 100%; border: none !important; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.labels th, .labels td {
  padding: 6px 4px; border: none !important; font-weight: 400; text-align: right; vertical-align: top;
  white-space: nowrap;
}
.labels tr > :first-child { width: 100%; text-align: left; white-space: normal; overflow-wrap: anywhere; }
.labels thead th { color: var(--body-text-color-subdued); }
.labels .bar { margin-top: 4px; background: var(--background-fill-secondary); border-radius: 3px; }
.labels .bar div { height: 6px; min-width: 1px; background: var(--color-accent); border-radius: 3px; }
.pad { position: relative; line-height: 0; touch-action: none; cursor: crosshair; user-select: none; }
.pad img { width: 100%; pointer-events: none; }
.pad .box { display: none; position: absolute; border: 3px solid #D55E00; pointer-events: none; }
"""
PAD = """${value
? `<div class="pad"><img src="${value}" alt="the image; drag a box on it"><div class="box"></div></div>`
: `<p>Give an image first.</p>`}"""


def library() -> Any:
    """gradio, which only the demo needs. Raises UserError if it is not installed."""
    try:
        import gradio
    except ImportError:
        raise UserError('the demo needs gradio; `pip install "opensiglip[demo]"`.') from None
    return gradio


def theme() -> Any:
    """Fonts of this machine, none from the network; gradio's greys and blues, dark enough for WCAG 2.2 AA."""
    base = library().themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def build(page: Page) -> Any:
    """The page as gradio's Blocks."""
    gr = library()
    with gr.Blocks(title="OpenSigLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# OpenSigLIP\n{page.abilities()}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    label="Image",
                    height=360,
                    elem_id="image",
                    buttons=[],
                )
                image.preprocess = upload_path
                if paths := page.examples():
                    examples(paths, image)
            with gr.Column(scale=3, min_width=300):
                for name, tab in {
                    "Classify": classify,
                    "Search": search,
                    "Caption": caption,
                    "Locate": locate,
                    "Describe": describe,
                    "Ask": ask,
                    "Feature map": features,
                }.items():
                    with gr.Tab(name):
                        tab(page, image)
    return blocks


def upload_path(upload: Any) -> str | None:
    """The path of an upload, unopened: gradio would open it and report errors in its own words."""
    return None if upload is None else upload.path


def examples(paths: list[Path], image: Any) -> None:
    """Thumbnails of the folder; who clicks one has given that image."""
    gr = library()
    small = thumbnails([(thumbnail(path), path.name) for path in paths], "Or one of the folder", "examples")

    def clicked(event: gr.SelectData) -> str:  # type: ignore[name-defined] # which gradio looks at
        return str(paths[event.index])

    small.select(clicked, None, image, api_visibility="private")


def classify(page: Page, image: Any) -> None:
    gr = library()
    labels = gr.Textbox(label="Labels", lines=3, max_length=LETTERS, info="One per line, or separated by commas.")
    button = gr.Button("Classify", variant="primary")
    table, numbers = gr.HTML(label="Probability"), gr.JSON(label="Probabilities")
    connect(button.click, page.classify, [image, labels], [table, numbers])


def search(page: Page, image: Any) -> None:
    gr = library()
    text = gr.Textbox(label="Text to search for", max_length=LETTERS)
    with gr.Row():
        by_text = gr.Button("Search by text", variant="primary")
        by_image = gr.Button("Search by the image")
    hits = thumbnails([], "Nearest first", "hits")
    connect(by_text.click, page.search_by_text, [text], hits)
    connect(text.submit, page.search_by_text, [text], hits, listed=False)
    connect(by_image.click, page.search_by_image, [image], hits)


def caption(page: Page, image: Any) -> None:
    gr = library()
    beams = gr.Slider(1, 8, value=1, step=1, label="Beams")
    known = page.languages()
    language = gr.Dropdown(known, value=next(iter(known), None), label="Language", visible=len(known) > 1)
    button = gr.Button("Caption", variant="primary")
    text = gr.Textbox(label="Caption", lines=2, interactive=False)
    connect(button.click, page.caption, [image, beams, language], text)


def locate(page: Page, image: Any) -> None:
    gr = library()
    phrase = gr.Textbox(label="Phrase", max_length=LETTERS)
    with gr.Row():
        button = gr.Button("Locate", variant="primary")
        find = gr.Button("Propose phrases and boxes")
    boxed, numbers = picture("Boxes"), gr.JSON(label="Boxes in pixels")
    connect(button.click, page.locate, [image, phrase], [boxed, numbers])
    connect(phrase.submit, page.locate, [image, phrase], [boxed, numbers], listed=False)
    connect(find.click, page.propose, [image], [boxed, numbers])


def describe(page: Page, image: Any) -> None:
    gr = library()
    gr.Markdown("Drag a box on the image, or type its corners in pixels.")
    drag = Path(__file__).with_name("drag.js").read_text(encoding="utf-8")
    pad = gr.HTML("", html_template=PAD, js_on_load=drag, elem_id="pad")
    with gr.Row():
        corners = [gr.Number(label=name, precision=1, min_width=70) for name in ("x1", "y1", "x2", "y2")]
    button = gr.Button("Describe", variant="primary")
    text, outlined = gr.Textbox(label="Description", interactive=False), picture("The box")
    connect(image.change, page.picture, [image], pad, listed=False)
    connect(button.click, page.describe, [image, *corners], [outlined, text])

    pad.select(shown_errors(dragged(gr)), [image], corners, api_visibility="private").then(
        shown_errors(page.describe), [image, *corners], [outlined, text], api_visibility="private"
    )


def dragged(gr: Any) -> Callable[..., list[float]]:
    """Convert the event of drag.js to corners in pixels of the image."""

    def corners(image: str | None, event: gr.EventData) -> list[float]:
        height, width = opened(image).shape[1:]
        return [round(share * side, 1) for share, side in zip(event.box, (width, height) * 2, strict=True)]

    return corners


def ask(page: Page, image: Any) -> None:
    gr = library()
    question = gr.Textbox(label="Question", info=page.questions(), max_length=LETTERS)
    button = gr.Button("Ask", variant="primary")
    text, shown = gr.Textbox(label="Answer", interactive=False), picture("Places in the answer")
    meaning = gr.JSON(label="Parsed answer, coordinates in pixels")
    connect(button.click, page.ask, [image, question], [text, shown, meaning])
    connect(question.submit, page.ask, [image, question], [text, shown, meaning], listed=False)


def features(page: Page, image: Any) -> None:
    gr = library()
    near = gr.Textbox(label="Phrase for the heat map (optional)", max_length=LETTERS)
    button = gr.Button("Draw", variant="primary")
    with gr.Row():
        colours, heat = picture("Principal components"), picture("Similarity to the phrase")
    connect(button.click, page.features, [image, near], [colours, heat])
    connect(near.submit, page.features, [image, near], [colours, heat], listed=False)


def thumbnails(pictures: list[tuple[Any, str]], label: str, elem_id: str) -> Any:
    """Pictures side by side, whole, each above its words."""
    return library().Gallery(
        pictures,
        label=label,
        height="auto",
        object_fit="contain",
        allow_preview=elem_id == "hits",
        buttons=[],
        elem_id=elem_id,
        elem_classes="thumbnails-below",
    )


def picture(label: str) -> Any:
    """A picture that an answer draws."""
    return library().Image(label=label, interactive=False, buttons=[], format="png")


def connect(event: Any, answer: Callable[..., Any], inputs: list[Any], outputs: Any, *, listed: bool = True) -> None:
    """Bind an answer to a button; the API documents it under its own name, unless another button has."""
    event(
        shown_errors(answer),
        inputs,
        outputs,
        api_name=answer.__name__ if listed else None,
        api_visibility="public" if listed else "private",
        concurrency_id="model",
    )


def shown_errors(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The answer; whatever goes wrong becomes a sentence on the page."""
    gr = library()

    @wraps(answer)
    def wrapped(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except UserError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
        except Exception as error:  # the visitor sees only the type; the terminal has the traceback
            sentence = f"the page can't answer this ({type(error).__name__}); the server's terminal says why."
            raise gr.Error(sentence) from error

    return wrapped
