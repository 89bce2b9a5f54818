"""What a request says: JSON with texts and data URLs, or a form with files; checked, and its images decoded."""

import base64
import binascii
import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from torch import Tensor

from opensiglip.apps.serve.guard import BODY
from opensiglip.apps.serve.refusal import Refused
from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.images import decode_image_bytes

INPUTS = 256  # of a request
LETTERS = 20_000  # of a text; the model reads as many as its length has room for
LABELS = 1_000
DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,")
LISTS = ("input", "labels")  # fields of a form that may come several times

Text = Annotated[str, Field(max_length=LETTERS)]


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
    text: Text


Part = str | TextPart | ImagePart | bytes  # bytes are those of a file of a form


class Asked(BaseModel):
    """What all requests have: whom they ask, and the inputs; a string that is an image's data URL is that image."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    user: str | None = None
    input: Part | Annotated[list[Part], Field(min_length=1, max_length=INPUTS)]

    @property
    def parts(self) -> list[Part]:
        """The inputs, in order."""
        return self.input if isinstance(self.input, list) else [self.input]


class EmbeddingsAsked(Asked):
    """OpenAI's, of images too."""

    encoding_format: Literal["float", "base64"] = "float"


class ClassifyAsked(Asked):
    """Images, and the labels to choose from."""

    labels: Annotated[list[Text], Field(min_length=1, max_length=LABELS)]


class LocateAsked(Asked):
    """Images, and what to find on each."""

    phrase: Text


class CaptionAsked(Asked):
    """Images; the language and the beams of their captions."""

    language: Annotated[str, Field(max_length=20)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=8)] = 1


Body = TypeVar("Body", bound=Asked)


async def read(request: Request, kind: type[Body]) -> Body:
    """The body of a request, JSON or a form. Raises Refused: 413, 422."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            async with request.form(max_files=INPUTS, max_fields=INPUTS + LABELS, max_part_size=BODY) as form:
                fields: dict[str, Any] = {}
                for name, value in form.multi_items():
                    item = await value.read() if isinstance(value, UploadFile) else value
                    if name in LISTS:
                        fields.setdefault(name, []).append(item)
                    else:
                        fields[name] = item
        except MultiPartException as error:
            raise Refused(422, f"the form can't be read ({error.message}); send multipart/form-data.") from None
        return _checked(fields, kind)
    body = await request.body()
    return await run_in_threadpool(_from_json, body, kind)


def image_of(part: Part, place: int) -> Tensor | None:
    """The image [3, h, w] uint8 of an input; None of a text. Raises Refused: 413, 422."""
    field = f"input[{place}]"
    if isinstance(part, bytes):
        return decoded(part, field)
    if isinstance(part, TextPart):
        return None
    url = part.image_url.url if isinstance(part, ImagePart) else part
    head = DATA_URL.match(url[:100])
    if head is None:
        if isinstance(part, ImagePart):
            raise Refused(422, f"{field} names an address, and none is fetched; send data:image/png;base64,...", field)
        if len(url) > LETTERS:
            raise Refused(413, f"{field} has {len(url)} letters, and a text may have {LETTERS}; shorten it.", field)
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
        status = 413 if "over" in str(reason) else 422
        raise Refused(status, f"{field} can't be read ({reason}); give a JPEG, PNG or WebP.", field) from None


def _from_json(body: bytes, kind: type[Body]) -> Body:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is no JSON; send an object with `input`.") from None
    if not isinstance(fields, dict):
        raise Refused(422, "the body is no JSON object; send one with `input`.")
    return _checked(fields, kind)


def _checked(fields: dict[str, Any], kind: type[Body]) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "body"
        raise Refused(422, f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}.", name) from None
