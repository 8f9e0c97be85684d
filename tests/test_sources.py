"""Data sets load by name, through TFDS's own files, and come from the cache the second time."""

import io
import os

import numpy as np
import PIL.Image
import pytest

from fairjax import data

TRAIN, TEST = 30, 12
SHAPE = (6, 5, 3)


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(split))
    size = TRAIN if split == "train" else TEST
    return rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8), np.arange(size) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fairjax"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS data directory with one tiny data set, written by TFDS without TensorFlow."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    with tfds.core.registered.skip_registration():

        class TinyPictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            # TFDS looks for metadata beside a builder's module, if that is in a package.
            pkg_dir_path = folder

            def _info(self):
                image = tfds.features.Image(shape=SHAPE, encoding_format="png")
                label = tfds.features.ClassLabel(num_classes=3)
                features = tfds.features.FeaturesDict({"image": image, "label": label})
                return self.dataset_info_from_configs(
                    features=features, supervised_keys=("image", "label")
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in ("train", "test")}

            def _generate_examples(self, split):
                for row, (image, label) in enumerate(zip(*pictures(split), strict=True)):
                    # Encoded by Pillow: TFDS would encode an array with TensorFlow.
                    file = io.BytesIO()
                    PIL.Image.fromarray(image).save(file, format="PNG")
                    yield row, {"image": io.BytesIO(file.getvalue()), "label": int(label)}

    TinyPictures(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def assert_standardised(train, test):
    images = pictures("train")[0] / 255
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    for dataset, split in ((train, "train"), (test, "test")):
        expected = (pictures(split)[0] / 255 - mean) / std
        found = sorted(map(tuple, dataset.x.reshape(len(dataset), -1)[:, :4].tolist()))
        wanted = sorted(map(tuple, expected.reshape(len(dataset), -1)[:, :4].tolist()))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "blobs"])
def test_embedded_data_are_cut_the_same_way_every_time(name):
    for first, second in zip(data.load(name), data.load(name), strict=True):
        np.testing.assert_array_equal(first.x, second.x)
        assert first.x.dtype == np.float32
        assert len(np.unique(first.y)) == first.num_classes == 10


def test_digits_are_cut_as_published():
    train, test = data.load("digits")
    assert train.x.shape == (1437, 8, 8, 1)
    assert len(test) == 360
    assert train.x.max() == 1


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset 'mnits'. Did you mean 'mnist'"):
        data.load("mnits", data_dir=tmp_path)


def test_a_prepared_set_loads_by_name_standardised_by_channel(prepared):
    train, test = data.load("tiny_pictures", data_dir=prepared)
    assert train.x.shape == (TRAIN, *SHAPE)
    assert train.num_classes == 3
    assert_standardised(train, test)


def test_the_data_directory_may_come_from_the_environment(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(data.load("tiny_pictures")[1]) == TEST


def test_loading_does_not_print(prepared, capfd):
    data.load("tiny_pictures", data_dir=prepared)
    assert capfd.readouterr().out == ""


def test_the_second_load_is_the_same_and_comes_from_the_cache(prepared, cache):
    first = data.load("tiny_pictures", data_dir=prepared)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    second = data.load("tiny_pictures", data_dir=prepared)
    np.testing.assert_array_equal(first[0].x, second[0].x)
    assert file.stat().st_mtime_ns == written


def test_changed_files_are_noticed(prepared, cache):
    data.load("tiny_pictures", data_dir=prepared)
    record = next(prepared.rglob("*train*array_record*"))
    os.utime(record, ns=(1, 1))
    data.load("tiny_pictures", data_dir=prepared)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_cache_is_made_anew(prepared, cache, damage):
    data.load("tiny_pictures", data_dir=prepared)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert_standardised(*data.load("tiny_pictures", data_dir=prepared))
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_not_fatal(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_standardised(*data.load("tiny_pictures", data_dir=prepared))


def test_mnist_is_padded_and_standardised():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not os.path.isdir(os.path.join(folder, "mnist")):
        pytest.skip("TFDS_DATA_DIR does not point to a folder with a prepared mnist")
    train, test = data.load("mnist")
    assert train.x.shape == (60000, 32, 32, 1)
    assert test.x.shape == (10000, 32, 32, 1)
    np.testing.assert_allclose(train.x[0, 0, 0, 0], -0.1307 / 0.3081, atol=1e-3)
    inner = train.x[:, 2:-2, 2:-2].astype(np.float64)
    np.testing.assert_allclose([inner.mean(), inner.std()], [0, 1], atol=1e-4)
