"""`verse.training.packing`: token ids of poems, and rows behind one shared prefix."""

from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_pairs, encode, encode_prompt
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from verse.model.encoding import Example
from verse.training.packing import IGNORED, PLACES, lay_out, shape_of, shared_prefix


def tokenizer(template):
    """A tokenizer of single characters that adds special tokens by a template."""
    backend = Tokenizer(
        models.BPE({"<s>": 0, "</s>": 1, "甲": 2, "乙": 3, "甲乙": 4}, [("甲", "乙")])
    )
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_one_start_and_one_end_whatever_the_tokenizer_adds():
    for template, start in (("$A", []), ("<s> $A", [0]), ("<s> $A </s>", [0]), ("$A </s>", [])):
        example = encode(tokenizer(template), "乙", "甲")
        assert example == Example([*start, 3], [2, 1], 2)
        assert encode_prompt(tokenizer(template), "乙") == [*start, 3]


def test_a_tokenizer_that_merges_across_the_seam():
    example = encode(tokenizer("<s> $A"), "甲", "乙")
    assert example == Example([0, 2], [3, 1], 2)


def test_no_start_token_at_all():
    example = encode(byte_pairs(bos=False), "完成", "白日")
    assert example.completion.count(1) == 1 and 0 not in example.prompt


def test_a_prefix_leaves_each_prompt_a_token_of_its_own():
    def prefix(*prompts):
        return shared_prefix([Example(list(prompt), [1], 1) for prompt in prompts])

    assert prefix([5, 6, 7], [5, 6, 8]) == [5, 6]
    assert prefix([5, 6], [5, 6, 8]) == [5]
    assert prefix([5, 6], [5, 6]) == [5]
    assert prefix([5], [6]) == []
    assert prefix([]) == []


tokens = st.lists(st.integers(2, 9), min_size=1, max_size=5)
poems = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=9)


@given(poems, st.integers(0, 2), st.sampled_from([1, 8]), st.integers(0, 2))
def test_a_pass_holds_every_poem_once_and_apart(poems, cut, multiple, spare):
    examples = [Example([7, 7, *prompt], [*rest, 1], len(rest) + 1) for prompt, rest in poems]
    prefix = shared_prefix(examples)[cut:]
    examples = [Example(e.prompt[cut:], e.completion, e.characters) for e in examples]
    room = [*examples, *examples[:spare]]
    shape = shape_of([room, examples[:1]], prefix, multiple)
    sizes = (shape.prefix, shape.longest, shape.tokens, shape.labels)
    assert not any(size % multiple for size in sizes)
    assert (shape.shared, shape.poems) == (len(prefix), len(room))
    assert shape.prefix - shape.shared < multiple
    numbers = list(range(3, 3 + len(examples)))
    batch = lay_out(examples, prefix, shape, numbers)
    assert batch.input_ids.shape == (1, shape.prefix + shape.tokens)
    assert batch.labels.shape == batch.predicting.shape == (shape.labels,)

    own = batch.input_ids[0, shape.prefix :]
    rows = own[batch.grid_from_flat].view(shape.poems, shape.longest).tolist()
    positions = batch.position_ids[0]
    assert positions[: shape.shared].tolist() == list(range(shape.shared))
    predicted = {}
    for place, label in zip(batch.predicting.tolist(), batch.labels.tolist(), strict=True):
        assert (label == IGNORED) == (place == shape.prefix + shape.tokens - 1)
        predicted[place] = label
    for row, (number, example) in enumerate(zip(numbers, examples, strict=True)):
        ids = (example.prompt + example.completion)[len(prefix) :]
        assert rows[row][: len(ids)] == ids
        flat = batch.flat_from_grid[
            batch.grid_from_flat[row * shape.longest :][: len(ids)]
        ].tolist()
        assert flat == list(range(row * shape.longest, row * shape.longest + len(ids)))
        places = batch.grid_from_flat[row * shape.longest :][: len(ids)] + shape.prefix
        assert positions[places].tolist() == list(range(len(prefix), len(prefix) + len(ids)))
        begin = len(example.prompt) - len(prefix) - 1
        reported = [predicted.get(place, IGNORED) for place in places.tolist()]
        assert reported == [IGNORED] * begin + example.completion + [IGNORED]
        first = (number + 1) * PLACES
        assert batch.dropout_ids[places].tolist() == list(range(first, first + len(ids)))

    # What is padding in one arrangement is so in the other: no gradient comes from it.
    used = sum(e.length - len(prefix) for e in examples)
    padding = batch.flat_from_grid[used:]
    assert len(padding) and set(padding.tolist()) == {shape.poems * shape.longest - 1}
    assert batch.grid_from_flat[padding[0]] == shape.tokens - 1
