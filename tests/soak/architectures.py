"""Every causal architecture that Transformers registers, tiny, trained and asked.

    python -m pytest -s tests/soak/architectures.py
    python tests/soak/architectures.py bfloat16 mixtral gpt_oss    # some, a row each

Each in a process of its own, on a GPU if there is one, where passes are compiled and recorded. The
gradient of the passes that the proof has let through is held against plain Transformers with PEFT,
each poem alone, and greedy answers against the model itself, without a cache. The table goes into
docs/models.md.
"""

import io
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_architectures import NAMES, tiny_config
from tiny_models import byte_pairs, decoding, examples, settings, training

from verse.errors import UserError, explain
from verse.generation.answers import answer
from verse.model import adapters, loading
from verse.training import proof
from verse.training.flat_params import FlatParams
from verse.training.micro_batches import Plan, accumulate_gradients
from verse.training.packing import shared_prefix

SECONDS = 240
CLOSE = {torch.float32: 2e-3, torch.bfloat16: 0.1}
"""How far a gradient may be from plain PEFT's, of its length."""
GREEDY = decoding()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_of(name: str, folder: str, words: int) -> None:
    """Write a tiny model of random weights. Raises what the class raises."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, words), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(2.0)
    model.eval()(input_ids=torch.arange(12)[None], use_cache=False)
    model.save_pretrained(folder)


def plain_gradient(model, poems) -> torch.Tensor:
    """By Transformers and PEFT alone, each poem by itself."""
    found = None
    for poem in poems:
        ids = torch.tensor([poem.prompt + poem.completion], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(poem.prompt) - 1 : -1]
        labels = torch.tensor(poem.completion, device=model.device)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        weights = [w for w in model.parameters() if w.requires_grad]
        some = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        flat = torch.cat([g.flatten().float() for g in some])
        found = flat if found is None else found + flat
    return found


def row(name: str, dtype: torch.dtype) -> str:
    """What comes of one architecture: a row of the table, without its name."""
    loading.deterministic(1, 1)
    tokenizer = byte_pairs()
    poems = examples(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model_of(name, folder, len(tokenizer))
        except Exception as error:
            return f"no tiny model | {type(error).__name__} |"
        tokenizer.save_pretrained(folder)
        base = settings(folder, quantization="none")
        try:
            return trained_and_asked(base, dtype, tokenizer, poems)
        except UserError as refused:
            return f"refused | {str(refused).partition(folder)[2] or refused} |"


def trained_and_asked(base, dtype, tokenizer, poems) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        for dropout in (0.05, 0.0):  # the default, then what plain PEFT can be compared at
            model = loading.load_model(base, device(), dtype)
            loading.still(model)
            lora = training().lora.model_copy(update={"dropout": dropout})
            adapted = adapters.add_adapter(model, lora, base, seed=1)
            flat = FlatParams(adapted, dtype)
            on_gpu = device().type == "cuda"
            plan = Plan(
                shared_prefix(poems), dtype, 4, compiled=on_gpu and not dropout, recorded=on_gpu
            )
            passes, _ = proof.prove(adapted, plan, [poems], flat)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            flat.flat.add_(torch.randn(flat.flat.shape, generator=generator).to(device()) * 0.02)
        flat.refresh()
        tokens = sum(len(poem.completion) for poem in poems)
        scaler = torch.amp.GradScaler(enabled=False)
        accumulate_gradients(passes, passes.lay_out(poems), tokens, scaler, 7)
        ours, weights = flat.gradient.clone() * tokens, dict(flat.named())
        passes.close()
    plain = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).to(device())
    loading.still(plain)
    config = adapted.peft_config["default"]
    kept = ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern")
    settings_of = {key: getattr(config, key) for key in kept}
    plain = get_peft_model(
        plain, LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, **settings_of)
    ).train()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights[name])
    expected = plain_gradient(plain, poems)
    apart = ((ours - expected).norm() / expected.norm()).item()
    close = CLOSE[dtype]
    # Where experts are chosen rounding alone moves a gradient by far, plain PEFT's as well.
    with (
        suppress(RuntimeError),
        torch.autocast(device().type, torch.bfloat16, dtype != torch.float32),
    ):
        rounded = plain_gradient(plain, poems)  # X-MOD's own code mixes precisions
        close = max(close, 2 * ((rounded - expected).norm() / expected.norm()).item())
    trains = "as PEFT" if apart < close else f"WRONG by {apart:.2g}"
    way = "one prefix" if passes.plan.shared else "own prefix"
    lines = said.getvalue().splitlines()
    asked = asks(base, dtype, tokenizer, poems, lines)
    notes = "; ".join(dict.fromkeys(lines))
    return f"{trains}, {way} | {asked} | {notes}"


def asks(base, dtype, tokenizer, poems, lines) -> str:
    prompts = {number: poem.prompt for number, poem in enumerate(poems)}
    model = loading.load_model(base, device(), dtype)
    expected = {}
    with torch.no_grad():
        for key, prompt in prompts.items():
            text = list(prompt)
            while len(text) < len(prompt) + GREEDY.max_new_tokens and text[-1] != 1:
                try:
                    ids = torch.tensor([text], device=model.device)
                    logits = model(input_ids=ids, use_cache=False).logits
                except RuntimeError as error:
                    return f"Transformers cannot ({type(error).__name__})"
                text.append(logits[0, -1].argmax().item())
            expected[key] = text[len(prompt) :]
    said, found = io.StringIO(), {}
    with redirect_stdout(said), redirect_stderr(io.StringIO()):
        answer(model, tokenizer, prompts, GREEDY, seed=1, batch_size=4, answers=found)
    lines += said.getvalue().splitlines()
    same = sum(found[key].tokens == expected[key] for key in prompts)
    together = "apart" if said.getvalue() else "together"
    if "Transformers' generation is not the model itself: its scores" in said.getvalue():
        return "as Transformers' generation, which is not the model"
    if same == len(prompts) or dtype != torch.float32:
        return f"as the model, {together}" if same == len(prompts) else f"{same} of 7, {together}"
    return f"WRONG: {same} of {len(prompts)} answers, {together}"


def report(name: str, dtype: torch.dtype, writing: Connection) -> None:
    signal.alarm(SECONDS)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    try:
        text = row(name, dtype)
    except BaseException as error:
        where = [f for f in traceback.extract_tb(error.__traceback__) if "/verse/" in f.filename]
        place = f"{where[-1].name}:{where[-1].lineno}" if where else ""
        text = str(explain(error) or "") or f"TRACEBACK {type(error).__name__} {error} {place}"
    writing.send(" ".join(str(text).split())[:2000])


def in_a_process(name: str, dtype: torch.dtype) -> str:
    # A forked one has all that is imported, but cannot use a GPU.
    kind = (
        multiprocessing.context.SpawnContext
        if torch.cuda.is_available()
        else multiprocessing.context.ForkContext
    )
    context = kind()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=report, args=(name, dtype, writing))
    process.start()
    writing.close()
    try:
        return reading.recv()
    except EOFError:
        process.join()
        return f"KILLED by {signal.Signals(-(process.exitcode or 0)).name}"


def table(names: list[str], dtype: torch.dtype) -> list[str]:
    rows = []
    for name in names:
        start = time.monotonic()
        rows.append(f"| {name} | {in_a_process(name, dtype)} |")
        print(f"{time.monotonic() - start:5.1f} s {rows[-1]}", flush=True)
    return rows


def summary(rows: list[str]) -> str:
    """The names by what came of them, as docs/models.md has them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        name, trains, asked, said, *_ = [cell.strip() for cell in row.strip("|\n ").split("|")] + [
            ""
        ]
        what = trains if trains in ("refused", "no tiny model") else f"{trains}; {asked}"
        found.setdefault(what, []).append(name)
        for note in ("not on the experts", "of a kind that PEFT does not adapt"):
            if note in said:
                found.setdefault(note, []).append(name)
    lines = [f"| {what} | {len(names)} | {', '.join(names)} |" for what, names in found.items()]
    return "\n".join(sorted(lines))


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_every_architecture(dtype):
    rows = table(NAMES, dtype)
    wrong = [r for r in rows if any(word in r for word in ("WRONG", "TRACEBACK", "KILLED"))]
    assert not wrong
    assert sum("as PEFT" in r for r in rows) >= 150


if __name__ == "__main__":
    print(summary(table(sys.argv[2:] or NAMES, getattr(torch, sys.argv[1]))))
