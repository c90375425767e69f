# shellcheck shell=bash
# How the scripts of this folder say what they do. To be sourced; `log` names a file for `quietly`.

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

fail() {
    say "$*" >&2
    exit 1
}

# quietly WHAT COMMAND… - runs a command and shows its output only if it fails.
quietly() {
    local what=$1
    shift
    # shellcheck disable=SC2154 # who sources this has it
    "$@" >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "$what failed; the end of what it said stands above"
    }
}
