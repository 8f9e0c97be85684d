"""Tracking: tools get the numbers of the history, each round once."""

import csv
import dataclasses
import importlib.util
import json
import math
import struct
import types

import numpy as np
import pytest

import fairjax as fj
from fairjax.experiments import tracking

SMALL = fj.Experiment(
    num_agents=3, rounds=5, model="logistic", samples_per_agent=20, eval_every=2, local_epochs=1
)
COLUMNS = {
    "participates": "participants",
    "accuracy": "accuracies",
    "trained_accuracy": "trained_accuracies",
    "contribution": "contributions",
    "importance": "importance",
    "fraction": "fractions",
    "excluded": "excluded",
}


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"needs {package}: pip install {package}")


def stopping(after):
    def watch(name, done, total):
        if name != "standalone" and done >= after:
            raise KeyboardInterrupt

    return watch


def run_in_two_parts(out, track):
    """Stops a run after its last checkpoint, so that tools hold more rounds than it does."""
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(out, watch=stopping(after=3), track=track)
    return SMALL.run(out, track=track)


def wanted(history):
    """All scalars of a history that are known, by round and name."""
    found = {}
    for number in range(5):
        for name, field in COLUMNS.items():
            for agent, value in enumerate(getattr(history, field)[number]):
                found[number + 1, f"{name}/agent_{agent}"] = float(value)
        found[number + 1, "accuracy/server"] = float(history.server_accuracies[number])
    return {key: value for key, value in found.items() if not math.isnan(value)}


@pytest.mark.slow
def test_csv_holds_the_history_and_each_round_once(tmp_path):
    history = run_in_two_parts(tmp_path, "csv").history
    with (tmp_path / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    places = [(int(line["round"]), int(line["agent"])) for line in lines]
    assert places == [(number + 1, agent) for number in range(5) for agent in range(3)]
    for line, (number, agent) in zip(lines, places, strict=True):
        for name, field in COLUMNS.items():
            value = getattr(history, field)[number - 1, agent]
            assert line[name] == "" if np.isnan(value) else np.float32(line[name]) == value
        server = history.server_accuracies[number - 1]
        text = line["server_accuracy"]
        assert text == "" if np.isnan(server) else np.float32(text) == server
    assert lines[0]["accuracy"] == ""
    assert lines[3]["accuracy"] != ""


@pytest.mark.slow
def test_a_finished_run_that_is_found_again_writes_nothing(tmp_path):
    SMALL.run(tmp_path, track="csv")
    (tmp_path / "rounds.csv").unlink()
    SMALL.run(tmp_path, track="csv")
    assert not (tmp_path / "rounds.csv").exists()


@pytest.mark.slow
def test_only_the_run_itself_is_tracked_and_standalone_where_it_is_that(tmp_path):
    SMALL.run(tmp_path / "run", track=["csv"])
    assert [path.parent.name for path in tmp_path.rglob("rounds.csv")] == ["run"]
    SMALL.alone().run(tmp_path / "alone", track="csv")
    text = (tmp_path / "alone" / "rounds.csv").read_text()
    assert "nan" not in text


def events(folder):
    """Reads event files: length, checksum, a message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in folder.glob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:
            length = struct.unpack("<Q", content[:8])[0]
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


@pytest.mark.slow
@needs("tensorboardX")
def test_tensorboard_holds_the_history_and_each_round_once(tmp_path):
    result = run_in_two_parts(tmp_path, "tensorboard")
    folder = tmp_path / "tensorboard"
    found = [
        ((event.step, value.tag), value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    ]
    assert dict(found) == wanted(result.history)
    assert len(found) == len(dict(found))
    at_the_end = {
        value.tag: value.simple_value
        for event in events(folder / "settings")
        for value in event.summary.value
    }
    assert at_the_end["fairness"] == np.float32(result.fairness)
    assert b"learning_rate" in b"".join(
        path.read_bytes() for path in (folder / "settings").iterdir()
    )


def wandb_records(path):
    """Reads a run's file, a log of LevelDB: blocks of parts that begin with 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += -place % 2**15
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@needs("wandb")
def test_wandb_holds_the_history_and_each_round_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = run_in_two_parts(tmp_path, "wandb")
    [path] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for record in wandb_records(path):
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        found += [
            ((items["_step"], name), value)
            for name, value in items.items()
            if not name.startswith("_")
        ]
    assert dict(found) == pytest.approx(wanted(result.history))
    assert len(found) == len(dict(found))


@pytest.mark.slow
def test_wandb_is_not_sent_the_rounds_that_its_server_has(tmp_path, monkeypatch):
    sent, run = [], types.SimpleNamespace(starting_step=3, summary={}, finish=lambda: None)
    run.log = lambda scalars, step: sent.append(step)
    monkeypatch.setattr(
        tracking, "_package", lambda name: types.SimpleNamespace(init=lambda **settings: run)
    )
    result = SMALL.run(tmp_path, track="wandb")
    assert sent == [3, 4, 5]
    assert run.summary["fairness"] == result.fairness


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("cvs", "Unknown track 'cvs'. Did you mean 'csv'"),
        ("csv, tensorbord", "Did you mean 'tensorboard'"),
    ],
)
def test_an_unknown_tool_is_refused(track, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SMALL.run(tmp_path, track=track)


def test_tracking_needs_a_directory():
    with pytest.raises(ValueError, match="`track` needs `out`"):
        SMALL.run(track="csv")


def test_a_tool_that_is_not_installed_is_refused_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install '\.\[wandb\]'"):
        SMALL.run(tmp_path / "run", track="wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mechanism_that_does_not_judge_leaves_its_scalars_out(tmp_path):
    dataclasses.replace(SMALL, mechanism="fedavg").run(tmp_path, track="csv")
    with (tmp_path / "rounds.csv").open(newline="") as file:
        assert {line["contribution"] for line in csv.DictReader(file)} == {""}
