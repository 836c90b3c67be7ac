"""What servers answer that is no answer, in the forms of their makers, and what is made of it."""

import json

import pytest
from chat_server import KEY, REST, Server, completion

from verse.chat import client, rounds
from verse.chat.answers import finish
from verse.errors import UserError
from verse.params import Contestant, parse
from verse.poem import Poem

ODD = "白日依山盡，黃河入海流。"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(client, "RETRIES", 1)


@pytest.fixture
def machine():
    from pathlib import Path

    import yaml

    text = (Path(__file__).parents[3] / "params.yaml").read_text("utf-8")
    return parse(yaml.safe_load(text)).machine


def ask(server, store, machine, couplets, **options):
    values = {"base_url": server.base_url, "model": "m", "key_env": "TEST_KEY"} | options
    poems = [Poem(couplet, instruction="續詩。") for couplet in couplets]
    return finish(Contestant(name="kimi", **values), poems, store, machine)


def fate(store, machine, status, body):
    """What comes of a question that is answered so among two that are answered well; and again."""

    def answer(asked):
        return (
            (status, body) if ODD in asked["messages"][-1]["content"] else (200, completion(REST))
        )

    couplets = ["紅豆生南國，春來發幾枝。", ODD, "空山不見人，但聞人語響。"]
    with Server(answer) as server:
        rows = ask(server, store, machine, couplets)
        asked = len(server.asked)
        odd = "" if rows[1]["unanswered"] else REST
        assert [row["answer"] for row in rows] == [REST, odd, REST]
        ask(server, store, machine, couplets)
        again = [body["messages"][-1]["content"] for body in server.asked[asked:]]
        kind = rows[1]["unanswered"]
        assert {ODD in text for text in again} == ({True} if kind else set()), "and no other"
    return kind, asked - 2


def choice(finish, **message):
    body = completion("")
    body["choices"][0] |= {"finish_reason": finish, "message": {"role": "assistant"} | message}
    return body


def error(message, **more):
    return {"error": {"message": message} | more}


