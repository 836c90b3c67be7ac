"""Write what the last run measured into the READMEs and docs/figures.md.

    make readme        (python -m tools.readme)

Replaces the poem and the table at the top of README.md and README.zh-TW.md, all figures of
docs/figures.md, and makes README.zh-CN.md of README.zh-TW.md; tests hold the three to each other
and to the committed metrics. Takes the pictures of the report and of `verse page` too, where there
is Chromium. Run it after `dvc repro` wherever results changed.
"""

import base64
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import opencc
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.support.wait import WebDriverWait

from verse.files import read_jsonl, write_text
from verse.poem import split_lines
from verse.poems.contestants import CONTESTANTS, WATCHED
from verse.scoring.metrics import HEADLINES, METRICS
from verse.scoring.terminal import side_by_side

READMES = ("README.md", "README.zh-TW.md")
SIMPLIFIED = "README.zh-CN.md"
FIGURES = "docs/figures.md"
PICTURES = "docs/report.png", "docs/page.png"
SHOWN = (0, 1, 2)  # test poems in docs/figures.md
PICTURED = 2  # test poems in the picture of the report
KEPT = re.compile(r"(\A.*?\n|(?<!`)`[^`\n]+`(?!`)|'[^'\n]*'|\]\([^)]*\))")
"""What stays as it is in simplified characters: the line of links, inline code, couplets to type,
where links lead."""

MAINLAND = """
指標=指标 信賴區間=置信区间 成對差異=配对差异 註解=注释 套件=包 終端機=终端 品質=质量
標準輸入=标准输入 筆記型電腦=笔记本电脑 內附=自带 本機=本地 分享=共享 範本=模板
型別=类型 競爭條件=竞态条件 晶片=芯片 核心=核 （[中文=（[繁体中文
"""
"""Words of Taiwan that OpenCC keeps or turns into other things, and what the mainland says."""

LOOK_ALIKE = """
const drawn = text => {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  context.font = "30px serif";
  context.fillText(text, 2, 32);
  return canvas.toDataURL();
};
return drawn("龍") === drawn("詩");
"""
"""Whether two characters are the same picture, as where no font has them."""


def main() -> None:
    scores = json.loads(Path("metrics/score.json").read_text("utf-8"))
    intervals = json.loads(Path("metrics/intervals.json").read_text("utf-8"))
    halves = {row["contestant"]: row for row in intervals}
    losses = json.loads(Path("metrics/train.json").read_text("utf-8"))
    gains = json.loads(Path("metrics/gains.json").read_text("utf-8"))
    models = [name for name in scores if name not in CONTESTANTS or not CONTESTANTS[name].baseline]
    for readme in READMES:
        replace(
            readme,
            {
                r"^> .*?\n(?=\n)": poem(),
                r"^\| \| base \| tuned .*?\n(?=\n)": table(scores, halves, models, HEADLINES),
            },
        )
    replace(
        FIGURES,
        {
            r"(?<=```\n)prompt .*?\n(?=```)": poems(),
            r"^\| \| base \| tuned .*?\n(?=\n)": table(
                scores, halves, scores, [metric.name for metric in METRICS]
            ),
            r"^Gain of tuned over base.*?\n": gain(gains),
            r"^Loss on the validation poems: .*?\n": loss(losses),
        },
    )
    write_text(SIMPLIFIED, simplified(Path(READMES[1]).read_text("utf-8")))
    try:
        pictures()
    except WebDriverException as error:
        reason = (error.msg or "").splitlines()[0]
        print(f"{' and '.join(PICTURES)} stay as they were: no picture ({reason})")


def replace(path: str, news: dict[str, str]) -> None:
    """Put a new text in the place of the first match of each pattern."""
    text = Path(path).read_text("utf-8")
    for pattern, new in news.items():
        flags = re.DOTALL | re.MULTILINE
        text, found = re.subn(pattern, lambda _, new=new: new, text, count=1, flags=flags)
        assert found, f"{path}: nothing matches {pattern}"
    write_text(path, text)


