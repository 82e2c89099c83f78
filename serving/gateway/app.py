"""The gateway's routes and what it asks of a request. These routes exist and no others: nothing else of a
replica's API can be reached through the gateway."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.items import JsonObject
from serving.gateway.capture import Asked
from serving.gateway.completions import CHAT, parse, prompt_count, questions
from serving.gateway.errors import ClientGone, Refusal
from serving.gateway.exchange import Desk, Exchange, error_response, json_response
from serving.routes import RouteFile, RoutesUnusable, RouteTable
from serving.settings import GatewaySettings

logger = logging.getLogger(__name__)

_SESSION_CHARS = 200


class Gateway:
    """The ASGI application."""

    def __init__(self, settings: GatewaySettings, routes: RouteFile, desk: Desk) -> None:
        self._settings, self._file, self._desk = settings, routes, desk
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]
        self._table: RouteTable | None = None
        self._unusable = ""
        self._in_flight = 0
        self._began = int(time.time())
        self._app = Starlette(
            routes=[
                Route(CHAT, self._complete, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._model, methods=["GET"]),
                Route("/v1/feedback", self._feedback, methods=["POST"]),
            ],
            exception_handlers={
                Refusal: _refuse,
                ClientGone: _refuse_gone,
                HTTPException: _refuse_http,
                Exception: _refuse_error,
            },
        )
        self._app.router.redirect_slashes = False

    @property
    def revision(self) -> int:
        """The revision of the table that new requests go by."""
        return self._table.revision if self._table else 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = uuid.uuid4().hex
        scope["state"] = {"request_id": request_id}
        app: ASGIApp = self._app
        try:
            self._admit(scope["headers"])
        except Refusal as refusal:
            app = error_response(refusal, request_id)
        self._in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            self._in_flight -= 1

    def look(self) -> RouteTable:
        """The table as it is now; the last good one where it has become unreadable. Raises `Refusal`."""
        try:
            self._table = self._file.read() or self._table
            self._unusable = ""
        except RoutesUnusable as exc:
            if str(exc) != self._unusable:  # once, not at each request
                logger.warning("the last table is kept: %s", exc)
            self._unusable = str(exc)
        if self._table is None:
            raise Refusal(503, "no_route", "no version of the student is deployed yet")
        return self._table

    def _admit(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        names = [name for name, _ in headers]
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) > 1 or (lengths and b"transfer-encoding" in names):
            raise Refusal(400, "invalid_headers", "Content-Length is given twice, or with Transfer-Encoding")
        if self._keys and not self._known(headers):
            raise Refusal(401, "invalid_api_key", "this API key is not known; send it as a bearer token")
        if self._in_flight >= self._settings.max_in_flight:
            raise Refusal(429, "rate_limit_exceeded", "too many requests are under way; try again later")
        if lengths and int(lengths[0]) > self._settings.max_body_bytes:
            raise self._too_large()

    def _known(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        values = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
        known = [hmac.compare_digest(token.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(known)

    def _too_large(self) -> Refusal:
        return Refusal(
            413, "request_too_large", f"the body has more than {self._settings.max_body_bytes} bytes"
        )

    async def _body(self, request: Request) -> JsonObject:
        data, limit = bytearray(), self._settings.max_body_bytes
        try:
            async with asyncio.timeout(self._settings.client_timeout_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        raise self._too_large()
        except TimeoutError:
            raise Refusal(408, "request_timeout", "the body took too long to arrive") from None
        except ClientDisconnect as exc:
            raise ClientGone("left while sending") from exc
        body = parse(bytes(data))
        if body is None:
            raise Refusal(400, "invalid_json", "the body must be a JSON object")
        return body

    async def _complete(self, request: Request) -> Response:
        body = await self._body(request)
        began = time.monotonic()  # a slow upload is not the student's slowness
        table = self.look()
        if body.get("model") != table.student:
            raise _no_model(body.get("model"))
        if not isinstance(body.get("stream"), bool | None):
            raise Refusal(400, "invalid_value", "stream must be true or false", "stream")
        _refuse_prompt_logprobs(body)
        self._limit_choices(body)
        session = self._session(request, body)
        path = request.scope["path"]  # not the URL's, which has the Host header in it
        share = table.choose(session or request.scope["state"]["request_id"])
        asked = Asked(table.student, share.version, share.model, session, questions(path, body), began)
        body["model"] = share.model
        return Exchange(self._desk, asked, table.replicas, path, body)

    def _limit_choices(self, body: JsonObject) -> None:
        asked, most = prompt_count(body), self._settings.max_choices
        for name, each in (("prompt", 1), ("n", body.get("n")), ("best_of", body.get("best_of"))):
            if isinstance(each, int | float) and each * asked > most:
                raise Refusal(400, "invalid_value", f"more than {most} answers are asked for at once", name)

    def _session(self, request: Request, body: JsonObject) -> str:
        """Who asks: the session header, else OpenAI's `safety_identifier` or `user`; empty where nobody
        says."""
        named = (
            request.headers.get(self._settings.session_header),
            body.get("safety_identifier"),
            body.get("user"),
        )
        return next((name for name in named if isinstance(name, str) and name), "")[:_SESSION_CHARS]

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._card(self.look().student)]})

    async def _model(self, request: Request) -> Response:
        student = self.look().student
        if request.path_params["model"] != student:
            raise _no_model(request.path_params["model"])
        return json_response(self._card(student))

    def _card(self, student: str) -> JsonObject:
        return {"id": student, "object": "model", "created": self._began, "owned_by": "skillloop"}

    async def _feedback(self, request: Request) -> Response:
        body = await self._body(request)
        given, response_id, choice = body.get("feedback"), body.get("id"), body.get("choice", 0)
        if given not in ("up", "down"):
            raise Refusal(400, "invalid_value", "feedback must be 'up' or 'down'", "feedback")
        if not isinstance(response_id, str) or type(choice) is not int:
            raise Refusal(400, "invalid_value", "id must be a response's id, choice a number", "id")
        if self._desk.capture is None:
            raise Refusal(404, "not_captured", "answers are not captured here (capture = 'external')")
        status = self._desk.capture.feedback(response_id, choice, "up" if given == "up" else "down")
        if status == "busy":
            raise Refusal(503, "not_recorded", "the feedback cannot be kept now; try again later")
        if status is None:
            raise Refusal(404, "response_not_found", "no such response among the last ones answered", "id")
        return json_response({"id": response_id, "object": "feedback", "feedback": given, "status": status})


def _no_model(name: object) -> Refusal:
    return Refusal(404, "model_not_found", f"the model {str(name)[:200]!r} does not exist", "model")


def _refuse_prompt_logprobs(body: JsonObject) -> None:
    """Log-probabilities of the prompt are not for users: vLLM's engine on CPU dies of such a request
    (docs/dependencies.md), and everybody's answers with it."""
    if body.get("prompt_logprobs") is not None:
        raise Refusal(400, "unsupported_parameter", "prompt_logprobs is not supported", "prompt_logprobs")
    logprobs = body.get("logprobs")  # 0 asks for them too
    if body.get("echo") and logprobs is not None and logprobs is not False:
        raise Refusal(400, "unsupported_parameter", "echo together with logprobs is not supported", "echo")


def _request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _refuse(request: Request, exc: Exception) -> Response:
    if not isinstance(exc, Refusal):
        raise exc
    return error_response(exc, _request_id(request))


async def _refuse_gone(request: Request, exc: Exception) -> Response:
    return error_response(Refusal(400, "client_gone", "the request did not arrive whole"))


async def _refuse_http(request: Request, exc: Exception) -> Response:
    if not isinstance(exc, HTTPException):
        raise exc
    code, what = {
        404: ("not_found", "there is no such path"),
        405: ("method_not_allowed", "wrong method"),
    }.get(exc.status_code, ("invalid_request", "the request is not understood"))
    return error_response(Refusal(exc.status_code, code, what), _request_id(request))


async def _refuse_error(request: Request, exc: Exception) -> Response:
    return error_response(Refusal(500, "internal_error", "the gateway failed"), _request_id(request))
