"""A connection on which nothing lasts: a question has a deadline, and an answer a bound."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import httpx2
import openai

LONGEST_BODY = 2**23  # bytes, unpacked
LONGEST_PAUSE = 120.0  # seconds; the openai client waits no longer for a server that asks for it
DONE = b"[DONE]"
ENDS: ContextVar[float] = ContextVar("ends")
"""When the question on its way is given up, by the monotonic clock."""


class Connection(httpx2.AsyncClient):
    """What the openai client sends its requests with.

    seconds: of one request, from the connection to the last byte. A question has twice as many for
    all its requests, beside the pauses that the server asks for. inspect: is given each answer with
    its body, and may change its status.
    """

    def __init__(self, seconds: float, inspect: Callable[[httpx2.Response], None], **options: Any):
        super().__init__(timeout=None, **options)
        self.seconds, self.inspect = seconds, inspect

    def begin(self) -> None:
        """A question begins, in this task."""
        ENDS.set(time.monotonic() + 2 * self.seconds)

    async def send(
        self, request: httpx2.Request, *, stream: bool = False, **options: Any
    ) -> httpx2.Response:
        began = time.monotonic()
        left = min(self.seconds, ENDS.get() - began)
        try:
            async with asyncio.timeout(left):
                response = await super().send(request, stream=True, **options)
                response = await whole(response)
        except TimeoutError:
            if ENDS.get() - began <= self.seconds:
                raise openai.APITimeoutError(request=request) from None  # the client gives up
            ENDS.set(ENDS.get() + time.monotonic() - began - left)  # that the machine slept
            raise httpx2.ReadTimeout("no answer", request=request) from None
        self.inspect(response)
        if 0 < (seconds := pause(response)) <= LONGEST_PAUSE:
            ENDS.set(ENDS.get() + seconds)
        return response


def pause(response: httpx2.Response) -> float:
    """The seconds after which a server wants to be asked again; 0 if it does not say."""
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0


async def whole(response: httpx2.Response) -> httpx2.Response:
    """The answer with its body, read to the end; that of a stream is put together."""
    content = bytearray()
    try:
        if "," in response.headers.get("content-encoding", ""):  # little that unpacks for hours
            raise httpx2.DecodingError("packed twice", request=response.request)
        async for part in response.aiter_bytes():
            content += part
            if len(content) > LONGEST_BODY:
                what = f"an answer of more than {LONGEST_BODY:,} bytes"
                raise openai.APIConnectionError(message=what, request=response.request)
    finally:
        await response.aclose()
    unpacked = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in unpacked]
    return httpx2.Response(
        response.status_code, headers=headers, content=together(content), request=response.request
    )


def together(content: bytes | bytearray) -> bytes:
    """The body that the events of a stream make; any other, and a stream cut off, as it is.

    One that does not say why the answer ends is cut off, though it may end on DONE.
    """
    events = [event.strip() for event in re.findall(rb"^data:(.*)", content, re.MULTILINE)]
    body: dict[str, Any] = {}
    first: dict[str, Any] = {}  # of the choices
    said: list[Any] = []
    message: dict[str, Any] = {"content": said}
    try:
        for event in events:
            part = {} if event == DONE else json.loads(event)
            body |= {key: value for key, value in part.items() if value}
            for choice in part.get("choices") or ():
                if choice.get("index"):
                    continue
                first |= {key: value for key, value in choice.items() if value}
                delta = choice.get("delta") or {}
                text = delta.get("content")
                said += text if isinstance(text, list) else [text]
                message["refusal"] = delta.get("refusal") or message.get("refusal")
                for call in delta.get("tool_calls") or ():
                    if not call.get("index"):
                        calls = message.setdefault("tool_calls", [{"function": {"arguments": ""}}])
                        calls[0]["function"]["arguments"] += call["function"]["arguments"] or ""
    except (ValueError, RecursionError, TypeError, AttributeError, LookupError):
        return bytes(content)
    if first:
        body["choices"] = [first | {"message": message}]
    broken = first and not first.get("finish_reason")
    return bytes(content) if broken or not events else json.dumps(body).encode()
