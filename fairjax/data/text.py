"""Text: sentences to tokens, with the words of the training sentences only.

    sentence -> words, as Kim (2014) cleans them -> int32 tokens [n, length]

Token 0 is padding, and token 1 is any word that no training sentence has. The words of the
training sentences follow from token 2, the most frequent first.
"""

import collections
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

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
      sentence: any text; characters besides letters, digits and ``(),!?'` `` separate words.

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
      sentence: any text; characters besides letters, digits and ``(),!?'` `` separate words.

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


def tokens(sentences: Sequence[Sequence[str]], token_of: dict[str, int], length: int) -> np.ndarray:
    """Returns int32 tokens `[n, length]`: sentences are padded or cut at their end.

    Examples:
      >>> print(tokens([["a", "film"], ["a", "dull", "bad", "film"]], {"a": 2, "film": 3}, 3))
      [[2 3 0]
       [2 1 1]]
    """
    rows = np.full((len(sentences), length), PADDING, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        known = [token_of.get(word, UNKNOWN) for word in sentence[:length]]
        row[: len(known)] = known
    return rows


def tokenised(name: str, arrays: dict[str, np.ndarray]) -> tuple[Dataset, Dataset]:
    """Returns the training and test data of a set of sentences.

    All sentences are padded or cut to the length of the longest training sentence. If the set
    has no test part, a tenth of each class becomes test data, always the same examples. Other
    parts are not used.

    Args:
      name: a key of `CLEANING`.
      arrays: x_train, y_train, perhaps x_test and y_test, and num_classes; byte strings
        of UTF-8 `[n]` and their classes `[n]`.
    """
    num_classes = int(arrays["num_classes"])
    sentences = [CLEANING[name](sentence.decode()) for sentence in arrays["x_train"]]
    train = test = Dataset(np.arange(len(sentences)), arrays["y_train"], num_classes)
    if "x_test" in arrays:
        sentences += [CLEANING[name](sentence.decode()) for sentence in arrays["x_test"]]
        test = Dataset(np.arange(len(train), len(sentences)), arrays["y_test"], num_classes)
    else:
        train, test = hold_out(train, TEST_SHARE)
    token_of = vocabulary(sentences[row] for row in train.x)
    length = max(SHORTEST, *(len(sentences[row]) for row in train.x))

    def encode(part: Dataset) -> Dataset:
        x = tokens([sentences[row] for row in part.x], token_of, length)
        return Dataset(x, part.y, num_classes, vocabulary_size=len(token_of) + UNKNOWN + 1)

    return encode(train), encode(test)