AZURE = {
    "innererror": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"violence": {"filtered": True, "severity": "high"}},
    },
    "code": "content_filter",
    "param": "prompt",
    "status": 400,
}
POLICY = "The response was filtered due to the prompt triggering Azure OpenAI's content management"
FLAGGED = {"reasons": ["violence"], "flagged_input": "x", "provider_name": "OpenAI"}
OWN = [
    # DeepSeek, Moonshot, Azure, OpenAI, Claude, OpenRouter, xAI, DashScope, Zhipu, StepFun
    ("filtered", 400, error("Content Exists Risk", type="invalid_request_error", param=None)),
    (
        "filtered",
        400,
        error("The request was rejected: considered high risk", type="content_filter"),
    ),
    ("filtered", 400, error(POLICY, **AZURE)),
    ("filtered", 400, error("Invalid prompt: your prompt was flagged", code="invalid_prompt")),
    ("filtered", 400, error("Output blocked by content filtering policy")),
    ("filtered", 403, error("Your input was flagged", code=403, metadata=FLAGGED)),
    ("filtered", 403, {"code": "no permission", "error": "Content violates usage guidelines."}),
    (
        "filtered",
        400,
        error("Input data may contain inappropriate content.", code="data_inspection"),
    ),
    ("filtered", 400, error("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301")),
    ("filtered", 451, error("censorship_blocked")),
    ("filtered", 500, error("litellm.ContentPolicyViolationError: content_filter")),
    # Doubao, Qianfan, Spark, SiliconFlow, Bedrock's proxy, OpenAI, LiteLLM
    ("filtered", 400, error("the output text may contain risk content", code="OutputTextRisk")),
    ("filtered", 200, {"error_code": 336104, "error_msg": "the content is blocked"}),
    ("filtered", 200, {"code": 10013, "message": "输入内容审核不通过，涉嫌违规"}),
    ("filtered", 451, {"code": 20035, "message": "The input contains illegal content"}),
    ("filtered", 403, {"detail": "Blocked by content safety"}),
    ("filtered", 400, error("we've limited access to this content for safety reasons.")),
    ("filtered", 400, error("Request violates our acceptable use policy")),
    # Gemini, MiniMax, OpenRouter, Azure within 200
    ("filtered", 200, {"choices": [], "prompt_filter_results": [{"hate": {"filtered": True}}]}),
    ("filtered", 200, {"choices": [{"finish_reason": "content_filter", "message": None}]}),
    ("filtered", 200, {"choices": [], "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    (
        "filtered",
        200,
        {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "sensitive"}},
    ),
    *(
        ("filtered", 200, choice(end, content=None))
        for end in ("content_filter", "SAFETY", "PROHIBITED_CONTENT", "RECITATION", "sensitive")
    ),
    ("filtered", 200, choice("content_filter", content="欲窮千里")),
    ("cut_off", 200, choice("length", content="")),
    ("cut_off", 200, choice("length", content=None, reasoning_content="想寫登樓……")),
    ("cut_off", 200, choice("MAX_TOKENS")),
    ("cut_off", 200, choice("length", content="<think>欲窮千里目，更上一層樓。")),
    ("cut_off", 200, choice("length", content="好的，以下是續詩：\n\n欲窮千里目，更上")),
    ("cut_off", 200, choice("model_context_window_exceeded", content="")),
    ("failed", 200, choice("insufficient_system_resource", content="")),
    ("failed", 200, choice("network_error", content="欲窮千里目，更上")),
    ("cut_off", 200, choice("repetition", content="欲窮千里目，更上更上")),
    ("cut_off", 200, {"choices": [{"finish_reason": "length", "index": 0}]}),
    ("cut_off", 400, error("max_tokens or model output limit was reached.")),
    ("empty", 200, choice("stop", content="")),
    ("empty", 200, choice("stop", content=None, reasoning="想寫登樓，欲窮千里目，更上一層樓。")),
    ("empty", 200, choice("stop", content="<think>欲窮千里目，更上一層樓。</think>")),
    ("empty", 200, choice("stop", content=[{"type": "thinking", "thinking": [{"text": REST}]}])),
    ("empty", 200, {"choices": []}),
    ("empty", 200, {"choices": None, "usage": {}}),
    (
        "empty",
        200,
        {
            "choices": None,
            "input_sensitive": False,
            "base_resp": {"status_code": 0, "status_msg": ""},
        },
    ),
    ("empty", 200, {"choices": [], "prompt_filter_results": [{"hate": {"filtered": False}}]}),
    ("empty", 200, {"choices": None, "base_resp": {"status_code": 0, "status_msg": "success"}}),
    ("empty", 200, choice("tool_calls", content=None, tool_calls=[])),
    ("empty", 200, choice("function_call_filter: MALFORMED_FUNCTION_CALL")),
    ("malformed", 200, {"id": "x"}),
    ("malformed", 200, {"choices": [{"finish_reason": "stop"}]}),
    ("malformed", 200, {"choices": {"0": {}}}),
    ("refused", 200, choice("stop", content=None, refusal="I'm sorry, I cannot.")),
    ("refused", 400, error("maximum context length is 10 tokens", param="messages")),
    ("refused", 422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}),
    ("refused", 200, error("something is wrong with this question")),
    ("failed", 500, error("Internal error")),
    ("failed", 503, {"message": "no healthy upstream"}),
    ("failed", 200, {"error": "upstream connect error or disconnect/reset before headers"}),
    ("failed", 200, "internal server error"),
    ("failed", 200, {"code": "InternalError", "message": "An internal error has occured"}),
    ("failed", 200, choice("error", content="欲窮") | error("disconnected", code=502)),
    ("failed", 200, error("Provider returned error", code=502, metadata={"raw": "overloaded"})),
    ("failed", 200, {"choices": [{"error": {"code": 502, "message": "upstream"}, "message": {}}]}),
]


