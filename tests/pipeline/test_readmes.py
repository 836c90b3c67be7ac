"""The three READMEs say the same, and what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.readme import READMES, SIMPLIFIED, simplified

ROOT = Path(__file__).parents[2]
ENGLISH, TRADITIONAL = ((ROOT / name).read_text("utf-8") for name in READMES)
CHINESE = (ROOT / SIMPLIFIED).read_text("utf-8")
ALL = {READMES[0]: ENGLISH, READMES[1]: TRADITIONAL, SIMPLIFIED: CHINESE}


def commands(text):
    """The lines of the code blocks in order, without their comments."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return [re.sub(r"\s+#.*", "", line) for line in lines.splitlines()]


def headings(text):
    """Their levels, in order."""
    return [len(marks) for marks in re.findall("^(#+) ", re.sub("(?s)```.*?```", "", text), re.M)]


def tables(text):
    """The first cell of each row, and all figures of the row."""
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [(row.split("|")[0].strip(), re.findall(r"\d\.\d+", row)) for row in rows]


def pictures(text):
    return re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)


def code(text):
    """What stands in the text as code, to be typed or looked for."""
    return sorted(set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)))


def test_these_tests_see_something():
    assert len(commands(ENGLISH)) > 10 and "dvc repro" in commands(ENGLISH)
    assert len(headings(ENGLISH)) > 4 and len(pictures(ENGLISH)) == 3
    assert sum(bool(figures) for _, figures in tables(ENGLISH)) >= 5
    assert "params.yaml" in code(ENGLISH)


@pytest.mark.parametrize("part", [commands, headings, pictures, code])
def test_the_chinese_one_has_all_that_the_english_one_has(part):
    assert part(TRADITIONAL) == part(ENGLISH)


def test_the_tables_have_the_same_figures_in_the_same_order():
    first = {"page": "文件"}  # the one head that is translated
    wanted = [(first.get(cell, cell), figures) for cell, figures in tables(ENGLISH)]
    assert tables(TRADITIONAL) == wanted


def test_all_open_with_links_to_each_other_and_the_same_poem():
    assert len({text.splitlines()[0] for text in ALL.values()}) == 1
    assert all(f"({name})" in ENGLISH.splitlines()[0] for name in ALL)
    assert re.findall("^> .*", TRADITIONAL, re.M) == re.findall("^> .*", ENGLISH, re.M) != []


def test_the_simplified_one_is_made_from_the_traditional_one():
    assert simplified(TRADITIONAL) == CHINESE, "make readme"


NOT_SAID = """
指针 信赖区间 注解 套件 终端机 多部 品质 甚么 裏 GPU内存 软体 硬体 程式 资料 档案 网路 预设
记忆体 萤幕 滑鼠 伺服器 资讯 讯息 影片 硬碟 磁碟 字串 阵列 回圈 函式 变数 物件 介面 支援 最佳化
演算法 解析度 频宽 位元 快取 使用者 登入 专案 执行绪 型别 笔记型 数位 晶片 核心 范本 本机 内附
分享 连线 连结 机率 巨集 雜湊 杂凑 丛集 伫列 堆叠 建构 呼叫 汇出 汇入 列印 视窗 游标 选单 权重档
金钥 搜寻 存取 回传
"""
"""Words of Taiwan in simplified characters: no reader on the mainland writes them so."""


def test_the_simplified_one_has_the_words_of_the_mainland():
    text = re.sub(r"\]\([^)]*\)", "]", CHINESE).replace(" ", "")
    assert [word for word in NOT_SAID.split() if word in text] == []
    assert "置信区间" in text and "指标" in text


def test_code_and_links_stay_as_they_are_in_simplified_characters():
    made = simplified("[繁體](x.zh-TW.md)\n[語](詩.md) `詩詞` 詩\n```bash\nverse '詩' # 詩\n```\n")
    assert made == "[繁體](x.zh-TW.md)\n[语](詩.md) `詩詞` 诗\n```bash\nverse '詩' # 诗\n```\n"


@pytest.mark.parametrize("name", ALL)
def test_every_link_leads_to_a_file(name):
    links = re.findall(r"\]\(([^)#:]+)\)", ALL[name])
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.zh-TW.md")), ids=lambda p: p.name)
def test_a_page_in_chinese_has_all_that_the_english_one_has(page):
    english, chinese = (
        (page.parent / name).read_text("utf-8")
        for name in (page.name.replace(".zh-TW", ""), page.name)
    )
    assert f"[中文]({page.name})" in english and "[English](" in chinese
    assert commands(chinese) == commands(english)
    assert headings(chinese) == headings(english)
    assert [figures for _, figures in tables(chinese)] == [f for _, f in tables(english)]


def test_every_page_of_the_docs_is_found_from_the_readme():
    pages = [page for page in (ROOT / "docs").glob("*.md") if "zh-" not in page.name]
    assert [page.name for page in pages if f"(docs/{page.name})" not in ENGLISH] == []


def test_the_commands_of_verse_and_make_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "verse.cli.main", "--help"], cwd=ROOT, stdout=subprocess.PIPE
    ).stdout.decode()
    for command in commands(ENGLISH):
        program, *words = command.split()
        if program == "make":
            assert re.search(f"^{words[0]}:", makefile, re.MULTILINE), command
        if program == "verse":
            assert re.search(f"^    {words[0]} ", told, re.MULTILINE), command


def test_the_pictures_are_small():
    assert all((ROOT / picture).stat().st_size < 300_000 for picture in pictures(ENGLISH))
