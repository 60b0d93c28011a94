# shellcheck shell=bash
# Shared by the scripts beside it; sourced, never run.
#
#   say / die / fail      one line to the reader; leave with status 1 / 2
#   need PROGRAM=PACKAGE  have every program (or file), installing the packages of the missing ones
#   need_venv plain|EXTRA a virtual environment ($VENV) with the project in it; sets $PYTHON
#   private_mounts        rerun the calling script where its mounts vanish with it

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${QCOWDELTA_VENV:-$REPO/.venv}
# shellcheck disable=SC2034 # for the scripts that source this
WORK=${QCOWDELTA_WORK:-$REPO/.work}
export DEBIAN_FRONTEND=noninteractive
export PATH=$PATH:/usr/sbin:/sbin # mke2fs, debugfs, losetup: not on an ordinary user's PATH

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }
fail() { say "${0##*/}: $*"; exit 2; } # something is missing that we may not install

have() { if [[ $1 == /* ]]; then [[ -e $1 ]]; else command -v -- "$1" >/dev/null 2>&1; fi; }
is_root() { [[ $(id -u) -eq 0 ]]; }

# --- system packages -------------------------------------------------------------------------

can_install() {
    have apt-get && { is_root || { have sudo && sudo -n true 2>/dev/null; }; }
}

as_root() {
    if is_root; then "$@"; else sudo -n env DEBIAN_FRONTEND=noninteractive "$@"; fi
}

# Packages can be fetched only with fresh lists; the lists are fetched at most once per run.
apt_install() {
    local log
    can_install || fail "needs the packages: $* (run: apt-get install $*)"
    say "Installing $* ..."
    log=$(mktemp)
    if [[ -z ${APT_LISTS_FRESH:-} ]]; then
        as_root apt-get update -q </dev/null >"$log" 2>&1 || { cat "$log" >&2; say "apt-get update failed"; }
        APT_LISTS_FRESH=yes
    fi
    if ! as_root apt-get install -q -y --no-install-recommends "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: $*"
    fi
    rm -f "$log"
}

# need qemu-img=qemu-utils mke2fs=e2fsprogs ...
need() {
    local pair missing=()
    for pair; do
        have "${pair%%=*}" || missing+=("${pair#*=}")
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    apt_install "${missing[@]}"
    for pair; do
        have "${pair%%=*}" || fail "${pair%%=*} is still missing after installing ${pair#*=}"
    done
}

# --- Python ----------------------------------------------------------------------------------

is_recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in "${QCOWDELTA_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [[ -n $candidate ]] && is_recent_python "$candidate"; then
            command -v -- "$candidate"
            return
        fi
    done
    return 1
}

# Debian ships venv without ensurepip, in a package of its own; the plain import of venv still works.
make_venv() {
    local base
    if [[ -n $(ls -A -- "$VENV" 2>/dev/null) && ! -e $VENV/pyvenv.cfg ]]; then
        fail "$VENV holds something else than a virtual environment"
    fi
    find_python >/dev/null || apt_install python3 python3-venv
    base=$(find_python) || fail "needs Python 3.11 or later (set QCOWDELTA_PYTHON to one)"
    "$base" -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
    say "Making a virtual environment in $VENV ..."
    "$base" -m venv --clear -- "$VENV" || die "could not make a virtual environment with $base"
}

# The stamp of a set of extras says for which place, project file and lock it was installed.
venv_state() {
    { printf '%s\n' "$REPO" && cat -- "$REPO/pyproject.toml" "$REPO/requirements-dev.lock"; } | sha256sum
}

need_venv() {
    local extra=${1#plain} stamp=$VENV/.qcowdelta-$1 constraints=$REPO/requirements-dev.lock
    is_recent_python "$VENV/bin/python" || make_venv
    PYTHON=$VENV/bin/python
    [[ $(cat -- "$stamp" 2>/dev/null) == "$(venv_state)" ]] && return
    say "Installing qcowdelta${extra:+ [$extra]} into $VENV ..."
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input \
        -c "$constraints" -e "$REPO${extra:+[$extra]}" </dev/null ||
        die "pip could not install the project; its message is above"
    venv_state >"$stamp"
}

# --- mounts ----------------------------------------------------------------------------------

can_mount() { is_root && unshare --mount true 2>/dev/null; }

# In a mount namespace of its own, whatever a script mounts is gone when it ends, however it ends.
private_mounts() {
    [[ -n ${QCOWDELTA_PRIVATE_MOUNTS:-} ]] && return
    can_mount || fail "needs root, to mount loop devices"
    QCOWDELTA_PRIVATE_MOUNTS=yes exec unshare --mount --propagation private -- "$0" "$@"
}