@pytest.mark.parametrize(("kind", "status", "body"), OWN)
def test_the_fate_of_one_question_is_its_own(store, machine, kind, status, body):
    found, attempts = fate(store, machine, status, body)
    assert found == kind and attempts <= 2


ALL = [
    (401, error("Incorrect API key provided"), "refuses what TEST_KEY holds (401): check the key"),
    (403, error("Method doesn't allow unregistered callers"), "refuses what TEST_KEY holds (403)"),
    (
        400,
        [error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT")],
        "check the key; what was answered is kept (the server: API key not valid.",
    ),
    (
        200,
        {"base_resp": {"status_code": 1004, "status_msg": "carry the API secret key"}},
        "the key",
    ),
    (403, error("Your account was suspended for violating our terms."), "refuses what TEST_KEY"),
    (400, error("This organization has been disabled."), "refuses what TEST_KEY holds (400)"),
    (402, error("Insufficient Balance"), "no quota left (402)"),
    (400, error("Your credit balance is too low to access the Anthropic API."), "no quota left"),
    (403, error("your account has an overdue balance", code="AccountOverdue"), "no quota left"),
    (403, {"code": 30001, "message": "your account balance is insufficient"}, "no quota left"),
    (403, error("Your newly created team doesn't have any credits yet."), "no quota left"),
    (429, error("You exceeded your current quota", code="insufficient_quota"), "no quota left"),
    (200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "too many questions"),
    (200, error("您当前使用该API的并发数过高", code="1302"), "too many questions"),
    (308, {}, "is another address (308): fix base_url"),
    (404, error("Not found the model moonshot-v1-8k"), "fix base_url or model"),
    (404, error("The model `gpt-4o` does not exist", code="model_not_found"), "`gpt-4o` does not"),
    (400, error("Model Not Exist"), "fix base_url or model"),
    (400, error("m is not a valid model ID", code=400), "fix base_url or model"),
    (400, error("The model `m` has been decommissioned"), "fix base_url or model"),
    (200, {"error": "model 'm' not found, try pulling it first"}, "fix base_url or model"),
    (
        400,
        error("Unsupported value: 'temperature' does not support 0.3"),
        "does not support 0.3: see",
    ),
]


@pytest.mark.parametrize(("status", "body", "told"), ALL)
def test_a_fault_of_all_questions_ends_the_round(store, machine, status, body, told):
    """In few calls, and in the server's words."""
    couplets = [f"白日依山{c}，黃河入海流。" for c in "甲乙丙丁戊己庚辛壬癸"]
    with Server(lambda asked: (status, body)) as server:
        with pytest.raises(UserError) as fault:
            ask(server, store, machine, couplets, temperature=0.3)
        assert told in str(fault.value) and len(server.asked) <= rounds.DOUBTS


def test_answers_in_parts(store, machine):
    """Mistral's and Claude's, whose thoughts are parts of their own."""
    for number, parts in enumerate(
        [
            [{"type": "text", "text": REST[:6]}, {"type": "text", "text": REST[6:]}],
            [{"type": "thinking", "thinking": "想"}, {"type": "text", "text": REST}],
            [{"type": "reasoning", "text": "明月照高樓"}, {"type": "output_text", "text": REST}],
            [{"text": "明月照高樓", "thought": True}, {"text": REST}],
            [REST],
            {"type": "text", "text": REST},
        ]
    ):
        with Server(lambda asked, parts=parts: (200, choice("stop", content=parts))) as server:
            (row,) = ask(server, store, machine, [ODD], model=f"m{number}")
            assert (row["answer"], len(server.asked)) == (REST, 1)


# Streams


def events(*parts, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps(p, ensure_ascii=False)}\n\n" for p in parts) + end


def part(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "明月照高樓"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
BROKEN = 'event: error\ndata: {"message": "overloaded"}\n\ndata: [DONE]\n\n'
WHOLE = events(part(content=""), part(content=REST[:6]), part("stop", content=REST[6:]), USAGE)


@pytest.mark.parametrize(
    "said",
    [  # DashScope, ModelScope, and others
        "This model only support stream mode, please enable the stream parameter to access it.",
        "parameter.enable_thinking must be set to false for non-streaming calls",
        "parameter.enable_thinking必须设置为false才能进行非流式调用",
        "enable thinking can not be support when `stream=False`.",
        "Stream must be set to true",
        "model not support non-streaming output",
    ],
)
def test_a_model_that_streams_alone(store, machine, capsys, said):
    def answer(asked):
        return (200, WHOLE.encode()) if asked.get("stream") else (400, error(said))

    with Server(answer) as server:
        rows = ask(server, store, machine, [ODD, "空山不見人，但聞人語響。"])
        assert [row["answer"] for row in rows] == [REST] * 2 and len(server.asked) == 3
        assert all(body["stream_options"] == {"include_usage": True} for body in server.asked[1:])
    told = capsys.readouterr().out
    assert told.count("the server wants to stream its answers") == 1
    assert "2 answered, 6 tokens read and 8 written" in told


def test_a_stream_without_its_usage(store, machine):
    def answer(asked):
        if "stream_options" in asked:
            return 422, {"detail": [{"loc": ["body", "stream_options"], "msg": "not permitted"}]}
        return (200, WHOLE.encode()) if asked.get("stream") else (400, error("Stream must be true"))

    with Server(answer) as server:
        assert ask(server, store, machine, [ODD])[0]["answer"] == REST and len(server.asked) == 3


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (None, events(part(content=REST + "\u2028"), part("stop"))),
        (None, events(part(content=REST), part("stop"), end="")),
        (None, WHOLE.replace("\n", "\r\n").replace("data: ", ": on my way\n\nevent: x\ndata:")),
        (
            None,
            events(part(content=[THOUGHT]), part(content=[THOUGHT]), part("stop", content=REST)),
        ),
        (None, events(part(content=None, reasoning_content="明月"), part("stop", content=REST))),
        ("cut_off", events(part(content=None, reasoning="明月照高樓"), part("length"))),
        ("filtered", events(part(content=REST[:4]), part("content_filter"))),
        ("filtered", events(error("Content Exists Risk"), end="")),
        ("failed", events(part(content=REST[:6]), error("lost", code=502) | part("error"))),
        ("failed", events(part(content=REST), end="")),
        ("failed", events(part(content=REST[:6]))),
        ("failed", events(part(content=REST[:6]), end=BROKEN)),
        ("failed", events(part(content=REST[:6]), end='data: {"choices"')),
        ("failed", events({"choices": 5}, [1], "x", None)),
        ("failed", events(part(tool_calls=[5]), {"choices": [{"delta": 5}]})),
    ],
)
def test_what_comes_as_a_stream(store, machine, kind, text):
    """Asked for or not; one that is cut off is no answer."""
    found, attempts = fate(store, machine, 200, text.encode())
    assert (found, attempts) in ((kind, 1), ("failed", 2))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (completion(REST) | {"model": "n\n"}, "answers as model 'n\\n', asked for 'm'"),
        (choice(None, content=REST), "does not say why an answer ends: one that is cut off counts"),
        (completion(REST) | {"model": "m"}, ""),
    ],
)
def test_what_is_odd_about_all_answers_is_told_once(store, machine, capsys, body, told):
    with Server(lambda asked: (200, body)) as server:
        rows = ask(server, store, machine, [ODD, "空山不見人，但聞人語響。"])
    assert [row["answer"] for row in rows] == [REST] * 2
    out = capsys.readouterr().out
    assert out.count("kimi: the server ") == bool(told) and told in out
    assert body.get("model", "").encode("unicode_escape") in store.file.read_bytes()


