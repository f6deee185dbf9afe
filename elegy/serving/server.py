"""The HTTP server: predictions, a health page for machines, and a page for people."""

from __future__ import annotations

import asyncio
import contextlib
import html
import math
import socket
from collections.abc import AsyncIterator
from typing import Any

from elegy.integers import positive_int
from elegy.lazy import require
from elegy.serving.batcher import Batcher
from elegy.serving.model import Served
from elegy.serving.payload import BadRequest, read, write

_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>elegy serve</title><style>body{{font:16px/1.5 sans-serif;margin:2em auto;max-width:45em;padding:0 1em}}
td{{padding-right:1em;vertical-align:top}}pre{{background:#eee;padding:.5em;overflow:auto}}</style>
<h1>elegy serve</h1><table>{rows}</table>
<p><code>GET /health</code> has the same as JSON. Predictions:</p>
<pre>curl -X POST {url}predict -d '{{"inputs": ...}}'
curl -X POST {url}predict --data-binary @inputs.npy -o outputs.npy</pre>
<p>This server is for a quick try: it has no authentication and no encryption.</p>
"""


def serve(
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch_size: int = 64,
    max_wait_ms: float = 2.0,
    max_bytes: int = 64_000_000,
) -> None:
    """Answers requests until the process is stopped.

    Args:
        served: what runs.
        host: the address to listen at; 0.0.0.0 for all of the machine, which anyone who reaches it can use.
        port: the port; 0 for one that is free.
        max_batch_size: the largest number of rows in one call of the model.
        max_wait_ms: for how many milliseconds a request waits for others to share a call.
        max_bytes: the largest body of a request.

    Raises:
        ImportError: if starlette or uvicorn is not installed.
        ValueError: if a number is out of its range.
    """
    check_options(host, port, max_batch_size=max_batch_size, max_wait_ms=max_wait_ms, max_bytes=max_bytes)
    uvicorn = require("uvicorn", "elegy serve")
    application = app(served, max_batch_size=max_batch_size, max_wait_ms=max_wait_ms, max_bytes=max_bytes)
    uvicorn.run(application, host=host, port=port, log_level="info")


def check_options(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    max_batch_size: int = 64,
    max_wait_ms: float = 2.0,
    max_bytes: int = 64_000_000,
) -> None:
    """Checks the arguments of `serve`, before a model is loaded.

    Raises:
        ValueError: if a number is out of its range, or nothing can listen at the address.

    Example:
        >>> check_options(max_batch_size=0)
        Traceback (most recent call last):
        ...
        ValueError: max_batch_size must be a positive integer, not 0.
    """
    _check_numbers(max_batch_size, max_wait_ms, max_bytes)
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port!r}: it must be a number from 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(f"host={host!r}, port={port}: nothing can listen there: {error.strerror}.") from None


def _check_numbers(max_batch_size: int, max_wait_ms: float, max_bytes: int) -> None:
    positive_int("max_batch_size", max_batch_size)
    positive_int("max_bytes", max_bytes)
    if not 0 <= max_wait_ms < math.inf:
        raise ValueError(f"max_wait_ms={max_wait_ms!r}: it must be finite and not negative.")


def app(served: Served, *, max_batch_size: int = 64, max_wait_ms: float = 2.0, max_bytes: int = 64_000_000) -> Any:
    """Returns the ASGI application, whose arguments are those of `serve`."""
    applications, responses = require("starlette.applications", "elegy serve"), require("starlette.responses", "")
    route, http_error = require("starlette.routing", "").Route, require("starlette.exceptions", "").HTTPException
    _check_numbers(max_batch_size, max_wait_ms, max_bytes)
    batcher = Batcher(served, max_batch_size, max_wait_ms / 1000)

    def state() -> dict[str, Any]:
        return {
            "status": "ok",
            **served.about,
            "inputs": served.described(),
            "max_batch_size": max_batch_size,
            "joins_requests": batcher.joins,
            "requests": batcher.requests,
            "batches": batcher.batches,
        }

    def failed(code: int, message: str) -> Any:
        return responses.JSONResponse({"error": message}, code)

    async def refused(request: Any, error: Any) -> Any:
        there = "GET /, GET /health and POST /predict"
        message = f"there is no {request.method} {request.url.path}: the server answers {there}."
        return responses.JSONResponse({"error": message}, error.status_code, error.headers)

    async def predict(request: Any) -> Any:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                return failed(413, f"the body has more than {max_bytes} bytes.")
        try:
            inputs, is_json = await asyncio.to_thread(read, bytes(body), served.inputs)
        except BadRequest as error:
            return failed(400, str(error))
        try:
            outputs = await asyncio.wrap_future(batcher.submit(inputs))
            content, media = await asyncio.to_thread(lambda: write(outputs, as_json=is_json))
        except BadRequest as error:
            return failed(400, str(error))
        except Exception as error:
            return failed(500, f"the model raised {type(error).__name__}: {error}")
        return responses.Response(content, media_type=media)

    async def health(request: Any) -> Any:
        return responses.JSONResponse(state())

    async def page(request: Any) -> Any:
        values = {key: value if isinstance(value, (str, int)) else _listed(value) for key, value in state().items()}
        rows = "".join(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}" for key, value in values.items())
        return responses.HTMLResponse(_PAGE.format(rows=rows, url=html.escape(str(request.base_url))))

    @contextlib.asynccontextmanager
    async def lifespan(application: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    routes = [route("/", page), route("/health", health), route("/predict", predict, methods=["POST"])]
    return applications.Starlette(routes=routes, exception_handlers={http_error: refused}, lifespan=lifespan)


def _listed(value: Any) -> str:
    return ", ".join(f"{key}: {text}" for key, text in value.items()) if isinstance(value, dict) else str(value)
