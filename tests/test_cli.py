"""The command line, run as a user would, in this process."""

import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
from rich.text import Text

import fairjax as fj
from fairjax.cli import main
from fairjax.cli.terminal import print_lines
from fairjax.experiments import ONLY_PYTHON
from fairjax.simulation import DATA, UPLOADS
from fairjax.studies import STUDIES

SMALL = ["--num-agents", "3", "--rounds", "2", "--model", "logistic", "--samples-per-agent", "20"]


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_run_prints_a_row_per_agent_and_leaves_records_and_figures(tmp_path, capsys):
    out = tmp_path / "run"
    main(["run", *SMALL, "--out", str(out)])
    printed = capsys.readouterr().out
    result = fj.load_run(out)
    for agent in range(3):
        row = next(line for line in printed.splitlines() if re.match(rf"│ +{agent} │", line))
        assert f"{100 * result.accuracies[agent]:.2f}" in row
        assert f"{100 * result.standalone_accuracies[agent]:.2f}" in row
        assert f"{result.history.importance[-1, agent]:.3f}" in row
    assert "Fairness" in printed
    assert f"Report: {out / 'report.html'}" in printed
    assert (out / "report.html").exists()
    drawn = ("partition", "accuracy", "contributions", "importance", "reward_fractions", "fairness")
    for name in drawn:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_large_run_says_beforehand_how_much_memory_it_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fairjax.cli.beforehand.LARGE", 2**16)
    main(["run", *SMALL, "--out", str(tmp_path / "run")])
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "The run takes about 0.0 GiB of memory"
    main(["run", *SMALL, "--out", str(tmp_path / "run")])  # it is finished
    assert "GiB" not in capsys.readouterr().out


def test_tracking_from_the_command_line_leaves_its_files(tmp_path):
    main(["run", *SMALL, "--track", "csv", "--out", str(tmp_path)])
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.slow
def test_show_prints_the_table_of_a_run_again(tmp_path, capsys):
    main(["run", *SMALL, "--out", str(tmp_path / "run")])
    first = capsys.readouterr().out
    main(["show", str(tmp_path / "run")])
    assert capsys.readouterr().out == first


