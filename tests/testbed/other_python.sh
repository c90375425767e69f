#!/usr/bin/env bash
#
# Runs the README's two commands on another Python, that of another Debian release, as a user who is
# not root, in a root folder made for it with debootstrap, and removes it again:
#
#     bash tests/testbed/other_python.sh trixie                # Python 3.13
#     bash tests/testbed/other_python.sh sid [PYTEST WORDS…]   # the newest that there is
#
# Needs root, on Debian. Packages come from where this machine's own come from, and pip is set up as
# it is here. Of the tests those run that need no other program and are quick, or the words given
# choose; where Nsight Systems installs, a run has its report, too. DASF_HPC_OTHER_ROOT names a
# folder in which to make the root, or to use the one that is there, and then it stays.

set -euo pipefail
exec </dev/null
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=tests/testbed/telling.sh
. "$(dirname "$0")/telling.sh"

# The tests that run where no words choose others.
FAST=(
    tests/test_align.py tests/test_analysis_functions.py tests/test_analysis_gpu.py
    tests/test_analysis_path.py tests/test_analysis_where.py tests/test_attribute.py
    tests/test_bad_files.py tests/test_causality.py tests/test_compare.py tests/test_devices.py
    tests/test_efficiencies.py tests/test_export.py tests/test_join.py tests/test_journal.py
    tests/test_layers.py tests/test_memory.py tests/test_merge.py tests/test_nsight.py
    tests/test_plugins.py tests/test_pool.py tests/test_runs.py tests/test_sampler.py
    tests/test_settings.py tests/test_stacks.py tests/test_stacks_record.py tests/test_trace.py
    tests/test_watch.py
)

# Where this machine's own packages come from.
mirror() {
    # shellcheck disable=SC2016 # apt-get fills these in
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }'
}

# make_root SUITE FOLDER - a Debian with Python, pip set up as here and a user.
make_root() {
    local source file
    source=$(mirror)
    if [ -z "$source" ]; then
        quietly "apt-get update" apt-get update
        source=$(mirror)
    fi
    [ -n "$source" ] || fail "found no source of Debian's packages on this machine to use"
    say "making a root of $1"
    quietly "debootstrap $1" debootstrap --variant=minbase \
        --include=python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates,procps "$1" "$2" "$source"
    # A mirror that stands still, as caches do, has lists of sid that are signed, and older than a week.
    {
        echo 'Acquire::Check-Valid-Until "false";'
        apt-config dump | grep -E '^Acquire::(http|https|ftp)' || true
    } >"$2/etc/apt/apt.conf.d/90host"
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/xdg/pip \
        /etc/ssl/certs/ca-certificates.crt ${PIP_CERT:+"$PIP_CERT"} \
        ${SSL_CERT_FILE:+"$SSL_CERT_FILE"} ${REQUESTS_CA_BUNDLE:+"$REQUESTS_CA_BUNDLE"}; do
        [ ! -e "$file" ] || (mkdir -p "$2${file%/*}" && cp -rLT "$file" "$2$file")
    done
    chroot "$2" useradd --create-home tester
    for file in ~/.config/pip ~/.pip; do
        [ ! -d "$file" ] || (mkdir -p "$2/home/tester/.config" &&
            cp -rLT "$file" "$2/home/tester/${file#"$HOME"/}")
    done
}

# The inner part: as root in namespaces of its own, so that its mounts and processes end with it.
if [ "${1-}" = --inside ]; then
    root=$2
    shift 2
    log=$root/var/log/other_python.log
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    in_root() { chroot "$root" env -C /home/tester/dasf-hpc "$@"; }
    as_tester() {
        local variable kept=()
        for variable in PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST \
            PIP_DEFAULT_TIMEOUT SSL_CERT_FILE REQUESTS_CA_BUNDLE \
            http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
            [ -z "${!variable+set}" ] || kept+=("$variable=${!variable}")
        done
        in_root setpriv --reuid tester --regid tester --init-groups env -i LC_ALL=C.UTF-8 \
            HOME=/home/tester USER=tester PATH=/usr/local/bin:/usr/bin:/bin \
            PIP_DISABLE_PIP_VERSION_CHECK=1 "${kept[@]}" "$@"
    }
    say "$(in_root python3 --version) ($SECONDS s)"
    for program in nsys ${DASF_HPC_OTHER_INSTALL-}; do
        if in_root bash tests/testbed/install.sh "$program" >"$log" 2>&1; then
            tail -n 1 "$log"
        else
            say "goes on without $program: $(tail -n 1 "$log")"
        fi
    done
    as_tester bash -euo pipefail -c '
        . tests/testbed/readme.sh
        run_readme_command run
        ls runs/*/trace.h5
        .venv/bin/python -c "if True:
            from importlib.metadata import version
            names = \"numpy pandas h5py scipy dask distributed nvtx pydantic typer\".split()
            print(*(f\"{name} {version(name)}\" for name in names), sep=\", \")"
        if nsys --version >/dev/null 2>&1; then
            .venv/bin/dasf-hpc show runs/* | grep -E "^Reports +1 of 1; ([1-9][0-9]*) of \1 task"
        fi
        run_readme_command test "$*"
    ' other_python.sh "$@"
    exit
fi

[ $# -gt 0 ] || fail "name a release of Debian, such as trixie or sid"
[ "$(id -u)" = 0 ] || fail "making a root folder needs root: run it again with sudo"
self=$(readlink -f "$0")
cd "$(dirname "$self")/../.."
suite=$1
shift
[ $# -gt 0 ] || set -- -q "${FAST[@]}"

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"
log=$work/log
root=${DASF_HPC_OTHER_ROOT:-$work/root}
if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap"
    quietly "installing debootstrap" apt-get install --yes --no-install-recommends debootstrap
fi
[ -e "$root/usr/bin/python3" ] || make_root "$suite" "$root"
rm -rf "$root/home/tester/dasf-hpc"
mkdir -p "$root/home/tester/dasf-hpc"
if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard
else
    find . -type f -not -path '*/.*/*' -print0
fi | tar --create --null --files-from=- | tar --extract --directory "$root/home/tester/dasf-hpc"
chroot "$root" chown -R tester: /home/tester
unshare --mount --propagation private --pid --fork --kill-child \
    bash "$self" --inside "$root" "$@"
say "the README's commands work on $suite ($SECONDS s)"
