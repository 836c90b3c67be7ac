"""`verse.model.roundtrip`: what goes into a model and comes out is the poem, or it is said."""

import json
from dataclasses import replace

import pytest
from tiny_models import INSTRUCTION, POEMS, build, byte_pairs, encode, machine
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages import train
from verse.errors import UserError
from verse.model import encoding
from verse.model.opening import open_model
from verse.model.prompts import SYSTEM
from verse.model.roundtrip import tokenless
from verse.poem import Poem

ROWS = [Poem(*both, INSTRUCTION) for both in POEMS]
ALL = "".join(poem.instruction + poem.text for poem in ROWS) + SYSTEM
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "[gMASK]", "<sop>", "<turn>", "</turn>"]
TURNS = "{% for m in messages %}<turn>{{ m.content }}</turn>{% endfor %}"


def characters(text=ALL, *, before="", behind="", decoder=None, normalizer=None, chat=None):
    """A tokenizer of the characters in a text, each a token."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *sorted(set(text))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.add_special_tokens(SPECIAL)
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoder or decoders.Fuse()
    if normalizer:
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {behind}".strip(),
        special_tokens=[(token, vocabulary[token]) for token in SPECIAL],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = chat
    return tokenizer


def bert(text=ALL):
    """As BERT's for Chinese: blanks between characters where it decodes."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *sorted(set(text))])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def opened(tmp_path):
    def opening(tokenizer):
        return open_model(build("llama", tmp_path, tokenizer), machine(), seed=1)

    return opening


def fault(opening, rows=ROWS):
    """The line that ends the work, which training and generation say alike."""
    with pytest.raises(UserError) as error:
        opening.encode(rows)
    return str(error.value)


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_pairs(),
        byte_pairs(chat=True),
        characters(),
        characters(before="<s>", behind="</s>"),
        characters(chat="[gMASK]<sop>" + TURNS, before="[gMASK] <sop>"),
        characters(chat="<sop>" + TURNS, before="[gMASK] <sop>"),
        characters(chat="{{ bos_token }}" + TURNS),
        bert(),
    ],
    ids=range(8),
)
def test_sound_poems_go_in_and_come_out(opened, tokenizer, capsys):
    opening = opened(tokenizer)
    capsys.readouterr()
    examples, prompts = opening.encode(ROWS), opening.encode_prompts(ROWS)
    start = encoding.affixes(opening.tokenizer)[0]
    template = str(opening.tokenizer.chat_template)
    end = "</turn>" if "</turn>" in template else "</s>"
    for row, example, prompt in zip(ROWS, examples, prompts, strict=True):
        assert example.prompt == prompt
        assert prompt[: len(start)] == start and not {*start} & {*prompt[len(start) :]}
        names = opening.tokenizer.convert_ids_to_tokens(example.completion)
        assert [name for name in names if name in SPECIAL] == [end] == names[-1:]
        assert encoding.decode(opening.tokenizer, example.completion) == row.rest
        assert encoding.decode(opening.tokenizer, example.completion[:-1]) == row.rest
    assert capsys.readouterr().err == ""


def test_many_at_once_are_as_each_alone(monkeypatch):
    monkeypatch.setattr(encoding, "AT_ONCE", 3)
    for tokenizer in (byte_pairs(), characters(before="<s>", behind="</s>"), bert()):
        prompts = [f"{row.instruction}\n{row.couplet}" for row in ROWS]
        rests = [row.rest for row in ROWS]
        alone = [encode(tokenizer, *both) for both in zip(prompts, rests, strict=True)]
        assert encoding.encode_poems(tokenizer, prompts, rests, 1) == alone
        plain = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        behind = len(encoding.affixes(tokenizer)[1])
        assert [one.prompt for one in alone] == [ids[: len(ids) - behind] for ids in plain]


def test_the_end_token_that_a_template_writes_is_the_prompts(opened):
    """As DialoGPT's: what the user says ends with it, and so does the answer."""
    chat = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    [example] = opened(characters(chat=chat, behind="</s>")).encode(ROWS[:1])
    assert example.prompt[-1] == 1 != example.prompt[-2]
    assert example.completion.count(1) == 1 == example.completion[-1]


@pytest.mark.parametrize(("begins", "asks"), [(" ", ""), ("\n", "<turn>")])
@pytest.mark.parametrize("tokenizer", [byte_pairs, lambda: characters(ALL + "\n ", behind="</s>")])
def test_white_space_before_an_answer_is_the_templates(opened, tokenizer, begins, asks):
    """As Mistral's, which writes a blank there that it does not ask with."""
    built = tokenizer()
    built.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    built.chat_template = (
        "{% for m in messages %}<turn>{% if m.role == 'assistant' %}"
        f"{begins}{{{{ m.content }}}}{{% else %}}{{{{ m.content }}}}{{% endif %}}</turn>"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    )
    opening, row = opened(built), ROWS[0]
    [example], [prompt] = opening.encode([row]), opening.encode_prompts([row])
    asked = [SYSTEM, f"{row.instruction}\n{row.couplet}", row.rest]
    roles = ["system", "user", "assistant"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, asked, strict=True)]
    whole = opening.tokenizer.apply_chat_template(messages, return_dict=False)
    assert example.prompt + example.completion == whole and example.prompt == prompt
    assert encoding.decode(opening.tokenizer, example.completion) == row.rest


