"""`verse.generation.constraint`: whatever a model would like to write, the rules are kept."""

import random

import pytest
from tiny_models import build, byte_pairs, decoding, encode_prompt, moved
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from verse.errors import UserError
from verse.generation import answers
from verse.generation.answers import constraint_of
from verse.generation.vocabulary import Vocabulary, split, verse_in, vocabulary_of
from verse.model.encoding import special_tokens
from verse.poem import split_lines
from verse.poems.lines import in_form
from verse.poems.prosody import (
    BOOK,
    LEVEL_GROUPS,
    OBLIQUE,
    analyse,
    final_groups,
    rhymes,
    tone_bits,
)

RULES = ["form", "rhyme", "tone"]
DECODING = decoding(
    do_sample=True,
    top_p=0.95,
    top_k=50,
    max_new_tokens=160,
    no_repeat_ngram_size=3,
    constrain=RULES,
)
COUPLETS = [
    "白日依山盡，黃河入海流。",
    "錦瑟無端五十弦，一弦一柱思華年。",
    "君問歸期未有期，巴山夜雨漲秋池。",
    "空山不見人，但聞人語響。",  # rhymes on an oblique tone
    "岐王宅裏尋常見，崔九堂前幾度聞。",
    "千山鳥飛絕，萬徑人蹤滅。",
    "前不見古人，後不見來者。念天地悠悠，獨愴然涕下。",  # no couplet
]


def phrases() -> PreTrainedTokenizerFast:
    """Characters, phrases, characters with marks, text that is no verse, and bytes for the rest."""
    mini = AutoTokenizer.from_pretrained("models/mini")
    names = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in mini.get_vocab() if len(name) == 1][:3000:3]
    names += [
        "山水",
        "春風",
        "不見長安",
        "海流。",
        "秋。",
        "。明月",
        "，",
        "。",
        "；",
        "山a",
        "▁山",
        "\n",
    ]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "characters": lambda: AutoTokenizer.from_pretrained("models/mini"),
    "byte pairs": byte_pairs,
    "phrases": phrases,
    "one beyond the model": lambda: moved(
        AutoTokenizer.from_pretrained("models/mini"), "龜", 20000
    ),
}


@pytest.fixture(params=TOKENIZERS)
def any_model(request, tmp_path):
    """A model of random weights, which writes anything, and a tokenizer of some kind."""
    tokenizer = TOKENIZERS[request.param]()
    build("llama, tied, grouped queries", tmp_path, tokenizer)
    return AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokenizer


def write(model_and_tokenizer, couplets=COUPLETS, batch_size=64, on_token=None, **changes):
    model, tokenizer = model_and_tokenizer
    found = {}
    answers.answer(
        model,
        tokenizer,
        {n: encode_prompt(tokenizer, couplet) for n, couplet in enumerate(couplets)},
        DECODING.model_copy(update=changes),
        seed=7,
        batch_size=batch_size,
        answers=found,
        couplets=dict(enumerate(couplets)),
        on_token=on_token,
    )
    return [found[n].text for n in range(len(couplets))]


def check(couplet, answer, rules=RULES):
    """By what `score` judges with."""
    given = [line for line, _ in split_lines(couplet)]
    lines = [line for line, _ in split_lines(answer)]
    if len(given) != 2:  # there is no form to keep but that of its last line
        assert {len(line) for line in lines} == {len(given[-1])} and len(lines) in (2, 6)
        return
    assert in_form(couplet, answer), answer
    if "rhyme" in rules:
        finals = [line[-1] for line in (*given, *lines)[1::2]]
        assert rhymes([*given, *lines]) and len(set(finals)) == len(finals)
    if "tone" in rules:
        analysis = analyse([*given, *lines])
        broken = {place.rule for place in analysis.breaks if place.line > 1}
        level = bool(final_groups(given[1]) & LEVEL_GROUPS)
        assert broken <= (set() if level and "rhyme" in rules else {"level_rhyme"})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 5.0, "top_p": 1.0, "top_k": 0},
        {"do_sample": False},
        {"no_repeat_ngram_size": 1},
        {"constrain": ["form"]},
        {"constrain": ["form", "rhyme"]},
    ],
    ids=str,
)
def test_the_rules_are_kept_whatever_the_model_likes(any_model, changes):
    for couplet, answer in zip(COUPLETS, write(any_model, **changes), strict=True):
        check(couplet, answer, changes.get("constrain", RULES))


@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_own_way_keeps_them_too(any_model, beams, apart):
    together = write(any_model, COUPLETS[:3], max_new_tokens=90, top_k=0)
    apart()
    alone = write(any_model, COUPLETS[:3], max_new_tokens=90, top_k=0, num_beams=beams)
    for couplet, answer in zip(COUPLETS, alone, strict=False):
        check(couplet, answer)
    if beams == 1:
        assert alone == together


def test_slots_keep_them_and_neighbours_do_not_matter(mini, in_slots):
    expected = write(mini)
    assert write(mini, batch_size=1) == write(mini, batch_size=3) == expected
    assert write(mini, COUPLETS[::-1]) == expected[::-1]
    in_slots()
    assert write(mini) == write(mini, batch_size=2) == expected


