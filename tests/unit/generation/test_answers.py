"""`verse.generation.answers`: an answer depends on the seed and its own prompt only."""

import copy
import json

import pytest
import torch
from tiny_architectures import tiny_config
from tiny_models import NoFloat64, build, byte_pairs, decoding, encode_prompt, examples
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from verse.errors import UserError
from verse.generation import answers, batch_invariance, gpu_engine, sampling
from verse.generation.cpu_engine import CPUEngine
from verse.generation.gpu_engine import GPUEngine
from verse.model import loading
from verse.model.attention import Attention

DECODING = decoding(
    do_sample=True, temperature=0.9, top_p=0.9, top_k=50, max_new_tokens=12, no_repeat_ngram_size=3
)
COUPLETS = [
    "白日依山盡，黃河入海流。",
    "國破山河在，城春草木深。",
    "錦瑟無端五十弦，一弦一柱思華年。",
    "君問歸期未有期，巴山夜雨漲秋池。",
    "紅豆生南國，春來發幾枝。",
    "岐王宅裏尋常見，崔九堂前幾度聞。",
    "空山不見人，但聞人語響。",
    "秦時明月漢時關，萬里長征人未還。",
    "千山鳥飛絕，萬徑人蹤滅。",
]


def answer(mini, prompts=COUPLETS, batch_size=64, seed=42, **changes):
    model, tokenizer = mini
    decoding = DECODING.model_copy(update=changes)
    encoded = {key: encode_prompt(tokenizer, prompt) for key, prompt in enumerate(prompts)}
    found = {}
    answers.answer(
        model, tokenizer, encoded, decoding, seed=seed, batch_size=batch_size, answers=found
    )
    return [found[key].text for key in encoded]


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 12), (torch.bfloat16, 4)])
def test_the_batch_does_not_matter(mini, dtype, tokens):
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=dtype).eval()
    alone, some, all_ = (
        answer((model, mini[1]), batch_size=n, max_new_tokens=tokens) for n in (1, 7, 64)
    )
    assert alone == some == all_


def test_neither_order_nor_neighbours_matter(mini):
    finished = dict(zip(COUPLETS, answer(mini), strict=True))
    backwards = COUPLETS[::-1]
    assert answer(mini, backwards) == [finished[couplet] for couplet in backwards]
    assert answer(mini, COUPLETS[3:5]) == [finished[couplet] for couplet in COUPLETS[3:5]]


def test_the_seed_matters_to_sampling_and_to_nothing_else(mini):
    assert answer(mini, seed=1) != answer(mini, seed=2)
    assert answer(mini, seed=1, do_sample=False) == answer(mini, seed=2, do_sample=False)


def test_sampling_with_beams_is_repeatable(mini):
    beams = {"num_beams": 2, "max_new_tokens": 6}
    assert answer(mini, COUPLETS[:2], **beams) == answer(mini, COUPLETS[1::-1], **beams)[::-1]


def test_a_model_that_takes_no_beams_says_so():
    tokenizer = byte_pairs()
    model = AutoModelForCausalLM.from_config(tiny_config("recurrent_gemma", len(tokenizer))).eval()
    with pytest.raises(UserError, match=r"decoding\.num_beams: its cache takes no beams: set it"):
        answer((model, tokenizer), COUPLETS[:1], num_beams=2)


def test_greedy_answers_are_those_of_transformers(mini):
    model, tokenizer = mini
    ids = tokenizer(COUPLETS[0], return_tensors="pt").input_ids
    expected = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        no_repeat_ngram_size=3,
    )[0, ids.shape[1] :]
    greedy = answer(mini, COUPLETS[:1], do_sample=False)
    assert greedy == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_no_repeat_is_that_of_transformers():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 5):
        ids = torch.randint(0, 4, (8, 20), generator=generator)
        scores = torch.randn(8, 4, generator=generator)
        for length in (
            size,
            13,
            20,
        ):  # what stands to the right of a row's tokens counts for nothing
            expected = NoRepeatNGramLogitsProcessor(size)(ids[:, :length], scores.clone())
            lengths = torch.full((8,), length)
            assert torch.equal(sampling.forbid_repeats(scores, ids, lengths, size), expected)
        assert torch.isinf(expected).any()


