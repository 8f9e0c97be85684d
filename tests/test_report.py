"""The pages of a run and of a comparison say what the records say."""

import dataclasses
import html
import json
import re
import shlex
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

import fairjax as fj
from fairjax import report
from fairjax.cli import main
from fairjax.experiments import load_comparison, records
from fairjax.report import page as pieces
from fairjax.report import settings as report_settings
from fairjax.tables import number
from fairjax.tasks import Shown

percent = Shown().text

pytestmark = pytest.mark.slow

SMALL = fj.Experiment(num_agents=4, rounds=3, model="logistic", samples_per_agent=20)
DISHONEST = dataclasses.replace(SMALL, behaviours={"broken_nan": 1, "free_rider_noise": 1})


class Page(HTMLParser):
    """Collects rows of tables by section, attributes, and all text except figures and styles."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.attributes, self.text = {}, [], ""
        self._section, self._cell, self._skipped = "", None, 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.attributes += attrs
        if tag == "section":
            self._section = attributes["id"]
        elif tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag in ("svg", "style"):
            self._skipped += 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append(self._cell)
            self._cell = None
        elif tag in ("svg", "style"):
            self._skipped -= 1

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data.replace("\u00a0", " ")
        if not self._skipped:
            self.text += data

    def rows(self, section, table=0):
        """The rows of a table below its heading."""
        return self.tables[section][table][1:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    result = DISHONEST.run(out)
    return result, out, Page(report.write_run(result, out))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    results = fj.compare(SMALL, ["fedavg", "cgsv", "standalone"], out)
    return results, out, Page(report.write_comparison(results, out))


def test_numbers_on_the_page_are_those_of_the_records(run):
    _, out, page = run
    summary = json.loads((out / records.RESULT).read_text())
    with np.load(out / records.HISTORY) as history:
        last = {name: history[name][-1] for name in ("contributions", "importance", "fractions")}
        final, trained = history["accuracies"][-1], history["trained_accuracies"][-1]
        excluded = history["excluded"].sum(0)
        server = history["server_accuracies"][-1]
    everybody_alone = np.float32(summary["standalone_accuracies"])
    for name, end in (("best", np.max), ("mean", np.mean), ("worst", np.min)):
        figures = f"{percent(end(final))}alone {percent(end(everybody_alone))}"
        assert f"{name} final %{figures}" in page.text
    assert f"The server's own model ends at {percent(server)}%." in page.text
    for agent in range(4):
        assert page.rows("held")[agent][:2] == [str(agent), str(summary["shard_sizes"][agent])]
        assert page.rows("held")[agent][3] == summary["behaviours"][agent]
        assert page.rows("contributed")[agent] == [
            str(agent), number(last["contributions"][agent]), number(last["importance"][agent]),
            "3", str(excluded[agent]),
        ]  # fmt: skip
        alone = np.float32(summary["standalone_accuracies"][agent])
        assert page.rows("paid")[agent] == [
            str(agent), number(last["fractions"][agent]), percent(alone), percent(final[agent]),
            percent(trained[agent]),
        ]  # fmt: skip
    low, high = summary["fairness_interval"]
    assert [row[1] for row in page.rows("fair")] == [
        number(summary["fairness"]), f"{low:.3f} to {high:.3f}",
        number(summary["trained_fairness"]), number(summary["rank_fairness"]),
        *map(percent, summary["collaboration_gain"]), percent(max(summary["shortfall"])),
    ]  # fmt: skip


def test_the_page_says_whose_uploads_were_excluded_and_who_was_dishonest(run):
    result, _, page = run
    broken = result.behaviours.index("broken_nan")
    assert page.rows("dishonest") == [[str(broken), "3", "1"]]
    assert [row[:2] for row in page.rows("dishonest", 1)] == [
        [str(agent), name] for agent, name in enumerate(result.behaviours) if name != "honest"
    ]
    assert f"Detection AUC: {result.detection_auc:.3f}" in page.text


def test_the_page_has_all_settings_and_versions(run):
    result, out, page = run
    fields = dict(page.rows("run"))
    assert fields["mechanism"] == "cgsv"
    assert fields["learning_rate"] == str(result.experiment.learning_rate)
    assert fields["behaviours"] == "broken_nan=1, free_rider_noise=1"
    record = json.loads((out / records.EXPERIMENT).read_text())
    on = dict(page.rows("run", 1))
    assert on == {**record["environment"], "agents_at_once": str(record["agents_at_once"])}


def test_the_page_has_the_seconds_of_every_part(run):
    _, out, page = run
    times, alone = records.read_times(out), records.read_times(out / "standalone")
    shown = [float(row[1]) for row in page.rows("time")]
    assert shown[:-2] == [round(value, 2) for value in times.values()]
    assert shown[-2] == round(sum(alone.values()), 2)
    assert shown[-1] == pytest.approx(sum([*times.values(), *alone.values()]), abs=0.006)


def test_a_page_needs_nothing_else(run, comparison):
    for _, out, page in (run, comparison):
        for name, value in page.attributes:
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:"))
        content = (out / "report.html").read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|<script|<link|url\((?!#)", content)
        assert (
            content.count("<svg")
            == content.count("</svg>")
            == len(list((out / "figures").iterdir()))
        )
        ids = [value for name, value in page.attributes if name == "id"]
        assert len(set(ids)) == len(ids)


def test_what_users_wrote_is_escaped(run, tmp_path):
    evil = "</title><script>alert('x')</script>&"
    parts = [
        pieces.table((evil,), [(evil,)]), pieces.text(evil), pieces.code(evil),
        pieces.facts({evil: (evil, evil)}),
    ]  # fmt: skip
    path = pieces.write(tmp_path / "page.html", evil, evil, [pieces.Section("one", evil, parts)])
    assert "<script" not in path.read_text(encoding="utf-8")
    assert Page(path).text.count(evil) == 12
    axes = fj.figures.fairness(dataclasses.replace(run[0], experiment=Named(evil)))
    drawing = fj.figures.svg(axes.figure, "one")
    plt.close(axes.figure)
    assert "<script" not in drawing


def test_a_comparison_has_a_row_per_mechanism_and_is_found_again(comparison, capsys):
    results, out, page = comparison
    for number_, (name, result) in enumerate(results.items()):
        accuracies = result.accuracies
        changes = *result.collaboration_gain, result.shortfall.max()
        spread = accuracies.max(), accuracies.mean(), accuracies.min()
        fair = page.rows("mechanisms")[number_]
        assert fair[:2] == [name, number(result.fairness)]
        assert fair[3:] == [number(result.trained_fairness), number(result.rank_fairness)]
        paid = page.rows("mechanisms", 1)[number_]
        assert paid == [name, *map(percent, (*changes, *spread))]
    assert page.tables["agents"][0][0] == ["agent", "standalone", "fedavg", "cgsv"]
    for agent, row in enumerate(page.rows("agents")):
        order = ("standalone", "fedavg", "cgsv")
        assert row[1:] == [percent(results[name].accuracies[agent]) for name in order]
    assert "Fairness of fedavg is undefined: all final accuracies are equal." in page.text
    assert list(load_comparison(out)) == list(results)
    before = (out / "report.html").read_bytes()
    main(["show", str(out)])
    printed = capsys.readouterr().out
    assert re.search(r"│ fedavg ", printed)
    assert f"Report: {out / 'report.html'}" in printed
    assert (out / "report.html").read_bytes() == before


def test_a_page_says_why_fairness_is_undefined(comparison):
    results, out, _ = comparison
    page = Page(report.write_run(results["fedavg"], out / "fedavg"))
    assert [page.rows("fair")[row][1] for row in (0, 1)] == ["–", "–"]
    assert "Fairness is undefined: all final accuracies are equal." in page.text
    assert page.rows("contributed")[0][1:3] == ["–", "–"]


@pytest.mark.parametrize(
    "experiment",
    [
        fj.Experiment(),
        DISHONEST,
        fj.Experiment(
            dataset="mnist", beta=1e7, record_updates=True, compute_dtype="bfloat16",
            options={"mask": "leaf"}, behaviours={"label_noise": (1, 0.3)}, learning_rate=1e-05,
        ),
    ],
    ids=["default", "dishonest", "many fields"],
)  # fmt: skip
def test_commands_on_the_page_run_the_same_again(experiment, monkeypatch):
    command, python = map(html.unescape, report_settings.again(experiment.resolved()))
    ran = []
    monkeypatch.setattr("fairjax.cli.commands._leave", lambda *_: None)
    monkeypatch.setattr(fj.Experiment, "run", lambda self, *_, **__: ran.append(self))
    for lines in (command, python):
        text = re.fullmatch("<pre><code>(.*)</code></pre>", lines, re.DOTALL)[1]
        if lines is command:
            main(shlex.split(text.replace("\\\n", ""))[1:])
        else:
            exec(text, {})
    assert [one.resolved() for one in ran] == [experiment.resolved()] * 2


def test_a_comparisons_command_is_of_all_its_mechanisms(comparison, monkeypatch):
    results, _, page = comparison
    command = page.text[page.text.index("fairjax compare") : page.text.index("import fairjax")]
    compared = []
    monkeypatch.setattr("fairjax.cli.commands._leave", lambda *_: None)
    monkeypatch.setattr(
        "fairjax.cli.commands.compare", lambda one, names, *_, **__: compared.append((one, names))
    )
    main(shlex.split(command.replace("\\\n", ""))[1:])
    ((experiment, names),) = compared
    assert names == list(results)
    for name, result in results.items():
        if name != "standalone":
            assert experiment.with_mechanism(name).resolved() == result.experiment


@pytest.mark.parametrize("seeds", [(), (0, 1)])
def test_a_comparison_of_own_mechanisms_is_repeated_in_python_only(seeds):
    base, steep = fj.Experiment().resolved(), fj.mechanisms.cgsv(beta=9.0)
    runs = {"cgsv": base.with_mechanism(steep), "rr": base.with_mechanism("rr")}
    (lines,) = report_settings.again(base, runs, seeds)
    assert "Your own objects: cgsv." in lines
    assert "[cgsv, &#x27;rr&#x27;]" in lines
    (lines,) = report_settings.again(base, {"a b": base.with_mechanism("rr"), **runs}, seeds)
    assert "Your own objects: a b, cgsv, rr." in lines
    assert (
        "{&#x27;a b&#x27;: &#x27;rr&#x27;, &#x27;cgsv&#x27;: cgsv, &#x27;rr&#x27;: &#x27;rr&#x27;}"
        in lines
    )
    plain = {name: base.with_mechanism(name) for name in ("standalone", "rr")}
    command, _ = report_settings.again(base, plain, seeds)
    assert "--mechanisms standalone,rr" in command


def test_a_page_plays_no_round_and_deals_out_data_once(run, monkeypatch):
    result, out, _ = run
    calls = []
    deal = fj.Experiment.make_shards
    monkeypatch.setattr("fairjax.simulation.Rounds.stages", lambda *_: calls.append("round"))
    monkeypatch.setattr(
        fj.Experiment, "make_shards", lambda self: (calls.append("shards"), deal(self))[1]
    )
    report.write_run(result, out)
    assert calls == ["shards"]


def test_a_run_that_goes_on_adds_up_its_time(tmp_path):
    def stop(name, done, total):
        if name == "cgsv" and done >= 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    monkey = pytest.MonkeyPatch()
    monkey.setattr("fairjax.experiments.playing.CHECKPOINT_SECONDS", (0.0, 0.0))
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(out, watch=stop)
    before = records.read_times(out)
    SMALL.run(out)
    monkey.undo()
    after = records.read_times(out)
    assert set(before) == {"data", "compiling", "rounds", "records"}
    assert all(after[name] > before[name] >= 0 for name in ("data", "rounds", "records"))
    SMALL.run(out)
    assert records.read_times(out) == after


class Named:
    """A stand-in for an experiment that has only a name."""

    def __init__(self, name):
        self.label = lambda field: name
        self.shown = Shown()


@pytest.mark.parametrize("value", [None, 3, "runs", {}, [1], {"cgsv": 3}, SMALL])
def test_a_page_of_no_result_or_no_directory_is_refused(value, run, tmp_path):
    result, *_ = run
    with pytest.raises(ValueError, match="`result` must be a Result"):
        report.write_run(value, tmp_path)
    with pytest.raises(ValueError, match=r"`results(\['cgsv'\])?` must be a"):
        report.write_comparison(value, tmp_path)
    with pytest.raises(ValueError, match="`out` must be (a path|the directory of a run)"):
        report.write_run(result, value)
    with pytest.raises(ValueError, match="`out` must be (a path|the directory of a run)"):
        report.write_comparison({"cgsv": result}, value)
