"""What a request says: JSON with texts and data URLs, or a form with files; checked, and its images decoded."""

import asyncio
import base64
import binascii
import json
import re
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from opensiglip.apps.serve.guard import BODY, Receive
from opensiglip.apps.serve.refusal import Refused
from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.images import decode_image_bytes

INPUTS = 256  # of a request
LETTERS = 20_000  # of a text; the model reads as many as its length has room for
LABELS = 1_000
STALL = 20.0  # seconds between two pieces of a body
DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
OTHER_URL = re.compile(r"data:(?:[\w.+-]{1,40}/[\w.+-]{1,40}[;,]|;base64,)", re.IGNORECASE)
SEND = "send data:image/png;base64,..."
LISTS = ("input", "labels")  # fields of a form that may come several times
OF_FIELDS = {
    "dimensions": "send a whole number of at least 1",
    "encoding_format": 'send "float" or "base64"',
    "num_beams": "send a whole number from 1 to 8",
}
OF_ERRORS = {  # by pydantic's names
    "missing": "field required; send it",
    "extra_forbidden": "there is no such field; leave it out",
    "string_type": "send a string",
    "list_type": "send a list",
    "model_type": "send an object",
}


def sound(text: str, field: str) -> str:
    """A text that says something and can be read. Raises Refused: 413, 422."""
    if not text.strip():
        raise Refused(422, f"{field} is empty; send a text.", field)
    if len(text) > LETTERS:
        raise Refused(413, f"{field} has {len(text)} letters, and a text may have {LETTERS}; shorten it.", field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(422, f"{field} holds half of a surrogate pair; send whole letters.", field) from None
    return text


def _sound_labels(labels: list[str]) -> list[str]:
    if not labels:
        raise Refused(422, "labels: give at least one to choose from.", "labels")
    if len(labels) > LABELS:
        raise Refused(422, f"labels: {len(labels)} are given and at most {LABELS} are taken; send fewer.", "labels")
    return [sound(label, f"labels[{place}]") for place, label in enumerate(labels)]


def _no_bool(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError
    return given


class Url(BaseModel):
    """Of a content part."""

    model_config = ConfigDict(extra="ignore")  # OpenAI's `detail`
    url: str


class ImagePart(BaseModel):
    """OpenAI's content part of an image."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["image_url"]
    image_url: Url


class TextPart(BaseModel):
    """OpenAI's content part of a text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


Part = str | TextPart | ImagePart | bytes  # bytes are those of a file of a form


def _parts(given: Any) -> list[Part]:
    """What stands in `input`, a list or one. Raises Refused."""
    parts = given if isinstance(given, list) else [given]
    if not parts:
        raise Refused(422, "input: give at least one text or image.", "input")
    if any(isinstance(part, int | list) and not isinstance(part, bool) for part in parts):
        raise Refused(422, "input: token ids are not taken; send the text.", "input")
    if len(parts) > INPUTS:
        raise Refused(422, f"input: {len(parts)} are given and at most {INPUTS} are taken; send fewer.", "input")
    return [_part(part, f"input[{place}]") for place, part in enumerate(parts)]


def _part(part: Any, field: str) -> Part:
    if isinstance(part, str):
        return part if OTHER_URL.match(part) else sound(part, field)
    if isinstance(part, bytes):
        return part
    if not isinstance(part, dict):
        raise Refused(422, f"{field}: send a text, or an image as data:image/png;base64,...", field)
    if part.get("type") == "text":
        said = _checked(part, TextPart, field)
        sound(said.text, f"{field}.text")
        return said
    if part.get("type") == "image_url":
        return _checked(part, ImagePart, field)
    raise Refused(422, f'{field}.type: send "text" or "image_url".', f"{field}.type")


class Asked(BaseModel):
    """What all requests have: whom they ask, and the inputs; a string that is an image's data URL is that image."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    user: str | None = None
    input: Annotated[list[Part], PlainValidator(_parts)]


class EmbeddingsAsked(Asked):
    """OpenAI's, of images too."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1), BeforeValidator(_no_bool)] | None = None  # a width of --nested, or all


class ClassifyAsked(Asked):
    """Images, and the labels to choose from."""

    labels: Annotated[list[str], AfterValidator(_sound_labels)]


class LocateAsked(Asked):
    """Images, and what to find on each."""

    phrase: Annotated[str, AfterValidator(partial(sound, field="phrase"))]


class CaptionAsked(Asked):
    """Images; the language and the beams of their captions."""

    language: Annotated[str, Field(max_length=20), AfterValidator(partial(sound, field="language"))] | None = None
    num_beams: Annotated[int, Field(ge=1, le=8), BeforeValidator(_no_bool)] = 1


Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, kind: type[Body]) -> Body:
    """The body of a request, JSON or a form. Raises Refused: 400, 408, 413, 422."""
    request = Request(request.scope, _without_stalls(request.receive))
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return _checked(await _form(request), kind)
        body = await request.body()
    except ClientDisconnect:
        raise Refused(400, "the client went before its request was whole; send it again.") from None
    return await run_in_threadpool(_from_json, body, kind)


def _without_stalls(receive: Receive) -> Receive:
    async def within() -> Any:
        try:
            async with asyncio.timeout(STALL):
                return await receive()
        except TimeoutError:
            raise Refused(408, f"the body stopped for {STALL:g} seconds; send it again, without a pause.") from None

    return within


async def _form(request: Request) -> dict[str, Any]:
    """The fields of a form. Raises Refused: 422."""
    kind = request.headers["content-type"] + "; charset=latin-1"  # a letter a byte: starlette guesses, `_utf8` does not
    try:
        async with aclosing(request.stream()) as stream:
            parser = MultiPartParser(
                Headers({"content-type": kind}),
                stream,
                max_files=INPUTS,
                max_fields=INPUTS + LABELS,
                max_part_size=BODY,
            )
            form = await parser.parse()
    except MultiPartException as error:
        reason = error.message.rstrip(".")
        sentence = f"the form can't be read ({reason}); send multipart/form-data with an `input` file."
        raise Refused(422, sentence) from None
    fields: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            several = fields.setdefault(name, []) if name in LISTS else None
            field = name if several is None else f"{name}[{len(several)}]"
            item = await value.read() if isinstance(value, UploadFile) else _utf8(value, field)
            if several is None:
                fields[name] = item
            else:
                several.append(item)
    finally:
        await form.close()
    return fields


def _utf8(letters: str, field: str) -> str:
    try:
        return letters.encode("latin-1").decode()
    except UnicodeError:
        raise Refused(422, f"{field} is not UTF-8; send it so, or an image as a file.", field) from None


def image_of(part: Part, place: int) -> Tensor | None:
    """The image [3, h, w] uint8 of an input; None of a text. Raises Refused: 413, 422."""
    field = f"input[{place}]"
    if isinstance(part, bytes):
        return decoded(part, field)
    if isinstance(part, TextPart):
        return None
    url = part.image_url.url if isinstance(part, ImagePart) else part
    head = DATA_URL.match(url)
    if head is None:
        if other := OTHER_URL.match(url):
            raise Refused(422, f"{field} begins with {other[0]} and is not a base64 image; {SEND}", field)
        if isinstance(part, ImagePart):
            raise Refused(422, f"{field} names an address, and none is fetched; {SEND}", field)
        return None
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{field} is no base64; encode the image's file.", field) from None
    return decoded(data, field)


def text_of(part: Part) -> str:
    """The text of an input that is no image."""
    return part.text if isinstance(part, TextPart) else str(part)


def decoded(data: bytes, field: str) -> Tensor:
    """An image's file as pixels. Raises Refused."""
    try:
        return decode_image_bytes(data)
    except BrokenExample as reason:
        if str(reason).startswith(("image over", "image file over")):
            raise Refused(413, f"{field} can't be read ({reason}); make it smaller.", field) from None
        raise Refused(422, f"{field} can't be read ({reason}); give a JPEG, PNG or WebP.", field) from None


def _from_json(body: bytes, kind: type[Body]) -> Body:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is no JSON; send an object with `input`.") from None
    if not isinstance(fields, dict):
        raise Refused(422, "the body is no JSON object; send one with `input`.")
    return _checked(fields, kind)


def _checked(fields: dict[str, Any], kind: type[Body], under: str = "") -> Body:
    """Raises Refused naming the first field that is wrong. `under`: where these fields stand."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        name = (under + steps).removeprefix(".")[:100] or "body"
        words = OF_FIELDS.get(name) or OF_ERRORS.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
        raise Refused(422, f"{name}: {words}.", name) from None
