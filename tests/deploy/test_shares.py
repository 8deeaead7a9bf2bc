"""The share examples: incoming can be written, what was sorted only read, and nothing else is shared."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = "/var/lib/tamis"
WRITABLE = {f"{ROOT}/incoming"}
READABLE = {f"{ROOT}/normal", f"{ROOT}/anomaly"}


def samba() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(DEPLOY / "samba.conf.example")
    return parser


def exports() -> dict[str, set[str]]:
    found = {}
    for line in (DEPLOY / "exports.example").read_text().splitlines():
        if line and not line.startswith("#"):
            path, options = line.split()
            found[path] = set(re.findall(r"[^,()]+", options.partition("(")[2]))
    return found


def test_samba_shares_only_incoming_for_writing_to_everybody() -> None:
    shares = {samba()[name]["path"]: samba()[name] for name in samba().sections()}
    assert set(shares) == WRITABLE | READABLE | {f"{ROOT}/quarantine"}
    assert {path for path, share in shares.items() if share["read only"] == "no"} == WRITABLE


def test_samba_lets_those_on_a_list_drag_between_what_was_sorted() -> None:
    for name in ("tamis-normal", "tamis-anomaly", "tamis-quarantine"):
        assert samba()[name]["write list"] == "@inspection"
        assert samba()[name]["force user"] == "tamis"


def test_samba_files_belong_to_the_service_and_are_not_cached_by_clients() -> None:
    share = samba()["tamis-incoming"]
    assert share["force user"] == "tamis"
    assert share["oplocks"] == share["level2 oplocks"] == "no"
    assert share["strict sync"] == "yes"


def test_samba_never_follows_links_out_of_a_share() -> None:
    for name in samba().sections():
        assert samba()[name]["follow symlinks"] == "no"


def test_nfs_exports_only_incoming_for_writing() -> None:
    assert set(exports()) == WRITABLE | READABLE
    assert {path for path, options in exports().items() if "rw" in options} == WRITABLE
    assert all("ro" in exports()[path] for path in READABLE)


def test_nfs_survives_renames_and_squashes_users() -> None:
    for options in exports().values():
        assert {"sync", "all_squash", "no_subtree_check"} <= options


@pytest.mark.skipif(shutil.which("testparm") is None, reason="testparm (package samba-common-bin) is not installed")
def test_samba_understands_the_example() -> None:
    done = subprocess.run(
        ["testparm", "-s", str(DEPLOY / "samba.conf.example")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "Unknown parameter" not in done.stderr
