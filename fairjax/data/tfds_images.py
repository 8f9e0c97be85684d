"""Image-classification sets of TensorFlow Datasets, read without TensorFlow.

name -> builder, prepared by TFDS if need be -> bytes of images and their classes
"""

import contextlib
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fairjax import checks

BULK = 1000  # examples decoded at a time


class DataUnavailableError(ValueError):
    """A data set is not in the data directory and could not be downloaded, or is damaged."""


def decoded(name: str, data_dir: Path, ours: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the arrays x_train, y_train, x_test, y_test and num_classes.

    Args:
      name: a name of TFDS, possibly with configuration and version.
      data_dir: TFDS data directory.
      ours: further names that an error may suggest for a misspelt name.

    Raises:
      DataUnavailableError: the set is not in the directory and could not be prepared.
      ValueError: the name is unknown, or the set does not hold images with one class each.
    """
    with quiet():
        builder = _make_builder(name, data_dir, ours)
        image, label = _find_keys(name, builder)
        if not builder.is_prepared():
            advice = (
                f"Put a prepared copy there, as {builder.data_dir}, or point TFDS_DATA_DIR at a "
                "directory with one."
            )
            prepare(name, builder, data_dir, urls=builder.url_infos or (), advice=advice)
        splits = builder.info.splits
        test = "test" if "test" in splits else "validation"
        if "train" not in splits or test not in splits:
            raise ValueError(
                f"The data set {name!r} must have the splits train and test or validation, "
                f"got {', '.join(splits) or 'none'}."
            )
        arrays = {"num_classes": np.array(builder.info.features[label].num_classes)}
        for part, split in (("train", "train"), ("test", test)):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = _decode(name, builder, split, image, label)
    return arrays


def examples(name: str, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a prepared split.

    Raises:
      DataUnavailableError: its files are damaged or hold the wrong number of examples.
    """
    folder = Path(builder.data_dir)
    try:
        source = builder.as_data_source(split)
        wanted, found = len(source), _count_records(builder, split)
        if wanted != found:
            raise ValueError(f"{found} examples of {split!r} instead of {wanted}")
        for start in range(0, wanted, BULK):
            yield from source.__getitems__(list(range(start, min(start + BULK, wanted))))
    except read_failures() as error:
        raise unreadable(name, folder, error) from error


def read_failures() -> tuple[type[Exception], ...]:
    """Returns the errors that TFDS and its libraries raise for damaged prepared files."""
    from google.protobuf import json_format, message

    builtin = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError)
    return (*builtin, json_format.Error, message.Error)


def unreadable(name: str, folder: Path, error: BaseException) -> DataUnavailableError:
    """Returns an error that says which prepared folder cannot be read, why, and what to do."""
    reason = (str(error) or "a file is damaged").splitlines()[0].rstrip(" .:")
    return DataUnavailableError(
        f"The data set {name!r} in {folder} cannot be read: {reason:.200}. Put a complete copy "
        "there, or delete that folder so that it is prepared again."
    )


def unknown(name: str, data_dir: Path, ours: tuple[str, ...]) -> ValueError:
    """Returns an error for the name of no known data set, with the nearest known name."""
    import tensorflow_datasets as tfds

    known = (*ours, *tfds.list_builders(with_community_datasets=False))
    hint = checks.suggestion(name, [one for one in known if one != name])
    return ValueError(
        f"Unknown dataset {name!r:.100}.{hint} Known: {', '.join(ours)}, and any "
        f"image-classification set of TensorFlow Datasets, or one prepared in {data_dir}."
    )


def _count_records(builder: Any, split: str) -> int:
    """Returns how many records the files of a split hold."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    if builder.info.file_format.value != "array_record":
        return builder.info.splits[split].num_examples
    return len(ArrayRecordDataSource(list(map(str, builder.info.splits[split].filepaths))))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS's logging; fairjax raises those warnings as errors."""
    import absl.logging

    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _make_builder(name: str, data_dir: Path, ours: tuple[str, ...]) -> Any:
    import tensorflow_datasets as tfds

    folder = data_dir / name.replace(":", "/")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (*read_failures(), AssertionError, ImportError) as error:
        if folder.is_dir():
            raise unreadable(name, folder, error) from error
        # TFDS raises these for unknown sets, and also for a bad version, configuration or
        # character in the name.
        raise unknown(name, data_dir, ours) from error


def _find_keys(name: str, builder: Any) -> tuple[str, str]:
    """Returns the keys of an example's image and class; raises unless there is one of each."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    labels = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    keys = builder.info.supervised_keys
    if keys is None and len(images) == len(labels) == 1:
        keys = (images[0], labels[0])
    if keys is None or keys[0] not in images or keys[1] not in labels:
        kinds = ", ".join(f"{key}: {type(value).__name__}" for key, value in features.items())
        raise ValueError(f"The data set {name!r} must hold images with one class, got {kinds}.")
    if features[keys[0]].np_dtype != np.uint8:
        raise ValueError(
            f"The images of {name!r} must be bytes, got dtype {features[keys[0]].np_dtype}."
        )
    return keys


def prepare(
    name: str, builder: Any, data_dir: Path, *, urls: Iterable[str], advice: str, **options: Any
) -> None:
    """Downloads and prepares a set with TFDS, or raises and says why that failed.

    Args:
      name: the data set's name.
      builder: its builder.
      data_dir: the folder where the user expects it.
      urls: addresses of the downloads, as far as they are known.
      advice: what the user can do if this fails.
      **options: options of the builder's `download_and_prepare`.

    Raises:
      DataUnavailableError: it cannot be downloaded or prepared.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor

    def unavailable(reason: str) -> DataUnavailableError:
        return DataUnavailableError(
            f"The data set {name!r} is not prepared in {data_dir} and could not be made: {reason}. "
            + advice
        )

    # Without a network, TFDS gives up only after minutes.
    hosts = [urllib.parse.urlparse(url).hostname for url in urls]
    if hosts and hosts[0] and not urllib.request.getproxies():
        try:
            socket.getaddrinfo(hosts[0], 443)
        except OSError as error:
            raise unavailable(f"{hosts[0]} cannot be reached") from error
    failures = (
        OSError,
        AssertionError,
        ValueError,
        RuntimeError,
        tfds.download.DownloadError,
        extractor.ExtractError,
        download_manager.NonMatchingChecksumError,
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(file_format="array_record", **options)
    except ImportError as error:
        reason = f"TFDS needs TensorFlow to prepare it (pip install tensorflow): {error}"
        raise unavailable(reason) from error
    except failures as error:
        raise unavailable((str(error) or "a file is damaged").splitlines()[0]) from error


def _decode(
    name: str, builder: Any, split: str, image: str, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images `[n, height, width, channels]` and classes `[n]`."""
    size = builder.info.splits[split].num_examples
    x, y = None, np.empty(size, np.int32)
    for row, example in enumerate(examples(name, builder, split)):
        if x is None:
            x = np.empty((size, *example[image].shape), np.uint8)
        if example[image].shape != x.shape[1:]:
            raise ValueError(
                f"The images of {name!r} must have one shape, got {x.shape[1:]} and "
                f"{example[image].shape}. Resize them and give arrays: "
                "`fairjax.data.Dataset(x=..., y=..., num_classes=...)`."
            )
        x[row], y[row] = example[image], example[label]
    if x is None:
        raise ValueError(f"The data set {name!r} must hold examples, got none.")
    return x, y
