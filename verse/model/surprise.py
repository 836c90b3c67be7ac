"""How surprising verse is to a reader who knows Song verse: the plain embedded model.

The same model whatever is trained, so that runs compare. It has never read a Tang poem.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from torch.nn import functional

from verse.model import encoding, loading
from verse.model.activations import make_activations_invariant
from verse.params import Machine, Model
from verse.paths import MINI

READER = Model(
    name=str(Path(__file__).parents[2] / MINI),
    revision=None,
    trust_remote_code=False,
    quantization="none",
    dtype="auto",
    template="plain",
)
TOKENS = 4096  # in a pass
MARKS = "，。"

Verse = tuple[Sequence[str], Sequence[str]]
"""The lines of a couplet and those that follow, without punctuation."""


@torch.no_grad()
def surprises(poems: Sequence[Verse], machine: Machine) -> list[float]:
    """For each poem the nats a character of what follows the couplet, NaN where nothing does.

    Every line is given the mark of its place, which counts for nothing; so does the first line that
    has no room before the model's last position, and what follows it. On a CPU a number depends on
    nothing but its poem.
    """
    loading.deterministic(0, machine.threads)
    device = loading.choose_device(machine.device)
    model = loading.load_model(READER, device, loading.choose_dtype(READER.dtype, device))
    if device.type == "cpu":
        make_activations_invariant(model)
    tokenizer = encoding.load_tokenizer(READER)
    first, _ = encoding.affixes(tokenizer)
    positions = encoding.positions(model.config)
    lines = sorted({line for poem in poems for part in poem for line in part} | set(MARKS))
    known = tokenizer(lines, add_special_tokens=False)["input_ids"] if lines else []
    ids = dict(zip(lines, known, strict=True))

    # Token ids, which of them count, and how many characters these are.
    texts: list[tuple[list[int], list[int], int]] = []
    for couplet, rest in poems:
        tokens, counted, characters = list(first), list[int](), 0
        for number, line in enumerate((*couplet, *rest)):
            end = len(tokens) + len(ids[line])
            if positions and end > positions:
                break
            if number >= len(couplet):
                counted += range(len(tokens), end)
                characters += len(line)
            tokens += [*ids[line], *ids[MARKS[number % 2]]]
        texts.append((tokens[:positions], counted, characters))

    found = [float("nan")] * len(poems)
    order = sorted((n for n in range(len(poems)) if texts[n][1]), key=lambda n: len(texts[n][0]))
    for length, group in groupby(order, lambda n: len(texts[n][0])):
        numbers, at_once = list(group), max(1, TOKENS // length)
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            rows = [row for row, n in enumerate(some) for _ in texts[n][1]]
            places = torch.tensor([at for n in some for at in texts[n][1]], device=device)
            given = torch.tensor([texts[n][0] for n in some], device=device)
            seen = model.get_decoder()(input_ids=given, use_cache=False).last_hidden_state
            scores = model.get_output_embeddings()(seen[rows, places - 1]).float()
            nats = functional.cross_entropy(scores, given[rows, places], reduction="none")
            for n, own in zip(some, nats.split([len(texts[n][1]) for n in some]), strict=True):
                found[n] = float(own.sum()) / texts[n][2]
    return found
