"""The meter on the real tracker, offline."""

import subprocess
import sys
import time

import psutil
import pytest

from service.energy.meter import EnergyMeter
from tests.support.daemon_process import wait_until


def work(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_sum_of_samples_is_the_trackers_total() -> None:
    meter = EnergyMeter(country="FRA")
    samples = []
    for kind in ("scoring", "idle", "scoring"):
        work(0.3)
        samples.append(meter.take(kind, images=1))
    work(0.1)
    samples.append(meter.close())
    taken = [sample for sample in samples if sample is not None]
    assert len(taken) == 4
    assert meter.measure_wh() > 0
    assert sum(sample.total_wh or 0 for sample in taken) == pytest.approx(meter.measure_wh(), rel=1e-9)
    for sample in taken:
        parts = (sample.cpu_wh or 0) + (sample.gpu_wh or 0) + (sample.ram_wh or 0)
        assert parts == pytest.approx(sample.total_wh, rel=1e-6)
        assert sample.source in ("measured", "estimated") and sample.country == "FRA"
        assert sample.emissions_g is not None and sample.emissions_g >= 0
    assert sum(sample.duration_s for sample in taken) == pytest.approx(1.0, abs=2.0)


def test_energy_of_a_child_is_its_own_meters_and_not_counted_here_again() -> None:
    meter = EnergyMeter()
    work(0.5)
    own = meter.take("scoring")
    child = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        busy = psutil.Process(child.pid)
        wait_until(lambda: busy.cpu_times().user > 0.5, "a child that works as much")
        beside = meter.take("idle")
    finally:
        child.kill()
        child.wait()
        meter.close()
    assert own is not None and own.cpu_wh is not None and beside is not None and beside.cpu_wh is not None
    if own.source == "measured":
        pytest.skip("the counters here are the machine's, which has no processes")
    assert beside.cpu_wh < own.cpu_wh / 2


def test_processor_time_of_those_who_work_for_it_is_its_own() -> None:
    meter = EnergyMeter()
    if meter.source == "measured":
        meter.close()
        pytest.skip("the counters here are the machine's, which has no processes")
    used = 100.0  # before it was asked: not counted
    meter.add_cpu_time(lambda: used)
    work(0.5)
    own = meter.take("scoring")
    used += 2.0
    time.sleep(0.3)  # the tracker measures nothing in less
    others = meter.take("scoring")
    meter.close()
    assert own is not None and own.cpu_wh and others is not None and others.cpu_wh
    # Four times the work, of which the processes did all.
    assert others.cpu_wh > 1.5 * own.cpu_wh


def test_without_a_country_grams_are_unknown_and_not_zero() -> None:
    meter = EnergyMeter()
    work(0.1)
    sample = meter.close("training")
    assert sample is not None and sample.total_wh is not None
    assert (sample.kind, sample.emissions_g, sample.country) == ("training", None, None)


def test_closed_meter_gives_no_sample() -> None:
    meter = EnergyMeter()
    meter.close()
    assert meter.take("idle") is None and meter.close() is None


def test_meter_does_not_bring_pyarrow_which_a_daemon_has_no_use_for() -> None:
    code = (
        "import sys; from service.energy.meter import EnergyMeter; EnergyMeter().close(); "
        "assert 'pyarrow' not in sys.modules; import pyarrow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_meter_names_the_processor_as_py_cpuinfo_does_without_asking_it() -> None:
    """py-cpuinfo starts programs of its own for it, at 1.3 s of a core with every start of the daemon."""
    code = (
        "import sys; from service.energy.meter import EnergyMeter; EnergyMeter().close(); "
        "assert 'cpuinfo' not in sys.modules; from codecarbon.core.util import detect_cpu_model as found; "
        "import cpuinfo; print(found() == cpuinfo.get_cpu_info()['brand_raw'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.split() == ["True"]


def test_meter_that_did_not_start_says_unknown_and_not_zero(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from codecarbon import OfflineEmissionsTracker

    def trips(_self: object) -> None:
        raise OSError("no such file: the table of processors")

    monkeypatch.setattr(OfflineEmissionsTracker, "_ensure_hardware_ready", trips)
    meter = EnergyMeter(country="FRA")
    for sample in (meter.take("scoring", images=3), meter.close()):
        assert sample is not None
        assert (sample.total_wh, sample.cpu_wh, sample.gpu_wh, sample.ram_wh, sample.emissions_g) == (None,) * 5
    assert "did not start" in caplog.text
