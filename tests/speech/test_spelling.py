"""Characters that a byte-level tokenizer has no token for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speech_models import byte_alphabet
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from lorsmerge_cli.speech.spelling import share_spelled_out, spelled_out


def cut_within(text: str, ends: set[int]) -> int:
    """The characters that have a border of tokens, given in bytes, in their middle."""
    found = begin = 0
    for character in text:
        size = len(character.encode())
        found += any(begin < end < begin + size for end in ends)
        begin += size
    return found


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_characters_are_those_that_a_border_of_tokens_cuts(text: str, data: st.DataObject) -> None:
    encoded, table = text.encode(), byte_alphabet()
    borders = st.sets(st.integers(1, max(1, len(encoded) - 1)))
    ends = sorted(data.draw(borders) & set(range(1, len(encoded)))) if encoded else []
    starts = [0, *ends]
    tokens = [
        "".join(table[b] for b in encoded[i:j]) for i, j in zip(starts, [*ends, None], strict=True)
    ]
    assert spelled_out(tokens) == (len(text), cut_within(text, set(ends)))


@pytest.mark.parametrize("text", ["hola", "女孩看到鸟", "a é 女 😀 b"])
def test_the_share_of_a_tokenizer_with_every_byte(text: str) -> None:
    letters = list(byte_alphabet().values())
    merges = [("Ã", "©"), ("å", "¥"), ("å¥", "³")]  # é, and all of one Chinese character
    tokens = [*letters, *("".join(pair) for pair in merges)]
    model = Tokenizer(BPE({token: n for n, token in enumerate(tokens)}, merges))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    found = PreTrainedTokenizerFast(tokenizer_object=model)
    tokens = found.convert_ids_to_tokens(found(text, add_special_tokens=False)["input_ids"])
    ends, position = set(), 0
    for token in tokens:
        position += len(token)
        ends.add(position)
    assert position == len(text.encode())
    assert share_spelled_out(found, [text]) == cut_within(text, ends) / len(text)
    assert share_spelled_out(found, [text, text]) == share_spelled_out(found, [text])
    assert share_spelled_out(found, []) == share_spelled_out(found, [""]) == 0
