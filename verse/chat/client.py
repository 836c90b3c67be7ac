"""A chat server: one question, one answer, whatever happens on the way.

The openai client tries again by itself what is busy, broken, late or unreachable: after a pause
that doubles, or as long as the server says (Retry-After, two minutes at most), until twice the
timeout has passed (`connection`). A body that is no JSON counts as broken.
What goes wrong is one question's (`NoAnswer`) or all questions' (`Fault`). What comes in is freed
of the key, should a server repeat it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from verse.errors import UserError
from verse.params import Server, is_local

if TYPE_CHECKING:
    import httpx2
    import openai

RETRIES = 7
NO_KEY = "none"  # the client must have one
SECRET = 8  # characters that a key has at least; shorter ones are made up for a local server
SHOWN = 300  # characters of a server's own words
LONGEST = 2**17  # characters of an answer, thoughts within it included
MOST_TOKENS = 2**32  # that a server may count

KINDS = ("filtered", "cut_off", "empty", "malformed", "refused", "failed")
"""Why a question has no answer: the server filters it; tokens ran out, on thoughts or within the
poem; nothing came; what came is no chat completion, or no mark; the server will not have it; the
server broke at each attempt."""

# What servers say, in words of their own, since their statuses and codes differ.
FILTERED = re.compile(
    r"content.{0,3}(filter|polic|management|audit|secur)|inspection|moderation|flagged|filtered|"
    r"(?<!aste)risk(?!.control)|(?<!case.)sensitive|inappropriate|prohibited|censor|guardrail|safety(?!_)|unsafe|"
    r"illegal.content|content.{0,20}(illegal|blocked)|(usage|use|our).(polic|guideline)|"
    r"violat.{0,40}(polic|guideline|terms)|responsible.?ai|block_?reason|"
    r"敏感|不安全|[违違][规規]|審核|审核",
    re.I,
)
QUOTA = re.compile(
    r"quota|(insufficient|low|enough|any|more).{0,9}(balance|credit|fund)|credit balance|"
    r"balance.{0,9}insufficient|arrear|overdue|余额|欠费",
    re.I,
)
CLOSED = re.compile(
    r"account.{0,60}(suspend|deactivat|disabled|banned|closed)|organi[sz]ation.{0,20}disabled|封禁",
    re.I,
)
KEY = re.compile(
    r"(api|secret).?key|access.?token|authenticat|unauthori[sz]ed|credential|令牌|密钥|鉴权", re.I
)
MODEL = re.compile(
    r"model.{0,80}(not (exist|found)|decommission|no longer)|model[ _]not|"
    r"(unknown|invalid|no such|not a valid) model|模型.{0,20}不存在",
    re.I,
)
UNSUPPORTED = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|extra|permitted|allowed|deprecated|instead|支持",
    re.I,
)
STREAM = re.compile(r"(?<!up)stream|流式", re.I)
STATUS = re.compile("[45][0-9]{2}")
SPENT = re.compile("(max_tokens|output limit|token limit).{0,40}reached", re.I)
# Of a fault that a server tells of within an answer, without a status that is one of HTTP's.
BUSY = re.compile(r"rate.?limit|limit reached|too many|并发|频率|限流", re.I)
BROKEN = re.compile(
    r"internal.?(server.?)?error|overload|time.?out|timed out|upstream|unavailable|try again|busy|"
    "繁忙",
    re.I,
)
# Why an answer ended, among them the reasons of Gemini, Claude, Mistral, Cohere, DeepSeek, Zhipu.
ENDS = {
    "filtered": re.compile(
        "(?<!call_)filter|sensitive|safety|prohibit|recitation|refus|block|spii|guardrail|moderat|"
        "toxic|risk",
        re.I,
    ),
    "cut_off": re.compile("length|max|limit|exceed|incomplete|truncat|repetition", re.I),
    "failed": re.compile("error|abort|network|resource|timeout", re.I),
}
WHY = {
    "filtered": "the answer is filtered",
    "cut_off": "no token was left for the answer",
    "failed": "the server broke the answer off",
}
MESSAGE = re.compile("mess|msg|detail")
RENAMED = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
"""Two names of one limit: of a server that refuses the one, the other is asked for."""

Messages = list[dict[str, str]]
Reply = dict[str, Any]
"""`text`; `arguments` of the first tool call, a text or None; `finish`, why the answer ended;
`model`, which one answers; `tokens`, [read, written], as far as the server says."""


class Fault(UserError):
    """No question will have an answer: the key, the address, the model or the quota is wrong."""

    def __init__(self, line: str, status: int = 0):
        super().__init__(line)
        self.refusal = status not in (0, 401, 402, 429)
        """Whether it may be but the way of asking that the server will not have."""


class NoAnswer(UserError):
    """One question has no answer: its kind, and what came all the same."""

    def __init__(self, kind: str, line: str, said: str = "", reply: Reply | None = None):
        super().__init__(line)
        self.kind = kind
        self.said = said
        self.reply = reply
        self.doubtful = kind in ("malformed", "failed") or (kind == "refused" and not reply)
        """Whether it may be all questions' fate."""


