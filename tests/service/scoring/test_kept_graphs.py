"""Kept graphs save time and change nothing: whatever is not exactly what was kept is compiled anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.registry import ModelVersion
from models.runtime import openvino_detector
from models.runtime.openvino_detector import GraphId, OpenVinoDetector
from service.root import GRAPHS
from service.scoring import kept_graphs
from service.scoring.kept_graphs import KeptGraphs
from tests.support import brightness_version

ONE, OTHER = GraphId("a" * 32, "c" * 32), GraphId("b" * 32, "c" * 32)
CONTENT = bytes(range(256)) * 16
BYTES_MAX = 1_000_000
PIXELS = np.full((2, brightness_version.HEIGHT, brightness_version.WIDTH, 3), 120, np.uint8)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were compiled and not taken from the folder."""
    compiled: list[str] = []
    compile_anew = openvino_detector._compile

    def noted(graph: str, *arguments: object) -> object:
        compiled.append(graph)
        return compile_anew(graph, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(openvino_detector, "_compile", noted)
    return compiled


def score(version: ModelVersion, kept: KeptGraphs) -> tuple[float, np.ndarray]:
    scored = OpenVinoDetector(version, 1, kept).score(PIXELS)
    return float(scored.scores[0]), scored.maps


def kept_file(root: Path) -> Path:
    [path] = (root / GRAPHS).iterdir()
    return path


def test_graph_is_compiled_once_and_scores_the_same(root: Path, compiled: list[str]) -> None:
    version, kept = brightness_version.install(root), KeptGraphs(root, BYTES_MAX)
    (first, maps), (second, same_maps) = score(version, kept), score(version, kept)
    assert len(compiled) == 1 and first == second == 120.0
    np.testing.assert_array_equal(maps, same_maps)
    assert (root / GRAPHS).stat().st_mode & 0o777 == 0o700 and kept_file(root).stat().st_mode & 0o777 == 0o600


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def changed_by_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


def a_link_to_the_same(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, emptied, changed_by_one_bit, writable_by_others, a_link_to_the_same, a_folder])
def test_what_is_not_what_was_kept_is_compiled_anew(
    root: Path, compiled: list[str], damage: Callable[[Path], None]
) -> None:
    version, kept = brightness_version.install(root), KeptGraphs(root, BYTES_MAX)
    score(version, kept)
    damage(kept_file(root))
    assert score(version, kept)[0] == 120.0 and len(compiled) == 2


def test_graph_of_another_model_under_this_ones_name_is_compiled_anew(root: Path, compiled: list[str]) -> None:
    first = brightness_version.install(root, "bar")
    second = brightness_version.install(root, "bolt", graph_offset=50.0)
    kept = KeptGraphs(root, BYTES_MAX)
    score(first, kept)
    of_first = kept_file(root)
    score(second, kept)
    [of_second] = set((root / GRAPHS).iterdir()) - {of_first}
    of_second.write_bytes(of_first.read_bytes())
    assert score(second, kept)[0] == 170.0 and len(compiled) == 3


def test_what_openvino_refuses_is_removed_and_compiled_anew(root: Path, compiled: list[str]) -> None:
    version, kept = brightness_version.install(root), KeptGraphs(root, BYTES_MAX)
    graph = openvino_detector._id(version, 1)
    assert graph is not None
    kept.keep(graph, b"no graph at all")
    assert kept.find(graph) == b"no graph at all"
    assert score(version, kept)[0] == 120.0 and len(compiled) == 1
    assert kept.find(graph) not in (None, b"no graph at all")


def test_another_program_processor_or_number_of_threads_has_a_graph_of_its_own(
    root: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, kept = brightness_version.install(root), KeptGraphs(root, BYTES_MAX)
    score(version, kept)
    OpenVinoDetector(version, 2, kept)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    score(version, kept)
    assert len(compiled) == 3 and len(list((root / GRAPHS).iterdir())) == 3


def test_graph_not_used_for_longest_goes_first(root: Path) -> None:
    kept = KeptGraphs(root, 3 * len(CONTENT))
    for number, graph in enumerate((ONE, OTHER)):
        kept.keep(graph, CONTENT)
        name = next(path for path in (root / GRAPHS).iterdir() if path.name.startswith(graph.files))
        os.utime(name, (number, number))
    assert kept.find(ONE) == CONTENT
    kept.keep(GraphId("d" * 32, "c" * 32), CONTENT)
    assert kept.find(ONE) == CONTENT and kept.find(OTHER) is None


def test_one_version_has_no_more_than_a_few(root: Path) -> None:
    kept = KeptGraphs(root, BYTES_MAX)
    kept.keep(OTHER, CONTENT)
    for number in range(9):
        kept.keep(GraphId(ONE.files, f"{number:032}"), CONTENT)
    assert len(list((root / GRAPHS).iterdir())) == kept_graphs.OF_ONE_GRAPH_MAX + 1
    assert kept.find(OTHER) == CONTENT and kept.find(GraphId(ONE.files, f"{8:032}")) == CONTENT


def test_what_a_killed_run_left_is_removed(root: Path) -> None:
    kept = KeptGraphs(root, BYTES_MAX)
    kept.keep(ONE, CONTENT)
    left = root / GRAPHS / f"{ONE.files}-{ONE.compiler}.graph.12345.part"
    left.write_bytes(b"half")
    kept.keep(OTHER, CONTENT)
    assert not left.exists() and kept.find(ONE) == kept.find(OTHER) == CONTENT


@pytest.mark.parametrize("what", ["a file", "a link", "a folder of others"])
def test_without_a_folder_of_its_own_nothing_is_kept_and_models_load(
    root: Path, compiled: list[str], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    if what == "a file":
        (root / ".cache").touch()
    elif what == "a link":
        (root / "elsewhere" / "graphs").mkdir(parents=True)
        (root / ".cache").symlink_to("elsewhere")
    else:
        (root / GRAPHS).mkdir(parents=True)
        (root / GRAPHS).chmod(0o777)
    version, kept = brightness_version.install(root), KeptGraphs(root, BYTES_MAX)
    assert [score(version, kept)[0] for _ in range(3)] == [120.0] * 3
    assert len(compiled) == 3 and caplog.text.count("compiled graphs are not kept") == 1
    assert not list(root.glob("elsewhere/graphs/*"))


@pytest.mark.parametrize(("bytes_max", "free_min"), [(0, 0), (len(CONTENT), 0), (BYTES_MAX, 1 << 62)])
def test_nothing_is_kept_where_there_is_no_room(root: Path, bytes_max: int, free_min: int) -> None:
    kept = KeptGraphs(root, bytes_max, free_min)
    kept.keep(ONE, CONTENT)
    assert kept.find(ONE) is None
    assert not (root / GRAPHS).exists() or not list((root / GRAPHS).iterdir())
