"""Finish couplets on the terminal: the rest of a poem, set as verse, with rhyme and tone marked.

Takes a couplet as argument, or one a line on standard input. Decoding is that of params.yaml where
no option says otherwise. The poem is the one that the pipeline would write, of as many candidates:
it depends on the seed and the couplet alone. A line is doubted on the error stream if it is no
couplet.
"""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from verse import params
from verse.cli.options import adjusted
from verse.errors import UserError, printable

if TYPE_CHECKING:
    from verse.cli.couplets import Library
    from verse.cli.models import LoadedModel, Written
    from verse.params import Decoding
    from verse.poem import Poem

RED, GREEN, FAINT = "31", "32", "2"
SHOWN = 5  # alternatives beside each token
DECODING = ("temperature", "top_p", "top_k", "max_new_tokens", "constrain", "candidates")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("couplet", nargs="*", help="a couplet; else one a line on standard input")
    which = parser.add_argument_group("the model")
    which.add_argument(
        "--model", metavar="WHAT", help="a folder, an experiment or a commit; else models/adapter"
    )
    which.add_argument("--base", action="store_true", help="the base model without the adapter")
    decoding = parser.add_argument_group("decoding, else as params.yaml says")
    decoding.add_argument("--temperature", type=float, help="0 always takes the likeliest token")
    decoding.add_argument("--top-p", type=float, help="in (0, 1]")
    decoding.add_argument("--top-k", type=int, help="0 for all")
    decoding.add_argument("--max-new-tokens", type=int)
    decoding.add_argument(
        "--constrain",
        type=lambda rules: [rule for rule in rules.split(",") if rule],
        metavar="RULES",
        help="what no token may break: form, or form,rhyme,tone; '' for nothing",
    )
    decoding.add_argument("--candidates", type=int, help="drawn, of which the best is kept")
    decoding.add_argument("--seed", type=int, help="sample n is the poem of the nth seed from it")
    decoding.add_argument("--samples", type=int, default=1, help="poems for each couplet")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="JSON Lines, a poem a line")
    output.add_argument(
        "--explain",
        nargs="?",
        type=int,
        const=0,
        metavar="PLACE",
        help="the distribution of each token; of the token at a place, from 1: the likeliest 20",
    )


def main(options: argparse.Namespace) -> None:
    p = params.read()
    texts = asked(options.couplet)
    if options.samples < 1:
        raise UserError("--samples must be at least 1")
    decoding = adjusted(p, "options", **{key: getattr(options, key) for key in DECODING})
    seed = p.seed if options.seed is None else options.seed
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be a whole number from 0 to {2**32 - 1}, not {seed}")

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads take turns

    from verse.cli import couplets

    given = [couplets.written(text) for text in texts]
    for number, couplet in enumerate(given, 1):
        for _, doubt in couplets.doubts(couplet):
            line = f"line {number}: " if len(given) > 1 else ""
            print(f"verse write: {line}{printable(doubt)}", file=sys.stderr)
    if len(given) == 1:
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar of one poem tells nothing

    from verse.cli.models import load_models  # heavy

    at_once = min(p.machine.batch_size, len(given) * decoding.num_candidates)
    with redirect_stdout(sys.stderr):  # what is said of a slower way is no poem
        models = load_models(
            p, options.model, base=options.base, tuned=not options.base, at_once=at_once
        )
        [model] = models.values()
        library = couplets.Library()
        poems = [library.poem(couplet) for couplet in given]
        seeds = ((seed + number) % 2**32 for number in range(options.samples))
        samples = [model.write(poems, decoding, one) for one in seeds]  # each also alone
    for number, poem in enumerate(poems):
        for sample in samples:
            one, tokens = sample[number], None
            if options.explain is not None:
                tokens = explained(model, poem, one, decoding)
            if options.json:
                print(as_json(poem, one, tokens), flush=True)
                continue
            print(as_verse(poem, one, library, options.samples > 1), flush=True)
            if tokens is not None:
                print(table(tokens, options.explain), flush=True)


def asked(arguments: list[str]) -> list[str]:
    """The couplets asked for. Raises UserError if there is none."""
    if any(text.strip() for text in arguments):
        return [" ".join(arguments)]
    if arguments or sys.stdin.isatty():
        raise UserError("give a couplet: verse write '白日依山盡，黃河入海流。'")
    text = sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("standard input holds no couplet: give one a line")
    return lines


