"""A chat server: one question, one answer, whatever happens on the way.

The openai client tries again by itself what is busy, broken, late or unreachable: after a pause
that doubles, or as long as the server says (Retry-After). An answer that is no chat completion
counts as broken. What comes in is freed of the key, should a server repeat it.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from verse.errors import UserError
from verse.params import Server, is_local

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletion

RETRIES = 7
LONGEST_PAUSE = 120.0  # seconds; the client does not wait longer for a server that asks it to
NO_KEY = "none"  # the client must have one
SECRET = 8  # characters that a key has at least; shorter ones are made up for a local server
FILTERED = ("content_filter", "content_policy_violation")

Messages = list[dict[str, str]]
Reply = dict[str, Any]
"""`text`; `arguments` of the first tool call, a text or None; `finish`, why the answer ended;
`tokens`, [read, written], as far as the server says."""


def key_for(server: Server, where: str) -> str:
    """The key of a server, from the environment.

    where: the part of params.yaml that names the server. Raises UserError naming the variable.
    """
    if not server.key_env:
        return NO_KEY
    key = os.environ.get(server.key_env, "").strip()
    if not key:
        raise UserError(f"{where}: put the key into the environment variable {server.key_env}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{where}: what {server.key_env} holds is no key")
    return key


class Chat:
    """A connection to a server; use it as an async context."""

    def __init__(self, server: Server, where: str, timeout: float):
        import httpx2  # heavy
        import openai

        self.server = server
        self.where = where
        self.timeout = timeout
        self.key = key_for(server, where)
        self.options = server.model_dump(
            include={"model", "temperature", "top_p", "max_tokens"}, exclude_none=True
        )
        self.client = openai.AsyncOpenAI(
            api_key=self.key,
            base_url=server.base_url,
            max_retries=RETRIES,
            http_client=httpx2.AsyncClient(
                timeout=timeout,
                follow_redirects=False,  # where it leads may be without TLS
                trust_env=not is_local(server.base_url),  # no proxy on the way to this machine
                event_hooks={"response": [self.check]},
            ),
        )

    async def __aenter__(self) -> "Chat":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    async def check(self, response: "httpx2.Response") -> None:
        """Make what only seems to be an answer an error that the client tries again after."""
        import httpx2

        if not response.is_success:
            return
        try:
            async with asyncio.timeout(self.timeout):  # a drip has no end of its own
                await response.aread()
            message = json.loads(response.content)["choices"][0]["message"]
            fits = isinstance(message.get("content") or "", str)
        except TimeoutError:
            raise httpx2.ReadTimeout("an answer without an end", request=response.request) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise httpx2.DecodingError("no chat completion", request=response.request)

    async def reply(self, messages: Messages, **options: Any) -> Reply:
        """What the model answers. One that its server filters is empty.

        options: more of what the API takes. Raises Refused if the server will not have such a
        question, another UserError if it gives no answer.
        """
        import openai

        most = (RETRIES + 1) * (self.timeout + LONGEST_PAUSE)
        try:
            async with asyncio.timeout(most):
                completion = await self.client.chat.completions.create(
                    messages=cast(Any, messages), **self.options | options
                )
        except openai.APIStatusError as error:
            if error.code in FILTERED or error.type in FILTERED:
                return {"text": "", "arguments": None, "finish": "content_filter", "tokens": [0, 0]}
            raise self.refusal(error) from None
        except (openai.APIConnectionError, TimeoutError) as error:
            raise self.fault(self.trouble(error)) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise self.fault(f"no chat completion ({type(error).__name__})") from None
        return self.read(completion)

    def read(self, completion: "ChatCompletion") -> Reply:
        choice, usage = completion.choices[0], completion.usage
        # The client builds what it gets without a check: any part may be of another type.
        calls = choice.message.tool_calls
        first = calls[0] if isinstance(calls, list) and calls else None
        arguments = getattr(getattr(first, "function", None), "arguments", None)
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        counts = [getattr(usage, f"{kind}_tokens", 0) for kind in ("prompt", "completion")]
        return {
            "text": self.hide(choice.message.content or ""),
            "arguments": self.hide(arguments) if isinstance(arguments, str) else None,
            "finish": self.hide(str(choice.finish_reason)),
            "tokens": [count if isinstance(count, int) else 0 for count in counts],
        }

    def hide(self, text: str) -> str:
        """The text without the key; half surrogate pairs, which no file can hold, become �."""
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        return text.replace(self.key, "…") if len(self.key) >= SECRET else text

    def refusal(self, error: Any) -> UserError:
        """What a status of 400 or more means; openai.APIStatusError is not imported yet here."""
        status, tried = error.status_code, f"({RETRIES + 1} attempts)"
        if status in (401, 403):
            holds = f"what {self.server.key_env} holds" if self.server.key_env else "without a key"
            return self.fault(f"refuses {holds} ({status})", "check the key")
        if status == 404:
            return self.fault(
                f"knows no model {self.server.model!r} or is another address (404)",
                "fix base_url or model",
            )
        if status == 429:
            return self.fault(f"too many questions, or no quota left {tried}")
        if status >= 500:
            return self.fault(f"the server answers {status} {tried}")
        said = " ".join(self.hide(error.message).split())[:200]
        return Refused(f"{self.told} the server refuses the question: {said}")

    def trouble(self, error: BaseException) -> str:
        import httpx2

        cause, tried = error.__cause__, f"({RETRIES + 1} attempts)"
        if isinstance(cause, httpx2.DecodingError):
            return f"what the server sends is no chat completion {tried}"
        if isinstance(error, TimeoutError) or isinstance(cause, httpx2.TimeoutException):
            return f"no answer within {self.timeout:g} s {tried}"
        if isinstance(cause, httpx2.ConnectError):
            return f"the server cannot be reached {tried}"
        return f"the connection breaks {tried}"

    @property
    def told(self) -> str:
        return f"{self.where} ({self.server.base_url}):"

    def fault(self, what: str, remedy: str = "run the same command again later") -> UserError:
        return UserError(f"{self.told} {what}: {remedy}; what was answered is kept")


class Refused(UserError):
    """The server will not have a question like this one."""
