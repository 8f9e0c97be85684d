"""Setup of all tests: a session compiles each program once, because many tests run the same ones.

The CPU is split into two devices, so that tests can spread agents over them.
"""

import builtins
import collections
import os
import tempfile

import jax
import pytest

LONG_EXAMPLES = (
    "fairjax/experiments/audit.py", "fairjax/experiments/bar.py",
    "fairjax/experiments/comparison.py", "fairjax/experiments/experiment.py",
    "fairjax/experiments/over_seeds.py", "fairjax/experiments/running.py",
    "fairjax/experiments/sweeps.py", "fairjax/models/named.py",
    "fairjax/figures/", "fairjax/mechanisms/",
)  # fmt: skip

# Programs of these tests are compiled in half of the time. Tests of values and of scales are not
# among them: they must hold as users compile.
COMPILED_QUICKLY = (
    "fairjax/experiments/", "fairjax/figures/", "fairjax/mechanisms/", "fairjax/models/",
    "fairjax/simulation/",
    "tests/test_accounts.py", "tests/test_adapters.py", "tests/test_agents_that_differ.py",
    "tests/test_audit.py", "tests/test_behaviours.py",
    "tests/test_benchmarks.py", "tests/test_bridges.py", "tests/test_cli.py",
    "tests/test_devices.py::test_a_lost_process",
    "tests/test_devices.py::test_a_mesh", "tests/test_devices.py::test_two_processes",
    "tests/test_experiment.py", "tests/test_fedave.py", "tests/test_fedfaim.py",
    "tests/test_federations.py", "tests/test_figures.py", "tests/test_folders.py",
    "tests/test_inputs.py", "tests/test_layers.py", "tests/test_longer.py",
    "tests/test_lowrank.py",
    "tests/test_mechanism_inputs.py", "tests/test_mechanisms.py",
    "tests/test_minilm.py::test_a_sweep", "tests/test_minilm.py::test_adapters_on_minilm",
    "tests/test_models.py", "tests/test_objects.py",
    "tests/test_over_seeds.py", "tests/test_participation.py", "tests/test_records.py",
    "tests/test_references.py", "tests/test_report.py",
    "tests/test_saving.py", "tests/test_sentences.py", "tests/test_simulation.py",
    "tests/test_statistics.py", "tests/test_studies.py", "tests/test_submodels.py",
    "tests/test_sweeps.py", "tests/test_tasks.py", "tests/test_text.py",
    "tests/test_tracking.py", "tests/test_wrong_kinds.py",
)  # fmt: skip

# Of the cases of a slow test, one in so many runs by default; elsewhere only the first.
ONE_IN = {
    "tests/test_blocks.py": 1, "tests/test_docs.py": 1, "tests/test_fuzz.py": 10,
    "tests/test_mechanisms.py::test_the_median": 1, "tests/test_sampling.py": 1,
    "tests/test_wrong_kinds.py": 6,
}  # fmt: skip
# They train MiniLM for a minute; other tests do the same with small networks.
ONLY_IN_ALL = (
    "tests/test_minilm.py::test_adapters_on_minilm",
    "tests/test_minilm.py::test_a_sweep",
)
NOTEBOOK = "notebooks/03_your_model_and_data.ipynb"  # the only one that runs by default


def pytest_configure(config):
    # Workers of one session inherit the folder from the process that started them.
    if "FAIRJAX_TEST_CACHE" not in os.environ:
        config.programs = tempfile.mkdtemp(prefix="fairjax-tests-")
        os.environ["FAIRJAX_TEST_CACHE"] = config.programs
    # Processes that a test starts find programs there, too.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["FAIRJAX_TEST_CACHE"]
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    config.pluginmanager.register(Everywhere())
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", os.environ["FAIRJAX_TEST_CACHE"])
    # Small programs, too: they recur from file to file, and both workers need them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class Everywhere:
    """What examples and notebooks need too: in a conftest, pytest would keep it to `tests/`."""

    def pytest_runtest_setup(self, item):
        quickly = item.nodeid.startswith(COMPILED_QUICKLY)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quickly)  # of processes of a test
        jax.config.update("jax_disable_most_optimizations", quickly)

    @pytest.fixture(autouse=True)
    def registries(self):
        """Forgets what a test has registered."""
        import fairjax as fj

        known = [(entries, dict(entries)) for entries in (fj.mechanisms.REGISTRY, fj.data.DATASETS)]
        yield
        for entries, before in known:
            entries.clear()
            entries.update(before)

    def pytest_runtest_teardown(self, item, nextitem):
        # An example leaves its last value there, and tyro cannot be imported if that has no hash.
        vars(builtins).pop("_", None)
        # Compiled programs occupy memory maps, and a process may have only 65,530.
        if nextitem is None or nextitem.path != item.path:
            jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    import shutil

    if hasattr(config, "programs"):  # not given by whoever runs several sessions
        shutil.rmtree(config.programs, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    # Notebooks, and examples that train networks, cannot be marked where they stand.
    for item in items:
        if item.nodeid.startswith(("notebooks/", *LONG_EXAMPLES)):
            item.add_marker(pytest.mark.slow)
    if "FAIRJAX_TEST_ALL" in os.environ:
        return
    kept, left, cases = [], [], collections.Counter()
    for item in items:
        test = item.nodeid.split("[")[0]
        every = next((ONE_IN[path] for path in ONE_IN if test.startswith(path)), len(items))
        again = item.get_closest_marker("slow") and cases[test] % every
        other = test.startswith("notebooks/") and not test.startswith(NOTEBOOK)
        other = other or test.startswith(ONLY_IN_ALL)
        (left if again or other else kept).append(item)
        cases[test] += bool(item.get_closest_marker("slow"))
    config.hook.pytest_deselected(items=left)
    items[:] = kept
