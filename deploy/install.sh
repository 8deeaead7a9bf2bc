#!/bin/sh
# Installs Tamis as a service of this machine, upgrades it, or takes it away again; docs/deployment.md tells more.
# Every step may be repeated. The folder with images, models and results is never removed.
set -eu

PYTHON=python3
SOURCE=
GROUP=
TAKE_GROUP=no
PREFIX=
DATA=/var/lib/tamis
ACTION=install
DRY_RUN=no
DEPENDENCIES=yes
RAPL=no
WEB=no
START=yes

HERE=$(cd "$(dirname "$0")" && pwd)
VENV=/opt/tamis
UNIT=/etc/systemd/system/tamis.service
DROP_IN=/etc/systemd/system/tamis.service.d/group.conf
WEB_UNIT=/etc/systemd/system/tamis-web.service
WEB_DROP_IN=/etc/systemd/system/tamis-web.service.d/group.conf
ENVIRONMENT=/etc/tamis/tamis.env
TMPFILES=/etc/tmpfiles.d/tamis-rapl.conf
# torch and the scoring runtime, with room for pip to unpack them.
FREE_KB_MIN=4000000

usage() {
    cat <<END
usage: install.sh [OPTION]...

  --source DIR|WHEEL  what to install; default: the folder above this script
  --python PROGRAM    Python 3.11 or later that the environment is made with; default: python3
  --group NAME        an existing group whose members may drop images, read results and sort them anew by dragging;
                      an upgrade keeps it
  --no-group          take that access away again
  --rapl              let the service read the processor's energy counters
  --web               install the review page too, as a service of its own on http://localhost:8080
  --no-start          install, but neither enable nor start the services
  --no-deps           do not install what Tamis depends on (it must be in the environment already)
  --uninstall         remove the units, the environment and the user; never the data
  --prefix DIR        install below DIR instead of /: no user, no systemd; for tests and packaging
  --dry-run           print what would be done, do nothing
  --help              this text

pip is told where to look by its own PIP_* variables and pip.conf.
END
}

say() { printf '%s\n' "$*"; }

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

misuse() {
    printf 'install.sh: %s\n' "$*" >&2
    usage >&2
    exit 2
}

# Does, or with --dry-run prints, one command.
run() {
    if [ "$DRY_RUN" = yes ]; then
        say "would run: $*"
    else
        "$@"
    fi
}

# A prefix is somebody's own folder: there the user, the owners and systemd of this machine are left alone.
system() {
    if [ -z "$PREFIX" ]; then
        run "$@"
    fi
}

need() {
    if [ "$#" -lt 2 ] || [ -z "$2" ]; then
        misuse "$1: expected a value after it"
    fi
}

parse() {
    while [ "$#" -gt 0 ]; do
        case $1 in
        --source) need "$@" && SOURCE=$2 && shift ;;
        --python) need "$@" && PYTHON=$2 && shift ;;
        --group) need "$@" && GROUP=$2 && shift ;;
        --no-group) TAKE_GROUP=yes ;;
        --prefix) need "$@" && PREFIX=${2%/} && shift ;;
        --rapl) RAPL=yes ;;
        --web) WEB=yes ;;
        --no-start) START=no ;;
        --no-deps) DEPENDENCIES=no ;;
        --uninstall) ACTION=uninstall ;;
        --dry-run) DRY_RUN=yes ;;
        --help) usage && exit 0 ;;
        *) misuse "unknown option: $1" ;;
        esac
        shift
    done
    if [ "$TAKE_GROUP" = yes ] && [ -n "$GROUP" ]; then
        misuse "expected --group or --no-group; found both"
    fi
    case $PREFIX in
    '' | /*) ;;
    *) misuse "--prefix: expected an absolute path, found $PREFIX" ;;
    esac
}

check_machine() {
    if [ -z "$PREFIX" ] && [ "$DRY_RUN" = no ]; then
        [ "$(id -u)" -eq 0 ] || fail "expected to be run as root; try: sudo $0"
        [ -d /run/systemd/system ] || fail "expected systemd to run this machine; see docs/deployment.md, 'Without systemd'"
    fi
}

check_install() {
    if [ -z "$SOURCE" ]; then
        SOURCE=$(dirname "$HERE")
    fi
    case $SOURCE in
    *.whl) [ -f "$SOURCE" ] || fail "--source: no such wheel: $SOURCE" ;;
    *) [ -f "$SOURCE/pyproject.toml" ] || fail "--source: expected a wheel or a folder with pyproject.toml, found $SOURCE" ;;
    esac
    command -v "$PYTHON" >/dev/null || fail "no $PYTHON; install Python 3.11 or later, or name one with --python"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "expected Python 3.11 or later; found $("$PYTHON" --version); name another with --python"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$PYTHON cannot make environments; on Debian: apt-get install python3-venv"
    if [ -n "$GROUP" ] && [ -z "$PREFIX" ]; then
        getent group "$GROUP" >/dev/null ||
            fail "no such group: $GROUP; make it with: groupadd $GROUP; or take its access away with --no-group"
    fi
    there="$PREFIX$VENV"
    while [ ! -d "$there" ]; do there=$(dirname "$there"); done
    free_kb=$(df -Pk "$there" | awk 'NR == 2 { print $4 }')
    if [ "$DEPENDENCIES" = yes ] && [ ! -x "$PREFIX$VENV/bin/tamis" ] && [ "$free_kb" -lt "$FREE_KB_MIN" ]; then
        fail "$there: expected $FREE_KB_MIN kB free for the environment; found $free_kb kB"
    fi
}

# The group of an installation that is there: an upgrade without --group must not lock its members out.
recall_group() {
    if [ -n "$GROUP" ] || [ "$TAKE_GROUP" = yes ]; then
        return
    fi
    if [ -f "$PREFIX$DROP_IN" ]; then
        GROUP=$(sed -n 's/^[[:space:]]*Group[[:space:]]*=[[:space:]]*//p' "$PREFIX$DROP_IN" | tail -n 1)
    elif [ -d "$PREFIX$DATA/incoming" ] && [ -n "$(find "$PREFIX$DATA/incoming" -prune -perm -0020)" ]; then
        # The drop-in goes with --uninstall, the folder stays; or somebody gave it to a group by hand.
        GROUP=$(stat -c %G "$PREFIX$DATA/incoming")
    fi
    case $GROUP in
    # The first of them is a group that is no more.
    UNKNOWN | root | tamis) GROUP= ;;
    esac
    if [ -n "$GROUP" ]; then
        say "keeping the access of the group $GROUP; --no-group takes it away"
    fi
}

