"""Text: sentences to tokens, with the words of the training sentences only.

    sentence -> words, as Kim (2014) cleans them -> int32 tokens [n, length]

Token 0 is padding, and token 1 is any word that no training sentence has. The words of the
training sentences follow from token 2, the most frequent first.
"""

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairjax import checks
from fairjax.data.dataset import Dataset, hold_out

PADDING, UNKNOWN = 0, 1
SHORTEST = 3  # the least length of padded sentences; the text CNN's filters span 3 words
TEST_SHARE = 0.1
_STRANGE = re.compile(r"[^A-Za-z0-9(),!?'`]")
_CONTRACTION = re.compile(r"('s|'ve|n't|'re|'d|'ll)")
_MARK = re.compile(r"([,!()?])")


def words(sentence: str) -> list[str]:
    """Returns the words of a sentence, with contractions and punctuation as separate words.

    Args:
      sentence: any text; characters besides a to z, A to Z, digits and ``(),!?'` `` separate words.

    References:
      Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014:
      `clean_str` of its program.

    Examples:
      >>> words("It's good , isn't it?")
      ['it', "'s", 'good', ',', 'is', "n't", 'it', '?']
    """
    sentence = _STRANGE.sub(" ", sentence)
    sentence = _CONTRACTION.sub(r" \1", sentence)
    return _MARK.sub(r" \1 ", sentence).lower().split()


def treebank_words(sentence: str) -> list[str]:
    """Returns the words of a sentence of the treebank, which already separates words.

    Args:
      sentence: any text; characters besides a to z, A to Z, digits and ``(),!?'` `` separate words.

    References:
      `clean_str_sst` of Kim's program.

    Examples:
      >>> treebank_words("It 's a pre-war film .")
      ['it', "'s", 'a', 'pre', 'war', 'film']
    """
    return _STRANGE.sub(" ", sentence).lower().split()


CLEANING: dict[str, Callable[[str], list[str]]] = {
    "rt_polarity": words,
    "sst_fine": treebank_words,
}


def vocabulary(sentences: Iterable[Sequence[str]]) -> dict[str, int]:
    """Returns the token of every word: the most frequent first, ties in alphabetical order.

    Examples:
      >>> vocabulary([["a", "fine", "film"], ["a", "bad", "film"]])
      {'a': 2, 'film': 3, 'bad': 4, 'fine': 5}
    """
    counts = collections.Counter(word for sentence in sentences for word in sentence)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: token for token, word in enumerate(ordered, start=UNKNOWN + 1)}


def padded(sentences: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Returns int32 tokens `[n, length]`: sentences are padded or cut at their end.

    Examples:
      >>> print(padded([[2, 3], [2, 1, 1, 3]], 3))
      [[2 3 0]
       [2 1 1]]
    """
    rows = np.full((len(sentences), length), PADDING, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence[:length]
    return rows


class Tokenizer(NamedTuple):
    """Another way from sentences to tokens than by the words of the training sentences.

    Attributes:
      encode: maps sentences to lists of tokens, whole numbers above 0.
      vocabulary_size: the number of tokens, with 0 for padding.
    """

    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    vocabulary_size: int


def tokenised(
    name: str, arrays: dict[str, np.ndarray], tokenizer: Tokenizer | None = None
) -> tuple[Dataset, Dataset]:
    """Returns the training and test data of a set of sentences.

    All sentences are padded or cut to the length of the longest training sentence. If the set
    has no test part, a tenth of each class becomes test data, always the same examples. Other
    parts are not used.

    Args:
      name: a key of `CLEANING`.
      arrays: x_train, y_train, perhaps x_test and y_test, and num_classes; byte strings
        of UTF-8 `[n]` and their classes `[n]`.
      tokenizer: gives the tokens of sentences as they are; None: the words of the training
        sentences are the tokens.
    """
    num_classes = int(arrays["num_classes"])
    raw = [sentence.decode() for sentence in arrays["x_train"]]
    train = test = Dataset(np.arange(len(raw)), arrays["y_train"], num_classes)
    if "x_test" in arrays:
        raw += [sentence.decode() for sentence in arrays["x_test"]]
        test = Dataset(np.arange(len(train), len(raw)), arrays["y_test"], num_classes)
    else:
        train, test = hold_out(train, TEST_SHARE)
    if tokenizer is not None:
        checks.function(
            "tokenizer.encode", tokenizer.encode, "encode(sentences) -> lists of tokens"
        )
        return _encode(train, test, _checked(tokenizer.encode(raw), raw), tokenizer.vocabulary_size)
    sentences = [CLEANING[name](sentence) for sentence in raw]
    token_of = vocabulary(sentences[row] for row in train.x)
    numbers = [[token_of.get(word, UNKNOWN) for word in sentence] for sentence in sentences]
    return _encode(train, test, numbers, len(token_of) + UNKNOWN + 1)


def _checked(encoded: Any, sentences: Sequence[str]) -> Sequence[Sequence[int]]:
    """Returns the tokens of sentences, or raises if they are not lists of whole numbers."""
    rule = f"`tokenizer.encode` must return {len(sentences)} lists of whole numbers below 2^31"
    if not checks.is_listing(encoded) or len(encoded := list(encoded)) != len(sentences):
        raise ValueError(f"{rule}, one for each sentence, got {checks.shown(encoded)}.")
    found = []
    for tokens in encoded:
        listed = list(tokens) if checks.is_listing(tokens) else None
        if listed is None or not all(map(_is_token, listed)):
            raise ValueError(f"{rule}, from 0, got {checks.shown(listed or tokens)}.")
        found.append(listed)
    return found


def _is_token(token: Any) -> bool:
    whole = isinstance(token, int) or np.issubdtype(getattr(token, "dtype", float), np.integer)
    return whole and np.ndim(token) == 0 and 0 <= int(token) < 2**31


def _encode(
    train: Dataset, test: Dataset, numbers: Sequence[Sequence[int]], vocabulary_size: int
) -> tuple[Dataset, Dataset]:
    """Returns data sets of rows `x` with the tokens of these rows, padded or cut to one length."""
    length = max(SHORTEST, *(len(numbers[row]) for row in train.x))

    def encode(part: Dataset) -> Dataset:
        x = padded([numbers[row] for row in part.x], length)
        return Dataset(x, part.y, part.num_classes, vocabulary_size=vocabulary_size)

    return encode(train), encode(test)
