#!/usr/bin/env bash
#
# Installs the system programs that tests need, on Debian or Ubuntu, without asking anything:
#
#     bash tests/testbed/install.sh [slurm] [nsys] [apptainer] [browser] [zsh] [speedscope] [valgrind]
#
# Without arguments: slurm nsys. What is there already is only checked, which takes a second and
# no root. Package sources are added for the length of one command only and are derived from the
# machine's own, so nothing installed later is affected by them.

set -euo pipefail
exec </dev/null
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # daemons are not in every user's PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt fetches as a user of its own
log=$work/log

# shellcheck source=tests/testbed/telling.sh
. "$(dirname "$0")/telling.sh"

have() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || return 1
    done
}

need_root_and_apt() {
    [ "$(id -u)" = 0 ] || fail "installing $1 needs root: run it again with sudo"
    have apt-get || fail "cannot install $1: this is no Debian or Ubuntu (there is no apt-get)"
}

apt() { apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

# apt_install PACKAGE… - from the machine's own sources.
apt_install() {
    if ! apt install --simulate --no-install-recommends "$@" >/dev/null 2>&1; then
        say "reading the machine's package sources"
        quietly "apt-get update" apt update
    fi
    say "installing $*"
    quietly "installing $*" apt install --yes --no-install-recommends "$@"
}

# shellcheck disable=SC1091 # every system has its own /etc/os-release
os_release() { (. /etc/os-release && printf '%s' "${!1-}"); }

# Debian's testing and unstable both call themselves by the name of the release to come.
coming_release() { sed -n 's|/sid$||p' /etc/debian_version 2>/dev/null || true; }

# derived_sources KIND COMPONENTS [SUITE] - rewrites the machine's package sources read from
# standard input, which are of KIND "sources" (deb822 paragraphs) or "list" (one a line). Only
# those of the distribution's own release stay, with COMPONENTS in place of theirs and, if SUITE is
# given, with that suite in place of theirs. Keys, options and addresses stay as they are.
derived_sources() {
    awk -v kind="$1" -v components="$2" -v suite="${3-}" \
        -v codename="$(os_release VERSION_CODENAME)" -v coming="$(coming_release)" '
        function wanted(words,    n, i, word, list, kept) {
            n = split(words, list, /[ \t]+/)
            for (i = 1; i <= n; i++) {
                word = list[i]
                if (word == codename || word == "stable" || (coming != "" &&
                    (word == "testing" || word == "sid" || word == "unstable"))) {
                    if (suite != "") return suite
                    kept = kept " " word
                } else if (suite == "" && (word == codename "-updates" ||
                                           word == codename "-security"))
                    kept = kept " " word
            }
            return substr(kept, 2)
        }
        function has_main(words) { return (" " words " ") ~ /[ \t]main[ \t]/ }
        function paragraph(    i, suites) {
            suites = wanted(value["suites"])
            if (suites != "" && has_main(value["components"]) && value["enabled"] != "no" &&
                (" " value["types"] " ") ~ /[ \t]deb[ \t]/) {
                print "Types: deb\nSuites: " suites "\nComponents: " components
                for (i = 1; i <= others; i++) print other[i]
                print ""
            }
            split("", value)
            others = 0
        }
        { sub(/\r$/, "") }
        /^[ \t]*#/ { next }
        kind == "sources" {
            if ($0 ~ /^[ \t]*$/) { paragraph(); next }
            if ($0 ~ /^[^ \t]/) {
                field = tolower(substr($0, 1, index($0, ":") - 1))
                text = substr($0, index($0, ":") + 1)
            } else
                text = $0
            if (field ~ /^(types|suites|components|enabled)$/) {
                gsub(/^[ \t]+|[ \t]+$/, "", text)
                value[field] = value[field] (value[field] == "" ? "" : " ") text
            } else
                other[++others] = $0
            next
        }
        $1 == "deb" {
            line = $0
            options = ""
            sub(/^[ \t]*deb[ \t]+/, "", line)
            if (match(line, /^\[[^]]*\][ \t]*/)) {
                options = substr(line, 1, RLENGTH)
                line = substr(line, RLENGTH + 1)
            }
            n = split(line, word, /[ \t]+/)
            rest = ""
            for (i = 3; i <= n; i++) rest = rest " " word[i]
            name = wanted(word[2])
            if (name != "" && has_main(rest)) print "deb " options word[1] " " name " " components
        }
        END { if (kind == "sources") paragraph() }
    '
}

