"""Models of a few thousand parameters in the shapes of the day, and poems to train them on."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from verse.model import encoding
from verse.model.encoding import encode_poems, encode_prompts
from verse.model.prompts import prompt_writer
from verse.params import Decoding, Lora, Machine, Model, Train
from verse.poem import Poem

INSTRUCTION = "完成這首詩。"
POEMS = [
    ("白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"),
    ("牀前明月光，疑是地上霜。", "舉頭望明月，低頭思故鄉。"),
    ("春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。"),
    ("空山不見人，但聞人語響。", "返景入深林，復照青苔上。"),
    ("千山鳥飛絕，萬徑人蹤滅。", "孤舟簑笠翁，獨釣寒江雪。"),
    ("國破山河在，城春草木深。", "感時花濺淚，恨別鳥驚心。烽火連三月，家書抵萬金。"),
    ("朝辭白帝彩雲間，千里江陵一日還。", "兩岸猿聲啼不住，輕舟已過萬重山。"),
]
CHAT = "{{ bos_token }}{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}"
SHAPES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama, tied, grouped queries": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral, a short window": (MistralConfig, {"sliding_window": 12}),
    "qwen3": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3, a short window": (
        Gemma3TextConfig,
        {
            "head_dim": 16,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": (Phi3Config, {"pad_token_id": 2}),
}


class NoFloat64(TorchDispatchMode):
    """Within, nothing may become float64, as on Apple's GPUs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if getattr(one, "dtype", None) == torch.float64:
                raise TypeError(f"{func}: Apple's GPUs have no float64")
        return result


def byte_pairs(*, chat: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the poems: its tokens are parts of characters and phrases."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{INSTRUCTION}\n{couplet}{rest}" for couplet, rest in POEMS]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def moved(tokenizer, name: str, number: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose token of that name has another id, so that ids have gaps."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"][name] = number
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>"
    )


def build(shape: str, folder, tokenizer=None) -> Model:
    """Write a random model of that shape and a tokenizer; the `model` parameters to load it."""
    tokenizer = tokenizer or byte_pairs()
    kind, changes = SHAPES[shape]
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**sizes | changes), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)  # as far from nothing as a trained model's
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return settings(str(folder))


def settings(name: str, **changes) -> Model:
    """The `model` section of params.yaml for a model in a folder."""
    values = {
        "revision": None,
        "trust_remote_code": False,
        "quantization": "nf4",
        "dtype": "float32",
        "template": "auto",
    }
    return Model(name=name, **values | changes)


def machine(**changes) -> Machine:
    """The `machine` section: one CPU thread."""
    values = {
        "device": "cpu",
        "processes": 1,
        "launch": None,
        "threads": 1,
        "memory": "auto",
        "cache_dir": None,
        "checkpoint_every": 2,
        "batch_size": 64,
        "max_concurrent_requests": 1,
        "timeout": 10,
        "report_to": [],
    }
    return Machine(**values | changes)


def training(**changes) -> Train:
    """The `train` section, of a few quick steps."""
    values = {
        "epochs": 4,
        "learning_rate": 5e-3,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "batch_size": 4,
        "eval_every": 3,
        "lora": Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear"),
    }
    return Train(**values | changes)


def decoding(**changes) -> Decoding:
    """The `decoding` section: the likeliest token each time, its score as it is."""
    values = {
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": 8,
        "num_beams": 1,
        "no_repeat_ngram_size": 0,
        "candidates": 1,
        "constrain": [],
    }
    return Decoding(**values | changes)


def prompts(tokenizer) -> list[str]:
    """The poems' prompts, by the tokenizer's chat template if it has one."""
    write = prompt_writer("auto", tokenizer)
    return [write(Poem(couplet, instruction=INSTRUCTION)) for couplet, _ in POEMS]


def examples(tokenizer) -> list[encoding.Example]:
    return [
        encode(tokenizer, prompt, rest)
        for prompt, (_, rest) in zip(prompts(tokenizer), POEMS, strict=True)
    ]


def encode_prompt(tokenizer, prompt):
    """A prompt's token ids."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode(tokenizer, prompt, completion):
    """A poem's token ids."""
    return encode_poems(tokenizer, [prompt], [completion], tokenizer.eos_token_id)[0]
