# shellcheck shell=bash
# The README's own commands, for shell scripts that run them as they stand. To be sourced.

# readme_command NAME - prints the lines of the code block that follows `<!-- ci: NAME -->`.
readme_command() {
    awk -v mark="<!-- ci: $1 -->" '
        $0 == mark { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }
    ' README.md
}

# run_readme_command NAME [WORDS] - runs them, with these words after the last one.
run_readme_command() {
    local lines
    lines=$(readme_command "$1")
    if [ -z "$lines" ]; then
        echo "README.md has no code block after <!-- ci: $1 -->" >&2
        exit 1
    fi
    lines+=${2:+ $2}
    printf '%s\n' "--- README: $1" "$lines"
    bash -euo pipefail -c "$lines"
}
