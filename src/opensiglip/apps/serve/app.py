"""The API's routes, from a checked request to the batches and back."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from torch import Tensor

from opensiglip import __version__
from opensiglip.apps.serve.answers import Answers
from opensiglip.apps.serve.batcher import Batcher, Question
from opensiglip.apps.serve.guard import Guard
from opensiglip.apps.serve.metrics import Metrics
from opensiglip.apps.serve.refusal import Refused, error_body
from opensiglip.apps.serve.requests import (
    Asked,
    CaptionAsked,
    ClassifyAsked,
    EmbeddingsAsked,
    LocateAsked,
    Part,
    image_of,
    read,
    text_of,
)
from opensiglip.errors import UserError
from opensiglip.inference.predictor import Predictor

DECODERS = 2  # images that are decoded at once; one of 64 megapixels takes 192 MB
HELD = 1_000_000_000  # bytes of images that are held from their decoding to their answer, by all requests
REQUEST = 400_000_000  # and by one: 133 megapixels


@dataclass(frozen=True)
class Limits:
    """How requests become batches."""

    batch: int = 32
    queue: int = 512
    wait: float = 0.005  # seconds


class Server:
    """One model's API. `app` is the ASGI application."""

    def __init__(
        self, predictor: Predictor, limits: Limits, *, hosts: Collection[str] | None = None, key: str | None = None
    ) -> None:
        self.answers = Answers(predictor)
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.batcher = Batcher(
            self.answers,
            most=limits.batch,
            room=limits.queue,
            wait=limits.wait,
            seen=self.metrics.batches.observe,
        )
        self.held = 0
        self.decoders = anyio.CapacityLimiter(DECODERS)
        self.app = FastAPI(
            title="OpenSigLIP",
            version=__version__,
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self._add_routes()
        self.app.add_middleware(Guard, hosts=hosts, key=key)

    async def embeddings(self, request: Request) -> Response:
        """OpenAI's embeddings: unit vectors of texts and images, in one space."""
        asked = await self._read(request, EmbeddingsAsked)
        images = await asyncio.gather(*(self._image(p, place, framed=True) for place, p in enumerate(asked.input)))
        texts = [text_of(part) for part, image in zip(asked.input, images, strict=True) if image is None]
        pixels = [image for image in images if image is not None]
        both = await asyncio.gather(self._ask(Question("text"), texts), self._ask(Question("image"), pixels))
        of_text, of_image = map(iter, both)
        vectors = [self.answers.cut(next(of_text if image is None else of_image), asked.dimensions) for image in images]
        tokens = self.answers.tokens(texts)
        rows = [
            {"object": "embedding", "index": place, "embedding": _encoded(vector, asked.encoding_format)}
            for place, vector in enumerate(vectors)
        ]
        return self._answer(rows, usage={"prompt_tokens": tokens, "total_tokens": tokens})

    async def classify(self, request: Request) -> Response:
        """Labels with probabilities, likeliest first."""
        asked = await self._read(request, ClassifyAsked)
        async with self._images(asked) as images:
            found = await self._ask(Question("classify", tuple(asked.labels)), images)
        rows = [[{"label": label, "probability": p} for label, p in shares.items()] for shares in found]
        return self._answer([{"index": place, "labels": row} for place, row in enumerate(rows)])

    async def locate(self, request: Request) -> Response:
        """A box of the phrase x1, y1, x2, y2 in pixels of each image, with a score."""
        asked = await self._read(request, LocateAsked)
        async with self._images(asked) as images:
            found = await self._ask(Question("locate", (asked.phrase,)), images)
        return self._answer([{"index": place, **one.as_json()} for place, one in enumerate(found)])

    async def caption(self, request: Request) -> Response:
        """A caption of each image."""
        asked = await self._read(request, CaptionAsked)
        self.answers.check_language(asked.language)
        async with self._images(asked) as images:
            found = await self._ask(Question("caption", (asked.language, asked.num_beams)), images)
        return self._answer([{"index": place, "text": text} for place, text in enumerate(found)])

    async def models(self) -> Response:
        """The one model that is here, as OpenAI lists models."""
        row = {"id": self.answers.name, "object": "model", "created": 0, "owned_by": "opensiglip"}
        return JSONResponse({"object": "list", "data": [row]})

    async def health(self) -> Response:
        """200 while requests are taken."""
        stopping = self.batcher.closing
        return JSONResponse({"status": "stopping" if stopping else "ok"}, status_code=503 if stopping else 200)

    async def prometheus(self) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _read(self, request: Request, kind: Any) -> Any:
        asked = await read(request, kind)
        if asked.model not in (None, self.answers.name):
            raise Refused(404, f"there is no model {asked.model!r} here; ask for {self.answers.name!r}.", "model")
        return asked

    @asynccontextmanager
    async def _images(self, asked: Asked) -> AsyncIterator[list[Tensor]]:
        """The inputs, all of them images, whose bytes count until they are answered. Raises Refused: 413, 422, 429."""
        found: list[Tensor] = []
        own = 0
        try:
            for place, part in enumerate(asked.input):
                image = await self._image(part, place)
                if image is None:
                    sentence = f"input[{place}] is not an image; send data:image/png;base64,... or a file."
                    raise Refused(422, sentence, "input")
                own += image.nbytes
                self.held += image.nbytes
                if own > REQUEST:
                    pixels = REQUEST // 3_000_000
                    raise Refused(413, f"the images have more than {pixels} megapixels in all; send fewer at once.")
                if self.held > max(HELD, own):
                    raise Refused(429, "the images of other requests fill the memory; ask again in a moment.")
                found.append(image)
            yield found
        finally:
            self.held -= own

    async def _image(self, part: Part, place: int, framed: bool = False) -> Tensor | None:
        """An input's image, decoded in a thread; None of a text."""

        def work() -> Tensor | None:
            image = image_of(part, place)
            return self.answers.framed(image) if framed and image is not None else image

        return await anyio.to_thread.run_sync(work, limiter=self.decoders)

    async def _ask(self, question: Question, items: Sequence[Any]) -> list[Any]:
        """Queue the items and wait for their answers. Raises Refused, UserError."""
        if not items:
            return []
        found = await asyncio.wrap_future(self.batcher.submit(question, items))
        self.metrics.inputs.labels(question.kind).inc(len(items))
        return found

    def _answer(self, rows: Sequence[Any], **more: Any) -> Response:
        return JSONResponse({"object": "list", "data": rows, "model": self.answers.name, **more})

    def _add_routes(self) -> None:
        posts = {
            "/v1/embeddings": self.embeddings,
            "/v1/classify": self.classify,
            "/v1/locate": self.locate,
            "/v1/caption": self.caption,
        }
        gets = {"/v1/models": self.models, "/health": self.health, "/metrics": self.prometheus}
        for path, route in posts.items():
            self.app.add_api_route(path, route, methods=["POST"], response_class=JSONResponse)
        for path, told in gets.items():
            self.app.add_api_route(path, told, methods=["GET"], response_class=Response)
        paths = {*posts, *gets}

        @self.app.middleware("http")
        async def measured(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
            began, path = time.perf_counter(), request.url.path if request.url.path in paths else "other"
            response = await follow(request)
            self.metrics.requests.labels(path, response.status_code).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)
            return response

        @self.app.exception_handler(UserError)
        async def refused(request: Request, error: UserError) -> Response:
            status, field = (error.status, error.field) if isinstance(error, Refused) else (400, None)
            headers = {408: {"Connection": "close"}, 429: {"Retry-After": "1"}}.get(status)
            return JSONResponse(error_body(status, str(error), field), status_code=status, headers=headers)

        @self.app.exception_handler(HTTPException)
        async def unknown(request: Request, error: HTTPException) -> Response:
            sentence = f"there is no {request.method} {request.url.path} here; there are {', '.join(sorted(paths))}."
            if error.status_code == 405 and error.headers:
                sentence = f"{request.url.path} takes no {request.method}; send {error.headers['Allow']}."
            return JSONResponse(error_body(error.status_code, sentence), error.status_code, error.headers)

        @self.app.exception_handler(Exception)
        async def failed(request: Request, error: Exception) -> Response:
            return JSONResponse(error_body(500, f"the server failed ({type(error).__name__})."), status_code=500)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """At the end all requests have been answered: end the batches' thread."""
        yield
        await anyio.to_thread.run_sync(self.batcher.close)


def _encoded(vector: np.ndarray, form: str) -> Any:
    """A float32 vector as a list, or as OpenAI's base64 of its little-endian bytes."""
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
