"""A tiny config of any architecture that Transformers registers as a causal language model.

The class's own defaults, with every number that is a size or a count made small by its name.
"""

import re
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LAYERS = 2
SMALL = [
    (r"index_topk", 512),
    (r"num_(key_value|kv)_(heads|groups)|.*_num_key_value_heads|linear_num_key_heads", 2),
    (r"(n_head|.*(num|n)_.*heads|num_attention_heads|.*attention_heads|n_heads|num_heads)$", 4),
    (r"(n_layer|n_layers|.*num_.*layers|num_layers|(en|de)coder_layers|depth)$", LAYERS),
    (r"rotary_dim|qk_rope_head_dim", 16),
    (r".*head_(dim|size)|kv_channels|d_kv|attention_head_dim|.*_head_dim|head_size", 16),
    (r".*(expert|moe)\w*(intermediate|hidden|ffn)\w*(size|dim)|moe_intermediate_size", 32),
    (r"(num_experts_per_tok|.*top_?k|.*_per_token|num_selected_experts|top_k_experts)$", 2),
    (r"(n|num|moe_num)_shared_experts", 1),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|.*num_experts)$", 4),
    (r"first_k_dense_replace|(n|topk|num)_group|topk_group|n_group", 1),
    (r".*lora_rank|.*_rank(_size)?|dt_rank|time_step_rank", 8),
    (r".*(intermediate|ffn_|inner|feed_forward|mlp_)\w*(size|dim)?|dim_ff|d_ff", 96),
    (r"hidden_size_per_layer_input", 8),
    (r"d_model|n_embd|dim|\w*(hidden|embed\w*|emb|rnn|lru|word|model)_(size|dim|width)", 64),
    (r"max_\w*position\w*|n_positions|n_ctx|max_seq_len|\w*context_length", 512),
    (r"max_sequence_length", 512),
    (r"\w*(sliding_window|window_size|local_window|chunk_size)(_size)?", 16),
    (r"\w*state_size|\w*d_state|ssm_state_size", 16),
    (r"mamba_n_heads|num_mamba_heads", 8),
    (r"\w*(n_groups|num_groups)", 1),
]  # fmt: skip

OWN = ("model_type", "transformers_version", "architectures", "dtype", "_attn_implementation")
BY_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types")
HEAD = {"head_dim": 16}
BY_HAND: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_local_experts": 4, "head_dim": 16, "n_group": 2, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "dots1": {
        "sliding_window": 16,
        "layer_types": ["full_attention"] * LAYERS,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "ernie4_5_moe": {"moe_k": 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": HEAD,
    "hunyuan_v1_moe": HEAD,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_nope_head_dim": 16, "v_head_dim": 16, "qk_head_dim": 32, "head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": HEAD,
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": HEAD
    | {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 512,
        "indexer_compress_ratio": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [32, 32]},
}


def tiny_config(model_type: str, vocabulary: int) -> PretrainedConfig:
    """Raises whatever the class raises that nobody can make small by its names."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**(small(kind().to_dict(), vocabulary) | BY_HAND.get(model_type, {})))


def small(values: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in (
            "model_type",
            "transformers_version",
            "architectures",
            "dtype",
            "_attn_implementation",
        ):
            continue
        if isinstance(value, dict) and key.endswith("config") and "model_type" in value:
            found[key] = {"model_type": value.get("model_type")} | small(value, vocabulary)
        elif key == "is_decoder":
            found[key] = True
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            found[key] = vocabulary
        elif key.endswith("token_id") and type(value) is int:
            found[key] = {"bos_token_id": 0, "eos_token_id": 1}.get(key, 2)
        elif re.search(r"drop|jitter", key) and isinstance(value, float):
            found[key] = 0.0
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((n for name, n in SMALL if re.fullmatch(name, key)), None)
            if size is not None and value > 0:
                found[key] = min(value, size)
        elif isinstance(value, list) and key in (
            "layer_types",
            "layers_block_type",
            "mlp_layer_types",
        ):
            found[key] = [value[0], value[-1]]
    if "kv_lora_rank" in found:  # one key and value for all heads, made each its own
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found
