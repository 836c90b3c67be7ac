"""Make a model of the homework's size with random weights, to measure speed and memory.

    python -m bench.full_size breeze /tmp/breeze

Speed does not depend on the weights' values. The shapes are those of MediaTek Breeze-7B-Instruct
(a Mistral), TAIDE-LX-7B-Chat (a Llama 2 with a longer vocabulary) and Llama 2 13B; the tokenizer
is that of models/mini, a token a character. Wants 2 bytes a weight, 15 to 26 GB, of disk and of GPU
or main memory.
"""

import sys

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

SHAPES = {
    "breeze": (
        MistralForCausalLM,
        MistralConfig(
            vocab_size=61872,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            sliding_window=None,
        ),
    ),
    "taide": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=56064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
        ),
    ),
    "llama-13b": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=32000,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
        ),
    ),
}


def main() -> None:
    shape, folder = sys.argv[1:]
    make, config = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained("models/mini")
    config.update(
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "dtype": torch.bfloat16,
        }
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = make(config)
    model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)
    print(f"{sum(w.numel() for w in model.parameters()) / 1e9:.2f}e9 parameters in {folder}")


if __name__ == "__main__":
    main()