# make_sources FOLDER COMPONENTS [SUITE] - fills FOLDER with derived sources, and with copies of
# the machine's own where no SUITE is given, so that dependencies are found too.
make_sources() {
    local folder=$1 file name kind LIST="" PARTS=""
    shift
    mkdir -p "$folder"
    eval "$(apt-config shell LIST Dir::Etc::sourcelist/f PARTS Dir::Etc::sourceparts/d)"
    for file in "$LIST" "$PARTS"/*.list "$PARTS"/*.sources; do
        [ -f "$file" ] || continue
        name=$(basename "$file")
        kind=${name##*.}
        derived_sources "$kind" "$@" <"$file" >"$folder/testbed-$name"
        [ -s "$folder/testbed-$name" ] || rm "$folder/testbed-$name"
        [ $# -gt 1 ] || cp "$file" "$folder/$name"
    done
    compgen -G "$folder/testbed-*" >/dev/null ||
        fail "found no package source of $(os_release PRETTY_NAME) on this machine to derive from"
}

# apt_with FOLDER ARGUMENTS… - apt-get that knows the sources in FOLDER and no others, and keeps
# what it read about them beside them.
apt_with() {
    local folder=$1
    shift
    mkdir -p "$folder.lists/partial"
    apt -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$folder" \
        -o Dir::State::lists="$folder.lists" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

install_slurm() {
    local programs=(munged slurmctld slurmd sbatch srun squeue scancel qsub qstat qdel faketime)
    if ! have "${programs[@]}"; then
        need_root_and_apt slurm
        apt_install slurm-wlm slurm-client munge slurm-wlm-torque faketime
        have "${programs[@]}" || fail "slurm is installed, but one of ${programs[*]} is not there"
    fi
    slurmd -V >"$log" 2>&1 || fail "slurmd is there but does not run: $(tail -n 1 "$log")"
    say "slurm is there: $(cat "$log")"
}

install_nsys() {
    if ! have nsys; then
        need_root_and_apt nsys
        get_nsys
    fi
    link_importer
    check_capture
}

get_nsys() {
    local components stand_in=$work/stand-in
    case $(os_release ID) in
    debian) components=non-free ;;
    ubuntu) components=multiverse ;;
    *) fail "do not know where $(os_release PRETTY_NAME) has nsys; install NVIDIA's own package" ;;
    esac
    make_sources "$work/nsys" "$components"
    say "reading the machine's package sources with '$components' added"
    quietly "apt-get update" apt_with "$work/nsys" update

    # nsight-systems depends on NVIDIA's driver library, whose package changes the machine's
    # graphics set-up and would remove a driver installed by other means. Profiling without a GPU
    # does not need it, and with a GPU it is there: so a package without files stands in for it.
    mkdir -p "$stand_in/DEBIAN"
    cat >"$stand_in/DEBIAN/control" <<-'END'
		Package: testbed-libcuda-stand-in
		Version: 1
		Architecture: all
		Maintainer: tests/testbed/install.sh <root@localhost>
		Provides: libcuda.so.1 (= 9999)
		Description: lets nsight-systems be installed without NVIDIA's driver
	END
    quietly "making a package" dpkg-deb --build "$stand_in" "$stand_in.deb"
    say "installing nsight-systems"
    quietly "installing nsight-systems" apt_with "$work/nsys" install --yes \
        --no-install-recommends "$stand_in.deb" nsight-systems
    have nsys || fail "nsight-systems is installed, but there is no nsys"
}

# Debian 12 and 13 put the importer where nsys does not look, and it then leaves .qdstrm files.
link_importer() {
    local host target link
    for host in /usr/lib/nsight-systems/host-linux-*; do
        for target in /usr/lib/*-linux-gnu*/nsight-systems; do
            link=$target/${host##*/}
            if [ -d "$host" ] && [ -d "$target" ] && [ ! -e "$link" ]; then
                [ "$(id -u)" = 0 ] || fail "nsys does not find its importer; run again with sudo"
                ln -s "$host" "$link"
                say "linked nsys's importer to where it looks for it"
            fi
        done
    done
}

# A real capture, exported. If a Python with the package nvtx is at hand, one range must be in it.
check_capture() {
    local python="" candidate program=(sleep 0.1) what="a capture exports"
    for candidate in "${PYTHON-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import nvtx, sqlite3' 2>/dev/null; then
            python=$candidate
            program=("$python" -c 'import nvtx; nvtx.push_range("one"); nvtx.pop_range()')
            what="a captured NVTX range exports"
            break
        fi
    done
    quietly "a capture with nsys" nsys profile --trace=nvtx,osrt --sample=none --cpuctxsw=none \
        --force-overwrite=true --output="$work/check" "${program[@]}"
    if [ ! -s "$work/check.nsys-rep" ]; then
        tail -n 30 "$log" >&2
        fail "nsys captured but its importer wrote no report; the end of what it said stands above"
    fi
    quietly "nsys export" nsys export --type=sqlite --force-overwrite=true \
        --output="$work/check.sqlite" "$work/check.nsys-rep"
    [ -s "$work/check.sqlite" ] || fail "nsys export wrote nothing"
    if [ -n "$python" ]; then
        "$python" - "$work/check.sqlite" <<-'END' || fail "nsys recorded no NVTX range of Python"
			import sqlite3, sys
			tables = sqlite3.connect(sys.argv[1])
			query = "SELECT count(*) FROM NVTX_EVENTS WHERE eventType = 59"
			sys.exit(tables.execute(query).fetchone() != (1,))
		END
    fi
    say "nsys is there ($(nsys --version | grep -o '[0-9][0-9.]*[0-9][^ ]*' | head -n 1)): $what"
}

install_apptainer() {
    if ! apptainer --version >"$log" 2>&1; then
        need_root_and_apt apptainer
        if apt install --simulate apptainer >/dev/null 2>&1; then
            apt_install apptainer
        else
            get_apptainer_of_sid
        fi
        apptainer --version >"$log" 2>&1 ||
            fail "apptainer is installed but does not run: $(tail -n 1 "$log")"
    fi
    say "apptainer is there: $(cat "$log")"
    if ! have debootstrap; then # builds the image of a Debian
        need_root_and_apt debootstrap
        apt_install debootstrap
    fi
    [ "$(id -u)" != 0 ] || fit_apptainer_to_root
}

# Debian's releases have no Apptainer; sid has. Its binaries want sid's C library, which gets a
# folder of its own, and nothing but these binaries looks there.
get_apptainer_of_sid() {
    local glibc=/usr/local/lib/apptainer-glibc loader binary debs=$work/debs library libraries
    [ "$(os_release ID)" = debian ] ||
        fail "$(os_release PRETTY_NAME) has no package apptainer; see apptainer.org for one"
    apt_install patchelf squashfs-tools uidmap
    make_sources "$work/sid" main sid
    say "reading sid's package list, for this installation only"
    quietly "apt-get update for sid" apt_with "$work/sid" update
    mkdir -p "$debs"
    say "fetching sid's apptainer and libc6"
    (cd "$debs" && quietly "fetching sid's packages" apt_with "$work/sid" download apptainer libc6)
    quietly "unpacking libc6" dpkg-deb -x "$debs"/libc6_*.deb "$work/libc6"
    loader=$(find "$work/libc6" -name 'ld-linux-*.so.*' -o -name 'ld64.so.*' | head -n 1)
    [ -n "$loader" ] || fail "sid's libc6 has no dynamic loader where one was expected"
    libraries=$(dirname "$(find "$work/libc6" -name libc.so.6 | head -n 1)")
    rm -rf "$glibc"
    mkdir -p "$glibc"
    cp -a "$libraries/." "$glibc/"
    [ -e "$glibc/${loader##*/}" ] || cp -L "$loader" "$glibc/"
    quietly "unpacking apptainer" dpkg-deb -x "$debs"/apptainer_*.deb /
    library=/usr/lib/$(dpkg-architecture_multiarch)
    for binary in /usr/bin/apptainer "$library/apptainer/bin/starter"; do
        quietly "fitting $binary" patchelf --set-interpreter "$glibc/${loader##*/}" \
            --set-rpath "$glibc:$library" "$binary"
    done
    say "unpacked apptainer, with a C library of its own in $glibc"
}

dpkg-architecture_multiarch() {
    # dpkg-architecture itself is in dpkg-dev, which need not be installed.
    basename "$(dirname "$(find /usr/lib/*-linux-gnu* -maxdepth 1 -name libc.so.6 | head -n 1)")"
}

# Building an image as such a root goes with --fakeroot, which takes its users from /etc/subuid.
# Apptainer gives a container's root all capabilities, which fails where root lacks one itself.
fit_apptainer_to_root() {
    local conf=/etc/apptainer/apptainer.conf all have_now ids
    all=$(((1 << ($(cat /proc/sys/kernel/cap_last_cap) + 1)) - 1))
    have_now=$((0x$(awk '$1 == "CapEff:" { print $2 }' /proc/self/status)))
    if [ "$have_now" != "$all" ] && [ -f "$conf" ]; then
        ! grep -q '^root default capabilities *= *no' "$conf" || ! grep -q '^root:' /etc/subuid || return 0
        sed -i 's/^root default capabilities *=.*/root default capabilities = no/' "$conf"
        for ids in /etc/subuid /etc/subgid; do
            grep -qs '^root:' "$ids" || echo root:100000:65536 >>"$ids"
        done
        say "root lacks a capability here: told apptainer not to pass on all of them"
    fi
}

install_browser() {
    if ! browser_version; then
        need_root_and_apt browser
        [ "$(os_release ID)" = debian ] ||
            fail "$(os_release PRETTY_NAME) has chromium only as a snap: install Chrome by hand"
        apt_install chromium chromium-driver
        browser_version || fail "chromium is installed but does not run: $(tail -n 1 "$log")"
    fi
    say "browser is there: $(grep -m 1 -E "Chrom(e|ium) [0-9]" "$log")"
}

browser_version() {
    have chromedriver || return 1
    local browser
    for browser in chromium google-chrome; do
        ! "$browser" --version >"$log" 2>&1 || return 0
    done
    return 1
}

install_zsh() {
    if ! have zsh; then
        need_root_and_apt zsh
        apt_install zsh
        have zsh || fail "zsh is installed, but there is no zsh"
    fi
    say "zsh is there: $(zsh --version)"
}

install_speedscope() {
    have npm || fail "speedscope needs npm, which comes with Node.js"
    if ! [ -e "$(npm root --global)/speedscope/package.json" ]; then
        npm install --global speedscope >"$log" 2>&1 || fail "npm cannot install speedscope: $(tail -n 1 "$log")"
    fi
    say "speedscope is there: $(npm list --global --depth 0 speedscope | grep -o 'speedscope@.*')"
}

install_valgrind() {
    if ! have valgrind; then
        need_root_and_apt valgrind
        apt_install valgrind
        have valgrind || fail "valgrind is installed, but there is no valgrind"
    fi
    say "valgrind is there: $(valgrind --version)"
}

[ $# -gt 0 ] || set -- slurm nsys
for program in "$@"; do
    case $program in
    slurm | nsys | apptainer | browser | zsh | speedscope | valgrind) ;;
    *) fail "unknown program '$program'; known are: slurm nsys apptainer browser zsh speedscope valgrind" ;;
    esac
done
for program in "$@"; do
    "install_$program"
done
