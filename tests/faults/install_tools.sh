#!/bin/sh
# Installs what the fault tests and the booted machine need beyond the project, on Debian and as root. Elsewhere it says
# what is missing and goes on: a test that lacks its tool is skipped and names it.
set -eu

missing=
need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

need strace strace
need bindfs bindfs
need sshfs sshfs
need debootstrap debootstrap
need systemd-nspawn systemd-container
need systemd-analyze systemd
need shellcheck shellcheck
need testparm samba-common-bin
need smbd samba
need smbclient smbclient
need nginx nginx-light
need mkfs.ext4 e2fsprogs
need ntfs-3g ntfs-3g
need setpriv util-linux
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/lib/openssh/sftp-server ] || missing="$missing openssh-sftp-server"
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing faketime"

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "install_tools.sh: expected these packages; not installed:$missing" >&2
    exit 0
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
