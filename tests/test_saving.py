"""An agent's model taken out of a result, and parameters in files."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax

import fairjax as fj

PARAMS = {"hidden": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "head": jnp.ones(4, jnp.bfloat16)}


def test_parameters_come_back_as_they_were_saved(tmp_path):
    fj.save_params(tmp_path / "model.safetensors", PARAMS)
    found = fj.load_params(tmp_path / "model.safetensors")
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda x: x.dtype, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, PARAMS)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
        np.arange(6.0).reshape(2, 3).T, np.arange(6.0)[::-2], np.arange(6).reshape(2, 3)[:, 1],
        np.broadcast_to(np.float32(3), (2, 3)), np.float32(2),
    ],
)  # fmt: skip
def test_arrays_of_any_layout_are_saved_as_they_are(array, tmp_path):
    fj.save_params(tmp_path / "model.safetensors", {"w": array})
    np.testing.assert_array_equal(flax.load_file(tmp_path / "model.safetensors")["w"], array)


def test_a_dtype_that_is_not_read_again_is_refused(tmp_path):
    for array in (np.ones(2, np.complex128), jnp.ones(2, jnp.complex64)):
        with pytest.raises(
            ValueError, match=f"`params` must hold arrays of .*{array.dtype} in 'w'"
        ):
            fj.save_params(tmp_path / "model.safetensors", {"w": array})
    with pytest.raises(ValueError, match="`params` must be nested dicts"):
        fj.save_params(tmp_path / "model.safetensors", {"__metadata__": np.ones(2)})


def test_another_program_reads_the_file_without_fairjax(tmp_path):
    fj.save_params(tmp_path / "model.safetensors", {"hidden": {"kernel": np.eye(2)}})
    lines = (
        "import sys, safetensors.numpy; "
        "print({k: v.tolist() for k, v in safetensors.numpy.load_file(sys.argv[1]).items()}); "
        "assert 'fairjax' not in sys.modules"
    )
    command = [sys.executable, "-c", lines, str(tmp_path / "model.safetensors")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "{'hidden/kernel': [[1.0, 0.0], [0.0, 1.0]]}"


@pytest.mark.parametrize(
    "params", [3, {}, [np.ones(2)], {"a/b": np.ones(2)}, {1: np.ones(2)}, {"a": "text"}]
)
def test_what_has_no_names_is_not_saved(params, tmp_path):
    with pytest.raises(ValueError, match="`params` must be nested dicts of arrays, with keys"):
        fj.save_params(tmp_path / "model.safetensors", params)
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`path` must be a file to read, got .*missing: No such"):
        fj.load_params(tmp_path / "missing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="`path` must be a safetensors file, got .*text"):
        fj.load_params(tmp_path / "text")
    flax.save_file({"a": jnp.ones(4), "a/b": jnp.ones(2)}, tmp_path / "clash")
    with pytest.raises(ValueError, match="`path` must hold .*, where 'a' is an array and holds"):
        fj.load_params(tmp_path / "clash")


@pytest.mark.slow
def test_an_agents_model_is_the_one_that_was_evaluated():
    experiment = fj.Experiment(num_agents=2, rounds=1, model="logistic", mechanism="fedavg")
    result = experiment.run()
    shards, test = experiment.make_shards()
    params = result.agent(1)
    logits = fj.models.logistic(shards.data).apply(params, test.x)
    accuracy = (np.asarray(logits).argmax(1) == test.y).mean()
    assert accuracy == pytest.approx(result.accuracies[1], abs=1e-6)
    for number in (2, -1, "0"):
        with pytest.raises(ValueError, match="`number` must be"):
            result.agent(number)
    with pytest.raises(ValueError, match="`agent` needs the final state"):
        fj.sweep(experiment, seeds=[0])[0].agent(0)


def test_numbers_of_64_bits_are_written_whole_and_not_cut_when_read(tmp_path):
    path = tmp_path / "wide.safetensors"
    fj.save_params(path, {"d": np.array([1e300, 1 + 1e-12]), "b": np.array(True)})
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(path)["d"], [1e300, 1 + 1e-12])
    assert load_file(path)["b"].shape == ()
    fj.save_params(path, {"a": {"i": np.array([2**40 + 7])}})
    np.testing.assert_array_equal(load_file(path)["a/i"], [2**40 + 7])
    with pytest.raises(ValueError, match="'a/i' has 64. Enable jax_enable_x64"):
        fj.load_params(path)


@pytest.mark.parametrize(
    "leaf",
    [
        fj.LowRank(np.ones((2, 2)), np.ones((2, 2))), jax.random.key(0), np.array(["a"]),
        np.array([{}]), 3.0, {},
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_not_written(leaf, tmp_path):
    with pytest.raises(ValueError, match="`params` must be nested dicts of arrays"):
        fj.save_params(tmp_path / "a", {"k": leaf, "other": np.ones(2)})
    assert not (tmp_path / "a").exists()
