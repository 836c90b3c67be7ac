"""The page: what it refuses, and how it is used in a browser.

The tests named test_browser_… drive Chromium; they need chromium, chromedriver and selenium. With
VERSE_SHOTS=<folder> they leave screenshots there.
"""

import argparse
import base64
import http.client
import itertools
import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from verse import params
from verse.cli.models import load_models
from verse.cli.options import adjusted
from verse.cli.page import main, service
from verse.errors import UserError
from verse.poem import Poem
from verse.poems.lines import in_form
from verse.poems.sources import INSTRUCTION

COUPLET = "白日依山盡，黃河入海流。"
CONTROLS = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "max_new_tokens": 16}
WRITING = {"couplet": COUPLET, "model": "tuned", "controls": CONTROLS, "seed": 42}
ATTACK = """<script>ran=1</script><img src=x onerror="ran=1">{{ 7*7 }}</style>&amp;'"""
P = params.read()


class Page:
    """`verse page` as a process of its own, on a free port that it keeps."""

    def __init__(self, adapter, forks):
        self.adapter, self.forks, self.port = adapter, forks, 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                *(self.forks.python, "-m", "verse.cli.main"),
                "page",
                "--model",
                self.adapter,
                "--port",
                str(self.port),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | self.forks.env,
        )
        said = self.process.stdout.readline()
        self.port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ is ready; .*\n", said)[1])

    def kill(self):
        self.process.kill()
        self.process.communicate()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method, path, body=None, **headers):
        """Status, headers and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        kind = {"Content-Type": "application/json"} if body is not None else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, kind | names)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()

    def write(self, **changes):
        """What is streamed while a poem is written."""
        status, _, text = self.ask("POST", "/write", json.dumps(WRITING | changes))
        assert status == 200, text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def page(adapter, forks):
    page = Page(adapter, forks)
    yield page
    page.kill()


@pytest.fixture(scope="module")
def models(adapter):
    """The same models in this process."""
    return load_models(P, str(adapter), base=True)


def poem_of(model, seed=42, couplet=COUPLET, **changes):
    """The one candidate that the library writes, and the decoding that it is written with."""
    decoding = adjusted(P, "test", **CONTROLS | changes, candidates=1)
    return model.write([Poem(couplet, instruction=INSTRUCTION)], decoding, seed)[0], decoding


# Over HTTP


def test_an_answer_grows_and_is_the_librarys(page, models):
    *growing, last = page.write()
    poem, _ = poem_of(models["tuned"])
    assert last["done"]["text"] == poem.text
    assert last["done"]["tokens"] == poem.tokens
    texts = [event["text"] for event in growing]
    assert texts[0] == ""
    assert texts[-1] == poem.text
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert [event["tokens"] for event in growing] == list(range(len(poem.tokens) + 1))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"couplet": "山" * 501}, "couplet: "),
        ({"couplet": " "}, "couplet: "),
        ({"seed": -1}, "seed: "),
        ({"model": "reference"}, "This model is not here."),
        ({"model": 5}, "model: "),
        ({"controls": CONTROLS | {"temperature": 9.0}}, "controls.temperature: "),
        ({"controls": CONTROLS | {"top_p": float("nan")}}, "controls.top_p: "),
        ({"controls": CONTROLS | {"max_new_tokens": 1000}}, "controls.max_new_tokens: "),
        ({"controls": CONTROLS | {"constrain": ["rime"]}}, "controls.constrain.0: "),
        (
            {"controls": CONTROLS | {"constrain": ["rhyme"]}},
            "controls: decoding.constrain must be ",
        ),
        ({"more": 1}, "more: "),
    ],
)
def test_what_is_out_of_bounds_is_a_sentence(page, changes, fault):
    status, _, text = page.ask("POST", "/write", json.dumps(WRITING | changes))
    assert status == 400
    assert json.loads(text)["error"]["en"].startswith(fault)


def test_rules_that_no_token_may_break(page):
    rules = {"constrain": ["form", "rhyme"], "max_new_tokens": 64}
    wild = CONTROLS | {"temperature": 4.0, "top_k": 0, "top_p": 1.0} | rules
    last = page.write(controls=wild)[-1]
    assert in_form(COUPLET, last["done"]["text"])
    asked = {"couplet": COUPLET, "model": "tuned", "controls": wild}
    asked |= {"tokens": last["done"]["tokens"], "place": 5}
    found = json.loads(page.ask("POST", "/explain", json.dumps(asked))[2])
    assert found["chosen"]["label"] in "，；：？！" and found["chosen"]["drawn"] > 0
    assert {row["cut_by"] for row in found["likeliest"] if row["label"] not in "，；：？！"} == {
        "constrain"
    }


def test_only_the_page_itself_may_ask(page):
    body = json.dumps(WRITING)
    assert page.ask("POST", "/write", body, Host="evil.example")[0] == 403
    assert page.ask("GET", "/state", Host=f"localhost:{page.port}")[0] == 200
    assert page.ask("POST", "/write", body, Content_Type="text/plain")[0] == 415
    assert page.ask("POST", "/couplet", '"' + "x" * 20_000 + '"')[0] == 413
    assert page.ask("GET", "/../../params.yaml")[0] == 404
    _, headers, _ = page.ask("GET", "/")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
    assert "Access-Control-Allow-Origin" not in headers


def test_tokens_that_the_model_does_not_know_are_refused(page):
    question = {key: WRITING[key] for key in ("couplet", "model", "controls")}
    for tokens, place in (([10**6], 0), ([5], 3)):
        body = json.dumps(question | {"tokens": tokens, "place": place})
        status, _, text = page.ask("POST", "/explain", body)
        assert (status, json.loads(text)["error"]["en"]) == (
            400,
            "There is no such place or token.",
        )


def test_the_page_names_no_address_elsewhere(page):
    for path in ("/", "/page.css", "/page.js"):
        assert "://" not in page.ask("GET", path)[2]


def test_the_queue_has_an_end(monkeypatch):
    began, end = threading.Event(), threading.Event()
    monkeypatch.setattr(service, "load_models", lambda *_, **__: {})
    one = service.PageService(P)
    one.hand_in(lambda: (began.set(), end.wait()))
    began.wait()
    for _ in range(service.WAITING):
        one.hand_in(lambda: None)
    with pytest.raises(service.Refusal, match="Too many are waiting"):
        one.hand_in(lambda: None)
    end.set()


def test_a_poem_that_nobody_waits_for_is_given_up(monkeypatch, models):
    monkeypatch.setattr(service, "load_models", lambda *_, **__: models)
    one, gone = service.PageService(P), threading.Event()
    events = one.write(service.Writing.model_validate(WRITING), gone)
    next(events), next(events)
    gone.set()
    rest = list(events)
    assert len(rest) < CONTROLS["max_new_tokens"]
    assert not any("done" in event for event in rest)


# In a browser


class Visitor:
    """Someone at the page, in the tab that is open."""

    def __init__(self, chrome, page):
        self.chrome, self.page = chrome, page

    def screen(self, width, scheme="light"):
        mobile = {"deviceScaleFactor": 1, "mobile": width < 500}
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, **mobile}
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def shoot(self, file):
        size = self.chrome.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.chrome.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        file.write_bytes(base64.b64decode(shot["data"]))

    def visit(self):
        self.screen(1280)
        self.chrome.get(self.page.address)
        self.until("return document.forms[0].elements.seed.value === '42'")
        self.set(**CONTROLS)
        return self

    def run(self, script, *arguments):
        return self.chrome.execute_script(script, *arguments)

    def until(self, condition):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.chrome, 120, poll_frequency=0.1).until(lambda _: self.run(condition))

    def set(self, **values):
        """Move controls as a hand does, each with its event."""
        for name, value in values.items():
            self.run(
                "const control = document.forms[0].elements[arguments[0]]; "
                "control.value = arguments[1]; "
                "control.dispatchEvent(new Event('input', {bubbles: true}))",
                name,
                value,
            )

    def type(self, couplet):
        box = self.chrome.find_element("id", "couplet")
        box.clear()
        box.send_keys(couplet)

    def press(self, button):
        self.chrome.find_element("id", button).click()

    def write(self, couplet=COUPLET):
        self.type(couplet)
        self.press("write")
        self.until(DONE)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def lesson(self):
        """Token -> the shares that the table tells, once all questions are answered."""
        self.until("return !explaining && !again")
        return self.run(
            "return Object.fromEntries([...document.querySelectorAll('tbody tr')].map(row => "
            "[row.dataset.token, [...row.querySelectorAll('[data-share]')]"
            ".map(cell => Number(cell.dataset.share))]))"
        )


DONE = (
    "return document.getElementById('stop').hidden && !document.querySelector('.writing') && "
    "(!document.getElementById('lesson').hidden || !!document.getElementById('error').textContent)"
)


@pytest.fixture
def visitor(browser, page):
    yield Visitor(browser, page)
    assert browser.get_log("browser") == []


def told(model, place, **changes):
    """What the library says of a place: token -> shares of the model, tempered and drawn."""
    poem, _ = poem_of(model)
    decoding = adjusted(P, "test", **CONTROLS | changes)
    prompt = model.prompt(Poem(COUPLET, instruction=INSTRUCTION), 0)
    scores = model.scores(prompt, poem.tokens)
    found = list(model.distributions(scores, prompt, poem.tokens, decoding, COUPLET))[place]
    rows = {
        row["token"]: row for row in [*model.likeliest(found), model.row(found, poem.tokens[place])]
    }
    return {
        str(token): pytest.approx([row[key] for key in ("model", "tempered", "drawn")], abs=1e-6)
        for token, row in rows.items()
    }


def test_browser_reads_a_poem_and_moves_a_slider(visitor, models):
    visitor.visit().write("白日依山盡 黃河入海流")
    assert visitor.run("return document.getElementById('couplet').value") == COUPLET
    for name in ("base", "tuned"):
        assert visitor.text(f"#{name} .whole") == poem_of(models[name])[0].text
    before = visitor.lesson()
    assert before == told(models["tuned"], 0)

    visitor.set(temperature=0.3, top_p=0.5)
    after = visitor.lesson()
    assert after == told(models["tuned"], 0, temperature=0.3, top_p=0.5)
    assert after != before
    bars = visitor.run("return document.querySelectorAll('#entropy [role=option]').length")
    assert bars == len(poem_of(models["tuned"])[0].tokens)

    visitor.chrome.find_element("css selector", "#tuned [data-place='2']").click()
    assert visitor.lesson() == told(models["tuned"], 2, temperature=0.3, top_p=0.5)


def test_browser_announces_each_line_as_it_is_written(visitor, models):
    visitor.visit()
    visitor.run(
        "const said = document.getElementById('said'); window.heard = []; "
        "new MutationObserver(() => heard.push(said.textContent)).observe(said, {childList: true})"
    )
    visitor.write()
    text = poem_of(models["tuned"])[0].text
    lines = re.findall("[^，。]+[，。]", text)
    heard = visitor.run("return heard")
    assert heard[0] == "寫作中 writing" and heard[-1] == "寫完了 written: " + text
    spoken = [line for line, _ in itertools.groupby(heard[1:-1])]
    assert spoken and spoken == [line for line in lines if line in spoken]
    assert visitor.run("return document.getElementById('said').role") == "status"


def test_browser_goes_by_keys_alone(visitor, models):
    from selenium.webdriver import ActionChains, Keys

    visitor.visit()
    visitor.type(COUPLET)
    ActionChains(visitor.chrome).send_keys(Keys.ENTER).perform()
    visitor.until(DONE)
    place = "return Number(document.activeElement.dataset.place ?? -1)"
    for _ in range(40):
        ActionChains(visitor.chrome).send_keys(Keys.TAB).perform()
        if visitor.run("return !!document.activeElement.closest('#tuned')"):
            break
    assert visitor.run(place) == 0
    upright = visitor.run("return !!document.querySelector('#tuned .verse')")
    ActionChains(visitor.chrome).send_keys(
        Keys.ARROW_DOWN if upright else Keys.ARROW_RIGHT
    ).perform()
    assert visitor.run(place) == 1
    assert visitor.lesson() == told(models["tuned"], 1)
    ActionChains(visitor.chrome).send_keys(Keys.END).perform()
    last = len(poem_of(models["tuned"])[0].tokens) - 1
    assert visitor.lesson() == told(models["tuned"], last)


def test_browser_shows_what_is_pasted_as_text(visitor):
    text = (ATTACK * 10)[:500]
    visitor.visit()
    visitor.set(max_new_tokens=4)
    visitor.write(text)
    assert visitor.run("return typeof ran") == "undefined"
    assert visitor.text("#poems section .raw") == text
    assert visitor.run("return document.querySelectorAll('main script, main img').length") == 0
    assert "This is no couplet" in visitor.text("#doubts")


def test_browser_offers_traditional_characters(visitor):
    visitor.visit().write("白日依山尽，黄河入海流。")
    visitor.chrome.find_element("css selector", "#doubts button").click()
    visitor.until(f"return document.getElementById('couplet').value === '{COUPLET}'")
    visitor.until(DONE)
    assert visitor.text("#doubts") == ""


def test_browser_serves_ten_tabs_at_once(visitor, models):
    home = visitor.chrome.current_window_handle
    tabs = []
    for seed in range(10):
        visitor.chrome.switch_to.new_window("tab")
        tabs.append(visitor.chrome.current_window_handle)
        visitor.visit().set(seed=seed)
        visitor.run("document.getElementById('couplet').value = arguments[0]", COUPLET)
        visitor.run("form.requestSubmit()")
    for seed, tab in enumerate(tabs):
        visitor.chrome.switch_to.window(tab)
        visitor.until(DONE)
        assert visitor.text("#tuned .whole") == poem_of(models["tuned"], seed)[0].text
        visitor.chrome.close()
    visitor.chrome.switch_to.window(home)


def test_browser_lays_out_within_the_width(visitor):
    visitor.visit().write()
    for width, scheme in itertools.product((1400, 400), ("light", "dark")):
        visitor.screen(width, scheme)
        assert visitor.run("return document.documentElement.scrollWidth") <= width
        small = visitor.run(
            "return [...document.querySelectorAll('button, input')].filter(one => "
            "one.checkVisibility() && one.getBoundingClientRect().height < 24)"
            ".map(one => one.outerHTML)"
        )
        assert small == []
        if folder := os.environ.get("VERSE_SHOTS"):
            visitor.shoot(Path(folder) / f"page-{width}-{scheme}.png")


def test_browser_names_what_can_be_used(visitor):
    """Every control has a name that a screen reader can say."""
    visitor.visit().write()
    nodes = visitor.chrome.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"button", "slider", "textbox", "spinbutton", "option", "group", "listbox", "combobox"}
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in wanted
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []


def test_browser_says_that_the_server_is_gone_and_goes_on_when_it_is_back(browser, page, models):
    visitor = Visitor(browser, page).visit()
    page.kill()
    visitor.write()
    assert "cannot be reached" in visitor.text("#error")
    page.start()
    visitor.press("write")
    visitor.until(
        "return !!document.querySelector('#tuned.live') && !document.querySelector('.writing')"
    )
    assert visitor.text("#tuned .whole") == poem_of(models["tuned"])[0].text
    assert visitor.text("#error") == ""
    browser.get_log("browser")  # of the refused connections


@pytest.mark.parametrize("host", ["。", "a..b", "a" * 300, "-", "1.2.3.4.5", "\ud800"])
def test_what_is_no_host(host):
    options = argparse.Namespace(host=host, port=0, model=None, base=False)
    with pytest.raises(UserError, match=r": give another --host or --port$"):
        main(options)
