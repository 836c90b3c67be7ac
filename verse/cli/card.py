"""The card of a merged model, README.md in its folder, as the Hugging Face hub reads it.

https://huggingface.co/docs/hub/model-cards says what the hub makes of the lines at the top.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from pydantic import TypeAdapter

from verse.files import parse_yaml, read_text
from verse.hub import find_folder
from verse.params import Params
from verse.poem import Poem
from verse.schema import Record, fit
from verse.scoring.metrics import METRICS
from verse.scoring.terminal import shown

SAMPLES = 5
DATA = {
    "embedded": "Tang poems of the npm package `chinese-poetry` (MIT).",
    "hw5": "The Tang poems of the homework that this project began from (GenAI 2024, HW5).",
    "own": "Poems of the author's own choice.",
}
ROUNDED = (
    "Measured with the base model rounded to 4 bits (NF4), as it was trained; this one is not."
)


def write_card(
    p: Params,
    prompt: str,
    score: Mapping[str, Mapping[str, float]],
    written: Sequence[Poem],
    *,
    as_trained: bool = True,
) -> str:
    """The card: licence, base model, data, metrics, prompt, decoding and samples.

    prompt: that of a test poem. score: what metrics/score.json holds, {} before there is one.
    written: the answers to the test poems, of which the first are shown. as_trained: whether the
    parameters are those that it was trained with. What models wrote stands in blocks of code, where
    it is text alone.
    """
    folder = find_folder(p.model.name)
    base = folder.name if folder else p.model.name  # a path is nobody else's business
    source = p.data.source if p.data.source in ("embedded", "hw5") else "own"
    tuned = score.get("tuned", {})
    head = ModelCardData(
        license=licence(folder),
        license_name=None if folder else "of-the-base-model",
        base_model=None if folder else base,  # the hub knows no other folder
        language="lzh",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["classical-chinese", "poetry", "lora"],
        model_name="verse",
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=source,
                dataset_name="held-out Tang poems",
                metric_type=one.name,
                metric_value=value,
            )
            for one in METRICS
            if (value := tuned.get(one.name)) is not None
        ],
    )
    revision = f", revision {p.model.revision}" if p.model.revision else ""
    decoding = p.decoding.model_dump()
    parts = [
        "# A model that finishes Tang poems",
        f"`{base}`{revision}, fine-tuned with LoRA and merged in bfloat16. Given the first couplet "
        "of a poem in its prompt, it writes the rest.",
        "## Prompt",
        block(prompt),
        "Decoding as it was scored:" if tuned else "Decoding:",
        block("\n".join(f"{key}: {json.dumps(value)}" for key, value in decoding.items())),
        "## Data",
        DATA[source] + (f" Epochs: {p.train.epochs:g}; seed: {p.seed}." if as_trained else ""),
    ]
    if tuned:
        names = [name for name in ("base", "tuned", "reference") if name in score]
        shared = [one for one in METRICS if all(one.name in score[name] for name in names)]
        parts += [
            "## Metrics",
            f"Shares of {tuned.get('poems', 'the')} test poems: before training, after it, and of "
            f"the true poems. {ROUNDED if p.model.quantization == 'nf4' else ''}".rstrip(),
            "\n".join(
                [
                    f"| | {' | '.join(names)} | |",
                    "|---" * (len(names) + 2) + "|",
                    *(
                        f"| {one.name} | {' | '.join(f'{score[n][one.name]:.3f}' for n in names)} "
                        f"| {one.meaning} |"
                        for one in shared
                    ),
                ]
            ),
        ]
    if written:
        parts += [
            "## Samples",
            f"The first {len(written[:SAMPLES])} test poems, not the best ones: the couplet, and "
            "what the model wrote.",
            *(block(f"{one.couplet}\n{one.rest}") for one in written[:SAMPLES]),
        ]
    return f"---\n{head.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n"


class Front(Record):
    """What stands at the top of a model's card."""

    license: str | list[str] | None = None


def licence(folder: Path | None) -> str:
    """What a base model's own card says, "other" where it has none or is on the hub.

    Raises UserError for a card that cannot be read.
    """
    card = folder / "README.md" if folder else None
    if not card or not card.is_file():
        return "other"
    found = re.match(r"\s*---\r?\n(.*?)\n---\s", read_text(card) + "\n", re.DOTALL)
    values = (parse_yaml(found[1], card) if found else None) or {}
    named = fit(TypeAdapter(Front), values, card, "correct its first lines").license
    return named if named and isinstance(named, str) else "other"


def block(text: str) -> str:
    """Text as it is, in a block of code that nothing in it can end."""
    return "\n".join(f"    {shown(line)}" for line in text.splitlines())