make_user() {
    if [ -n "$PREFIX" ]; then
        return
    fi
    if ! getent group tamis >/dev/null; then
        run groupadd --system tamis
    fi
    if ! getent passwd tamis >/dev/null; then
        # No home: libraries that keep caches there would leave them among the images.
        run useradd --system --gid tamis --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin tamis
    fi
}

make_environment() {
    if [ ! -x "$PREFIX$VENV/bin/python" ]; then
        run mkdir -p "$PREFIX$VENV"
        run "$PYTHON" -m venv "$PREFIX$VENV"
    fi
    if [ "$DEPENDENCIES" = yes ]; then
        if [ "$WEB" = yes ]; then
            run "$PREFIX$VENV/bin/python" -m pip install --quiet --upgrade "${SOURCE}[web]"
        else
            run "$PREFIX$VENV/bin/python" -m pip install --quiet --upgrade "$SOURCE"
        fi
    fi
    # Once more by force: pip takes a rebuilt package of the same version for one that it has.
    run "$PREFIX$VENV/bin/python" -m pip install --quiet --force-reinstall --no-deps "$SOURCE"
}

# Runs a command as the service's user, with the service's umask.
as_service() {
    if [ -n "$PREFIX" ]; then
        run sh -c 'umask 077; exec "$@"' sh "$@"
    else
        run runuser -u tamis -- sh -c 'umask 077; exec "$@"' sh "$@"
    fi
}

make_root() {
    group=${GROUP:-tamis}
    if [ ! -d "$PREFIX$DATA" ]; then
        run mkdir -p "$PREFIX$DATA"
    fi
    run chmod 0750 "$PREFIX$DATA"
    # Also where a user of another number owned it: the one before an --uninstall.
    system chown -R tamis:"$group" "$DATA"
    as_service "$PREFIX$VENV/bin/tamis" init "$PREFIX$DATA"
    if [ -n "$GROUP" ]; then
        share_root
    elif [ "$TAKE_GROUP" = yes ]; then
        unshare_root
    fi
}

# Runs a command on each folder into which people write: where they drop images, and between which they drag them.
on_folders_of_people() {
    for folder in incoming normal anomaly quarantine; do
        if [ -d "$PREFIX$DATA/$folder" ]; then
            run find "$PREFIX$DATA/$folder" -type d -exec "$@" {} +
        fi
    done
}

share_root() {
    run chmod -R g+rX "$PREFIX$DATA"
    run find "$PREFIX$DATA" -type d -exec chmod g+s {} +
    # Whoever moves a file writes into two folders, and not into the file.
    on_folders_of_people chmod 2770
    system chown -R tamis:"$GROUP" "$DATA"
    if command -v setfacl >/dev/null; then
        # What members make is theirs with their umask; this lets the service take it away all the same.
        on_folders_of_people setfacl -d -m group::rwx,other::---
    else
        say "note: no setfacl here (package acl); members need umask 002 when they make folders"
    fi
    put_group "$DROP_IN"
    if [ "$WEB" = yes ]; then
        # What it moves and draws is for the same people to read.
        put_group "$WEB_DROP_IN"
    fi
}