def explained(
    model: "LoadedModel", poem: "Poem", written: "Written", decoding: "Decoding"
) -> list[dict[str, Any]]:
    """For each token, its shares and the likeliest beside it; entropies in bits."""
    from verse.generation.distribution import entropy

    tokens = written.tokens
    prompt = model.prompt(poem, len(tokens))
    scores = model.scores(prompt, tokens)
    along = model.distributions(scores, prompt, tokens, decoding, poem.couplet)
    return [
        model.row(found, token)
        | {
            "entropy": entropy(found.model),
            "entropy_drawn": entropy(found.drawn),
            "left": found.left,
            "likeliest": model.likeliest(found),
        }
        for token, found in zip(tokens, along, strict=True)
    ]


def as_json(poem: "Poem", written: "Written", tokens: list[dict[str, Any]] | None) -> str:
    row = {"input": poem.couplet, "answer": written.text, "seed": written.seed}
    return json.dumps(row | ({} if tokens is None else {"tokens": tokens}), ensure_ascii=False)


def as_verse(poem: "Poem", written: "Written", library: "Library", named: bool) -> str:
    """A poem, set in lines if it is in form, and what was found of it; its seed too if `named`."""
    from verse.poem import Poem, split_lines
    from verse.scoring.terminal import shown

    answer = library.set(Poem(poem.couplet, written.text))
    rows = [coloured(shown(line + marks), FAINT) for line, marks in split_lines(poem.couplet)]
    if answer["lines"]:
        rows += map(set_line, answer["lines"])
    else:
        rows += [shown(line) for line in written.text.splitlines()] or ["（空 empty）"]
    seed = f" · seed {written.seed}" if named else ""
    return "\n".join([*rows, coloured(answer["findings"] + seed, FAINT), ""])


def set_line(line: dict[str, Any]) -> str:
    """A line of verse; beside it its rhyme, the rules that it breaks, what it repeats."""
    text = "".join(
        coloured(one["text"], RED if one["rules"] else GREEN if one["rhymes"] else "")
        for one in line["characters"]
    )
    beside = ["韻"] if any(one["rhymes"] for one in line["characters"]) else []
    beside += [one["note"] for one in line["characters"] if one["rules"]]
    beside += {"重": ["重句"], "襲": ["襲句"], "重襲": ["重句", "襲句"]}.get(line["seal"], [])
    return f"{text}{line['marks']}" + ("  " + "；".join(beside) if beside else "")


def table(tokens: list[dict[str, Any]], place: int) -> str:
    """The tokens of an answer, or for one place, from 1, those that could have stood there."""
    if not 0 <= place <= len(tokens):
        raise UserError(f"--explain {place}: the answer has {len(tokens)} tokens")
    if place:
        rows: list[tuple[str, ...]] = [("token", "model", "tempered", "drawn", "cut by")]
        for other in tokens[place - 1]["likeliest"]:
            shares = [percent(other[key]) for key in ("model", "tempered", "drawn")]
            rows.append((other["label"], *shares, other["cut_by"]))
    else:
        rows = [("token", "model", "drawn", "bits", "left", "choice", "likeliest, as drawn")]
        for number, token in enumerate(tokens, 1):
            likeliest = [f"{o['label']} {percent(o['drawn'])}" for o in token["likeliest"][:SHOWN]]
            rows.append(
                (
                    f"{number:3} {token['label']}",
                    percent(token["model"]),
                    percent(token["drawn"]),
                    f"{token['entropy']:.2f}",
                    f"{token['entropy_drawn']:.2f}",
                    str(token["left"]),
                    "  ".join(likeliest),
                )
            )
    return "\n".join([*(cells(*row) for row in rows), ""])


def cells(*texts: str) -> str:
    from verse.scoring.terminal import padded, shown

    *columns, last = (shown(text) for text in texts)
    return ("".join(padded(text, 10) for text in columns) + last).rstrip()


def percent(share: float) -> str:
    return "—" if share == 0 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def coloured(text: str, colour: str) -> str:
    """The text in a colour where the output is a terminal that wants colours."""
    if not colour or not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"
