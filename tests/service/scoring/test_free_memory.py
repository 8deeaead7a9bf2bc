from pathlib import Path

import pytest

from service.scoring.free_memory import MODEL_BYTES, MODELS_MAX, MODELS_MIN, free_bytes, models_that_fit

GB = 1_000_000_000


def machine(folder: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """Make /proc and /sys/fs/cgroup of a machine with 8 GiB free; `files` are those of control groups, `__` for /."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = cgroups / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return proc, cgroups


@pytest.mark.parametrize(
    ("free", "models"),
    [(None, MODELS_MIN), (0, MODELS_MIN), (10 * 2 * MODEL_BYTES, 10), (500 * GB, MODELS_MAX)],
)
def test_half_of_the_memory_is_for_models_within_bounds(free: int | None, models: int) -> None:
    assert models_that_fit(free) == models


def test_machine_without_limits_gives_what_is_available(tmp_path: Path) -> None:
    assert free_bytes(*machine(tmp_path, "0::/system.slice/tamis.service\n")) == 8 * 1024**3


def test_limit_of_the_unit_or_of_one_above_holds_with_what_it_uses_and_gives_back(tmp_path: Path) -> None:
    files = {
        "system.slice__tamis.service__memory.max": "max\n",
        "system.slice__tamis.service__memory.current": f"{GB}\n",
        "system.slice__memory.max": f"{3 * GB}\n",
        "system.slice__memory.current": f"{2 * GB}\n",
        "system.slice__memory.stat": f"anon 5\ninactive_file {GB // 2}\n",
    }
    assert free_bytes(*machine(tmp_path, "0::/system.slice/tamis.service\n", **files)) == 3 * GB // 2


def test_limit_of_a_container_is_at_the_top(tmp_path: Path) -> None:
    files = {"memory.max": f"{2 * GB}", "memory.current": f"{GB}"}
    assert free_bytes(*machine(tmp_path, "0::/../../of/the/host\n", **files)) == GB


def test_limit_of_version_1_holds(tmp_path: Path) -> None:
    files = {"memory__box__memory.limit_in_bytes": f"{GB}", "memory__box__memory.usage_in_bytes": f"{GB // 4}"}
    assert free_bytes(*machine(tmp_path, "5:cpu:/box\n4:memory:/box\n1:name=systemd:/box\n", **files)) == 3 * GB // 4


def test_machine_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    assert free_bytes(tmp_path, tmp_path) is None


def test_limit_that_is_exceeded_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "100", "memory.current": "200"}
    assert free_bytes(*machine(tmp_path, "0::/\n", **files)) == 0
