"""Data sets load by name from TFDS's own files, and from the cache the second time."""

import errno
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

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


def without(*keys):
    def change(file: Path):
        with np.load(file) as arrays:
            kept = {key: array for key, array in arrays.items() if key not in keys}
        np.savez(file, **kept)

    return change


def changed(**arrays):
    def change(file: Path):
        with np.load(file) as found:
            np.savez(file, **{**found, **arrays})

    return change


def with_a_changed_byte(where):
    def change(file: Path):
        content = bytearray(file.read_bytes())
        content[int(where * len(content))] ^= 1
        file.write_bytes(content)

    return change


def as_one_array(file: Path):
    with file.open("wb") as content:
        np.save(content, np.ones(3))


def as_other_zip(file: Path):
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("x_train", "y_train", "num_classes"):
            archive.writestr(name, "text")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a zip"),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        as_one_array,
        lambda file: file.write_bytes(b"\x80\x04N."),  # a pickle
        as_other_zip,
        without("num_classes"),
        without("y_test"),
        without("x_train", "y_train"),
        changed(x_train=np.ones((30, *SHAPE))),
        changed(x_train=np.ones((30, 3), np.uint8)),
        changed(y_test=np.ones(3, np.int32)),
        *map(with_a_changed_byte, np.linspace(0, 0.99, 23)),
    ],
)
def test_a_damaged_cache_is_made_anew(prepared, cache, damage):
    data.load("tiny_pictures", data_dir=prepared)
    (file,) = cache.iterdir()
    with np.load(file) as arrays:
        whole = dict(arrays)
    damage(file)
    assert_standardised(*data.load("tiny_pictures", data_dir=prepared))
    assert list(cache.iterdir()) == [file]
    with np.load(file) as arrays:
        assert arrays.keys() == whole.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, whole[key])


def test_a_full_disk_leaves_no_half_a_cache(prepared, cache, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert_standardised(*data.load("tiny_pictures", data_dir=prepared))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_not_fatal(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_standardised(*data.load("tiny_pictures", data_dir=prepared))


def record(folder, split="train"):
    return next(folder.glob(f"*-{split}.array_record*"))


def cut_to_half(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_other_lengths(folder: Path):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["9"]
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut_to_half(record(folder)),
        lambda folder: cut_to_half(record(folder, "test")),
        lambda folder: record(folder, "test").unlink(),
        lambda folder: record(folder).write_bytes(b""),
        lambda folder: record(folder).write_bytes(b"hello" * 20_000),
        lambda folder: shutil.copy(record(folder, "test"), record(folder)),
        with_other_lengths,
        *(
            lambda folder, name=name, content=content: (folder / name).write_bytes(content)
            for name in ("dataset_info.json", "features.json")
            for content in (b"", b"{}", b"null", b"[]", b"\xff\xfe", b'{"pythonClassName": "no.Th')
        ),
        lambda folder: (folder / "dataset_info.json").unlink(),
        lambda folder: (folder / "features.json").unlink(),
        lambda folder: folder.rename(folder.parent / "latest"),
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ],
)
def test_a_damaged_folder_is_named_with_what_to_do(prepared, tmp_path, cache, damage):
    shutil.copytree(prepared / "tiny_pictures", tmp_path / "tiny_pictures")
    damage(tmp_path / "tiny_pictures" / "1.0.0")
    with pytest.raises(data.DataUnavailableError, match="cannot be read.*complete copy") as caught:
        data.load("tiny_pictures", data_dir=tmp_path)
    assert f"in {tmp_path / 'tiny_pictures'}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not cache.exists()


@pytest.mark.parametrize(
    "name", ["", "..", "/", "/etc", "a/../b", "digits ", "mnist\n", "a\0b", "x" * 5000, "~"]
)
def test_a_name_that_cannot_be_one_is_unknown(name, tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset"):
        data.load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", [3, None, ["digits"], b"digits", Path("digits"), np.arange(2)])
def test_what_is_no_name_of_a_data_set_is_refused(name):
    with pytest.raises(ValueError, match="`name` must be the name of a data set"):
        data.load(name)


@pytest.mark.parametrize("data_dir", [3, ["/tmp"], b"/tmp", "a\0b", "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused(data_dir):
    with pytest.raises(ValueError, match="`data_dir` must be the path of a folder"):
        data.load("mnist", data_dir=data_dir)


@pytest.mark.slow
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
