"""Sources: where data sets come from, by name.

digits, blobs            scikit-learn's, embedded: no file and no network
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
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fairjax.data import text
from fairjax.data.dataset import Dataset
from fairjax.data.tfds_images import decoded, unknown

DATASETS = {
    "digits": "1,797 handwritten digits of 8x8 pixels, embedded",
    "blobs": "2,500 points around ten centres in 16 dimensions, synthetic",
    "mnist": "70,000 handwritten digits, padded to 32x32, by TFDS",
    "fashion_mnist": "70,000 pictures of clothes, padded to 32x32, by TFDS",
    "cifar10": "60,000 photographs of ten kinds of objects, 32x32, by TFDS",
    "rt_polarity": "10,662 sentences of film reviews, half of them positive (MR)",
    "sst_fine": "10,754 sentences of film reviews in five classes (SST)",
}
NUM_DIGITS_TEST = 360
NAME = re.compile(r"[A-Za-z0-9_](?!.*\.\.)[\w./:+=,-]{0,199}", re.ASCII)
SMALL, BORDER = (28, 28, 1), 2  # images of this shape get a border, as in the paper


def load(name: str, data_dir: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """Returns the training and test data of a data set.

    "digits" and "blobs" are embedded, and always cut the same way. "rt_polarity" and
    "sst_fine" are sentences. Any other name is an image-classification set of TensorFlow
    Datasets, "mnist" or "emnist/letters" for example. Sets of TFDS and sentences are read
    without TensorFlow where they are prepared, else prepared by TFDS, which downloads them.

    Images of one channel and 28x28 pixels are padded with zeros to 32x32; all are divided
    by 255 and standardised by channel with the mean and standard deviation of the unpadded
    training images.

    Sentences are cleaned as Kim (2014) does and become tokens: 0 is padding, 1 a word that
    no training sentence has, then words by frequency. All are as long as the longest
    training sentence. Of "rt_polarity" a tenth of each class is cut off as test data;
    "sst_fine" is cut already, and its development part is not used, so that training data
    are those that others train on. Their raw files are not downloaded where they all lie in
    the directory named by `FAIRJAX_TEXT_DIR`, or in `downloads/manual` of the data
    directory: "rt-polarity.pos" and ".neg", "stsa.fine.train", ".dev" and ".test". Where
    the data directory cannot be written, sentences are prepared in fairjax's cache.

    Args:
      name: the name of the data set.
      data_dir: the TFDS data directory; None: `TFDS_DATA_DIR`, else TFDS's default.

    Returns:
      `(train, test)`; images are `[n, height, width, channels]`, float32; sentences are
      `[n, length]`, int32, with a `vocabulary_size`.

    Raises:
      ValueError: the name is unknown, the set is not one of images with one class, or
        (then a `DataUnavailableError`) it is neither in the directory nor to be had, or its
        files there are damaged; the message says what to do.

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
    if name == "digits":
        from sklearn import datasets

        x, y = map(np.asarray, datasets.load_digits(return_X_y=True))
        return _cut(x.reshape(-1, 8, 8, 1) / 16, y, NUM_DIGITS_TEST)
    if name == "blobs":
        from sklearn import datasets

        x, y, *_ = datasets.make_blobs(
            2500, n_features=16, centers=10, cluster_std=4.0, random_state=0
        )
        return _cut(x / x.std(), y, 500)
    data_dir = _data_dir(data_dir)
    if not NAME.fullmatch(name):
        raise unknown(name, data_dir, tuple(DATASETS))
    if name in text.CLEANING:
        return text.tokenised(name, _sentences(name, data_dir))
    return _standardised(_arrays(name, data_dir, lambda: decoded(name, data_dir, tuple(DATASETS))))


