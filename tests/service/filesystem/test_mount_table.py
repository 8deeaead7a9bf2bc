"""Which mount a path lies on, read from tables in the kernel's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.filesystem.mount_table import holding, is_network, mount_of, read_mounts, sends_events

TABLE = rb"""22 27 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
23 22 0:22 / /proc rw - proc proc rw
40 22 0:41 / /mnt/share rw,relatime shared:7 master:2 - nfs4 server:/vol/a\040b rw,vers=4.2
41 22 0:42 / /mnt/my\040camera\134x ro,nosuid - cifs //nas/cam rw
42 40 0:43 / /mnt/share/fast rw - xfs /dev/sdb1 rw
43 22 0:44 / /srv rw - ext4 /dev/sdc1 ro
44 22 0:45 / /mnt/caf\303\251 rw - fuse.sshfs pi@camera: rw
45 22 0:46 / /hidden rw - ext4 /dev/sdd1 rw
46 22 0:47 / /hidden rw - tmpfs tmpfs rw
a line of something else
"""
MOUNTS = read_mounts(TABLE)


@pytest.mark.parametrize(
    ("path", "type"),
    [
        ("/", "ext4"),
        ("/home/ada", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/incoming", "nfs4"),
        ("/mnt/shared-by-name-only", "ext4"),
        ("/mnt/share/fast/incoming", "xfs"),
        ("/mnt/my camera\\x/incoming", "cifs"),
        ("/mnt/café/incoming", "fuse.sshfs"),
    ],
)
def test_the_longest_mount_point_that_holds_the_path_counts(path, type):
    assert holding(Path(path), MOUNTS).type == type


def test_of_two_mounts_at_one_place_the_later_hides_the_earlier():
    assert holding(Path("/hidden/x"), MOUNTS).type == "tmpfs"


def test_escapes_of_the_source_are_undone():
    assert holding(Path("/mnt/share"), MOUNTS).source == "server:/vol/a b"


@pytest.mark.parametrize(("path", "read_only"), [("/", False), ("/mnt/my camera\\x", True), ("/srv", True)])
def test_read_only_is_found_in_the_mount_and_in_the_file_system(path, read_only):
    assert holding(Path(path), MOUNTS).read_only is read_only


def test_lines_of_another_form_are_left_out():
    assert len(MOUNTS) == 9


def test_no_mount_that_holds_the_path_is_an_error_naming_it():
    with pytest.raises(ValueError, match="/nowhere"):
        holding(Path("/nowhere"), [])


def test_links_are_followed_to_the_mount_of_what_they_point_to(tmp_path: Path):
    table = tmp_path / "mountinfo"
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    table.write_text(f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {real.resolve()} rw - nfs server:/a rw\n")
    assert mount_of(link / "not there yet", table).type == "nfs"


def test_the_mount_of_proc_is_proc():
    assert mount_of(Path("/proc/self")).type == "proc"


@pytest.mark.parametrize("type", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "fuse.glusterfs"])
def test_network_types_are_known_and_send_no_events(type):
    assert is_network(type)
    assert not sends_events(type)


@pytest.mark.parametrize("type", ["fuse.bindfs", "fuseblk", "fuse", "virtiofs"])
def test_user_space_types_are_local_but_send_no_events(type):
    assert not is_network(type)
    assert not sends_events(type)


@pytest.mark.parametrize("type", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "vfat", "f2fs"])
def test_local_types_send_events(type):
    assert not is_network(type)
    assert sends_events(type)