# What goes into a request


def test_options_headers_and_query_are_sent(store, machine, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "az-0123456789")
    options = {"max_completion_tokens": 9, "thinking": {"type": "disabled"}}
    more = {
        "options": options,
        "headers": {"api-key": "$AZURE_KEY", "X-Title": "verse"},
        "query": {"api-version": "2025-04-01-preview"},
    }
    with Server(lambda asked: (200, completion(f"{REST}\n\naz-0123456789"))) as server:
        (row,) = ask(server, store, machine, [ODD], **more)
        assert "az-0123456789" not in json.dumps(row, ensure_ascii=False)
        ask(server, store, machine, [ODD], **more)
        assert len(server.asked) == 1
        ask(server, store, machine, [ODD], **more | {"options": options | {"top_k": 1}})
        assert len(server.asked) == 2, "options decide an answer"
    assert {key: server.asked[0][key] for key in options} == options
    sent = {name.lower(): value for name, value in server.headers[0].items()}
    assert (sent["api-key"], sent["x-title"]) == ("az-0123456789", "verse")


@pytest.mark.parametrize(
    ("name", "other"),
    [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")],
)
def test_the_other_name_of_a_limit(store, machine, capsys, name, other):
    def answer(asked):
        if name in asked:
            said = f"Unsupported parameter: '{name}' is not supported with this model."
            return 400, error(said, param=name, code="unsupported_parameter")
        return 200, completion(REST)

    couplets = [f"白日依山{c}，黃河入海流。" for c in "甲乙丙丁戊己庚辛壬癸"]
    limit = {"max_tokens": 99} if name == "max_tokens" else {"options": {name: 99}}
    with Server(answer) as server:
        rows = ask(server, store, machine, couplets, **limit)
        assert all(row["answer"] == REST for row in rows) and len(server.asked) == 11
        assert {body.get(other) for body in server.asked[1:]} == {99}
    assert capsys.readouterr().out.count(f"the server does not take {name}: {other} is sent") == 1


def test_what_the_user_set_is_not_left_out(store, machine):
    """Where the server names it too: the answers would be others than those asked for."""
    said = "invalid temperature: only 1 is allowed for this model"
    for options in ({"temperature": 0.5}, {"options": {"temperature": 0.5}}):
        with Server(lambda asked: (400, error(said))) as server:
            with pytest.raises(UserError, match=f"{said}: see its entry"):
                ask(server, store, machine, [ODD], **options)
            assert all("temperature" in body for body in server.asked)


# The environment


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ALL_PROXY", "socks5://user:secret-of-mine@127.0.0.1:1", "a SOCKS proxy"),
        ("HTTPS_PROXY", "gopher://secret-of-mine@x", "HTTPS_PROXY or ALL_PROXY no proxy"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE or SSL_CERT_DIR names no certificates"),
    ],
)
def test_a_connection_that_cannot_be_set_up(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    server = Contestant(name="kimi", base_url="https://api.test/v1", model="m")
    with pytest.raises(UserError) as fault:
        client.Chat(server, "kimi", 1.0)
    assert told in str(fault.value) and "secret-of-mine" not in str(fault.value)


# What is told before and after


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, 2100),
        ({"reasoning_effort": "low"}, 2100),
        *(({name: value}, 100) for name, value in (("enable_thinking", False), ("think", False))),
        ({"reasoning_effort": "none"}, 100),
        ({"thinking": {"type": "disabled"}}, 100),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 100),
        ({"max_completion_tokens": 500}, 500),
    ],
)
def test_the_estimate_counts_thoughts(options, written):
    server = Contestant(name="a", base_url="https://a.b", model="m", options=options)
    told = rounds.estimate(server, {"k": [{"role": "user", "content": "四字之問"}]}, 1, 100)
    assert f"4 tokens to read (a token a character) and {written:,} to write" in told
