"""What of a chat model's answer counts as the poem.

A chat model talks around a poem. The rule takes away what is not verse, and nothing because it is
bad verse: within the poem no line is dropped, and none is chosen over another. In this order:

- turn: what follows the token that ends the turn;
- thought: marks, such as <think>, </answer>, [THINK], ◁think▷, <|channel|>final, 【思考】 and any
  other of such forms, and lines or labels that speak of thoughts or of the answer, cut the text
  into sections. None counts that is a thought by its mark, or ends on the mark of a thought that
  nothing opens. Of the others those count that are the answer by their mark, else all; and of
  these the last that has verse, since thoughts stand in front whatever their marks are called;
- markup: marks of HTML and Markdown; a line's number or bullet, and which line of the poem it is
  (首聯：); quotation marks at either end of a line; remarks in brackets within one, such as pinyin;
- around: what stands before and after the poem, which is the first run of verse. A line of verse
  holds Chinese characters and punctuation alone, no more than LONGEST characters between two marks,
  and ends on no colon. The first one, and one after an empty line, has a part as long as the
  couplet's lines (unless the whole answer has none). A title of that length that has no mark,
  where all else ends on marks, is no part of the poem. A label that ends on a colon goes from the
  poem's first line, and ends the poem before any other. Between its lines, those of pinyin or of
  a translation go;
- couplet: the given couplet, where the poem begins with it;
- simplified: characters, where the poem has simplified ones and no traditional ones: OpenCC
  converts it;
- layout: line breaks and blanks.

What is left may be empty, too short or of unequal lines: it is judged as it is, and its punctuation
stays as the model wrote it.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from verse.poem import LOOSE_MARKS, split_lines
from verse.poems.lines import IDEOGRAPHS

LONGEST = 9
"""Characters between two marks beyond which a line is prose: verse has 5 or 7, a slip some more."""

MARKDOWN = re.compile(r"[*_`#>~]|^[^\S\n]*(?:\d+[.)、]|[-•])", re.MULTILINE)
LABEL = re.compile(rf"([^{LOOSE_MARKS}\s]+)[：:]")
QUOTES = "「」『』“”‘’〝〞«»\"' \t\u3000"
PLACE = re.compile(
    r"^[^\S\n]*(?:第?[一二三四五六七八]句|[首頷頸尾颔颈上下][聯联]|[上下出對对]句)[：:]",
    re.MULTILINE,
)
REMARK = re.compile(r"(?<=\S)[(（〔\[][^()（）〔〕\[\]\n]*[)）〕\]]")
UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff]")

# Marks of HTML, which say how a text looks and not what it is: within a line, and between lines.
HTML = re.compile(
    r"<r[tp]\b[^>]*>[^<]*</r[tp]>|</?(?:a|b|i|u|s|em|strong|small|big|sub|sup|font|center|span|"
    r"ruby|rb|rt|rp|mark|cite|q)(?:\s[^<>]*)?>",
    re.IGNORECASE,
)
BREAK = re.compile(
    r"</?(?:br|p|div|pre|code|ul|ol|li|h[1-6]|blockquote|section|article|table|tr|td|hr|html|body)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
MARK = re.compile(
    r"<\|channel\|?>\s?\w+(?:\s?<\|message\|>)?|<[^<>\n]{1,60}>|＜[^＜＞\n]{1,30}＞|"
    r"◁[^◁▷\n]{1,30}▷|\[/?[A-Z_]{3,20}\]|【[^【】\n]{1,12}】|"
    r"^[^\S\n]*(?:#{1,6}[^\S\n]*[^#\n]{1,20}$|\*\*[^*\n]{1,20}\*\*[：:]?|"
    r"[^\s，。：:*<>]{1,12}[：:])",
    re.MULTILINE,
)
END = re.compile(
    r"<[|｜]?(?:/?s|eo[smt](?:_id)?|im_end|return|endoftext|"
    r"end[_▁]of[_▁](?:turn|sentence|text|utterance)|user|User)[|｜]?>|"
    r"<(?:\|im_start\||start_of_turn)>user|\[(?:EOS|end of text)\]"
)
THOUGHT = re.compile(
    r"th(?:ink|ought)|reason|analys|reflect|scratch|draft|monolog|\bplan|\bcot\b|commentary|"
    "思考|思路|推理|分析|草稿|初稿|構思|构思",
    re.IGNORECASE,
)
ASIDE = re.compile(
    "note|expla|comment|transl|pinyin|appreci|[賞赏]析|[譯译]文|注[釋释]", re.IGNORECASE
)
ANSWER = re.compile(
    r"answer|final|output|poem|response|result|solution|\bbox|答案|最終|最终|定稿|[終终]稿",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Cleaned:
    poem: str
    trimmed: tuple[str, ...]
    """What was taken away, in the words of the rule, in its order."""
    last: bool
    """Nothing follows the poem."""


def clean(couplet: str, text: str) -> Cleaned:
    """The poem in a chat model's answer to a couplet, and what was trimmed to get there."""
    given = [line for line, _ in split_lines(couplet)]
    length = len(given[0]) if given else 0
    steps: dict[str, Callable[[str], str]] = {
        "turn": first_turn,
        "thought": lambda text: without_thought(text, lambda part: first_run(part, length)),
        "markup": without_markup,
        "around": lambda text: first_run(text, length) or first_run(text, None),
        "couplet": lambda text: without_couplet(text, given),
        "simplified": traditional,
    }
    poem, trimmed, last = unicodedata.normalize("NFC", text), [], True
    for kind, step in steps.items():
        after = step(poem)
        if joined(after) != joined(poem):
            trimmed.append(kind)
        if kind == "around":
            last = joined(poem).endswith(joined(after))
        poem = after
    if joined(poem) != poem.strip():
        trimmed.append("layout")
    return Cleaned(joined(poem), tuple(trimmed), last)