def test_repetition_penalty_is_that_of_transformers():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 9, (8, 20), generator=generator)
    scores = torch.randn(8, 9, generator=generator)
    for length in (1, 13, 20):
        expected = RepetitionPenaltyLogitsProcessor(1.3)(ids[:, :length], scores.clone())
        filled = ids.masked_fill(torch.arange(20) >= length, 0)  # which counts for nothing
        found = sampling.penalize(scores, filled, torch.full((8,), length), 1.3)
        assert torch.equal(found, expected) and not torch.equal(found, scores)


@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_sampled_tokens_follow_the_distribution_of_transformers(min_p):
    """The share of each token over many streams is its probability."""
    scores = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    change = {"temperature": 0.7, "top_k": 5, "top_p": 0.95, "min_p": min_p}
    decoding = DECODING.model_copy(update=change)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(0.7), TopKLogitsWarper(5), TopPLogitsWarper(0.95)]
    )
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = torch.softmax(warpers(None, scores.clone()), -1)[0]
    prompts = [[n] for n in range(20_000)]
    numbers = torch.stack([sampling.uniforms_for(prompt, "0", 1) for prompt in prompts])
    streams = sampling.SamplingProcessor(numbers, decoding, prompt_length=1)
    drawn = streams(torch.zeros(len(prompts), 1), scores.expand(len(prompts), -1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=6) / len(prompts)
    assert torch.allclose(shares, expected, atol=0.015)
    assert (shares[expected == 0] == 0).all()


def test_an_answer_ends_with_the_end_token_and_leaves_it_out(mini):
    model, tokenizer = mini
    stop = tokenizer.encode("，", add_special_tokens=False)[0]
    config = model.generation_config
    before, config.eos_token_id = config.eos_token_id, [stop]
    try:
        assert set(answers.end_tokens(model, tokenizer)) == {stop, tokenizer.eos_token_id}
        texts = answer(mini, do_sample=False)
    finally:
        config.eos_token_id = before
    assert all(text.index("，") == len(text) - 1 for text in texts if "，" in text)
    assert any("，" in text for text in texts)


def test_the_ends_of_an_answer_are_the_tokenizers_the_models_and_the_templates(tmp_path):
    tokenizer = byte_pairs()
    ends = ["<|end|>", "<|eot|>", "<|other|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    ids = tokenizer.convert_tokens_to_ids(ends)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    settings = build("llama", tmp_path, tokenizer)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [1, ids[1]]}), "utf-8")
    model = loading.load_model(settings, torch.device("cpu"), torch.float32)
    assert answers.end_tokens(model, tokenizer) == [1, *ids[:2]]
    file.write_text("{}", "utf-8")
    model = loading.load_model(settings, torch.device("cpu"), torch.float32)
    assert answers.end_tokens(model, tokenizer) == [1, ids[0]]
    model.config.eos_token_id = ids[2]
    assert answers.end_tokens(model, tokenizer) == [1, ids[0], ids[2]]
    model.config.eos_token_id = 9  # that of a class, no special token of this tokenizer
    assert answers.end_tokens(model, tokenizer) == [1, ids[0]]

    prompts = {n: encode_prompt(tokenizer, couplet) for n, couplet in enumerate(COUPLETS)}
    weights = model.lm_head.weight
    with torch.no_grad():  # whatever is likeliest elsewhere, here it is an end of a turn
        weights[ids[0]] = 0.3 * weights[300:].mean(0) + 2 * torch.randn(64)
    for beams in (1, 2):
        decoding = DECODING.model_copy(update={"num_beams": beams, "max_new_tokens": 40})
        found = {}
        answers.answer(model, tokenizer, prompts, decoding, seed=1, batch_size=9, answers=found)
        for one in found.values():
            assert ids[0] not in one.tokens[:-1]
            assert "<|end|>" not in one.text
        assert any(one.tokens[-1] == ids[0] for one in found.values())


HOSTILE = {
    "repetition_penalty": 9.0,
    "suppress_tokens": [*range(20, 200)],
    "min_new_tokens": 12,
    "bad_words_ids": [[n] for n in range(200, 220)],
    "max_time": 1e-9,
    "length_penalty": -9.0,
    "forced_eos_token_id": 7,
    "renormalize_logits": True,
    "typical_p": 0.2,
}


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_models_own_settings_of_generation_change_no_answer(tmp_path, do_sample):
    """Neither in beams nor in Transformers' own way one by one."""
    tokenizer = byte_pairs()
    settings = build("llama", tmp_path, tokenizer)
    beams = {"num_beams": 2, "do_sample": do_sample, "max_new_tokens": 10}

    def answered():
        model = loading.load_model(settings, torch.device("cpu"), torch.float32)
        return answer((model, tokenizer), COUPLETS[:4], **beams)

    own = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))
    expected = answered()
    hostile = own | HOSTILE | {"do_sample": not do_sample, "num_beams": 4, "top_k": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(hostile), "utf-8")
    assert answered() == expected
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | HOSTILE), "utf-8")
    assert answered() == expected


