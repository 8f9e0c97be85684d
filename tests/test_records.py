"""Records survive a killed process, a damaged file, a full disk and a second process."""

import dataclasses
import errno
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import fairjax as fj
from fairjax import files, simulation
from fairjax.cli import endings, main
from fairjax.experiments import checkpoints, records
from fairjax.files import DamagedError
from fairjax.simulation import federations

SMALL = fj.Experiment(
    num_agents=3, rounds=40, model="logistic", samples_per_agent=20, local_epochs=1, eval_every=10
)


class StoppedError(Exception):
    """Stops a run in the middle."""


def stop(name, done, total):
    if name == "cgsv" and done >= 20:
        raise StoppedError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of a finished run, and of one that was stopped with two checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairjax.experiments.playing.CHECKPOINT_SECONDS", (0.0, 0.0))
        SMALL.run(folder / "finished")
        with pytest.raises(StoppedError):
            SMALL.run(folder / "stopped", watch=stop)
    return folder


@pytest.fixture(autouse=True)
def interruptible():
    """Restores SIGINT: a process that was started in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def finished(runs, tmp_path):
    return shutil.copytree(runs / "finished", tmp_path / "run")


@pytest.fixture
def stopped(runs, tmp_path):
    return shutil.copytree(runs / "stopped", tmp_path / "run")


def assert_same(first, second):
    for one, other in (
        (first.history, second.history),
        (first.standalone_accuracies, second.standalone_accuracies),
        (first.shard_sizes, second.shard_sizes),
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert (first.experiment, first.behaviours) == (second.experiment, second.behaviours)
    if second.state is not None:
        jax.tree.map(np.testing.assert_array_equal, first.state.agents, second.state.agents)


def steps(out):
    return sorted(int(folder.name) for folder in (out / "checkpoint").iterdir())


def flip_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def become_folder(path, rng):
    path.unlink()
    path.mkdir()


DAMAGES = [flip_bit, cut, become_folder]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"null", b"[1]", b"7", b"\xff\xfe{}", None])
def test_json_of_another_kind_is_named_with_its_file(content, tmp_path):
    path = tmp_path / "result.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"result\.json (is not a record|cannot be read)"):
        records.read_json(path, ("fairness",))


def test_a_digit_that_changed_is_found(tmp_path):
    path = tmp_path / "result.json"
    records.write_json(path, {"fairness": 0.75, "nothing": float("nan")})
    assert records.read_json(path) == {"fairness": 0.75, "nothing": None}
    path.write_text(path.read_text().replace("0.75", "0.76"))
    with pytest.raises(DamagedError, match=r"result\.json is damaged"):
        records.read_json(path)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    records.write_json(path, {"fairness": 0.5})

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*result.json"):
        records.write_json(path, {"fairness": 0.6})
    assert records.read_json(path) == {"fairness": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_of_a_finished_run_gives_the_same_bits_or_one_sentence(seed, runs, finished):
    rng = random.Random(seed)
    paths = [path for path in sorted(finished.rglob("*")) if path.is_file()]
    path = rng.choice([path for path in paths if ("checkpoint" in path.parts) == (seed % 2 == 0)])
    rng.choice(DAMAGES)(path, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = fj.load_run(finished)
        except DamagedError as damage:
            said = str(damage)
        else:
            assert_same(fj.load_run(runs / "finished"), result)
            return
    assert path.name in said


@pytest.mark.slow
@pytest.mark.parametrize("name", [records.RESULT, records.HISTORY])
def test_what_can_be_rebuilt_is_rebuilt(name, runs, finished):
    (finished / name).write_bytes(b"{}")
    with pytest.warns(UserWarning, match=f"{name} .* is rewritten"):
        first = fj.load_run(finished)
    assert_same(fj.load_run(runs / "finished"), first)
    assert_same(first, fj.load_run(finished))


@pytest.mark.slow
def test_a_finished_run_is_shown_without_its_checkpoint(runs, finished, capsys):
    shutil.rmtree(finished / "checkpoint")
    result = fj.load_run(finished)
    assert_same(fj.load_run(runs / "finished"), result)
    assert result.state is None
    main(["show", str(finished)])
    assert f"{100 * result.accuracies[0]:.2f}" in capsys.readouterr().out


def test_damaged_times_are_counted_anew(finished):
    (finished / records.TIME).write_text("null")
    with pytest.warns(UserWarning, match=r"time\.json .* Time is counted from here on"):
        assert records.read_times(finished) == {}
    fj.load_run(finished)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(runs, stopped):
    before, last = steps(stopped)
    become_folder(next((stopped / "checkpoint" / str(last)).rglob("*.zarray")), None)
    message = f"checkpoint after {last} rounds .* cannot be read. .* after {before} rounds"
    with pytest.warns(UserWarning, match=message):
        result = SMALL.run(stopped)
    assert_same(fj.load_run(runs / "finished"), result)


def test_a_run_without_a_whole_checkpoint_names_the_folder_and_the_remedy(runs, stopped):
    for path in (stopped / "checkpoint").rglob("_METADATA"):
        path.write_text("")
    with pytest.raises(DamagedError, match=rf"{stopped}/checkpoint can be read. .*resume=False"):
        SMALL.run(stopped)
    assert_same(fj.load_run(runs / "finished"), SMALL.run(stopped, resume=False))


def test_a_damaged_description_can_be_started_over(stopped):
    (stopped / records.EXPERIMENT).write_bytes(b"\xff")
    with pytest.raises(DamagedError, match=r"experiment\.json .*resume=False"):
        SMALL.run(stopped)
    SMALL.run(stopped, resume=False)


def test_infinity_is_kept_where_json_has_none(tmp_path):
    values = [1.5, np.inf, -np.inf, np.nan]
    records.write_json(tmp_path / records.RESULT, {"standalone_accuracies": values})
    json.loads((tmp_path / records.RESULT).read_text(), parse_constant=pytest.fail)
    np.testing.assert_array_equal(records.read_standalone_accuracies(tmp_path, 4), values)


@pytest.mark.parametrize("content", ["{}", "null", '{"mechanisms": 3}', '{"mechanisms": ["x"]}'])
def test_a_damaged_comparison_is_named(content, tmp_path):
    (tmp_path / records.COMPARISON).write_text(content)
    with pytest.raises(DamagedError, match=r"comparison\.json"):
        fj.experiments.load_comparison(tmp_path)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_in_a_folder_is_told_so_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / files.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        for action in (SMALL.run, lambda out: fj.compare(SMALL, ["cgsv"], out)):
            with pytest.raises(ValueError, match="`out` must not be in use, .*another process"):
                action(tmp_path)
        other.kill()
    with files.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def progress():
    experiment = dataclasses.replace(SMALL, rounds=1)
    shards, test = experiment.make_shards()
    state, rows = simulation.Rounds(
        jax.random.key(0), experiment.federation(shards), shards, test, num_rounds=1
    ).beginning()
    one_row = jax.tree.map(lambda row: np.zeros((1, *row.shape[1:]), row.dtype), rows)
    return simulation.Progress(state, one_row)


def test_a_checkpoint_without_room_leaves_the_one_before_and_prints_nothing(
    progress, tmp_path, capfd
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(progress)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*checkpoint"):
            saved.save(progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert saved.load(progress).num_rounds == 1
    saved.save(progress)
    assert steps(tmp_path) == [1]
    assert capfd.readouterr() == ("", "")


def test_a_signal_during_a_checkpoint_takes_effect_when_it_is_whole(
    progress, tmp_path, monkeypatch
):
    rename = Path.rename

    def interrupted(path, target):
        signal.raise_signal(signal.SIGINT)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.Checkpoints(tmp_path).save(progress)
    assert steps(tmp_path) == [1]


@pytest.mark.slow
def test_an_array_of_more_than_a_gigabyte_is_saved(progress, tmp_path):
    state = progress.state._replace(mechanism=jax.numpy.zeros((5, 2**26)))  # 1.3 GB
    large = progress._replace(state=state)
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(large)
    assert saved.load(large).state.mechanism.shape == (5, 2**26)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_a_sentence_that_promises_no_more_than_there_is(
    number, stopped, tmp_path, capsys
):
    for out, said in ((stopped, "from the last checkpoint"), (tmp_path / "new", "no checkpoint")):
        with (
            pytest.raises(SystemExit) as ended,
            endings.end_with_sentence(),
            endings.resumable(out, resume=True),
        ):
            signal.raise_signal(number)
        assert ended.value.code == 128 + number
        printed = capsys.readouterr().err
        assert printed.startswith("fairjax: stopped. ")
        assert said in " ".join(printed.split())


def test_a_signal_that_falls_into_a_finalizer_is_not_lost(capsys):
    class Falls:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def fall():
        Falls()
        time.sleep(10)

    with pytest.raises(SystemExit) as ended, endings.end_with_sentence():
        fall()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "fairjax: stopped.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_gives_one_sentence(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["list"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "fairjax: No space left on device: standard output.\n"


def test_a_warning_is_told_as_a_sentence(capsys):
    with endings.end_with_sentence():
        warnings.simplefilter("always")
        warnings.warn("time.json is damaged.", stacklevel=1)
    assert capsys.readouterr().err == "fairjax: time.json is damaged.\n"


def test_records_are_json_that_anybody_reads(finished):
    summary = json.loads((finished / records.RESULT).read_text())
    assert len(summary[records.DIGEST]) == 64
    assert len(summary["accuracies"]) == 3


@pytest.mark.slow
def test_a_resumed_run_measures_as_many_agents_at_once_as_the_first_sitting(tmp_path, monkeypatch):
    # As on an accelerator, where the number is picked for the device.
    monkeypatch.setattr("fairjax.simulation.federations.pick_agents_at_once", lambda *given: 3)
    monkeypatch.setattr("fairjax.experiments.playing.CHECKPOINT_SECONDS", (0.0, 0.0))
    seen, measure = [], federations.measure_agents

    def spy(*given):
        seen.append(given[4])
        return measure(*given)

    monkeypatch.setattr("fairjax.simulation.federations.measure_agents", spy)
    experiment = dataclasses.replace(SMALL, num_agents=3, mechanism="fedavg")

    def stop_early(name, done, total):
        if name == "fedavg" and done >= 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        experiment.run(tmp_path / "run", watch=stop_early)
    assert set(seen) == {3}
    seen.clear()
    jax.clear_caches()
    experiment.run(tmp_path / "run")
    assert set(seen) == {3}