def joined(text: str) -> str:
    """The text without line breaks and blanks."""
    return "".join(text.split())


def first_turn(text: str) -> str:
    """The text up to the first token that ends a turn, if anything stands before it."""
    ends = (end.start() for end in END.finditer(text))
    return next((text[:end] for end in ends if text[:end].strip()), text)


def without_thought(text: str, fits: Callable[[str], Any] = str.strip) -> str:
    """The section of a text that is the answer.

    fits: which one may be the answer; of several the last is. Without one, all that are no thought.
    """
    found = sections(text)
    answers = [part for part, answer in found if answer and part.strip()]
    parts = answers or [part for part, _ in found]
    return next((part for part in reversed(parts) if fits(part)), "\n".join(parts))


class Opened(NamedTuple):
    """A mark that is open, or all that enclose it."""

    name: str
    heading: bool
    thought: bool
    answer: bool


def sections(text: str) -> list[tuple[str, bool]]:
    """The sections that are no thought, each with whether a mark calls it the answer."""
    found: list[tuple[str, bool]] = []
    opened = [Opened("", False, False, False)]
    start = 0
    for mark in MARK.finditer(text):
        label = mark[0].strip(" \n\t#*<>＜＞◁▷[]【】：:|｜").lower()
        inline = mark[0][-1] in ">＞▷]】"
        thought = bool(THOUGHT.search(label) or (inline and ASIDE.search(label)))
        answer = bool(ANSWER.search(label)) and not thought
        heading = not inline or mark[0][0] == "【" or "channel" in label
        if HTML.fullmatch(mark[0]) or BREAK.fullmatch(mark[0]):
            continue
        if not inline and not (thought or answer or opened[-1].heading):
            continue
        if not opened[-1].thought:
            found.append((text[start : mark.start()], opened[-1].answer))
        start = mark.end()
        ends = re.match("/|end(?:$|[_▁])", label)
        name = re.sub(r"^(?:/|(?:end|begin|start)[_▁](?:of[_▁])?)", "", label).split()[:1]
        if heading or label == "end":
            while opened[-1].heading:
                opened.pop()
        if ends and any([one.name] == name for one in opened):
            while [opened.pop().name] != name:
                pass
        elif ends and thought:
            found.clear()
        elif not ends and mark[0] != "<channel|>":
            outer = opened[-1]
            opened.append(
                Opened("".join(name), heading, outer.thought or thought, outer.answer or answer)
            )
    if not opened[-1].thought:
        found.append((text[start:], opened[-1].answer))
    return found


def without_markup(text: str) -> str:
    """The text without marks of HTML and Markdown, and remarks within its lines."""
    text = BREAK.sub("\n", HTML.sub("", UNSEEN.sub("", text)))
    for pattern in (MARKDOWN, PLACE, REMARK):
        text = pattern.sub("", text)
    return "\n".join(line.strip(QUOTES) for line in text.splitlines())


def first_run(text: str, length: int | None) -> str:
    """The first run of verse, one of its lines a line; empty if there is none.

    length: what a part of the first line, and of one after an empty line, must have; None for any.
    """
    run: list[str] = []
    apart = True  # from a run that this line could go on
    for line in map(str.strip, text.splitlines()):
        label = LABEL.match(line)
        if label and len(label[1]) != length:  # one as long may be a line of the poem
            if run:
                break
            line = line[label.end() :].strip(QUOTES)
        if not line:
            apart = True
        elif is_verse(line) and not (apart and length and length not in parts(line)):
            run.append(line)
            apart = False
        elif run and (apart or IDEOGRAPHS.search(line) or line.endswith((":", "："))):
            break
    if len(run) > 1 and not marked(run[0]) and all(map(marked, run[1:])) and len(parts(run[1])) > 1:
        del run[0]
    return "\n".join(run)


def is_verse(line: str) -> bool:
    """Whether a line holds nothing but verse, whatever its length."""
    text = re.sub(rf"[{LOOSE_MARKS}\s]", "", line)
    characters = bool(IDEOGRAPHS.fullmatch(text))
    return characters and max(parts(line)) <= LONGEST and not line.endswith(("：", ":"))


def parts(line: str) -> list[int]:
    """The numbers of characters between the marks of a line."""
    return [len(joined(part)) for part, _ in split_lines(line)]


def marked(line: str) -> bool:
    return line[-1] in LOOSE_MARKS


def without_couplet(text: str, given: list[str]) -> str:
    lines = split_lines(text)
    first = [line for line, _ in lines[: len(given)]]
    if given and given in (first, [traditional(line) for line in first]):
        return "".join(line + marks for line, marks in lines[len(given) :])
    return text


def traditional(text: str) -> str:
    """The text in traditional characters, if it has simplified ones and no traditional ones."""
    to_traditional, to_simplified = converters()
    return to_traditional(text) if to_simplified(text) == text else text


@cache
def converters() -> tuple[Callable[[str], str], Callable[[str], str]]:
    import opencc

    return opencc.OpenCC("s2t").convert, opencc.OpenCC("t2s").convert
