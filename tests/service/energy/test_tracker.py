"""The tracker takes nothing from the machine but its hardware: no file, no variable, no language."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.energy import tracker

KNOWN = (
    "import json, sys; from service.energy.meter import EnergyMeter; meter = EnergyMeter(country='FRA'); "
    "known = dict(meter._tracker._conf, output_handlers=None); known['counts'] = meter._counts; "
    "known['handlers'] = [type(one).__name__ for one in meter._tracker._output_handlers]; "
    "known['intensity'] = meter._tracker.force_carbon_intensity_g_co2e_kwh; "
    "known['gpus'] = meter._tracker._gpu_ids; meter.close(); print(json.dumps(known, default=str, sort_keys=True))"
)
SETTINGS = {
    "pue": "2",
    "wue": "3",
    "force_cpu_power": "900",
    "force_ram_power": "900",
    "force_mode_cpu_load": "true",
    "force_carbon_intensity_g_co2e_kwh": "1234",
    "tracking_mode": "machine",
    "cloud_provider": "gcp",
    "cloud_region": "us-west1",
    "region": "california",
    "gpu_ids": "7",
    "log_level": "debug",
    "logger_preamble": "hello",
    "output_dir": "/nonexistent",
    "save_to_file": "true",
    "emissions_endpoint": "http://192.0.2.1/",
    "electricitymaps_api_token": "abc",
    "api_call_interval": "1",
    "allow_multiple_runs": "false",
    "rapl_include_dram": "true",
    "rapl_prefer_psys": "true",
    "metadata": "/nonexistent",
}
CONFIG = "[codecarbon]\n" + "".join(f"{name} = {value}\n" for name, value in SETTINGS.items())


def known(folder: Path, **variables: str) -> tuple[dict[str, object], str]:
    """Return what the tracker goes by in a process with `folder` as home and working folder, and its stderr."""
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **variables}
    command = [sys.executable, "-P", "-c", KNOWN]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    found, said = known(tmp_path_factory.mktemp("home"))
    assert found["counts"] and said == ""
    return found


@pytest.mark.parametrize("config", [CONFIG, "pue = 2\n", "[codecarbon]\npue\n\x00", "[codecarbon]\npue = %(x)s\n"])
def test_files_and_variables_of_the_library_change_nothing_and_stop_nothing(
    tmp_path: Path, config: str, alone: dict[str, object]
) -> None:
    (tmp_path / ".codecarbon.config").write_text(config)
    variables = {f"CODECARBON_{name.upper()}": value for name, value in SETTINGS.items()} if config == CONFIG else {}
    batch = {"SLURM_JOB_ID": "17", "SLURM_LOCALID": "1", "LC_ALL": "C.UTF-8"}
    found, said = known(tmp_path, **variables, **batch)
    assert found == alone
    assert said == ""


def test_user_that_the_system_does_not_know_has_a_meter(alone: dict[str, object]) -> None:
    """A container's user has often no entry in /etc/passwd, and no HOME."""
    # Nor can it write anywhere.
    unknown = "import pwd; pwd.getpwuid = {}.__getitem__; import tempfile; tempfile._candidate_tempdir_list = list; "
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", unknown + KNOWN], cwd="/", env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == alone


def test_counts_processors_in_any_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(tracker, "_CPUINFO", cpuinfo)
    cpuinfo.write_text("".join(f"processor\t: {core}\nphysical id\t: {core % 2}\n\n" for core in range(8)))
    assert tracker._sockets() == 2
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert tracker._sockets() == 1
    cpuinfo.unlink()
    assert tracker._sockets() == 1