def test_both_kinds_of_rows_give_the_models_own_scores(mini, monkeypatch):
    """Three computations that share little: rows, slots, and Transformers' own attention."""
    monkeypatch.setattr(gpu_engine, "FEW", 8)
    model, tokenizer = mini
    couplets = [couplet * 2 for couplet in [*COUPLETS, COUPLETS[3], COUPLETS[8]]]  # two twice
    prompts = sorted((encode_prompt(tokenizer, couplet) for couplet in couplets), key=len)
    greedy = DECODING.model_copy(
        update={"max_new_tokens": 20, "do_sample": False, "no_repeat_ngram_size": 0}
    )
    numbers = torch.zeros(len(prompts), 20, dtype=torch.float64)
    with torch.inference_mode():
        both = [CPUEngine(model, greedy), GPUEngine(model, greedy, prompts, len(prompts))]
        for rows in both:
            rows.prefill(prompts[:2], numbers[:2])
            rows.prefill(prompts[2:], numbers[2:])
        texts = [list(ids) for ids in prompts]
        for step in range(14):
            expected = torch.stack(
                [model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in texts]
            )
            tokens = expected.argmax(-1)
            for ids, token in zip(texts, tokens.tolist(), strict=True):
                ids.append(token)
            gone = {3: [0], 6: [1, 4, 5, 7, 8], 9: [0, 1]}.get(step, [])
            kept = [row for row in range(len(texts)) if row not in gone]
            for rows in both:
                found = rows.scores()[getattr(rows, "order", slice(None))]
                assert torch.allclose(found, expected, atol=2e-4)
                assert torch.equal(rows.decode()[0], tokens)
                rows.evict(kept)
            texts = [texts[row] for row in kept]
    assert len(texts) == 3 and both[1].slots == 8  # of 16


@pytest.mark.parametrize("name", ["deepseek_v3", "minicpm3"])
def test_keys_and_values_of_unlike_sizes(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, 64), dtype=torch.float32).eval()
    start = list(range(2, 20))
    texts = [start + [20 + n] * (3 * n + 1) for n in range(4)]
    greedy = DECODING.model_copy(update={"max_new_tokens": 5, "do_sample": False})
    with torch.inference_mode():
        both = [CPUEngine(model, greedy), GPUEngine(model, greedy, texts, len(texts))]
        for rows in both:
            rows.prefill(texts, torch.zeros(len(texts), 5, dtype=torch.float64))
        for _ in range(4):
            expected = [model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in texts]
            for rows in both:
                found = rows.scores()[getattr(rows, "order", slice(None))]
                assert torch.allclose(found, torch.stack(expected), atol=1e-5)
            tokens, _ = [rows.decode()[0].tolist() for rows in both]
            texts = [[*ids, token] for ids, token in zip(texts, tokens, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 2, 3, 5])