@pytest.mark.slow
def test_the_same_command_finds_its_directory_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["run", *SMALL])
    assert len(list((tmp_path / "runs").iterdir())) == 1
    main(["run", *SMALL, "--seed", "1"])
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_a_flag_that_occurs_twice_adds_to_what_it_gave(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--behaviours", "idle=1", "--behaviours", "sign_flip=1"]
    main(["run", *SMALL, *flags, "--out", str(one)])
    assert sorted(fj.load_run(one).behaviours) == ["honest", "idle", "sign_flip"]
    flags = ["--options", "contribution=shapley", "--options", "mask=live", "contribution=gram"]
    assert "`options` must hold every name once" in failure(
        capsys, "run", *SMALL, *flags, "--out", str(two)
    )
    twice = failure(capsys, "run", *SMALL, "--local-epochs", "0=1,0=2", "--out", str(two))
    assert "`local_epochs` must be a whole number" in twice
    assert not two.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --metric r2", "The metric 'r2' needs numbers"),
        ("compare --mechanisms cgsv --seeds 0:2 --metric r2", "The metric 'r2' needs numbers"),
        ("audit --agents 0,3", "`agents` must be at most 2"),
        ("audit --seeds 3:3", "`seeds` must be different values"),
        ("compare --mechanisms cgsv --seeds 0,-4000000000", "`seed` must be a whole number"),
        ("run --lora-rank 2", "Adapters need a model with a matrix besides its output layer"),
        ("run --learning-rate-decay 1.1", r"in \(0, 1\]"),
        ("run --task {here}:wrong", "`task` must be a function .* fails: TypeError"),
        ("run --mechanism {here}:boom", "`mechanism` must be a function .* fails: KeyError"),
    ],
)
def test_a_mistake_that_is_found_late_leaves_no_folder(words, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def wrong():\n    return 3\n\n\ndef boom():\n    raise KeyError('x')\n"
    )
    name, *flags = words.format(here=tmp_path / "mine.py").split()
    said = failure(capsys, name, *SMALL, *flags, "--out", str(tmp_path / "out"))
    assert re.search(message, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_table_as_a_pipe_does():
    command = [sys.executable, "-m", "fairjax", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(timeout=120) == 141


@pytest.mark.slow
def test_options_reach_the_mechanism(tmp_path):
    main(["run", *SMALL, "--options", "mask=leaf", "contribution=shapley", "--out", str(tmp_path)])
    options = dict(fj.load_run(tmp_path).experiment.options)
    assert options == {"mask": "leaf", "contribution": "shapley"}


def test_compare_prints_a_row_per_mechanism(tmp_path, capsys):
    main(["compare", *SMALL, "--mechanisms", "cgsv, fedavg", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"│ cgsv ", printed)
    assert re.search(r"│ fedavg ", printed)
    assert "all final accuracies are equal" in printed


@pytest.mark.slow
def test_comparisons_of_other_mechanisms_keep_their_own_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for names in ("fedavg", "standalone,fedavg"):
        main(["compare", *SMALL, "--mechanisms", names])
    assert len(list((tmp_path / "runs").rglob("comparison.json"))) == 2


@pytest.mark.slow
def test_a_comparison_does_not_take_over_the_directory_of_a_run(tmp_path, capsys):
    main(["run", *SMALL, "--out", str(tmp_path)])
    capsys.readouterr()
    message = failure(capsys, "compare", *SMALL, "--mechanisms", "fedavg", "--out", str(tmp_path))
    assert "`out` must not be the directory of another run" in message


@pytest.mark.slow
def test_tracking_a_finished_run_says_that_there_is_nothing_to_follow(tmp_path, capsys):
    for _ in range(2):
        main(["run", *SMALL, "--out", str(tmp_path), "--track", "csv"])
    assert "`track` has nothing to follow" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_fairness_over_honest_agents_is_told_where_others_are_not(tmp_path, capsys):
    flags = ["--num-agents", "6", "--behaviours", "free_rider_noise=2"]
    main(["run", *SMALL, *flags, "--out", str(tmp_path)])
    result = fj.load_run(tmp_path)
    honest = [agent for agent, name in enumerate(result.behaviours) if name == "honest"]
    expected = fj.metrics.fairness(result.standalone_accuracies[honest], result.accuracies[honest])
    assert len(honest) == 4
    assert result.honest_fairness == expected
    assert f"Fairness over honest agents alone: {expected:.3f}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"fairjax {importlib.metadata.version('fairjax')}\n"


def test_a_folder_of_an_audit_is_shown_by_its_page(capsys, tmp_path):
    (tmp_path / "audit.json").write_text("{}")
    said = failure(capsys, "show", str(tmp_path))
    assert f"which holds an audit. Its page is {tmp_path / 'report.html'}." in said


def test_list_names_all_there_is(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    for registry in (fj.mechanisms.REGISTRY, fj.data.DATASETS, fj.data.SPLITS, fj.models.REGISTRY):
        assert all(f" {name} " in printed for name in registry)


def test_list_explains_each_name_on_one_line_of_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    registries = (
        fj.mechanisms.REGISTRY, fj.data.DATASETS, fj.data.SPLITS, {**DATA, **UPLOADS}, STUDIES,
        fj.models.REGISTRY, fj.tasks.TASKS, fj.tasks.METRICS,
    )  # fmt: skip
    assert len(lines) == sum(1 + len(registry) for registry in registries)
    assert max(map(len, lines)) <= 80


def test_help_groups_every_field_of_an_experiment_and_says_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    printed = capsys.readouterr().out
    for field in dataclasses.fields(fj.Experiment):
        is_flag = field.metadata["group"] != ONLY_PYTHON
        assert bool(re.search(rf"--{field.name.replace('_', '-')}\b(?!-)", printed)) == is_flag
        assert (f" {field.metadata['group']} options " in printed) == is_flag
    words = " ".join(printed.replace("│", " ").split())
    assert "altruism degree, above 0: the larger" in words
    assert "(default: chosen for the data set)" in words
    assert "None" not in words
    assert max(map(len, printed.splitlines())) <= 80


def test_a_progress_bar_shows_rounds_speed_and_time_and_only_when_entered(capsys):
    bar = fj.ProgressBar()
    with pytest.raises(ValueError, match=r"`with fj.ProgressBar\(\) as bar"):
        bar("cgsv", 0, 4)
    with bar:
        for done in (0, 1, 3, 4):
            bar("cgsv", done, 4)
    printed = capsys.readouterr()
    assert re.search(r"cgsv .* 4/4 rounds +[\d.e+]+/s 0:00:0\d", printed.err)
    assert printed.out == ""


@pytest.mark.slow
def test_shells_complete_flags_and_names(tmp_path):
    command = "from fairjax.cli import main; main()"
    path = tmp_path / "completion"
    given = [sys.executable, "-c", command, "--tyro-write-completion", "bash", str(path)]
    written = subprocess.run(given, capture_output=True, text=True, check=True)
    assert (written.stdout, written.stderr) == ("", "")
    script = f"""
        source {path}
        COMP_WORDS=(fairjax run --mechanism shap) COMP_CWORD=3
        _tyro_fairjax && echo "${{COMPREPLY[*]}}"
        COMP_WORDS=(fairjax run --optim) COMP_CWORD=2
        _tyro_fairjax && echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["shapfed", "--optimizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--beta", "-1"], "`beta` must be a finite number above 0, got beta=-1.0."),
        (["run", "--rounds", "0"], "`rounds` must be a whole number of at least 1, got 0."),
        (["run", "--num-agents", "0"], "`num_agents` must be a whole number"),
        (["run", "--num-agents", "5000"], "`num_agents` must be at most the 1293 examples"),
        (["run", "--mechanism", "cgvs"], "Did you mean 'cgsv'?"),
        (["run", "--dataset", "digit"], "Did you mean 'digits'?"),
        (["run", "--options", "mask"], "of the form NAME=VALUE, got 'mask'"),
        (["run", "--model", "mnist_cnn"], "at least 20 x 20"),
        (["run", "--out", "/dev/null/run"], "`out` must be a directory that can be written"),
        (["run", "--track", "cvs"], "Did you mean 'csv'?"),
        (["compare", "--mechanisms", ""], "`mechanisms` must be different names"),
        (["compare", "--mechanisms", "cgsv,fedavgg"], "Did you mean 'fedavg'?"),
        (["show", "nowhere"], "got nowhere, which holds none"),
        ([], "A command must be given, one of run, compare, audit, study, show, list."),
        (["rnu"], "Unknown command 'rnu'. Did you mean 'run'?"),
        (["--rounds", "3", "run"], "Unknown command '--rounds'"),
        (
            ["run", "--bta", "1"],
            "Unknown flag '--bta'. Did you mean '--beta'? `fairjax run --help`",
        ),
        (
            ["audit", "--behaviours", "idle=1"],
            "Unknown flag '--behaviours'. `fairjax run` has it. `fairjax audit --help`",
        ),
        (["run", "--num_agent=3"], "Unknown flag '--num-agent'. Did you mean '--num-agents'?"),
        (["compare", "--mechanism", "cgsv"], "Did you mean '--mechanisms'?"),
        (["compare", "--mechanisms", "cgsv", "fedavg"], "Several names are separated by commas"),
        (["run", "--beta", "abc"], "`beta` must be a finite number above 0, got beta='abc'."),
        (
            ["run", "--num-agents", "x"],
            "`num_agents` must be a whole number of at least 1, got 'x'.",
        ),
        (["run", "--rounds", "3.0"], "`rounds` must be a whole number of at least 1, got 3.0."),
        (["run", "--num-agents", "None"], "`num_agents` must be a whole number"),
        (["run", "--rounds", "1000000000000"], "`rounds` must be at most 1,000,000"),
        (["run", "--mechanism"], "Missing value for argument '--mechanism'. Expected 1 values."),
        (["run", "--resume", "maybe"], "invalid choice 'maybe' for argument '--resume'."),
        (["run", "--record-updates", "yes"], "Unexpected 'yes' after `fairjax run`."),
        (["run", "--options", "beta=2"], "`options` must not hold `beta`"),
        (["run", "--options", "mask=leaf", "mask=model"], "every name once, got 'mask' twice"),
        (["run", "--behaviours", "foo"], "of the form NAME=NUMBER or NAME=NUMBER:STRENGTH"),
        (["run", "--behaviours", "foo=1"], "Unknown behaviour 'foo'"),
        (["run", "--devices", "0"], "`num_devices` must be a whole number of at least 1, got 0."),
        (["run", "--devices", "1000"], "`num_devices` must be at most 256"),
        (["run", "--num-processes", "x"], "`num_processes` must be a whole number"),
        (["show"], "Missing from fairjax show: DIR the directory of the run"),
        (["show", "nowhere", "else"], "Unexpected 'else' after `fairjax show`."),
        (["study"], "Missing from fairjax study: NAME the name of the study"),
        (["show", "of:smile:[red]"], "got of:smile:[red], which holds none"),
    ],
)
def test_a_mistake_gives_one_sentence_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = failure(capsys, *arguments)
    assert message in said
    assert said.startswith("fairjax: ")
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_tyro_says_is_one_line_in_any_encoding(encoding):
    command = [sys.executable, "-m", "fairjax", "run", "--resume", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    said = (
        "fairjax: invalid choice 'x' for argument '--resume'. Expected one of ('True', 'False').\n"
    )
    assert done.stderr == said


def printed_in_a_terminal(capsys, monkeypatch, width, *arguments):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    main(list(arguments))
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    # Paths are not wrapped, so that they can be copied.
    return [line.rstrip() for line in lines if not line.startswith(("Records", "Report"))]


@pytest.mark.slow
def test_a_narrow_terminal_shows_a_block_per_agent(tmp_path, capsys, monkeypatch):
    result = fj.Experiment(
        num_agents=3, rounds=2, model="logistic", samples_per_agent=20
    ).run(tmp_path)  # fmt: skip
    lines = printed_in_a_terminal(capsys, monkeypatch, 40, "show", str(tmp_path))
    assert max(map(len, lines)) <= 40
    assert not any("…" in line or "│" in line for line in lines)
    agent = lines[lines.index("agent 2") :]
    assert agent[1].split() == ["examples", f"{result.shard_sizes[2]}"]
    assert f"  importance    {result.history.importance[-1, 2]:.3f}" in agent
    wide = printed_in_a_terminal(capsys, monkeypatch, 80, "show", str(tmp_path))
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("COLUMNS", "40")  # a file has no width
    main(["show", str(tmp_path)])
    filed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert wide == filed[: len(wide)]
    assert any(line.startswith("│     2 │") for line in wide)


def test_a_narrow_terminal_cuts_no_number(capsys, monkeypatch):
    monkeypatch.setattr("fairjax.cli.terminal.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "30")
    print_lines({"worst_%": "86.83 ± 4.21", "fairness_vs_cgsv": "-0.011 [-0.021, -0.001]"})
    printed = capsys.readouterr().out.split()
    assert {"86.83", "4.21", "-0.011", "[-0.021,", "-0.001]"} <= set(printed)


def test_a_narrow_terminal_shows_a_block_per_mechanism(tmp_path, capsys, monkeypatch):
    flags = ["--mechanisms", "standalone,fedavg", "--out", str(tmp_path)]
    lines = printed_in_a_terminal(capsys, monkeypatch, 40, "compare", *SMALL, *flags)
    assert max(map(len, lines)) <= 40
    assert lines.index("mechanism standalone") < lines.index("mechanism fedavg")
    assert not any("…" in line or "│" in line for line in lines)


def test_the_list_and_progress_fit_a_narrow_terminal(capsys, monkeypatch):
    lines = printed_in_a_terminal(capsys, monkeypatch, 40, "list")
    assert max(map(len, lines)) <= 40
    assert not any("…" in line for line in lines)
    monkeypatch.delenv("FORCE_COLOR")
    with fj.ProgressBar() as bar:
        bar("cgsv_released", 80, 80)
    assert re.fullmatch(r" cgsv_released 80/80 rounds 0:00:0\d\s*", capsys.readouterr().err)


def test_a_progress_bar_takes_a_name_and_counts(capsys):
    with fj.ProgressBar() as bar:
        for call in ((3, 0, 1), ("cgsv", 0.5, 1), ("cgsv", 0, None), ("cgsv", -1, 1)):
            with pytest.raises(ValueError, match="`(name|done|total)` must be"):
                bar(*call)
    assert capsys.readouterr().err == ""
