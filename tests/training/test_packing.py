"""`verse.training.packing`: token ids of poems, and rows behind one shared prefix."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_pairs
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from verse.model.encoding import Example, encode, encode_prompt
from verse.training.packing import IGNORED, lay_out, shape_of, shared_prefix


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


@given(poems, st.integers(1, 4), st.sampled_from([1, 8]), st.sampled_from([(0, 0), (2, 5)]))
def test_rows_hold_every_poem_once_and_apart(poems, poems_per_row, multiple, filling):
    examples = [Example([7, 7, *prompt], [*rest, 1], len(rest) + 1) for prompt, rest in poems]
    prefix = shared_prefix(examples)
    rows, width = shape_of(examples, prefix, poems_per_row, multiple)
    assert rows == -(-len(examples) // poems_per_row)
    assert width % multiple == 0
    rows, width = rows + filling[0], width + filling[1]
    batch = lay_out(examples, prefix, poems_per_row, (rows, width))
    assert batch.input_ids.shape == (rows, width)
    assert batch.attention.any(-1).all(), "a softmax over nothing is not a number"

    found = []
    for row in range(rows):
        predicted = (batch.labels[row] != IGNORED).nonzero()[:, 0].tolist()
        ends = [place + 1 for place in predicted if batch.labels[row, place] == 1]
        for end in ends:
            seen = batch.attention[row, 0, end]
            ids = batch.input_ids[row][seen].tolist()
            assert batch.position_ids[row][seen].tolist() == list(range(len(ids)))
            places = seen.nonzero()[:, 0]
            labels = batch.labels[row][places].tolist()
            labels = labels[len(prefix) :]  # the prefix predicts nothing
            completion = [label for label in labels if label != IGNORED]
            found.append((ids[: -len(completion)], completion))
            # Every token sees what is before it in the poem, and nothing else.
            among = batch.attention[row, 0][places][:, places]
            assert torch.equal(among, torch.ones_like(among).tril())
            assert batch.attention[row, 0][places].sum() == among.sum()
    assert sorted(found) == sorted((e.prompt, e.completion) for e in examples)
