"""What of a chat model's answer counts as the poem.

A chat model talks around a poem. The rule takes away what is not verse, and nothing because it is
bad verse: within the poem no line is dropped, and none is chosen over another. In this order:

- turn: what follows the token that ends the turn;
- thought: marks, such as <think>, </answer>, [THINK], ◁think▷, <|channel|>final, 【思考】 and any
  other of such forms, the names within JSON, and lines or labels that speak of thoughts or of the
  answer, cut the text into sections; a line that does not ends one that is of its own style, and a
  heading one that a label began. None counts that is a thought by its mark, or ends on the mark of
  a thought that nothing opens. Of the others the last counts that has verse, one that is the answer
  by its mark before all else, since thoughts stand in front whatever their marks are called;
- markup: marks of HTML, Markdown and LaTeX; of a table's rows all but the first cell that ends as a
  line does; a line's number or bullet, and which line of the poem it is (首聯：); what is no letter
  and no mark of verse at either end of a line; remarks in brackets within one, such as pinyin;
- around: what stands before and after the poem, which is the first run of verse. A line of verse
  holds Chinese characters and punctuation alone, no more than LONGEST characters between two marks,
  and ends on no colon. The first one, and one after an empty line, has a part as long as the
  couplet's lines (unless the whole answer has none). A title of that length that has no mark,
  where all else ends on marks, is no part of the poem. A label that ends on a colon goes from the
  poem's first line, and ends the poem before any other, unless that was the couplet alone. Between
  its lines, those of pinyin or of a translation go;
- couplet: the given couplet, where the poem begins with it;
- simplified: characters, where the poem has simplified ones and no traditional ones: OpenCC
  converts it;
- layout: line breaks, save between lines that no mark parts, and blanks.

What is left may be empty, too short or of unequal lines: it is judged as it is, and its punctuation
stays as the model wrote it.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any, NamedTuple

from verse.chat.client import leaves
from verse.poem import LOOSE_MARKS, split_lines
from verse.poems.lines import IDEOGRAPHS

LONGEST = 9
"""Characters between two marks beyond which a line is prose: verse has 5 or 7, a slip some more."""
MOST = 100  # places at which JSON is looked for

PLACE = (
    "(?:第?[一二三四五六七八][句聯联]|[句聯联][一二三四五六七八]|[首頷頸尾颔颈上下末][聯联]|"
    "[上下出對对]句|(?i:line|verse) ?[1-8]?)"
)
BRACKETS = r"()（）〔〕\[\]《》"
MARKDOWN = re.compile(r"[*_`#>~]|\\[a-z]+\{|[}$]")
BEFORE = re.compile(
    rf"^(?:[^\w{BRACKETS}{LOOSE_MARKS}]|[(（［\[]?\d{{1,2}}[.)、．）:：］\]]|[①-⑳❶-❿]|"
    rf"[一二三四五六七八]、|{PLACE}[：:])+(?=[\w{BRACKETS}{LOOSE_MARKS}])|^\W*{PLACE}\W*$"
)
AFTER = re.compile(rf"(?<=[\w{BRACKETS}{LOOSE_MARKS}])[^\w{BRACKETS}{LOOSE_MARKS}]+$")
REMARK = re.compile(
    r"(?<=\S)[^\S\n]*[(（〔\[][^()（）〔〕\[\]\n]*[)）〕\]]|^\W?[(（]\w{1,9}[)）]$|"
    r"(?<=[。！？])\s*[—─-]{1,2}\w.*$"
)
ROW = re.compile(rf"^\|(?:[^|]*\|)*?([^|]*[{LOOSE_MARKS}]\s*)\|.*")
LABEL = re.compile(r"[^：:]{1,30}[：:]")
UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff]")

# Marks of HTML, which say how a text looks and not what it is: within a line, and between lines.
HTML = re.compile(
    r"<r[tp]\b[^<>]*>[^<]*</r[tp]>|</?(?:a|b|i|u|s|em|strong|small|big|sub|sup|font|center|span|"
    r"ruby|rb|rt|rp|mark|cite|q)(?:\s[^<>]*)?>",
    re.IGNORECASE,
)
BREAK = re.compile(
    r"</?(?:br|p|div|pre|code|ul|ol|li|h[1-6]|blockquote|section|article|table|tr|td|hr|html|body)"
    rf"(?:\s[^<>]*)?/?>|</?{PLACE}>|【{PLACE}】|\\n",
    re.IGNORECASE,
)
MARK = re.compile(
    r"(?P<inline><\|channel\|?>\s?\w+(?:\s?<\|message\|>)?|<[^<>\n]{1,60}>|＜[^＜＞\n]{1,30}＞|"
    r"◁[^◁▷\n]{1,30}▷|〈[／/]?[^〈〉\n]{1,12}〉|\[/?[A-Z_]{3,20}\]|【[^【】\n]{1,12}】)|"
    r"^[^\S\n]*(?:>[^\S\n]*)*(?P<line>(?:(?:[^\w\s<>]+|\d\.) ){0,3}"
    r"[^\s，。！？；：,;:<>]{1,20}(?: [^\s，。！？；：,;:<>]{1,20})?(?:[：:][*_]*|$))",
    re.MULTILINE,
)
HEADING = re.compile(r"[：:][*_]*$|^#|^[*_].*[*_]$|^```|^[\[《].*[\]》]$")
TRAILING = re.compile(r"^\W*(?:\.{3}|…)|(?:\.{3}|…)\W*$")
END = re.compile(
    r"<[|｜]?(?:/?s|eo[smt](?:_id)?|im_end|return|endoftext|"
    r"end[_▁]of[_▁](?:turn|sentence|text|utterance)|user|User)[|｜]?>|"
    r"<(?:\|im_start\||start_of_turn)>user|<(?:extra_id|reserved)_\d+>|\[(?:EOS|end of text)\]|"
    r"^###\s?(?:Instruction|Human|User)",
    re.MULTILINE,
)
THOUGHT = re.compile(
    r"th(?:ink|ought)|reason|analys|reflect|scratch|draft|monolog|\bplan|\bcot\b|commentary|"
    "思考|思路|推理|推敲|分析|草稿|初稿|構思|构思|試寫|试写",
    re.IGNORECASE,
)
ASIDE = re.compile(
    "note|expla|comment|transl|pinyin|appreci|title|author|[賞赏]析|[譯译]文|注[釋释]|作者|"
    "[標标][題题]|[題题]目",
    re.IGNORECASE,
)
ANSWER = re.compile(
    r"answer|final|output|poem|response|result|solution|\bbox|答案|最[終终]|定稿|[終终]稿",
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
        "thought": lambda text: without_thought(
            with_marks(text), lambda part: first_run(without_markup(part), length)
        ),
        "markup": without_markup,
        "around": lambda text: first_run(text, length, given) or first_run(text, None),
        "couplet": lambda text: without_couplet(text, given),
        "simplified": traditional,
    }
    text = unicodedata.normalize("NFC", text)
    poem, trimmed, last = text, [], True
    for kind, step in steps.items():
        after = step(poem)
        if joined(after) != joined(poem):
            trimmed.append(kind)
        if kind == "around":
            last = joined(poem).endswith(joined(after))
        poem = after
    if (whole := laid_out(poem, length)) != (poem if trimmed else text).strip():
        trimmed.append("layout")
    return Cleaned(whole, tuple(trimmed), last)


def joined(text: str) -> str:
    """The text without line breaks and blanks."""
    return "".join(text.split())


def laid_out(text: str, length: int) -> str:
    """The text without blanks, and with a line break only between lines that no mark parts.

    length: of the couplet's lines; what is no longer is one line.
    """

    def unmarked(piece: re.Match[str]) -> str:
        lines = [joined(line) for line, _ in split_lines(piece[0])]
        return ("\n" if sum(map(len, lines)) > length else "").join(lines)

    return re.sub(f"[^{LOOSE_MARKS}]+", unmarked, text)


def first_turn(text: str) -> str:
    """The text up to the first token that ends a turn, if anything stands before it."""
    ends = (end.start() for end in END.finditer(text))
    return next((text[:end] for end in ends if text[:end].strip()), text)


def without_thought(text: str, fits: Callable[[str], Any] = str.strip) -> str:
    """The section of a text that is the answer.

    fits: which one may be the answer; of several the last is. Without one, all that are no thought.
    """
    found = sections(text)
    answers = [part for part, answer in found if answer]
    parts = [part for part, _ in found]
    fitting = (part for part in (*reversed(answers), *reversed(parts)) if fits(part))
    return next(fitting, "\n".join(parts))


def with_marks(text: str) -> str:
    """The text with what its JSON says in its place, the name of each part as a mark."""
    told, start = "", 0
    for brace in islice(re.finditer(r'[{\[]\s*["{\[]', text), MOST):
        if brace.start() >= start:
            with suppress(ValueError, RecursionError):
                value, end = json.JSONDecoder().raw_decode(text, brace.start())
                told += text[start : brace.start()]
                for name, leaf in groupby(leaves(value), key=lambda leaf: leaf[0]):
                    said = "\n".join(text for _, text in leaf)
                    told += f"\n<{name}>\n{said}\n</{name}>\n" if name else f"\n{said}\n"
                start = end
    return told + text[start:]


class Opened(NamedTuple):
    """A mark that is open, or all that enclose it."""

    name: str
    heading: str
    """Of which style it is; empty for a mark that is none."""
    thought: bool
    answer: bool


def sections(text: str) -> list[tuple[str, bool]]:
    """The sections that are no thought, each with whether a mark calls it the answer."""
    found: list[tuple[str, bool]] = []
    opened = [Opened("", "", False, False)]
    start = 0
    for mark in MARK.finditer(text):
        inline, told = mark["inline"], (mark["line"] or "").strip()
        label = mark[0].strip(" \n\t#*_`~<>＜＞◁▷〈〉[]【】《》：:|｜.…").lower()
        aside = bool(ASIDE.search(label))
        thought = bool(THOUGHT.search(label) or (inline and aside))
        answer = bool(ANSWER.search(label)) and not thought
        style = told[: len(told) - len(told.lstrip("#*_`[《"))] or ":"
        if inline:
            style = "【" if inline[0] == "【" or "channel" in label else ""
            if HTML.fullmatch(inline) or BREAK.fullmatch(inline):
                continue
        closes = style == "```" == told and opened[-1].heading == "```"
        before = opened[-1].heading
        follows = style == before or (before == ":" and style.startswith("#"))
        goes_on = label and follows and not aside
        if not (inline or closes) and not (
            (HEADING.search(told) and (thought or answer or goes_on))
            or (thought and TRAILING.search(told))
        ):
            continue
        if not opened[-1].thought:
            found.append((text[start : mark.start()], opened[-1].answer))
        start = mark.end()
        ends = closes or re.match(r"[/／]|(?:end|done)(?:$|[_▁ ])|.*[_▁]end$", label)
        affix = r"^(?:[/／]|(?:end|done|begin|start)[_▁ ](?:of[_▁])?)|[_▁](?:start|end)$"
        name = re.sub(affix, "", label).split()[:1]
        if style or label == "end":
            while opened[-1].heading:
                opened.pop()
        if ends and any([one.name] == name for one in opened):
            while [opened.pop().name] != name:
                pass
        elif ends and thought:
            found.clear()
        elif not ends and inline != "<channel|>":
            if inline and answer:
                found = [section for section in found if section[1]]
            outer = opened[-1]
            opened.append(
                Opened("".join(name), style, outer.thought or thought, outer.answer or answer)
            )
    if not opened[-1].thought:
        found.append((text[start:], opened[-1].answer))
    return found


def without_markup(text: str) -> str:
    """The text without marks of HTML, Markdown and LaTeX, and what is no verse in its lines."""
    text = MARKDOWN.sub("", BREAK.sub("\n", HTML.sub("", UNSEEN.sub("", text))))
    lines = (REMARK.sub("", ROW.sub(r"\1", line.strip())) for line in text.splitlines())
    return "\n".join(AFTER.sub("", BEFORE.sub("", line)) for line in lines)


def first_run(text: str, length: int | None, given: Sequence[str] = ()) -> str:
    """The first run of verse, one of its lines a line; empty if there is none.

    length: what a part of the first line, and of one after an empty line, must have; None for any.
    given: the couplet, of which a run is none if another follows under a label.
    """
    run: list[str] = []
    apart = True  # from a run that this line could go on
    for line in map(str.strip, text.splitlines()):
        label = LABEL.match(line)
        named = parts(label[0]) if label else []
        # A label as long as a line of the poem may be one, and then has a second one beside it.
        if label and (length not in named or (len(named) == 1 and parts(line).count(length) % 2)):
            if run and without_couplet("".join(run), list(given)):
                break
            run = []
            line = BEFORE.sub("", line[label.end() :])
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