def test_an_answer_ends_in_time(any_model):
    """With fewer and fewer tokens, down to those of two lines; with one less it is reported."""
    vocabulary = vocabulary_of(any_model[1])
    least = 2 * (5 * vocabulary.character + vocabulary.mark) + 1
    for more in (0, 1, 2, 3, 5, 8, 13, 30):
        hot = {"temperature": 3.0, "top_k": 0, "top_p": 1.0}
        [answer] = write(any_model, COUPLETS[:1], max_new_tokens=least + more, **hot)
        assert in_form(COUPLETS[0], answer)
    reported = f"{least - 1} are too few for 2 lines of 5 characters: set it to {least} or more"
    with pytest.raises(UserError, match=f"decoding.max_new_tokens: {reported}"):
        write(any_model, COUPLETS[:1], max_new_tokens=least - 1)


def test_each_token_is_told_and_the_end_is_written(mini):
    reported = {0: []}
    [text] = write(mini, COUPLETS[:1], on_token=lambda key, token: reported[key].append(token))
    assert reported[0][-1] == mini[1].eos_token_id
    assert mini[1].decode(reported[0], skip_special_tokens=True) == text


def test_tone_gives_way_then_rhyme(mini):
    """Where nothing is left that keeps all."""
    model, tokenizer = mini
    constraint = constraint_of(model, tokenizer, DECODING)

    def allowed(rules, taken=()):
        """Whole characters, where the closing line of a quatrain wants its last."""
        constraint.rules = frozenset(rules)
        state = constraint.start(COUPLETS[0], tokenizer("欲窮千里目，更上一層")["input_ids"][1:])
        state.taken |= frozenset(taken)
        tokens = constraint.make_mask(state.place()).nonzero()[:, 0].tolist()
        texts = [constraint.vocabulary.texts[token] for token in tokens]
        return {text.decode() for text in texts if len(text) > 2}

    rhyming = allowed(["form", "rhyme"])
    assert "樓" in rhyming and "流" not in rhyming and "山" not in rhyming
    group = {c for reading, text in BOOK.items() if reading.group == "十一尤" for c in text}
    oblique = {c for c in group if tone_bits(c) == OBLIQUE}
    level = allowed(RULES)
    assert "樓" in level and level == rhyming - oblique != rhyming
    assert allowed(RULES, group - oblique) == rhyming & oblique
    assert allowed(RULES, group) == allowed(["form"])


def test_what_a_token_writes():
    mountain = "山".encode()
    assert split(mountain[:2]) == ("", mountain[:2]) and split(mountain[1:]) is None
    assert verse_in("山水。".encode() + b"") == ("山水", "。", b"")
    assert verse_in("山".encode() + mountain[:1]) == ("山", "", mountain[:1])
    for text in ("。山", "山a", "", " ", "。。", "、"):
        assert verse_in(text.encode()) is None
    assert verse_in("é".encode()[:1]) is None
    assert verse_in("𠀀".encode()) == ("𠀀", "", b"")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bytes_of_tokens_are_what_the_tokenizer_decodes(kind):
    tokenizer = TOKENIZERS[kind]()
    texts = Vocabulary(tokenizer).texts
    assert all(texts[n] for n in {*tokenizer.get_vocab().values()} - special_tokens(tokenizer))
    draw = random.Random(3)
    for couplet in COUPLETS:
        ids = tokenizer(couplet, add_special_tokens=False)["input_ids"]
        assert b"".join(texts[token] for token in ids).decode() == couplet
    usable = [n for n, text in enumerate(texts) if text]
    ids = draw.choices(usable, k=500)
    written = b"".join(texts[token] for token in ids)

    def beyond_ascii(text):
        # Some decoders give up a whole run of bytes that is no UTF-8, with what is ASCII there.
        return [character for character in text if character > "~" and character != "\ufffd"]

    decoded = tokenizer.decode(ids)
    assert "▁" in decoded or beyond_ascii(decoded) == beyond_ascii(
        written.decode("utf-8", "ignore")
    )


def test_a_tokenizer_that_cannot_write_verse_is_told():
    def tokenizer(names, decoder=None):
        backend = Tokenizer(models.WordLevel(dict(zip(names, range(99), strict=False)), "<s>"))
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        backend.decoder = decoder or decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")

    Vocabulary(tokenizer(["<s>", "</s>", *"山水，。"]))
    with pytest.raises(UserError, match="lacks Chinese characters or punctuation: set it to"):
        Vocabulary(tokenizer(["<s>", "</s>", *"山水，"]))
    dotted = decoders.Sequence([decoders.Replace("山", "山·"), decoders.Fuse()])
    with pytest.raises(UserError, match="sets something between its tokens"):
        Vocabulary(tokenizer(["<s>", "</s>", *"山水，。"], dotted))
    Vocabulary(tokenizer(["<s>", "</s>", *"山水，。"], decoders.WordPiece()))  # blanks are left out


def test_without_rules_nothing_is_masked(mini):
    assert constraint_of(*mini, DECODING.model_copy(update={"constrain": []})) is None
    assert write(mini, constrain=[], max_new_tokens=20) == write_plainly(mini)


def write_plainly(mini):
    """Without couplets, as callers that know no rules do."""
    model, tokenizer = mini
    found = {}
    prompts = {n: encode_prompt(tokenizer, couplet) for n, couplet in enumerate(COUPLETS)}
    plain = DECODING.model_copy(update={"constrain": [], "max_new_tokens": 20})
    answers.answer(model, tokenizer, prompts, plain, seed=7, batch_size=9, answers=found)
    return [found[n].text for n in prompts]
