"""Setup of all tests: a session compiles each program once, because many tests run the same ones.

The CPU is split into two devices, so that tests can spread agents over them.
"""

import os
import tempfile

import jax
import pytest

LONG_EXAMPLES = (
    "fairjax/experiments/bar.py", "fairjax/experiments/comparison.py",
    "fairjax/experiments/experiment.py", "fairjax/experiments/sweeps.py",
    "fairjax/models/named.py", "fairjax/figures/", "fairjax/mechanisms/",
)  # fmt: skip

ALL_CASES = ("tests/test_fuzz.py", "tests/test_wrong_kinds.py", "tests/test_docs.py")


def pytest_configure(config):
    # Workers of one session inherit the folder from the process that started them.
    if "FAIRJAX_TEST_CACHE" not in os.environ:
        os.environ["FAIRJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="fairjax-tests-")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", os.environ["FAIRJAX_TEST_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_runtest_teardown(item, nextitem):
    # Compiled programs occupy memory maps, and a process may have only 65,530.
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    import shutil

    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["FAIRJAX_TEST_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    # Notebooks, and examples that train networks, cannot be marked where they stand.
    for item in items:
        if item.nodeid.startswith(("notebooks/", *LONG_EXAMPLES)):
            item.add_marker(pytest.mark.slow)
    if "FAIRJAX_TEST_ALL" in os.environ:
        return
    # Only the first case of a slow test runs, but all drawn calls and all of README's snippets do.
    seen, kept, left = set(), [], []
    for item in items:
        test = "notebooks" if item.nodeid.startswith("notebooks/") else item.nodeid.split("[")[0]
        again = item.get_closest_marker("slow") and test in seen
        (left if again and not item.nodeid.startswith(ALL_CASES) else kept).append(item)
        if item.get_closest_marker("slow"):
            seen.add(test)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
