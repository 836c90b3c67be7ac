"""Make a model of a known one's size with random weights, to measure speed and memory.

    python -m tools.bench.full_size breeze /tmp/breeze
    python -m tools.bench.full_size smollm2 /tmp/smollm2

Speed does not depend on the weights' values. The shapes are those of MediaTek Breeze-7B-Instruct
(a Mistral), TAIDE-LX-7B-Chat (a Llama 2 with a longer vocabulary), Llama 2 13B, and the mixtures
Qwen3-30B-A3B and gpt-oss-20b, whose tokenizer here is that of models/mini, a token a character: 15
to 61 GB of disk, and of GPU or main memory.
SmolLM2-135M is a model for a CPU; its tokenizer, made of the embedded poems, has like its own two
tokens a character.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
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
    "qwen3-30b-a3b": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
        ),
    ),
    "gpt-oss-20b": (
        GptOssForCausalLM,
        GptOssConfig(num_hidden_layers=24, num_local_experts=32),
    ),
    "smollm2": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
    ),
}


def main() -> None:
    shape, folder = sys.argv[1:]
    make, config = SHAPES[shape]
    tokenizer = (
        two_a_character() if shape == "smollm2" else AutoTokenizer.from_pretrained("models/mini")
    )
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


def two_a_character() -> PreTrainedTokenizerBase:
    """Of bytes, and of the commonest pairs of them in the embedded poems."""
    poems = json.loads(Path("data/embedded/train.json").read_text("utf-8"))
    end = "<|endoftext|>"
    tokenizer = ByteLevelBPETokenizer()
    texts = (poem["input"] + poem["output"] for poem in poems)
    tokenizer.train_from_iterator(texts, 400, special_tokens=[end], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=end, eos_token=end, pad_token=end
    )


if __name__ == "__main__":
    main()