@pytest.mark.parametrize("keys", [1, 2, 3])
def test_attention_to_a_text_is_the_same_in_whatever_company(dtype, queries, keys):
    """Of AMD's processors, on which MKL's products differ with the place of a thread's memory."""
    generator = torch.Generator().manual_seed(0)
    engine = CPUEngine(None, DECODING)
    for tokens, length, size in [(1, 12, 16), (1, 33, 64), (5, 23, 20), (16, 50, 64)]:
        query = torch.randn(1, keys * queries, tokens, size, generator=generator).to(dtype)
        seen = torch.randn(2, 1, keys, length, size, generator=generator).to(dtype)
        how = Attention(size**-0.5, None, None, None)
        (alone,) = engine.attend_alike(query, seen, how)
        mask = torch.arange(length)[-tokens:, None] >= torch.arange(length)
        plain = scaled_dot_product_attention(
            query.float(), *seen.float().repeat_interleave(queries, 2), attn_mask=mask
        )
        assert torch.allclose(alone.float(), plain, atol=1e-5 if dtype == torch.float32 else 0.02)
        for count in (2, 3, 7):
            rows = engine.attend_alike(
                query.repeat(count, 1, 1, 1), seen.repeat(1, count, 1, 1, 1), how
            )
            assert all(torch.equal(row, alone) for row in rows)


def test_attention_to_one_text_is_not_shared_by_threads(mini):
    """In bfloat16 that shows once in hundreds of texts."""
    generator = torch.Generator().manual_seed(0)
    engine, how = CPUEngine(None, DECODING), Attention(64**-0.5, None, None, None)
    for length in 20 * list(range(20, 200, 4)):
        query = torch.randn(1, 1, 1, 64, generator=generator).bfloat16()
        seen = torch.randn(2, 1, 1, length, 64, generator=generator).bfloat16()
        (alone,) = engine.attend_alike(query, seen, how)
        first, _ = engine.attend_alike(query.repeat(2, 1, 1, 1), seen.repeat(1, 2, 1, 1, 1), how)
        assert torch.equal(alone, first)


def test_slots_do_without_float64_on_apples_gpu(mini, monkeypatch):
    """What draws is rounded to float32 there; the poems are the same."""

    class There(GPUEngine):
        def __init__(self, *arguments):
            with NoFloat64():
                super().__init__(*arguments)

        def prefill(self, *arguments):
            with NoFloat64():
                super().prefill(*arguments)

        def decode(self, *arguments, **named):
            with NoFloat64():
                return super().decode(*arguments, **named)

    expected = answer(mini)
    monkeypatch.setattr(answers, "new_engine", There)
    monkeypatch.setattr(answers, "generate_with_transformers", None)  # to which nothing falls back
    with pytest.raises(TypeError):  # as it is with float64
        answer(mini)
    monkeypatch.setattr(gpu_engine, "widest_float", lambda _: torch.float32)
    assert answer(mini) == expected


def test_slots_answer_as_rows_do_whoever_waits(mini, in_slots):
    expected = answer(mini)
    in_slots()
    assert answer(mini) == answer(mini, batch_size=2) == answer(mini, batch_size=4) == expected


def test_rows_that_all_end_while_the_next_step_is_under_way(mini, in_slots):
    model, tokenizer = mini
    prompts = {key: encode_prompt(tokenizer, text) for key, text in enumerate(COUPLETS)}

    def written(batch_size):
        found = {}
        answers.answer(
            model,
            tokenizer,
            prompts,
            DECODING,
            seed=1,
            batch_size=batch_size,
            answers=found,
            given_up=lambda _, tokens: len(tokens) == 7,
        )
        return {key: found[key].tokens for key in prompts}

    expected = written(64)
    in_slots()
    assert all(written(size) == expected for size in (1, 2, 5, 64))


