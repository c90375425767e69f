#!/usr/bin/env bash
# Fills a folder with the wheels that tests/gpu/check.sh needs, on a machine with a network.
#
#   bash tests/gpu/wheels.sh FOLDER [--python 3.12] [--glibc 2.28] [--cuda 12|13] [--toolkit]
#                                   [--have FILE]
#
# --python   Python of the GPU machine
# --glibc    its C library: newer wheels are taken where that is newer (`ldd --version` there)
# --cuda     CuPy for this major version of CUDA, at most the driver's (`nvidia-smi` there)
# --toolkit  CUDA's libraries for CuPy too, of 2 GB: where the machine has no CUDA toolkit
# --have     leave out what the machine has, by its `pip freeze` (or a list of names, one a line);
#            check.sh uses that with SYSTEM_SITE_PACKAGES=1. Versions in the file are kept to.
#
# It prints what it got and how large that is. PYTHON names the Python whose pip is used.

set -eu

usage() {
    printf 'wheels.sh: %s\n' "$1" >&2
    echo 'usage: bash tests/gpu/wheels.sh FOLDER [--python 3.12] [--glibc 2.28] [--cuda 12|13]' \
        '[--toolkit] [--have FILE]' >&2
    exit 2
}

folder="" version=3.12 glibc=2.28 cuda=12 toolkit="" have=""
while [ $# -gt 0 ]; do
    case $1 in
    --python | --glibc | --cuda | --have)
        [ $# -ge 2 ] || usage "$1 takes a value"
        case $1 in
        --python) version=$2 ;;
        --glibc) glibc=$2 ;;
        --cuda) cuda=$2 ;;
        --have) have=$2 ;;
        esac
        shift
        ;;
    --toolkit) toolkit="[ctk]" ;;
    -*) usage "unknown option $1" ;;
    *)
        [ -z "$folder" ] || usage "one folder, please"
        folder=$1
        ;;
    esac
    shift
done
[ -n "$folder" ] || usage "name a folder"
[[ $version =~ ^3\.[0-9]+$ ]] || usage "--python is such as 3.12, not $version"
[[ $glibc =~ ^2\.[0-9]+$ ]] || usage "--glibc is such as 2.28, not $glibc"
[ "$cuda" = 12 ] || [ "$cuda" = 13 ] || usage "--cuda is 12 or 13, not $cuda"
[ -z "$have" ] || [ -f "$have" ] || usage "there is no file $have"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$(command -v "${PYTHON:-python3}") || usage "there is no ${PYTHON:-python3}"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

platforms=()
for minor in $(seq "${glibc#2.}" -1 5); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64)
platforms+=(--platform manylinux1_x86_64 --platform linux_x86_64)

constraints=()
if [ -n "$have" ]; then
    PYTHONPATH=$root/tests "$python" -m gpu.wheels have "$have" >"$work/have"
    grep "==" "$work/have" >"$work/constraints" || true
    constraints=(--constraint "$work/constraints")
fi

# CUDA's bindings of a newer major version than the driver's do not work with it
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --implementation cp --python-version "$version" "${platforms[@]}" \
    ${constraints[@]+"${constraints[@]}"} \
    --dest "$work/wheels" "${root}[gpu,test]" "cupy-cuda${cuda}x$toolkit" "cuda-bindings==$cuda.*"
# those that build the project, whatever the machine has: pip builds apart from what is installed
mapfile -t builders < <("$python" -c "import sys, tomllib
print(*tomllib.load(open(sys.argv[1], 'rb'))['build-system']['requires'], sep='\n')" "$root/pyproject.toml")
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --implementation cp --python-version "$version" "${platforms[@]}" \
    --dest "$work/build" "${builders[@]}" pip

mv "$work"/wheels/*.whl "$folder"
rm -f "$folder"/dasf_hpc-*.whl # the checkout itself is installed
[ -z "$have" ] || PYTHONPATH=$root/tests "$python" -m gpu.wheels drop "$folder" "$work/have"
mv "$work"/build/*.whl "$folder"
PYTHONPATH=$root/tests "$python" -m gpu.wheels list "$folder"