unshare_root() {
    if command -v setfacl >/dev/null; then
        on_folders_of_people setfacl -k
    fi
    run chmod -R g-w,o= "$PREFIX$DATA"
    run find "$PREFIX$DATA" -type d -exec chmod g-s {} +
    run rm -f "$PREFIX$DROP_IN" "$PREFIX$WEB_DROP_IN"
}

put_group() {
    run mkdir -p "$PREFIX$(dirname "$1")"
    if [ "$DRY_RUN" = yes ]; then
        say "would write: $PREFIX$1"
    else
        printf '[Service]\nGroup=%s\nSupplementaryGroups=tamis\nUMask=0027\n' "$GROUP" >"$PREFIX$1"
    fi
}

put_files() {
    run mkdir -p "$PREFIX$(dirname "$UNIT")" "$PREFIX$(dirname "$ENVIRONMENT")"
    run cp "$HERE/tamis.service" "$PREFIX$UNIT"
    run chmod 0644 "$PREFIX$UNIT"
    if [ "$WEB" = yes ]; then
        run cp "$HERE/tamis-web.service" "$PREFIX$WEB_UNIT"
        run chmod 0644 "$PREFIX$WEB_UNIT"
    fi
    # The environment file is the owner's once it is there.
    if [ ! -e "$PREFIX$ENVIRONMENT" ]; then
        run cp "$HERE/tamis.env" "$PREFIX$ENVIRONMENT"
        run chmod 0640 "$PREFIX$ENVIRONMENT"
    fi
    if [ -f "$HERE/../docs/deployment.md" ]; then
        run mkdir -p "$PREFIX$VENV/share/doc"
        run cp "$HERE/../docs/deployment.md" "$PREFIX$VENV/share/doc/deployment.md"
    fi
    if [ "$RAPL" = yes ]; then
        run mkdir -p "$PREFIX$(dirname "$TMPFILES")"
        run cp "$HERE/tamis-rapl.conf" "$PREFIX$TMPFILES"
        system systemd-tmpfiles --create "$TMPFILES"
    fi
}

start_service() {
    system systemctl daemon-reload
    if [ "$START" = yes ]; then
        system systemctl enable --quiet tamis.service
        # The start brings an older database up to date and waits until the daemon says that it is ready.
        system systemctl restart tamis.service
        if [ "$WEB" = yes ]; then
            system systemctl enable --quiet tamis-web.service
            system systemctl restart tamis-web.service
        fi
    fi
}

install_all() {
    recall_group
    check_install
    # An upgrade keeps the page that is there.
    if [ -e "$PREFIX$WEB_UNIT" ]; then
        WEB=yes
    fi
    make_user
    if [ -x "$PREFIX$VENV/bin/tamis" ]; then
        say "upgrading $PREFIX$VENV"
        if [ -z "$PREFIX" ] && systemctl is-active --quiet tamis.service; then
            run systemctl stop tamis.service
        fi
        if [ -z "$PREFIX" ] && systemctl is-active --quiet tamis-web.service; then
            run systemctl stop tamis-web.service
        fi
    else
        say "installing into $PREFIX$VENV"
    fi
    make_environment
    make_root
    put_files
    start_service
    say "done; images go to $PREFIX$DATA/incoming/PRODUCT, settings are in $PREFIX$DATA/tamis.toml"
    if [ "$WEB" = yes ]; then
        say "the review page: http://localhost:8080; docs/deployment.md says how others reach it"
    fi
    say "look at it: systemctl status tamis; runuser -u tamis -- $VENV/bin/tamis doctor --root $DATA"
}

uninstall_all() {
    if [ -z "$PREFIX" ] && [ -e "$UNIT" ]; then
        run systemctl disable --now --quiet tamis.service
    fi
    if [ -z "$PREFIX" ] && [ -e "$WEB_UNIT" ]; then
        run systemctl disable --now --quiet tamis-web.service
    fi
    run rm -f "$PREFIX$UNIT" "$PREFIX$DROP_IN" "$PREFIX$WEB_UNIT" "$PREFIX$WEB_DROP_IN" "$PREFIX$TMPFILES"
    for folder in "$PREFIX$(dirname "$DROP_IN")" "$PREFIX$(dirname "$WEB_DROP_IN")"; do
        if [ -d "$folder" ]; then
            # Other drop-ins are the owner's.
            run rmdir --ignore-fail-on-non-empty "$folder"
        fi
    done
    # A folder without this is no environment, and nothing that this script made.
    if [ -f "$PREFIX$VENV/pyvenv.cfg" ]; then
        run rm -rf "$PREFIX$VENV"
    fi
    system systemctl daemon-reload
    if [ -z "$PREFIX" ] && getent passwd tamis >/dev/null; then
        run userdel tamis
    fi
    if [ -z "$PREFIX" ] && getent group tamis >/dev/null; then
        run groupdel tamis
    fi
    say "removed; kept: $PREFIX$DATA (images, models, results) and $PREFIX$(dirname "$ENVIRONMENT")"
}

parse "$@"
check_machine
case $ACTION in
install) install_all ;;
uninstall) uninstall_all ;;
esac
