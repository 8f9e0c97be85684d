"""Sources: load data sets by name.

digits, blobs            from scikit-learn, without files or network
rt_polarity, sst_fine    sentences: bytes, cached -> int32 tokens, padded
any other name           an image-classification set of TensorFlow Datasets: bytes,
                         cached -> float32, standardised, small images padded
"""

import contextlib
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax.data import text
from fairjax.data.dataset import Dataset
from fairjax.data.tfds_images import decoded, unknown

NUM_DIGITS_TEST = 360
NAME = re.compile(r"[A-Za-z0-9_](?!.*\.\.)[\w./:+=,-]{0,199}", re.ASCII)
SMALL, BORDER = (28, 28, 1), 2  # images of this shape get a border, as in the paper


class Source(NamedTuple):
    """One data set."""

    words: str  # a description for `fairjax list`
    load: Callable[[str, Any], tuple[Dataset, Dataset]]  # takes the name and a TFDS data directory
    paper: Mapping[str, Any] | None = None  # the paper's fields of an `Experiment`


def load(name: str, data_dir: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """Returns the training and test data of a data set.

    "digits" and "blobs" come with scikit-learn and are always split the same way.
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

    Returns:
      `(train, test)`; images are `[n, height, width, channels]`, float32; sentences are
      `[n, length]`, int32, with a `vocabulary_size`.

    Raises:
      ValueError: the name is unknown, or the set does not hold images with one class each.
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
    source = DATASETS.get(name, OTHER)
    return source.load(name, data_dir)


def _load_digits(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    from sklearn import datasets

    x, y = map(np.asarray, datasets.load_digits(return_X_y=True))
    return _split_off_test(x.reshape(-1, 8, 8, 1) / 16, y, NUM_DIGITS_TEST)


def _load_blobs(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    from sklearn import datasets

    x, y, *_ = datasets.make_blobs(2500, n_features=16, centers=10, cluster_std=4.0, random_state=0)
    return _split_off_test(x / x.std(), y, 500)


def _load_text(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    return text.tokenised(name, _load_sentences(name, _data_dir(data_dir)))


def _load_images(name: str, data_dir: Any) -> tuple[Dataset, Dataset]:
    folder, ours = _data_dir(data_dir), tuple(DATASETS)
    if not NAME.fullmatch(name):
        raise unknown(name, folder, ours)
    return _standardise(_load_arrays(name, folder, lambda: decoded(name, folder, ours)))


MNIST = {"model": "mnist_cnn", "samples_per_agent": 600, "eval_every": 5}
# Evaluate only every 5 rounds: for all agents on 10,000 images it takes longer than a round.
CIFAR = {
    "model": "cifar_cnn", "samples_per_agent": 2000, "learning_rate": 0.015, "batch_size": 128,
    "gamma": 0.15, "eval_every": 5,
}  # fmt: skip
SENTENCES = {"model": "text_cnn", "optimizer": "adam", "gamma": 1.0}
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
        {**SENTENCES, "learning_rate": 5e-5, "batch_size": 128},
    ),
    "sst_fine": Source(
        "10,754 sentences of film reviews in five classes (SST)",
        _load_text,
        {**SENTENCES, "learning_rate": 1e-4, "batch_size": 256},
    ),
}
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


def _split_off_test(x: np.ndarray, y: np.ndarray, num_test: int) -> tuple[Dataset, Dataset]:
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=num_test, random_state=0, stratify=y
    )
    num_classes = int(y.max()) + 1
    return Dataset(x_train, y_train, num_classes), Dataset(x_test, y_test, num_classes)


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
    folder = data_dir if there else _cache_folder() / "tensorflow_datasets"

    def read() -> dict[str, np.ndarray]:
        from fairjax.data import tfds_text

        return tfds_text.sentences(name, folder, data_dir)

    return _load_arrays(name, folder, read)


def _is_writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    # An administrator may write anywhere, so also respect folders that nobody may write.
    return os.access(existing, os.W_OK) and existing.stat().st_mode & 0o222 != 0


def _load_arrays(
    name: str, data_dir: Path, read: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns `read()`, or the same from the cache if the prepared files have not changed."""
    cached = _cache_file(name, data_dir)
    if cached is not None:
        arrays = _read_cache(cached)
        if _are_examples(arrays, *((np.bytes_, 1) if name in text.CLEANING else (np.uint8, 4))):
            return arrays
    arrays = read()
    cached = _cache_file(name, data_dir)  # `read` may have prepared the files
    if cached is not None:
        _write_cache(cached, arrays)
    return arrays


def _read_cache(cached: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file in the cache, or none if the file is damaged or no archive."""
    # Errors besides OSError that zipfile and numpy raise for damaged files.
    damages = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    try:
        with zipfile.ZipFile(cached) as file:
            # Read whole members: with a damaged shape numpy would stop before the checksum.
            members = {name: io.BytesIO(file.read(name)) for name in file.namelist()}
            return {Path(name).stem: np.load(member) for name, member in members.items()}
    except (OSError, *damages):
        return {}


def _are_examples(arrays: dict[str, np.ndarray], kind: type[np.generic], ndim: int) -> bool:
    """Says whether arrays are a data set with examples of the given kind and their classes."""
    names = [name for name in arrays if name.startswith("x_")]
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return False
    return {"x_train", "num_classes"} <= set(arrays) and all(
        np.issubdtype(arrays[name].dtype, kind)
        and arrays[name].ndim == ndim
        and name.replace("x_", "y_", 1) in arrays
        and arrays[name.replace("x_", "y_", 1)].shape == arrays[name].shape[:1]
        for name in names
    )


def _write_cache(cached: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays completely or not at all; without a cache the next load decodes again."""
    unfinished = cached.with_name(f"{cached.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(cached)
        finally:
            unfinished.unlink(missing_ok=True)


def _cache_file(name: str, data_dir: Path) -> Path | None:
    """Returns the cache file for the present prepared files, or None if there are none."""
    folder = data_dir / name.replace(":", "/")
    if not name or ".." in folder.parts or not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return _cache_folder() / f"{name.replace('/', '-').replace(':', '-')}-{digest}.npz"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"
