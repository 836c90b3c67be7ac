"""Merge the adapter into the base model at full precision, for other programs to run.

Reads models/adapter and the base model that it was trained on. Writes models/merged: bfloat16
safetensors, config and tokenizer, which Transformers, vLLM and llama.cpp's converter load like
any other model. Not a stage of the pipeline, since nothing there needs it.
"""

import argparse

from verse import params
from verse.files import replacing


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(options: argparse.Namespace) -> None:
    p = params.read()

    import torch  # heavy

    from verse.model import adapters, encoding, loading

    loading.deterministic(p.seed, p.machine.threads)
    full = p.model.model_copy(update={"quantization": "none"})
    cache = p.machine.cache_dir
    model = loading.load_model(full, torch.device("cpu"), torch.bfloat16, cache_dir=cache)
    model = adapters.load_adapter(model, "models/adapter", merge=True)
    with replacing("models/merged") as folder:
        adapters.save_model(model, encoding.load_tokenizer(p.model, cache), folder)
    print("merged model written to models/merged")