def poem() -> str:
    """The first test poem that the tuned model finished without a fault, as a quotation."""
    with Path("metrics/poems.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["contestant"] == WATCHED]
    number = next(number for number, row in enumerate(rows) if float(row["whole"]) == 1)
    written = read_jsonl(CONTESTANTS[WATCHED].answers)[number]
    given, rest = (
        re.findall(".*?。", "".join(line + marks for line, marks in split_lines(written[part])))
        for part in ("input", "answer")
    )
    return "<br>\n".join(f"> {line}" for line in (*given, *(f"**{line}**" for line in rest))) + "\n"


def poems() -> str:
    """The first test poems, each contestant's lines in a column."""
    truths = read_jsonl("data/prepared/test.jsonl")
    shown = [one for one in CONTESTANTS.values() if not one.baseline]
    answers = {one.english: one.answers and read_jsonl(one.answers) for one in shown}
    blocks = []
    for number in SHOWN:
        truth = truths[number]
        texts = {
            name: rows[number]["answer"] if rows else truth["output"]
            for name, rows in answers.items()
        }
        blocks.append(side_by_side({"prompt": truth["input"], **texts}) + "\n")
    return "\n".join(blocks)


def table(
    scores: dict[str, dict[str, float]],
    halves: dict[str, dict[str, float]],
    contestants: Iterable[str],
    metrics: Iterable[str],
) -> str:
    """Metrics in Markdown: a row a metric, a column a contestant, ± as half an interval."""
    names = list(contestants)
    heads = [CONTESTANTS[name].english if name in CONTESTANTS else name for name in names]
    rows = [["", *heads], ["---"] * (len(heads) + 1)]
    for metric in metrics:
        cells = []
        for name in names:
            half = halves[name].get(metric)
            noise = f" ± {half:.3f}" if half else ""
            cells.append(f"{scores[name][metric]:.3f}{noise}")
        rows.append([metric, *cells])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows).replace("|  |", "| |")


def gain(gains: list[dict[str, Any]]) -> str:
    """What training gained, in a line."""
    (row,) = [row for row in gains if row["contestant"] == WATCHED]
    told = [
        f"{name} {row[name]:+.3f} ± {row[f'{name}_ci95']:.3f}"
        for name in row
        if f"{name}_ci95" in row
    ]
    return f"Gain of tuned over base, poem by poem: {', '.join(told)}.\n"


def loss(losses: dict[str, dict[str, float]]) -> str:
    """The validation loss, in a line."""
    before, after = (f"{losses[when]['loss_per_character']:.4f}" for when in ("before", "after"))
    return (
        f"Loss on the validation poems: {before} nats a character before training, {after} after.\n"
    )


def simplified(text: str) -> str:
    """A page in the characters and words of the mainland, but for what is KEPT."""
    convert = opencc.OpenCC("tw2sp").convert
    words = dict(pair.split("=") for pair in MAINLAND.split())
    known = re.compile("|".join(map(re.escape, words)))

    def mainland(part: str) -> str:
        return convert(known.sub(lambda found: words[found[0]], part))

    return "".join(
        part if number % 2 else mainland(part) for number, part in enumerate(KEPT.split(text))
    )


def pictures() -> None:
    """The first poems of metrics/report.html, and the page with one. Raises WebDriverException."""
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "hide-scrollbars", "window-size=1280,1000"):
        options.add_argument(f"--{word}")
    page = [sys.executable, "-m", "verse.cli.main", "page", "--port", "0"]
    with (
        webdriver.Chrome(options=options) as browser,
        subprocess.Popen(page, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            browser.get(Path("metrics/report.html").resolve().as_uri())
            if browser.execute_script(LOOK_ALIKE):
                raise WebDriverException("no font has Chinese characters")
            first, last = (browser.find_element("id", f"p{number}") for number in (1, PICTURED))
            for poem in (first, last):  # one out of sight is not laid out
                browser.execute_script("arguments[0].style.contentVisibility = 'visible'", poem)
            top, bottom = first.rect["y"], last.rect["y"] + last.rect["height"]
            shoot(browser, PICTURES[0], top, bottom)

            assert server.stdout
            browser.get(server.stdout.readline().split()[0])
            until = WebDriverWait(browser, 120).until
            until(lambda _: browser.find_element("name", "seed").get_attribute("value"))
            browser.find_element("id", "write").click()
            until(lambda _: browser.find_element("id", "lesson").is_displayed())
            shoot(browser, PICTURES[1], 0, browser.find_element("css selector", "table").rect["y"])
        finally:
            server.kill()


def shoot(browser: webdriver.Chrome, path: str, top: float, bottom: float) -> None:
    """What the browser shows between two heights, as a PNG."""
    clip = {"x": 0, "y": top, "width": 1280, "height": bottom - top, "scale": 1}
    options = {"clip": clip, "captureBeyondViewport": True}
    image = browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    Path(path).write_bytes(base64.b64decode(image))


if __name__ == "__main__":
    main()
