"""Sources: load data sets by name.

digits                   scikit-learn's, split once, in a file of this package
blobs                    made by scikit-learn
rt_polarity, sst_fine    sentences: bytes, cached -> int32 tokens, padded
any other name           an image-classification set of TensorFlow Datasets: bytes,
                         cached -> float32, standardised, small images padded
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax import checks, files
from fairjax.data import text
from fairjax.data.cache import arrays_of
from fairjax.data.dataset import Dataset
from fairjax.data.tfds_images import decoded, unknown

DIGITS = Path(__file__).with_name("digits.npz")
NAME = re.compile(r"[A-Za-z0-9_](?!.*\.\.)[\w./:+=,-]{0,199}", re.ASCII)
SMALL, BORDER = (28, 28, 1), 2  # images of this shape get a border, as in the paper


class Source(NamedTuple):
    """One data set."""

    words: str  # a description for `fairjax list`
    load: Callable[[str, Any], tuple[Dataset, Dataset]]  # takes the name and a TFDS data directory
    paper: Mapping[str, Any] | None = None  # the paper's fields of an `Experiment`


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    tokenizer: text.Tokenizer | None = None,
) -> tuple[Dataset, Dataset]:
    """Returns the training and test data of a data set.

    "digits" and "blobs" are scikit-learn's and are always split the same way.
    "rt_polarity" and "sst_fine" are sentences. Any other name is an image-classification
    set of TensorFlow Datasets, for example "mnist" or "emnist/letters". Prepared image and
    sentence sets are read without TensorFlow; others are downloaded and prepared by TFDS.

    Images of one channel and 28x28 pixels are padded with zeros to 32x32. All images are
    divided by 255 and standardised by channel with the mean and standard deviation of the
    unpadded training images.

    Sentences are cleaned as in Kim (2014) and become tokens: 0 is padding, 1 a word that
    no training sentence has, then words by frequency. All are padded or cut to the length
    of the longest training sentence. A tenth of each class of "rt_polarity" becomes test
    data. "sst_fine" has its own test part; its development part is not used, so that the
    training data are the usual ones. The raw files are not downloaded if all are in the
    directory named by `FAIRJAX_TEXT_DIR`, or in `downloads/manual` of the data directory:
    "rt-polarity.pos" and ".neg", "stsa.fine.train", ".dev" and ".test". If the data
    directory cannot be written, sentences are prepared in fairjax's cache.

    Args:
      name: the name of the data set.
      data_dir: the TFDS data directory; None: `TFDS_DATA_DIR`, else TFDS's default.
      tokenizer: gives the tokens of sentences, in place of cleaned words by frequency; such as
        `fairjax.models.minilm_tokenizer()`.

    Returns:
      `(train, test)`; images are `[n, height, width, channels]`, float32; sentences are
      `[n, length]`, int32, with a `vocabulary_size`.

    Raises:
      ValueError: the name is unknown, the set does not hold images with one class each, or a
        `tokenizer` is given for a set without sentences.
      DataUnavailableError: the set is not in the directory and cannot be downloaded, or its
        files there are damaged. The message says what to do.

    References:
      Pang and Lee, Seeing Stars, ACL 2005 ("rt_polarity"). Socher et al., Recursive Deep
      Models for Semantic Compositionality Over a Sentiment Treebank, EMNLP 2013
      ("sst_fine"). Kim, Convolutional Neural Networks for Sentence Classification, EMNLP
      2014.

    Examples:
      >>> train, test = load("digits")
      >>> train.x.shape, len(test), train.num_classes
      ((1437, 8, 8, 1), 360, 10)
    """
    if not isinstance(name, str):
        raise ValueError(
            f'`name` must be the name of a data set, such as "digits", got {name!r:.100}.'
        )
    if tokenizer is not None:
        checks.kind("tokenizer", tokenizer, text.Tokenizer, "`fairjax.models.minilm_tokenizer()`")
        if name not in SENTENCES:
            raise ValueError(
                f"`tokenizer` must be left out for a data set without sentences, got name={name!r}."
                f" Sets of sentences: {', '.join(SENTENCES)}."
            )
        return text.tokenised(name, _load_sentences(name, _data_dir(data_dir)), tokenizer)
    source = DATASETS.get(name, OTHER)
    return source.load(name, data_dir)


def register(name: str, loader: Callable[[], tuple[Dataset, Dataset]]) -> None:
    """Makes a data set of your own known by a name, to `load` and `Experiment`, in this process.

    Records keep only the name: register it again before you open a run, and take another directory
    when it has changed. On the command line write a file and a name in it, as mine.py:loader.

    Args:
      name: a name that no other data set has; a second call with a name of your own replaces it.
      loader: returns training and test data. Its docstring's first line is its description.

    Raises:
      ValueError: `name` is no word of letters, digits and `_`, or that of a data set of fairjax; or
        `loader` is not a function.

    Examples:
      >>> def halves() -> tuple[Dataset, Dataset]:
      ...     data = Dataset(x=[[0.0], [1.0]], y=[0, 1], num_classes=2)
      ...     return data, data
      >>> register("halves", halves)
      >>> load("halves")[0].num_classes
      2
    """
    checks.new_name("name", name, OURS)
    checks.function("loader", loader, "loader() -> (train, test)")
    checks.takes("loader", loader, ())
    words = (loader.__doc__ or "").strip().partition("\n")[0] or "your own"
    DATASETS[name] = Source(words, lambda name, data_dir: _checked_pair(loader()))


def _checked_pair(pair: Any) -> tuple[Dataset, Dataset]:
    """Returns training and test data, or raises if they are not."""
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or not all(isinstance(part, Dataset) for part in pair):
        raise ValueError(
            f"`loader` must return training and test data, (Dataset, Dataset), got {pair!r:.100}."
        )
    return pair[0], pair[1]


def _load_digits(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    with np.load(DIGITS) as held:  # scikit-learn is slow to import
        train, test = (
            Dataset(held[f"x_{part}"] / np.float32(16), held[f"y_{part}"], 10)
            for part in ("train", "test")
        )
    return train, test


def _load_blobs(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    from sklearn import datasets, model_selection

    made = datasets.make_blobs(2500, n_features=16, centers=10, cluster_std=4.0, random_state=0)
    x, y = map(np.asarray, made[:2])
    split = {"test_size": 500, "random_state": 0, "stratify": y}
    x_train, x_test, y_train, y_test = model_selection.train_test_split(x / x.std(), y, **split)
    return Dataset(x_train, y_train, 10), Dataset(x_test, y_test, 10)


def _load_text(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    return text.tokenised(name, _load_sentences(name, _data_dir(data_dir)))


def _load_images(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    folder, ours = _data_dir(data_dir), tuple(DATASETS)
    if not NAME.fullmatch(name):
        raise unknown(name, folder, ours)
    return _standardise(arrays_of(name, folder, lambda: decoded(name, folder, ours)))


MNIST = {"model": "mnist_cnn", "samples_per_agent": 600, "eval_every": 5}
# Evaluate only every 5 rounds: for all agents on 10,000 images it takes longer than a round.
CIFAR = {
    "model": "cifar_cnn", "samples_per_agent": 2000, "learning_rate": 0.015, "batch_size": 128,
    "gamma": 0.15, "eval_every": 5,
}  # fmt: skip
TEXT = {"model": "text_cnn", "optimizer": "adam", "gamma": 1.0}
DATASETS = {
    "digits": Source("1,797 handwritten digits of 8x8 pixels, embedded", _load_digits),
    "blobs": Source("2,500 points around ten centres in 16 dimensions, synthetic", _load_blobs),
    "mnist": Source("70,000 handwritten digits, padded to 32x32, by TFDS", _load_images, MNIST),
    "fashion_mnist": Source(
        "70,000 pictures of clothes, padded to 32x32, by TFDS", _load_images, MNIST
    ),
    "cifar10": Source(
        "60,000 photographs of ten kinds of objects, 32x32, by TFDS", _load_images, CIFAR
    ),
    "rt_polarity": Source(
        "10,662 sentences of film reviews, half of them positive (MR)",
        _load_text,
        {**TEXT, "learning_rate": 5e-5, "batch_size": 128},
    ),
    "sst_fine": Source(
        "10,754 sentences of film reviews in five classes (SST)",
        _load_text,
        {**TEXT, "learning_rate": 1e-4, "batch_size": 256},
    ),
}
OURS = frozenset(DATASETS)
SENTENCES = tuple(text.CLEANING)
OTHER = Source("an image-classification set of TensorFlow Datasets", _load_images)


def _data_dir(given: str | os.PathLike | None) -> Path:
    """Returns the TFDS data directory: the given one, or the default."""
    if given is not None and not isinstance(given, str | os.PathLike):
        raise ValueError(f"`data_dir` must be the path of a folder, got {given!r:.100}.")
    default = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    try:
        return Path(given or default).expanduser().resolve()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(
            f"`data_dir` must be the path of a folder, got {given!r:.100}: {error}."
        ) from error


def _standardise(arrays: dict[str, np.ndarray]) -> tuple[Dataset, Dataset]:
    """Returns images as float32, (x / 255 - mean) / std by channel, by a table of 256 values."""
    images = arrays["x_train"]
    values = np.arange(256) / 255
    tables = np.empty((images.shape[-1], 256), np.float32)
    for channel, table in enumerate(tables):
        counts = _count_bytes(images[..., channel])
        mean = counts @ values / counts.sum()
        std = np.sqrt(counts @ (values - mean) ** 2 / counts.sum())
        table[:] = (values - mean) / (std if std > 0 else 1)
    border = BORDER if images.shape[1:] == SMALL else 0
    padding = [(0, 0), (border, border), (border, border)]
    parts = []
    for part in ("train", "test"):
        size, height, width, channels = arrays[f"x_{part}"].shape
        x = np.empty((size, height + 2 * border, width + 2 * border, channels), np.float32)
        for channel, table in enumerate(tables):
            padded = np.pad(arrays[f"x_{part}"][..., channel], padding)
            # Bytes are in range, so "clip" changes nothing; it saves numpy a buffer.
            x[..., channel] = table.take(padded, mode="clip")
        parts.append(Dataset(x, arrays[f"y_{part}"], int(arrays["num_classes"])))
    return parts[0], parts[1]


def _count_bytes(images: np.ndarray) -> np.ndarray:
    """Returns `[256]` counts of bytes; works in pieces, since numpy copies bytes to int64."""
    pieces = np.array_split(images, max(1, images.size // 2**20))
    return sum((np.bincount(piece.reshape(-1), minlength=256) for piece in pieces), np.zeros(256))


def _load_sentences(name: str, data_dir: Path) -> dict[str, np.ndarray]:
    """Returns sentences from the data directory, or from the cache if that is read-only."""
    there = (data_dir / name).is_dir() or _is_writable(data_dir)
    folder = data_dir if there else files.cache_folder() / "tensorflow_datasets"

    def read() -> dict[str, np.ndarray]:
        from fairjax.data import tfds_text

        return tfds_text.sentences(name, folder, data_dir)

    return arrays_of(name, folder, read)


def _is_writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    # An administrator may write anywhere, so also respect folders that nobody may write.
    return os.access(existing, os.W_OK) and existing.stat().st_mode & 0o222 != 0
