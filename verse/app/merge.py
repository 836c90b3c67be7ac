"""Merge the adapter into the base model at full precision, for other programs to run.

    python -m verse.app.merge

Reads models/adapter and the base model that it was trained on. Writes models/merged: bfloat16
safetensors, config and tokenizer, which Transformers, vLLM and llama.cpp's converter load like
any other model. Not a stage of the pipeline, since nothing there needs it.
"""

from dataclasses import replace

from verse import params
from verse.errors import run
from verse.files import replacing


def main() -> None:
    p = params.read("params.yaml", "model")

    import torch  # heavy

    from verse.model import adapters, encoding, loading

    loading.deterministic(0, p.model.threads)
    full = replace(p.model, quantization="none")
    model = loading.load_model(full, torch.device("cpu"), torch.bfloat16)
    model = adapters.load_adapter(model, "models/adapter", merge=True)
    tokenizer = encoding.load_tokenizer(p.model)
    with replacing("models/merged") as folder:
        adapters.save_model(model, tokenizer, folder)
    print("merged model written to models/merged")


if __name__ == "__main__":
    run(main)