def test_a_template_that_writes_the_prefix_twice(opened):
    line = fault(opened(characters(chat="<sop>[gMASK]<sop>" + TURNS, before="[gMASK] <sop>")))
    assert "poem 1 (白日依山盡，黃河入海流。): its prompt begins twice with [gMASK]" in line
    assert "and 6 more of 7 are alike: set model.template to plain" in line
    assert "begins twice with <s>" in fault(opened(characters(chat="<s>" * 2 + TURNS)))


@pytest.mark.parametrize(
    "part",
    [
        {"rest": "欲窮千里目，</s>更上一層樓。"},
        {"couplet": "白日依山盡，</s>黃河入海流。"},
        {"instruction": "完成這</s>首詩。"},
    ],
    ids=str,
)
@pytest.mark.parametrize("chat", [None, TURNS])
def test_a_poem_that_holds_an_end_token(opened, part, chat):
    """One is enough, however many are sound."""
    other, opening = replace(ROWS[0], **part), opened(characters(chat=chat))
    line = fault(opening, [*ROWS, *ROWS, other])
    assert line.startswith(f"poem 15 ({other.couplet}): its text holds the special token </s>")
    assert "take it out of the poem" in line
    if "rest" not in part:
        with pytest.raises(UserError, match=r"poem 1 .*: its text holds the special token </s>:"):
            opening.encode_prompts([other])


def test_a_character_that_the_tokenizer_does_not_know(opened, capsys):
    known = ALL.replace("舉", "").replace("低", "")
    opening = opened(characters(known))
    capsys.readouterr()
    assert len(opening.encode(ROWS)) == 7  # most are sound
    assert capsys.readouterr().err == (
        "1 of 7 poems are unsound, such as 2 (牀前明月光，疑是地上霜。): "
        "the tokenizer has no token for 舉、低\n"
    )
    assert len(opening.encode_prompts(ROWS)) == 7  # they hold none
    assert capsys.readouterr().err == ""
    line = fault(opened(characters("abc。，" + INSTRUCTION)))
    assert "poem 1 (白日依山盡，黃河入海流。): the tokenizer has no token for 白、日、依" in line
    assert "and 6 more of 7 are alike: take a model that knows them" in line
    with pytest.raises(UserError, match="no token for 白"):
        opened(characters("abc。，" + INSTRUCTION)).encode_prompts(ROWS)


def test_the_share_of_characters_without_a_token_is_told():
    """Of 20 characters: a poem's lines, without its marks."""
    rows = ROWS[:1]
    for tokenizer in (characters(), bert(), AutoTokenizer.from_pretrained("models/mini")):
        assert tokenless(tokenizer, rows) == ""
    known = ALL.replace("日", "").replace("層", "")
    assert tokenless(characters(known), rows) == (
        "tokenizer: of the poems' characters 10.00% are unknown to it"
    )
    assert tokenless(byte_pairs(), rows).endswith(" 65.00% take several tokens each, of bytes")
    backend = Tokenizer(
        models.BPE(
            {"<unk>": 0, "▁": 1, "山": 2, **{f"<0x{n:02X}>": 3 + n for n in range(256)}},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenless(tokenizer, [Poem("山山山山，", "水。")]).endswith(
        " 20.00% take several tokens each, of bytes"
    )


def test_a_tokenizer_that_changes_what_it_reads(opened):
    halves = normalizers.NFKC()  # ， becomes a comma
    line = fault(opened(characters(ALL + ",", normalizer=halves)))
    assert "the tokenizer makes of its text 欲窮千里目,更上一層樓。" in line
    assert "take a model whose tokenizer gives Chinese text back" in line
    dropped = normalizers.Replace("日", "")
    with pytest.raises(UserError, match=r"makes of its text 白依山盡，黃河入海流。:"):
        opened(characters(normalizer=dropped)).encode_prompts(ROWS[:1])


def test_a_template_that_fails_on_a_real_poem_only(opened):
    chat = TURNS + "{% if '牀' in messages[-1].content %}{{ 1 / 0 }}{% endif %}"
    line = fault(opened(characters(chat=chat)))
    assert line == (
        "the chat template of the model's tokenizer fails (division by zero) on the poem "
        "牀前明月光，疑是地上霜。: set model.template to plain"
    )
    lost = TURNS.replace("m.content", "m.content.replace('空山', '')")
    rows = [ROWS[3]] * 4 + ROWS
    assert "poem 1 (空山不見人，但聞人語響。): the chat template leaves out a part of it" in fault(
        opened(characters(chat=lost)), rows[:3]
    )


def test_blanks_that_decoding_sets_are_left_out_and_no_others():
    tokenizer = bert(ALL + "abcd")
    ids = tokenizer("欲窮千里目，a b更上", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "欲 窮 千 里 目 ， a b 更 上"
    assert encoding.decode(tokenizer, ids) == "欲窮千里目，a b更上"
    other = characters(ALL + " ")
    ids = other("欲窮 千里目", add_special_tokens=False)["input_ids"]
    assert encoding.decode(other, ids) == "欲窮 千里目"


def test_what_training_says(project, monkeypatch, capsys):
    """On the stage: dropout of the model's own, then a tokenizer that hardly knows a character."""
    monkeypatch.chdir(project)
    file = project / "base/config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"attention_dropout": 0.25}), "utf-8")
    train.main()
    assert (
        "dropout of the model's own is off, train.lora.dropout alone counts: "
        "attention_dropout 0.25\n"
    ) in capsys.readouterr().out
    characters("。，").save_pretrained(project / "base")
    with pytest.raises(UserError, match=r"poem 1 .* the tokenizer has no token for 完、成、這"):
        train.main()
