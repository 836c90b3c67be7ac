"""The tokenizer of models/mini: a token a character, UTF-8 bytes for the rest.

    python -m tools.pretrain.tokenizer

Any text encodes and decodes to itself: a character outside the vocabulary becomes its UTF-8
bytes, and the text of a special token ("<s>") is spelled out rather than taken for the token.
"""

import string
from collections import Counter
from pathlib import Path

import yaml
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
MINI = HERE / "data" / "mini"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
PUNCTUATION = "，。？！；：、「」『』《》（）…—·"
ASCII = "\n" + " " + string.digits + string.ascii_letters + string.punctuation


def build(corpus: str, min_count: int) -> PreTrainedTokenizerFast:
    counts = Counter(corpus)
    characters = sorted(c for c, n in counts.items() if n >= min_count and not c.isspace())
    fixed = [c for c in ASCII + PUNCTUATION if c not in characters]
    entries = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *fixed, *characters]
    vocabulary = {entry: index for index, entry in enumerate(entries)}

    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=512,
        **SPECIAL,
    )


def main() -> None:
    params = yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8"))
    corpus = (HERE / "data" / "song.txt").read_text(encoding="utf-8")
    tokenizer = build(corpus, params["tokenizer"]["min_count"])
    tokenizer.save_pretrained(MINI)
    print(f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
