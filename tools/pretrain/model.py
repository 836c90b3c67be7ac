"""Pretrain models/mini, a small Llama, on the Song corpus. Wants a GPU.

    python -m tools.pretrain.model

A page is what a poet's collected works look like: poems of one poet, a poem a line, up to
`page` characters, closed by the end token. The pages of all poets, reshuffled each epoch, are
one stream, cut into rows. So the model learns verse, and never that a poem stands alone, nor
any instruction. Hidden matrices are trained with Muon (https://kellerjordan.github.io/posts/muon),
the embedding and the norms with AdamW; dropout on each block's output, in pretraining only,
since the corpus is read many times. The checkpoint with the lowest loss on held-out Song poems
is kept. Losses are in nats a character, punctuation included, each poem read on its own.
"""

import copy
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from verse.files import write_json

HERE = Path(__file__).parent
MINI = HERE / "data" / "mini"


def pages(scrolls: list[list[np.ndarray]], page: int, special: dict, rng: random.Random):
    """One epoch's stream of token ids; `scrolls` holds each poet's poems as token ids."""
    begin, line = np.array([special["bos"]]), np.array([special["newline"]])
    close, turn = np.array([special["eos"]]), np.array([special["eos"], special["bos"]])
    stream = []
    for poet in rng.sample(scrolls, len(scrolls)):
        written = 0
        stream.append(begin)
        for poem in rng.sample(poet, len(poet)):
            if written and written + len(poem) > page:
                stream.append(turn)
                written = 0
            elif written:
                stream.append(line)
            stream.append(poem)
            written += len(poem) + 1
        stream.append(close)
    return np.concatenate(stream)


def build(params: dict, tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=params["hidden_size"],
        intermediate_size=params["intermediate_size"],
        num_hidden_layers=params["layers"],
        num_attention_heads=params["heads"],
        num_key_value_heads=params["kv_heads"],
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data /= math.sqrt(2 * params["layers"])
    return model


def add_dropout(model: LlamaForCausalLM, rate: float) -> None:
    def drop(module, _inputs, output):
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate), *output[1:])
        return functional.dropout(output, rate)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
    model.model.embed_tokens.register_forward_hook(drop)


@torch.no_grad()
def loss_per_character(model, tokenizer, poems: list[str], batch: int = 100) -> float:
    """Mean nats a character of poems read one by one after the start token."""
    total, characters = 0.0, 0
    device = next(model.parameters()).device
    for start in range(0, len(poems), batch):
        texts = poems[start : start + batch]
        encoded = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=512,
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=encoded.input_ids).logits[:, :-1]
        target = encoded.input_ids[:, 1:].masked_fill(encoded.attention_mask[:, 1:] == 0, -100)
        total += functional.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        characters += sum(map(len, texts))
    return total / characters


def train(params: dict) -> dict:
    torch.manual_seed(params["seed"])
    rng = random.Random(params["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "newline": tokenizer.encode("\n", add_special_tokens=False)[0],
    }

    def read(name):
        return (HERE / "data" / name).read_text(encoding="utf-8").strip("\n")

    heldout, tang = read("heldout.txt").split("\n"), read("tang.txt").split("\n")
    scrolls = [
        [np.array(ids) for ids in tokenizer(scroll.split("\n"), add_special_tokens=False).input_ids]
        for scroll in read("song.txt").split("\n\n")
    ]

    model = build(params, tokenizer).to(device)
    size = sum(p.numel() for p in model.parameters())
    add_dropout(model, params["dropout"])
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if params["muon"]:
        muon: torch.optim.Optimizer = torch.optim.Muon(
            hidden,
            lr=params["learning_rate"],
            momentum=0.95,
            weight_decay=params["weight_decay"],
            adjust_lr_fn="match_rms_adamw",
        )
    else:
        muon = torch.optim.AdamW(
            hidden,
            lr=params["learning_rate"],
            betas=(0.9, 0.95),
            weight_decay=params["weight_decay"],
            fused=device == "cuda",
        )
    adamw = torch.optim.AdamW(
        rest,
        lr=params["learning_rate"],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=device == "cuda",
    )
    optimizers = [muon, adamw]

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of) if device == "cuda" else loss_of

    row, batch = params["row"], params["batch"]
    per_epoch = len(pages(scrolls, params["page"], special, random.Random(0))) // (row * batch)
    steps = per_epoch * params["epochs"]
    warmup = steps // 50
    cooldown = int(steps * params["cooldown"])
    curve, best, step, began = [], math.inf, 0, time.perf_counter()
    progress = tqdm(total=steps, disable=None)
    for epoch in range(params["epochs"]):
        stream = torch.from_numpy(pages(scrolls, params["page"], special, rng)).int()
        rows = stream[: len(stream) // row * row].view(-1, row)
        rows = rows[torch.randperm(len(rows))][: per_epoch * batch].to(device)
        model.train()
        total = torch.zeros((), device=device)
        for start in range(0, per_epoch * batch, batch):
            ids = rows[start : start + batch].long()
            rate = min(1.0, (step + 1) / warmup, (steps - step) / cooldown)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = params["learning_rate"] * rate
            with torch.autocast(device, torch.bfloat16):
                loss = compiled(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            step += 1
            progress.update()
        model.eval()
        curve.append(
            {
                "epoch": epoch + 1,
                "song_train": round(total.item() / per_epoch, 4),
                "song_heldout": round(loss_per_character(model, tokenizer, heldout), 4),
                "tang": round(loss_per_character(model, tokenizer, tang), 4),
            }
        )
        print(curve[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
        if curve[-1]["song_heldout"] < best:
            best = curve[-1]["song_heldout"]
            save(model)
    return {"parameters": size, "tokens_seen": step * row * batch, "curve": curve}


def save(model: LlamaForCausalLM) -> None:
    """Write the weights as bf16 safetensors beside the tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(MINI)


def main() -> None:
    params = yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8"))["model"]
    result = train(params)
    write_json(HERE / "metrics" / "model.json", result)


if __name__ == "__main__":
    main()