@pytest.mark.parametrize(
    "kind",
    ["mixtral", "gpt_oss", "gemma2", "gpt2", "ernie4_5_moe", "qwen2_moe", "longcat_flash"],
)
def test_other_kinds_of_models_answer_together(kind, in_slots, capsys):
    """Experts, sinks, capped scores: as the model itself, and the same bits for any batch."""
    torch.manual_seed(0)
    tokenizer = byte_pairs()
    config = tiny_config(kind, len(tokenizer))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0 if weight.dim() > 1 else 1.0)
    prompts = {number: poem.prompt for number, poem in enumerate(examples(tokenizer))}
    changes = {"do_sample": False, "max_new_tokens": 12, "no_repeat_ngram_size": 0}
    greedy = DECODING.model_copy(update=changes)

    def written(batch_size):
        found = {}
        answers.answer(
            model, tokenizer, prompts, greedy, seed=1, batch_size=batch_size, answers=found
        )
        return {key: (one.tokens, one.likelihood) for key, one in found.items()}

    alone = written(1)
    assert written(3) == written(7) == alone
    text = [*prompts[0]]
    with torch.no_grad():
        while len(text) < len(prompts[0]) + 3:
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits
            text.append(logits[0, -1].argmax().item())
    assert alone[0][0][:3] == text[len(prompts[0]) :]
    in_slots()
    together = written(7)
    assert [one[0] for one in together.values()] == [one[0] for one in alone.values()]
    assert capsys.readouterr().out == ""


def test_prompts_come_in_as_others_end_and_each_token_is_told(mini):
    model, tokenizer = mini
    prompts = {key: encode_prompt(tokenizer, couplet) for key, couplet in enumerate(COUPLETS)}
    reported: dict[int, list[int]] = {key: [] for key in prompts}
    known = answers.Answer("known", [], 0.0)
    found = {0: known}
    answers.answer(
        model,
        tokenizer,
        prompts,
        DECODING,
        seed=42,
        batch_size=3,
        answers=found,
        on_token=lambda key, token: reported[key].append(token),
    )
    assert found.pop(0) is known and reported.pop(0) == []
    for key, ids in reported.items():
        assert found[key].tokens == ids
        assert found[key].text == tokenizer.decode(ids, skip_special_tokens=True)
    assert all(0 < len(ids) <= DECODING.max_new_tokens for ids in reported.values())


def test_a_model_whose_scores_differ_goes_transformers_own_way(mini, monkeypatch, capsys):
    expected = answer(mini)
    monkeypatch.setattr(CPUEngine, "scores", lambda self: torch.randn(len(self.lengths), 9088))
    assert answer(mini) == expected
    assert "prompts of one length at a time, which is slower" in capsys.readouterr().out


