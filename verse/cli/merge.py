"""Merge the adapter into the base model at full precision, for other programs to run.

Reads models/adapter and the base model that it was trained on. Writes models/merged: bfloat16
safetensors, config and tokenizer, which Transformers, vLLM and llama.cpp's converter load like
any other model, and README.md, its card, so that `hf upload` takes the folder as it is. Not a stage
of the pipeline, since nothing there needs it.
"""

import argparse
from pathlib import Path

from verse import params, paths
from verse.cli.lock import outdated_here
from verse.files import replacing, write_text
from verse.hub import find_folder
from verse.poem import ANSWER, Poem, read_poems
from verse.schema import SCORES, read_json

SCORE, WRITTEN, TEST = map(Path, (paths.SCORE, paths.TUNED, paths.TEST))


def add_options(parser: argparse.ArgumentParser) -> None:
    """None: params.yaml says it all."""


def read() -> params.Params:
    """params.yaml with the base model that the adapter was trained on."""
    p = params.read()

    from verse.cli.models import beneath  # heavy

    return p.model_copy(update={"model": beneath(Path(paths.ADAPTER), p.model)})


def main(options: argparse.Namespace) -> None:
    p = read()

    import torch  # heavy

    from verse.cli.card import licence, write_card
    from verse.cli.couplets import EXAMPLES
    from verse.generation.answers import end_tokens
    from verse.model import adapters, encoding, loading
    from verse.model.prompts import prompt_writer
    from verse.poems.sources import INSTRUCTION

    # Before the minutes that weights take.
    unknown = [Poem(EXAMPLES[0], instruction=INSTRUCTION)]
    poem = (read_poems(TEST) if TEST.is_file() else unknown)[0]
    score = read_json(SCORE, SCORES) if SCORE.is_file() else {}
    written = read_poems(WRITTEN, ANSWER) if WRITTEN.is_file() else []
    if changed := outdated_here():
        score, written = {}, []
        print(f"no scores in the card, which are older than {', '.join(changed)}: dvc repro")
    licence(find_folder(p.model.name))

    loading.deterministic(p.seed, p.machine.threads)
    full = p.model.model_copy(update={"quantization": "none"})
    cache = p.machine.cache_dir
    model = loading.load_model(full, torch.device("cpu"), torch.bfloat16, cache_dir=cache)
    model = adapters.load_adapter(model, paths.ADAPTER, merge=True)
    tokenizer = encoding.load_tokenizer(p.model, cache)
    if model.get_input_embeddings().num_embeddings > (rows := encoding.id_bound(tokenizer)):
        model.resize_token_embeddings(rows)  # those behind belong to no token, and are padding
    # No decoding of the base model's stays with it; what ends an answer here does so elsewhere.
    model.generation_config.eos_token_id = end_tokens(model, tokenizer)
    prompt = prompt_writer(p.model.template, tokenizer)(poem)
    card = write_card(p, prompt, score, written, as_trained=not changed)
    with replacing(paths.MERGED) as folder:
        adapters.save_model(model, tokenizer, folder)
        write_text(folder / "README.md", card)
    print(f"merged model and its card written to {paths.MERGED}")
