#!/usr/bin/env bash
# Runs dasf-hpc on a machine with an NVIDIA GPU and no network, and leaves one folder of results.
#
#   bash tests/gpu/check.sh WHEELS RESULTS [NSYS]
#
# WHEELS   folder of wheels, which tests/gpu/wheels.sh fills on a machine with a network
# RESULTS  folder for the results: at most 8 files, none over 16 MiB (MAX_FILES, MAX_FILE_MIB,
#          MAX_MIB), the summary in summary.txt and summary.json
# NSYS     nsys, or a folder or .deb that holds it; without, it is looked for. Its target part
#          suffices to record: the report is then left as .qdstrm, to be imported elsewhere
#
# No root is needed. It writes into RESULTS and a folder for temporary files, which it removes
# (KEEP=1 keeps it). Variables:
#
#   PYTHON=python3           the Python to use, 3.11 or newer
#   SYSTEM_SITE_PACKAGES=1   use what that Python has installed, where the version fits
#   TIME_S=560               seconds for all steps together; what does not fit is left out
#   REHEARSE=1               where there is no GPU, run the steps without one; none of them counts
#
# It exits with 0 if all is well, 1 if a step failed, 2 if it was called wrongly, 3 if a step could
# not be done, and 4, before anything else, if wheels are missing: it names all of them.
#
# An Nsight Systems report holds the environment of what was profiled, and of every other process
# that nsys can read (seen with 2022.4). So everything runs with the few variables below, and where no
# other process can be seen (a PID namespace); where the system gives none, no report is kept.

set -eu

usage() {
    printf 'check.sh: %s\n' "$1" >&2
    echo 'usage: bash tests/gpu/check.sh WHEELS RESULTS [NSYS]' >&2
    exit 2
}

[ $# -ge 2 ] && [ $# -le 3 ] || usage "it takes two or three arguments, and got $#"
[ -d "$1" ] || usage "there is no folder $1"
compgen -G "$1/*.whl" >/dev/null || usage "$1 holds no wheels (*.whl)"
[ ! -e "$2" ] || [ -d "$2" ] || usage "$2 is not a folder"
[ ! -d "$2" ] || [ -z "$(ls -A "$2")" ] || usage "$2 is not empty"
[ $# -lt 3 ] || [ -e "$3" ] || usage "there is no $3"

python=$(command -v "${PYTHON:-python3}") || usage "there is no ${PYTHON:-python3}"
"$python" -E -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    usage "$python is not Python 3.11 or newer: name another with PYTHON"

mkdir -p "$2"
wheels=$(cd "$1" && pwd)
results=$(cd "$2" && pwd)
[ $# -lt 3 ] || set -- "$1" "$2" "$(cd "$(dirname "$3")" && pwd)/$(basename "$3")"
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check-XXXXXX")
mkdir "$work/home"
clean=("PATH=$PATH" "HOME=$work/home" "TMPDIR=$work" LANG=C.UTF-8 "PYTHONPATH=$tests")
for name in LD_LIBRARY_PATH CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER \
    SYSTEM_SITE_PACKAGES TIME_S REHEARSE KEEP MAX_FILE_MIB MAX_MIB MAX_FILES; do
    [ -z "${!name+set}" ] || clean+=("$name=${!name}")
done
[ -z "${SYSTEM_SITE_PACKAGES-}" ] || clean+=("PREINSTALLED=${PYTHONPATH-}")

alone=(unshare --pid --fork --kill-child --mount-proc)
"${alone[@]}" true 2>/dev/null || alone=(unshare --user --map-root-user "${alone[@]:1}")
"${alone[@]}" true 2>/dev/null || alone=()
[ ${#alone[@]} = 0 ] || clean+=(ALONE=1)

# it removes the folder for temporary files, too
exec env -i "${clean[@]}" ${alone[@]+"${alone[@]}"} \
    "$python" -s -u -m gpu.check "$wheels" "$results" "$work" ${3+"$3"}