def test_scores_that_are_no_numbers_are_told(mini):
    model = AutoModelForCausalLM.from_pretrained("models/mini", dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[5, 5] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        answer((model, mini[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_product_do_not_depend_on_how_many_there_are(dtype):
    torch.manual_seed(0)
    for inputs, outputs in ((64, 96), (320, 896), (100, batch_invariance.WIDE)):
        layer = torch.nn.Linear(inputs, outputs).to(dtype)
        batch_invariance.make_batch_invariant(layer)
        rows = torch.randn(700, inputs).to(dtype)
        with torch.no_grad():
            whole = layer(rows)
            for count in (1, 2, 3, 5, 17, 100, 301, 699):
                assert torch.equal(layer(rows[:count]), whole[:count])
                assert torch.equal(layer(rows[-count:][None])[0], whole[-count:])


def test_tiles_hold_all_rows_and_little_else(monkeypatch):
    sizes, weight = batch_invariance.Sizes(8), torch.ones(8, 8)
    monkeypatch.setattr(sizes, "agree", lambda size, _: size >= 4)
    for rows in range(1, 1000):
        parts = sizes.tiles(rows, weight)
        assert set(parts) <= {256, 128, 64, 32, 16, 8, 4}
        assert rows <= sum(parts) <= max(8, 1.5 * rows)


def test_sizes_that_do_not_agree_are_not_used(monkeypatch):
    """As if products of 2 and of 16 rows were another kernel's."""

    def product(left, right):
        return torch.full((left.shape[0], right.shape[1]), float(left.shape[0] in (2, 16)))

    monkeypatch.setattr(torch, "mm", product)
    sizes, weight = batch_invariance.Sizes(32), torch.randn(32, 8)
    parts = {part for rows in range(1, 300) for part in sizes.tiles(rows, weight)}
    assert parts == {256, 128, 64, 32, 8, 4, 1}


@pytest.fixture
def half(mini):
    """The embedded model in bfloat16: not looked at yet."""
    model, tokenizer = mini
    return copy.deepcopy(model).bfloat16(), tokenizer


def places_off_by_one(monkeypatch):
    """From the second token that is written on."""
    forward = CPUEngine.forward

    def off(self, groups, ids, *, predict):
        late = predict and min(self.lengths - self.starts) > 0
        with monkeypatch.context() as patch:
            if late:
                arange = torch.arange
                patch.setattr(torch, "arange", lambda *a, **k: arange(*a, **k) + 1)
            return forward(self, groups, ids, predict=predict)

    monkeypatch.setattr(CPUEngine, "forward", off)


def a_key_is_lost(monkeypatch):
    attend = CPUEngine.attend_alike
    monkeypatch.setattr(
        CPUEngine,
        "attend_alike",
        lambda self, query, seen, *rest: attend(
            self, query, seen[..., 1:, :] if query.shape[2] == 1 else seen, *rest
        ),
    )


@pytest.mark.parametrize("fault", [places_off_by_one, a_key_is_lost])
def test_rows_that_are_wrong_give_way_before_anything_is_told(
    half, mini, monkeypatch, capsys, fault
):
    """By a look in float32 before."""
    fault(monkeypatch)
    for model in (mini, half):
        prompts = {n: encode_prompt(model[1], couplet) for n, couplet in enumerate(COUPLETS)}
        reported: dict[int, list[int]] = {key: [] for key in prompts}
        found: dict[int, answers.Answer] = {}
        answers.answer(
            *model,
            prompts,
            DECODING.model_copy(update={"do_sample": False}),
            seed=42,
            batch_size=3,
            answers=found,
            on_token=lambda key, token, reported=reported: reported[key].append(token),
        )
        said = capsys.readouterr().out
        assert said.startswith("prompts of one length at a time, which is slower: its scores would")
        assert {key: one.tokens for key, one in found.items()} == reported
        assert answers.UNSUPPORTED[model[0]][1].startswith("its scores")


def test_a_model_is_looked_at_once_up_to_a_length(half, monkeypatch, capsys):
    calls, look = [], answers.reason_unsupported
    monkeypatch.setattr(answers, "reason_unsupported", lambda *a: calls.append(1) or look(*a))
    assert answer(half) == answer(half)
    assert calls == [1] and capsys.readouterr().out == ""
    answer(half, max_new_tokens=8)
    assert calls == [1]
    answer(half, max_new_tokens=14)
    assert calls == [1]  # within what was looked at ahead
    answer(half, max_new_tokens=12 + answers.AHEAD + 1)
    assert calls == [1, 1]


LATE = {
    "longer rotations": (
        "phi3",
        {
            "original_max_position_embeddings": 30,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0 + n for n in range(8)],
                "original_max_position_embeddings": 30,
            },
        },
    ),
    "chunks": ("llama4_text", {"attention_chunk_size": 28}),
    "the likeliest of many": ("deepseek_v32", {"index_topk": 28}),
}


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("late", LATE)
def test_what_a_model_does_beyond_a_length_is_seen_before(late, slots, in_slots, capsys):
    """Not in its first tokens: the prompts are shorter."""
    name, changes = LATE[late]
    tokenizer = byte_pairs()
    config = tiny_config(name, len(tokenizer))
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0 if weight.dim() > 1 else 1.0)
    if slots:
        in_slots()
    ids = {key: encode_prompt(tokenizer, couplet)[:20] for key, couplet in enumerate(COUPLETS[:3])}
    found: dict[int, answers.Answer] = {}
    greedy = decoding(max_new_tokens=24)
    answers.answer(model, tokenizer, ids, greedy, seed=1, batch_size=3, answers=found)
    assert "prompts of one length at a time" in capsys.readouterr().out
    for key, prompt in ids.items():
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=1
        )
        assert found[key].tokens == expected[0, len(prompt) :].tolist()
