"""Sentences come from raw files through our own TFDS builders, and become tokens."""

import http.server
import io
import os
import re
import socket
import tarfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax import data, models
from fairjax.data import text
from fairjax.simulation import Behaviour, change_data

PUBLISHED = os.environ.get("FAIRJAX_TEXT_DIR")  # read before the fixture `cache` hides it
NEGATIVE = [f"it's dull no {i} , isn't it ?" for i in range(20)]
POSITIVE = [f"a fine film no {i} !" for i in range(18)] + ["crème brûlée \x85 \x97 ½", "fine"]
RATED = {
    "train": ["4 a stirring film", "0 dull dull dull", "2 neither nor ."],
    "dev": ["1 seen by nobody"],
    "test": ["3 an unseen stirring film that goes on", "1 dull crème"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FAIRJAX_TEXT_DIR", raising=False)
    return tmp_path / "cache" / "fairjax"


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "data" / "downloads" / "manual"
    folder.mkdir(parents=True)
    for name, lines in (("neg", NEGATIVE), ("pos", POSITIVE)):
        content = "".join(f"{line} \n" for line in lines)
        (folder / f"rt-polarity.{name}").write_bytes(content.encode("latin-1"))
    for name, lines in RATED.items():
        (folder / f"stsa.fine.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def prepared(name, folder):
    from fairjax.data import tfds_text

    return tfds_text.sentences(name, folder, folder)


def kims_cleaning(string):
    """`clean_str` of Kim's program, line by line."""
    string = re.sub(r"[^A-Za-z0-9(),!?\'\`]", " ", string)
    for contraction in ("'s", "'ve", "n't", "'re", "'d", "'ll"):
        string = re.sub(contraction, f" {contraction}", string)
    for mark in ",!()?":
        string = re.sub(re.escape(mark), f" {mark} ", string)
    return re.sub(r"\s{2,}", " ", string).strip().lower()


# Words and tokens


@pytest.mark.parametrize(
    "sentence",
    [
        "it's what they've said , isn't it? (we'd say: \"they'll\" or `you're')",
        "WON'T `quoted' 3,000 rock'n'roll dogs's n't've",
        "crème brûlée \x85 \x97 ½ \xa0 ' ",
        "x'x'd'll!!??)(",
        "",
    ],
)
def test_words_are_those_of_kims_program(sentence):
    assert text.words(sentence) == kims_cleaning(sentence).split()


def test_words_of_the_treebank_are_left_as_they_are():
    assert text.treebank_words("It 's (good),is n't it?") == ["it", "'s", "(good),is", "n't", "it?"]


def test_sentences_are_padded_or_cut_at_their_end():
    found = text.padded([[3], [], [2, 3, 1, 2]], 3)
    np.testing.assert_array_equal(found, [[3, 0, 0], [0, 0, 0], [2, 3, 1]])


# Builders


def test_reviews_survive_letter_by_letter(raw):
    arrays = prepared("rt_polarity", raw.parent.parent)
    found = {
        (x.decode(), int(y)) for x, y in zip(arrays["x_train"], arrays["y_train"], strict=True)
    }
    assert found == {(line, 0) for line in NEGATIVE} | {(line, 1) for line in POSITIVE}
    assert arrays["num_classes"] == 2


def test_rated_sentences_survive_letter_by_letter(raw):
    arrays = prepared("sst_fine", raw.parent.parent)
    for split, part in (("train", "train"), ("validation", "dev"), ("test", "test")):
        pairs = zip(arrays[f"y_{split}"], arrays[f"x_{split}"], strict=True)
        assert sorted(f"{y} {x.decode()}" for y, x in pairs) == sorted(RATED[part])
    assert arrays["num_classes"] == 5


# Data sets by name


def test_reviews_are_cut_by_class_and_always_the_same(raw):
    train, test = data.load("rt_polarity", data_dir=raw.parent.parent)
    np.testing.assert_array_equal(np.bincount(train.y), [18, 18])
    np.testing.assert_array_equal(np.bincount(test.y), [2, 2])
    assert train.x.dtype == np.int32
    for first, second in zip(
        (train, test), data.load("rt_polarity", data_dir=raw.parent.parent), strict=True
    ):
        np.testing.assert_array_equal(first.x, second.x)


def test_only_training_words_are_known_and_only_training_sentences_set_the_length(raw):
    train, test = data.load("sst_fine", data_dir=raw.parent.parent)
    # By frequency and alphabet: dull, a, film, neither, nor, stirring.
    assert train.vocabulary_size == test.vocabulary_size == 8
    assert sorted(train.x.tolist()) == [[2, 2, 2], [3, 7, 4], [5, 6, 0]]
    assert sorted(test.x.tolist()) == [[1, 1, 7], [2, 1, 1]]
    assert train.num_classes == test.num_classes == 5


def test_raw_files_may_lie_where_the_environment_says(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRJAX_TEXT_DIR", str(raw))
    assert len(data.load("rt_polarity", data_dir=tmp_path / "elsewhere")[0]) == 36
    assert (tmp_path / "elsewhere" / "rt_polarity").is_dir()


def test_a_directory_that_nobody_may_write_is_left_alone(raw, cache):
    folder = raw.parent.parent
    folder.chmod(0o555)
    try:
        train, _ = data.load("rt_polarity", data_dir=folder)
    finally:
        folder.chmod(0o755)
    assert len(train) == 36
    assert not (folder / "rt_polarity").exists()
    assert (cache / "tensorflow_datasets" / "rt_polarity").is_dir()


def test_the_second_load_comes_from_the_cache_and_loading_does_not_print(raw, cache, capfd):
    first = data.load("rt_polarity", data_dir=raw.parent.parent)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    second = data.load("rt_polarity", data_dir=raw.parent.parent)
    np.testing.assert_array_equal(first[0].x, second[0].x)
    assert file.stat().st_mtime_ns == written
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["rt_polarity", "sst_fine"])
def test_missing_files_are_named_with_what_to_do(name, tmp_path, monkeypatch):
    def offline(*_):
        raise socket.gaierror

    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(data.DataUnavailableError, match="cannot be reached.*FAIRJAX_TEXT_DIR"):
        data.load(name, data_dir=tmp_path)


def test_a_raw_file_that_is_none_is_answered_with_what_to_do(raw):
    (raw / "stsa.fine.dev").write_text("no class\n")
    with pytest.raises(data.DataUnavailableError, match="stsa.fine.train"):
        data.load("sst_fine", data_dir=raw.parent.parent)


def test_damaged_records_of_sentences_are_named_with_what_to_do(raw, cache):
    folder = raw.parent.parent
    data.load("rt_polarity", data_dir=folder)
    (prepared,) = (folder / "rt_polarity").iterdir()
    next(prepared.glob("*.array_record*")).write_bytes(b"")
    with pytest.raises(data.DataUnavailableError, match="rt_polarity.*cannot be read"):
        data.load("rt_polarity", data_dir=folder)
    (prepared / "dataset_info.json").write_text("{")
    with pytest.raises(data.DataUnavailableError, match="rt_polarity.*cannot be read"):
        data.load("rt_polarity", data_dir=folder)


@pytest.mark.parametrize("name", ["rt_polarity", "sst_fine"])
def test_what_is_downloaded_is_what_lies_at_hand(name, raw, tmp_path, monkeypatch):
    """The archive is packed as the published one is, and served on this machine."""
    from fairjax.data import tfds_text

    files = {f"/{path.name}": path.read_bytes() for path in raw.iterdir()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"rt-polaritydata{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    files["/rt-polaritydata.tar.gz"] = packed.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, *_):
            pass

    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        builder = tfds_text.BUILDERS[name]
        here = f"http://127.0.0.1:{server.server_port}/"
        urls = tuple(here + url.rsplit("/", 1)[1] for url in builder.URLS)
        monkeypatch.setattr(builder, "URLS", urls)
        downloaded = data.load(name, data_dir=tmp_path / "empty")
        server.shutdown()
    for found, wanted in zip(downloaded, data.load(name, data_dir=raw.parent.parent), strict=True):
        np.testing.assert_array_equal(found.x, wanted.x)
        np.testing.assert_array_equal(found.y, wanted.y)


def test_the_published_sentences_have_the_published_numbers(tmp_path, monkeypatch):
    if not PUBLISHED:
        pytest.skip("FAIRJAX_TEXT_DIR does not point to a folder with the raw text files")
    monkeypatch.setenv("FAIRJAX_TEXT_DIR", PUBLISHED)
    train, test = data.load("rt_polarity", data_dir=tmp_path)
    np.testing.assert_array_equal(np.bincount(train.y), [4798, 4798])
    np.testing.assert_array_equal(np.bincount(test.y), [533, 533])
    train, test = data.load("sst_fine", data_dir=tmp_path)
    np.testing.assert_array_equal(np.bincount(train.y), [1092, 2218, 1624, 2322, 1288])
    np.testing.assert_array_equal(np.bincount(test.y), [279, 633, 389, 510, 399])


# The vocabulary's size


@pytest.mark.parametrize(
    ("x", "size", "message"),
    [
        ([[0, 3]], 3, r"tokens in \[0, vocabulary_size=3\), got 3"),
        ([[-1, 2]], 3, "got -1"),
        ([[0.0, 1.0]], 3, "`x` must be whole numbers if it holds tokens"),
        ([[0, 1]], 2.0, "`vocabulary_size` must be a whole number of at least 2"),
        ([[0, 0]], 1, "`vocabulary_size` must be a whole number of at least 2"),
    ],
)
def test_tokens_out_of_the_vocabulary_are_refused(x, size, message):
    with pytest.raises(ValueError, match=message):
        data.Dataset(x, [0], 2, vocabulary_size=size)


def sentences_of(num_examples=40, length=6, size=50, num_classes=2):
    rng = np.random.default_rng(0)
    x = rng.integers(1, size, (num_examples, length))
    x[:, -2:] = 0
    return data.Dataset(x, np.arange(num_examples) % num_classes, num_classes, size)


def test_the_vocabulary_size_stays_with_the_data():
    dataset = sentences_of()
    shards = data.uniform(dataset, num_agents=2)
    flipped = change_data(shards, [Behaviour(0, "label_flip", 1.0)])
    kept = [
        dataset.take([3, 1]),
        *data.hold_out(dataset, 0.5),
        jax.jit(lambda d: d)(dataset),
        jax.tree.map(lambda leaf: leaf[:1], dataset),
        flipped.data,
    ]
    assert [one.vocabulary_size for one in kept] == [50] * len(kept)


def test_noisy_tokens_are_other_tokens_at_a_rate_and_padding_stays():
    dataset = sentences_of(2000)
    shards = data.Shards.from_indices(dataset, [range(2000)])
    noisy = change_data(shards, [Behaviour(0, "feature_noise", 0.3)])
    x = noisy.data.x[noisy.rows(0)]
    assert (x[:, -2:] == 0).all()
    assert x[:, :-2].min() >= 1
    assert (x != dataset.x)[:, :-2].mean() == pytest.approx(0.3 * 48 / 49, abs=0.03)
    with pytest.raises(ValueError, match=r"feature_noise on tokens.*in \[0, 1\]"):
        change_data(shards, [Behaviour(0, "feature_noise", 1.5)])


def test_noise_in_whole_numbers_that_are_no_tokens_is_refused():
    dataset = data.Dataset([[1], [2]], [0, 1], 2)
    shards = data.Shards.from_indices(dataset, [[0, 1]])
    with pytest.raises(ValueError, match="vocabulary_size"):
        change_data(shards, [Behaviour(0, "feature_noise", 1.0)])


# The text CNN


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 346_754), (5, 347_909)])
def test_the_text_cnn_has_the_published_number_of_parameters(num_classes, expected):
    params = jax.eval_shape(models.text_cnn(50, num_classes).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 50 * 300 + expected
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (3, 300, 128)]
    assert len(kernels) == 3
    assert params["head"]["kernel"].shape == (384, num_classes)


def reference(params, x):
    """Kim's network, plainly: every window of three words meets every filter."""
    words = params["embedding"]["embedding"][x]
    features = []
    for number in range(3):
        branch = params[f"branch_{number}"]
        windows = jnp.stack([words[:, t : t + 3] for t in range(x.shape[1] - 2)], axis=1)
        products = jnp.einsum("btpc,pcf->btf", windows, branch["kernel"]) + branch["bias"]
        features.append(jnp.maximum(products, 0).max(1))
    head = params["head"]
    return jnp.concatenate(features, -1) @ head["kernel"] + head["bias"]


@pytest.mark.slow
def test_the_text_cnn_and_its_gradient_are_those_of_a_plain_program():
    dataset = sentences_of(8)
    model = models.REGISTRY["text_cnn"](dataset)
    params = model.init(jax.random.key(0))

    def results(apply):
        def loss(params):
            logits = apply(params, dataset.x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, dataset.y)
            return losses.mean(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    found, wanted = results(model.apply), results(reference)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)
    logits = jax.jit(model.apply)(params, dataset.x)
    np.testing.assert_allclose(logits, wanted[1], atol=2e-5)


def test_dropout_is_on_with_a_key_only():
    dataset = sentences_of(4)
    model = models.text_cnn(50, 2)
    params = model.init(jax.random.key(0))
    first, again = (model.apply(params, dataset.x) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    one, other = (model.apply(params, dataset.x, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - first).min() > 0
    assert np.abs(one - other).min() > 0


@pytest.mark.parametrize(
    "dataset",
    [
        data.Dataset([[1, 2, 3]], [0], 2),
        data.Dataset([[1, 2]], [0], 2, vocabulary_size=5),
        data.Dataset(np.ones((1, 3, 3), int), [0], 2, vocabulary_size=5),
    ],
)
def test_the_text_cnn_says_what_it_takes(dataset):
    with pytest.raises(ValueError, match="`train` must hold tokens"):
        models.REGISTRY["text_cnn"](dataset)


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_a_perceptron_refuses_tokens(name):
    with pytest.raises(ValueError, match="got tokens.*Take the text CNN"):
        models.REGISTRY[name](sentences_of())


@pytest.mark.slow
def test_agents_train_the_text_cnn():
    train = sentences_of()
    federation = fj.federation(
        model=models.REGISTRY["text_cnn"](train),
        mechanism=fj.mechanisms.fedavg(),
        optimizer=optax.adam(1e-3),
        batch_size=8,
    )
    shards = data.uniform(train, num_agents=2)
    _, history = fj.run(jax.random.key(0), federation, shards, train, num_rounds=1)
    assert history.accuracies[-1].min() > 0.5


@pytest.mark.parametrize(
    "encoded",
    [None, [[2], [3.0]], [[2], ["3"]], [[2]], [[2], [3], [4]], [2, 3], [[2], [2**40]], [[2], [-1]]],
)
def test_what_a_tokenizer_returns_is_checked(encoded):
    arrays = {"x_train": np.array([b"a b", b"c"]), "y_train": np.arange(2), "num_classes": 2}
    tokenizer = text.Tokenizer(lambda sentences: encoded, 10)
    with pytest.raises(ValueError, match="`tokenizer.encode` must return 2 lists of whole numbers"):
        text.tokenised("rt_polarity", {**arrays}, tokenizer)