def check_secrets(server: Server, where: str) -> None:
    """Raise UserError naming the variable, where the environment lacks one that a server needs.

    where: the part of params.yaml that names the server.
    """
    key_for(server, where)
    from_environment(server.headers | server.query, where)


def key_for(server: Server, where: str) -> str:
    return secret(server.key_env, where) if server.key_env else NO_KEY


def secret(variable: str, where: str) -> str:
    """A key, from the environment."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{where}: put the key into the environment variable {variable}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{where}: what {variable} holds is no key")
    return key


def from_environment(values: Mapping[str, str], where: str) -> dict[str, str]:
    """Headers or a query, each $NAME replaced by what the variable NAME holds."""
    return {
        name: secret(value[1:], where) if value.startswith("$") else value
        for name, value in values.items()
    }


class Chat:
    """A connection to a server; use it as an async context."""

    def __init__(self, server: Server, where: str, timeout: float):
        import openai  # heavy

        from verse.chat.connection import Connection

        self.server = server
        self.where = where
        self.timeout = timeout
        self.probing = False
        """Whether the server is asked in a way that it may not know: an error of its own counts
        as a refusal then."""
        self.changed: dict[str, str] = {}
        """Parameters that the server does not take, and what is sent in their place."""
        self.told: set[str] = set()
        """Of what a line was printed."""
        key = key_for(server, where)
        headers = from_environment(server.headers, where)
        query = from_environment(server.query, where)
        given = {*server.headers.values(), *server.query.values()}
        self.secrets = [key, *(v for v in (*headers.values(), *query.values()) if v not in given)]
        self.options = server.model_dump(
            include={"model", "temperature", "top_p", "max_tokens"}, exclude_none=True
        )
        try:
            self.connection = Connection(
                timeout,
                self.check,
                follow_redirects=False,  # where it leads may be without TLS
                trust_env=not is_local(server.base_url),  # no proxy on the way to this machine
            )
        except ImportError:
            raise UserError(
                f"{where}: a SOCKS proxy (ALL_PROXY, HTTPS_PROXY) needs a package more: "
                "pip install 'httpx2[socks]', or name an http proxy"
            ) from None
        except (OSError, ValueError):  # whose words may hold a proxy's password
            raise UserError(
                f"{where}: no connection can be set up: SSL_CERT_FILE or SSL_CERT_DIR names no "
                "certificates, or HTTPS_PROXY or ALL_PROXY no proxy: correct or unset it"
            ) from None
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=server.base_url,
            default_headers=headers,
            default_query=query,
            max_retries=RETRIES,
            http_client=self.connection,
        )

    async def __aenter__(self) -> "Chat":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    def check(self, response: "httpx2.Response") -> None:
        """Give what only seems to be an answer its status, so that the client tries again after
        what may pass."""
        import httpx2

        if response.is_success:
            try:
                found = status_within(json.loads(response.content))
            except (ValueError, RecursionError):
                raise httpx2.DecodingError("no JSON", request=response.request) from None
            response.status_code = found or response.status_code
        if self.probing and response.status_code in (500, 501):
            response.headers["x-should-retry"] = "false"

    async def reply(self, messages: Messages, **options: Any) -> Reply:
        """What the model answers.

        options: more of what the API takes. Raises NoAnswer if this question has none, Fault if
        none will have one.
        """
        asked = False
        while True:
            body = self.options | options | self.server.options | {"messages": messages}
            for name in [name for name in self.changed if name in body]:
                value = body.pop(name)
                if other := self.changed[name]:
                    body[other] = value
            try:
                return self.read(await self.post(body))
            except NoAnswer as no:
                if no.kind == "refused" and self.adapt(no.said, body):
                    continue
                # A body in which there is nothing: nothing was paid for it.
                if no.reply or no.kind not in ("empty", "malformed") or asked:
                    raise
                asked = True

    async def post(self, body: dict[str, Any]) -> "httpx2.Response":
        import httpx2
        import openai

        self.connection.begin()
        try:
            return await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            raise self.failure(error.response) from None
        except openai.APIConnectionError as error:
            raise self.trouble(error) from None

    def adapt(self, said: str, body: Mapping[str, Any]) -> bool:
        """Whether the question can be put again without a parameter that the server refuses.

        Another name for the same limit changes no result, nor does leaving out a temperature that
        nobody set, nor a stream; what the user set is never left out.
        """
        names = {word for word in re.findall(r"\w+", said) if word in body}
        for name in names & RENAMED.keys():
            if RENAMED[name] not in self.changed and UNSUPPORTED.search(said):
                return self.change(name, RENAMED[name])
        for name in names & {"temperature", "stream_options"}:
            if name not in self.server.model_fields_set | self.server.options.keys():
                return self.change(name, "")
        if "stream" not in body and STREAM.search(said):
            self.options |= {"stream": True, "stream_options": {"include_usage": True}}
            self.tell("stream", "the server wants to stream its answers: it may")
            return True
        return False

    def change(self, name: str, other: str) -> bool:
        self.changed.setdefault(name, other)
        what = f"{other} is sent" if other else "it is left out"
        self.tell(name, f"the server does not take {name}: {what}")
        return True

    def read(self, response: "httpx2.Response") -> Reply:
        body = json.loads(response.content)
        body = body if isinstance(body, dict) else {}
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        message, finish = choice.get("message"), str(choice.get("finish_reason"))
        if message is None and fate(finish):
            message = {}
        if not isinstance(message, dict):
            said = self.hide(words(response.text))
            empty = "choices" in body and not choices
            kind = "empty" if empty else "malformed"
            if FILTERED.search(" ".join(f"{name} {leaf}" for name, leaf in leaves(body))):
                kind = "filtered"
            what = f"no chat completion{': ' * bool(said)}{said[:SHOWN]}"
            raise self.lacks(kind, what, said, "see whether base_url is right")
        calls = message.get("tool_calls")
        first = calls[0] if isinstance(calls, list) and calls else None
        call = first.get("function") if isinstance(first, dict) else message.get("function_call")
        arguments = call.get("arguments") if isinstance(call, dict) else None
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        usage = body.get("usage")
        counts = [
            usage.get(f"{kind}_tokens") if isinstance(usage, dict) else 0
            for kind in ("prompt", "completion")
        ]
        reply: Reply = {
            "text": self.hide("".join(spoken(message.get("content")))),
            "arguments": self.hide(arguments) if isinstance(arguments, str) else None,
            "finish": self.hide(finish),
            "model": self.hide(str(body.get("model") or ""))[:SHOWN],
            "tokens": [n if isinstance(n, int) and 0 <= n < MOST_TOKENS else 0 for n in counts],
        }
        nothing = not reply["text"].strip() and reply["arguments"] is None
        if nothing and message.get("refusal"):
            raise self.lacks("refused", "the model refuses to answer", reply=reply)
        if len(reply["text"]) > LONGEST:
            what = f"an answer of more than {LONGEST:,} characters"
            reply["text"] = reply["text"][:LONGEST]
            long = self.lacks("malformed", what, reply=reply)
            long.doubtful = False  # it is an answer, of which others need not be like
            raise long
        ended = fate(finish)
        if ended and (nothing or ended == "filtered"):
            raise self.lacks(ended, WHY[ended], reply=reply)
        if nothing:
            raise self.lacks("empty", "the answer is empty", reply=reply)
        if reply["model"] not in ("", self.server.model):
            what = f"the server answers as model {reply['model']!r}"
            self.tell("model", f"{what}, asked for {self.server.model!r}")
        if not choice.get("finish_reason"):
            what = "the server does not say why an answer ends"
            self.tell("finish", f"{what}: one that is cut off counts as whole")
        return reply

    def tell(self, of: str, line: str) -> None:
        """Print a line, once."""
        if of not in self.told:
            self.told.add(of)
            print(f"{self.where}: {line}", flush=True)

    def hide(self, text: str) -> str:
        """The text without keys; half surrogate pairs, which no file can hold, become �."""
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        for one in self.secrets:
            text = text.replace(one, "…") if len(one) >= SECRET else text
        return text

    def failure(self, response: "httpx2.Response") -> UserError:
        """What a status means that is none of success, by the server's words too."""
        from verse.chat.connection import LONGEST_PAUSE, pause

        status = response.status_code
        said, tried = self.hide(words(response.text)), attempts(response.request)
        if status == 402 or (status in (400, 403) and QUOTA.search(said)):
            return self.fault(f"no quota left ({status})", "pay for more", said, 402)
        closed = status in (400, 401, 403) and CLOSED.search(said)
        if status == 451 or (
            not closed and status not in (401, 404, 429) and FILTERED.search(said)
        ):
            return self.lacks("filtered", f"the server filters it: {said[:SHOWN]}", said)
        if closed or status in (401, 403) or (status == 400 and KEY.search(said)):
            holds = f"what {self.server.key_env} holds" if self.server.key_env else "without a key"
            return self.fault(f"refuses {holds} ({status})", "check the key", said, status)
        elsewhere = status in (404, 405, 410) or status < 400
        if elsewhere or (status < 500 and MODEL.search(said) and not STREAM.search(said)):
            what = f"knows no model {self.server.model!r} or is another address ({status})"
            return self.fault(what, "fix base_url or model", said, status)
        if status == 429:
            what = f"too many questions, or no quota left {tried}"
            if (seconds := pause(response)) > LONGEST_PAUSE:
                what += f", it wants a pause of {seconds:,.0f} s"
            return self.fault(what, said=said, status=status)
        if status >= 500 or status in (408, 409):
            return self.lacks("failed", f"the server answers {status} {tried}", said)
        if SPENT.search(said):
            return self.lacks("cut_off", f"{WHY['cut_off']}: {said[:SHOWN]}", said)
        line = f"the server refuses the question: {said[:SHOWN] or status}"
        return self.lacks("refused", line, said, "see its entry in params.yaml")

    def trouble(self, error: "openai.APIConnectionError") -> UserError:
        import httpx2
        import openai

        cause, tried = error.__cause__, attempts(error.request)
        if isinstance(cause, httpx2.DecodingError):
            return self.lacks("failed", f"what the server sends is no chat completion {tried}")
        if isinstance(error, openai.APITimeoutError):
            return self.lacks("failed", f"no answer within {self.timeout:g} s {tried}")
        if cause is None:
            return self.lacks("failed", str(error))
        if isinstance(cause, httpx2.ConnectError | httpx2.ProxyError):
            return self.fault(f"the server cannot be reached {tried}")
        return self.lacks("failed", f"the connection breaks {tried}")

    def fault(
        self,
        what: str,
        remedy: str = "run the same command again later",
        said: str = "",
        status: int = 0,
    ) -> Fault:
        return Fault(self.line(what, remedy, said), status)

    def lacks(
        self,
        kind: str,
        what: str,
        said: str = "",
        remedy: str = "run the same command again later",
        reply: Reply | None = None,
    ) -> NoAnswer:
        return NoAnswer(kind, self.line(what, remedy), said, reply)

    def line(self, what: str, remedy: str, said: str = "") -> str:
        told = f" (the server: {said[:SHOWN]})" if said else ""
        return (
            f"{self.where} ({self.server.base_url}): {what}: {remedy}; what was answered is kept"
            f"{told}"
        )