def _data_dir(given: str | os.PathLike | None) -> Path:
    """Returns the TFDS data directory, as given or by default."""
    if given is not None and not isinstance(given, str | os.PathLike):
        raise ValueError(f"`data_dir` must be the path of a folder, got {given!r:.100}.")
    default = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    try:
        return Path(given or default).expanduser().resolve()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(
            f"`data_dir` must be the path of a folder, got {given!r:.100}: {error}."
        ) from error


def _cut(x: np.ndarray, y: np.ndarray, num_test: int) -> tuple[Dataset, Dataset]:
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=num_test, random_state=0, stratify=y
    )
    num_classes = int(y.max()) + 1
    return Dataset(x_train, y_train, num_classes), Dataset(x_test, y_test, num_classes)


def _standardised(arrays: dict[str, np.ndarray]) -> tuple[Dataset, Dataset]:
    """Returns images as float32, (x / 255 - mean) / std by channel, by a table of 256 entries."""
    images = arrays["x_train"]
    values = np.arange(256) / 255
    tables = np.empty((images.shape[-1], 256), np.float32)
    for channel, table in enumerate(tables):
        counts = _byte_counts(images[..., channel])
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
            # Bytes are in range, so "clip" changes none; it spares numpy a buffer.
            x[..., channel] = table.take(padded, mode="clip")
        parts.append(Dataset(x, arrays[f"y_{part}"], int(arrays["num_classes"])))
    return parts[0], parts[1]


def _byte_counts(images: np.ndarray) -> np.ndarray:
    """Returns `[256]` counts of the bytes, in pieces: whole, they would be made int64."""
    pieces = np.array_split(images, max(1, images.size // 2**20))
    return sum((np.bincount(piece.reshape(-1), minlength=256) for piece in pieces), np.zeros(256))


def _sentences(name: str, data_dir: Path) -> dict[str, np.ndarray]:
    """Returns sentences prepared in the data directory, or in the cache if that is read-only."""
    there = (data_dir / name).is_dir() or _is_writable(data_dir)
    folder = data_dir if there else _cache() / "tensorflow_datasets"

    def read() -> dict[str, np.ndarray]:
        from fairjax.data import tfds_text

        return tfds_text.sentences(name, folder, data_dir)

    return _arrays(name, folder, read)


def _is_writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    # An administrator may write anywhere; what nobody may write is meant to stay as it is.
    return os.access(existing, os.W_OK) and existing.stat().st_mode & 0o222 != 0


def _arrays(
    name: str, data_dir: Path, read: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns what `read` does, from the cache where the prepared files are the same."""
    cached = _cache_file(name, data_dir)
    if cached is not None:
        arrays = _from_cache(cached)
        if _are_examples(arrays, *((np.bytes_, 1) if name in text.CLEANING else (np.uint8, 4))):
            return arrays
    arrays = read()
    cached = _cache_file(name, data_dir)  # which may not have been prepared before
    if cached is not None:
        _to_cache(cached, arrays)
    return arrays


def _from_cache(cached: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file in the cache; none where it is damaged, or of another kind."""
    # What zipfile and numpy raise besides OSError where bytes of their files were changed.
    damages = (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    try:
        with zipfile.ZipFile(cached) as file:
            # Whole members, or a damaged shape would make numpy read less than the checksum is of.
            members = {name: io.BytesIO(file.read(name)) for name in file.namelist()}
            return {Path(name).stem: np.load(member) for name, member in members.items()}
    except (OSError, *damages):
        return {}


def _are_examples(arrays: dict[str, np.ndarray], kind: type[np.generic], ndim: int) -> bool:
    """Says whether arrays are those of a data set, with examples of a kind and their classes."""
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


def _to_cache(cached: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays, whole or not at all: without a cache, the next load decodes again."""
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
    """Returns the place of a cache that belongs to these very files, or None without files."""
    folder = data_dir / name.replace(":", "/")
    if not name or ".." in folder.parts or not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return _cache() / f"{name.replace('/', '-').replace(':', '-')}-{digest}.npz"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"