def attempts(request: "httpx2.Request") -> str:
    """How often a question was put, its last time with this request."""
    number = int(request.headers.get("x-stainless-retry-count", 0)) + 1
    return f"({number} attempt{'s' * (number > 1)})"


def spoken(content: Any) -> Iterator[str]:
    """The texts of a message's content, a text or a list of parts; thoughts are left out."""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and not part.get("thought"):
            kind, text = str(part.get("type", "text")), part.get("text")
            if isinstance(text, str) and not re.search("think|thought|reason|summary", kind):
                yield text


def status_within(body: Any) -> int:
    """The status of a fault that a body with the status 200 tells of; 0 without one."""
    body = body[0] if isinstance(body, list) and len(body) == 1 else body
    found = [("", body)]  # words alone
    if isinstance(body, dict):
        choices = body.get("choices")
        if isinstance(choices, list) and choices:
            found = [("", one.get("error")) for one in (body, choices[0]) if isinstance(one, dict)]
        else:
            named = {"error", "error_code", "error_msg", "detail", "message", "msg", "base_resp"}
            said = {leaf.lower() for key in named for _, leaf in leaves(body.get(key))}
            found = [*body.items()] if said - {"ok", "success"} else []
    told = [leaf for name, value in found for leaf in leaves(value, name)]
    if not told:
        return 0
    codes = (int(v) for k, v in told if "code" in k or "status" in k if STATUS.fullmatch(v))
    text = " ".join(leaf for _, leaf in told)
    other = 429 if BUSY.search(text) else 503 if BROKEN.search(text) else 400
    return next(codes, other)


def fate(finish: str) -> str | None:
    """The kind of an answer that ended so within its text; None if it may be whole."""
    return next((kind for kind, pattern in ENDS.items() if pattern.search(finish)), None)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """What a JSON value says, each with its name: texts, whole numbers, and what is true."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    elif value and isinstance(value, str | int):
        yield name, name if value is True else str(value)


def words(text: str) -> str:
    """What a server says, in a line: the texts of its JSON, messages first, or of its page."""
    try:
        found = sorted(leaves(json.loads(text)), key=lambda leaf: not MESSAGE.search(leaf[0]))
    except (ValueError, RecursionError):
        found = [("", re.sub("<[^>]*>", " ", text))]
    return " ".join(" ".join(dict.fromkeys(leaf for _, leaf in found)).split())
