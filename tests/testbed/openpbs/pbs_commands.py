"""What ``qsub``, ``qstat``, ``qdel``, ``qselect`` and ``pbsdsh`` do: ask the server and print.

Options, messages and exit codes are those of OpenPBS's manual pages and of its table of errors: a
command exits with the lowest eight bits of the server's error number, so that 15001 (unknown job)
becomes 153.
"""

from __future__ import annotations

import getopt
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from typing import Any

DIRECTORY_VARIABLE = "OPENPBS_TESTBED"
"""Names the directory in which the server keeps its socket and its files."""

SERVER = "pbsserver"
NO_SERVER = 15034
LINE_LENGTH = 78
"""``qstat -f`` wraps longer values: the next line begins with a tab."""

QSUB_OPTIONS = "a:A:c:C:e:fhj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:z"
QSUB_USAGE = """\
usage: qsub [-a date_time] [-A account_string] [-c interval]
	[-C directive_prefix] [-e path] [-f ] [-h ] [-j oe|eo] [-J X-Y[:Z]] [-k keep]
	[-l resource_list] [-m mail_options] [-M user_list] [-N jobname]
	[-o path] [-p priority] [-P project] [-q destination] [-r y|n]
	[-R o|e|oe] [-S path] [-u user_list] [-v variable_list] [-V ]
	[-W otherattributes=value...] [-z] [script | -- command [arg1 ...]]
       qsub --version
"""
QSTAT_USAGE = """\
usage: qstat [-f [-w]] [-t] [-x] [ job_identifier... | destination... ]
       qstat --version
"""
QDEL_USAGE = """\
usage:
	qdel [-W force|suppress_email=X] [-x] job_identifier...
	qdel --version
"""
SUBMITTER_VARIABLES = ("HOME", "LANG", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ")
"""What qsub hands to a job of its own environment, with ``PBS_O_`` in front of each name."""


def ask(command: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to the server and return its answer; exits where there is none."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        print("No default server name", file=sys.stderr)
        print(f"{command}: cannot connect to server  (errno={NO_SERVER})", file=sys.stderr)
        sys.exit(NO_SERVER & 0xFF)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.path.join(directory, "socket"))  # noqa: PTH118
        except OSError as error:
            print(error.strerror, file=sys.stderr)
            print(
                f"{command}: cannot connect to server {SERVER} (errno={error.errno})",
                file=sys.stderr,
            )
            sys.exit((error.errno or 1) & 0xFF)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer = json.loads(answers.readline() or b'{"error": [15031, "End of File"]}')
    assert isinstance(answer, dict)
    return answer


def fail(command: str, error: list[Any]) -> int:
    """Print an error of the server and return the exit code that goes with it."""
    number, text = error
    print(f"{command}: {text}", file=sys.stderr)
    return int(number) & 0xFF


# ------------------------------------------------------------------------------------------ qsub


def qsub(words: list[str]) -> int:
    """Submit a script, from a file or from standard input."""
    if words == ["--version"]:
        print("pbs_version = 22.05.11")
        return 0
    try:
        given, operands = getopt.getopt(words, QSUB_OPTIONS)
    except getopt.GetoptError as error:
        print(f"qsub: {error.msg}", file=sys.stderr)
        sys.stderr.write(QSUB_USAGE)
        return 2
    if len(operands) > 1:
        sys.stderr.write(QSUB_USAGE)
        return 2
    if operands:
        try:
            with open(operands[0], "rb") as file:  # noqa: PTH123
                script = file.read()
        except OSError as error:
            print(f"qsub: script file:: {error.strerror}", file=sys.stderr)
            return 1
        name = os.path.basename(operands[0])  # noqa: PTH119
    else:
        script, name = sys.stdin.buffer.read(), "STDIN"
    prefix = dict(given).get("-C", os.environ.get("PBS_DPREFIX", "#PBS"))
    try:
        directives = read_directives(script, prefix)
        options = merge_options(directives, given)
    except ValueError as error:
        print(f"qsub: {error}", file=sys.stderr)
        return 2
    answer = ask(
        "qsub",
        {
            "do": "submit",
            "name": options["N"] or name,
            "script": script.decode("utf-8", "surrogateescape"),
            "options": options,
            "directory": os.getcwd(),  # noqa: PTH109
            "variables": job_variables(options),
            "arguments": " ".join(map(shlex.quote, words)),
        },
    )
    if "error" in answer:
        return fail("qsub", answer["error"])
    if not options["z"]:
        print(answer["id"])
    return 0


def read_directives(script: bytes, prefix: str) -> list[tuple[str, str]]:
    """Read the directives above the first line that a shell would execute."""
    directives: list[tuple[str, str]] = []
    for line in script.decode("utf-8", "surrogateescape").splitlines():
        text = line.strip()
        if prefix and text.startswith(prefix):
            words = shlex.split(text[len(prefix) :], comments=False)
            try:
                options, rest = getopt.getopt(words, QSUB_OPTIONS)
            except getopt.GetoptError as error:
                raise ValueError(f"directive error: {text[len(prefix) :].strip()}") from error
            if rest:
                raise ValueError(f"directive error: {text[len(prefix) :].strip()}")
            directives += options
        elif text and not text.startswith(("#", ":")):
            break
    return directives


def merge_options(
    directives: list[tuple[str, str]], given: list[tuple[str, str]]
) -> dict[str, Any]:
    """Put directives and command line together.

    Of an option the command line's wins, and of a resource the first that is given, the command
    line's first of all: a second ``select`` or ``place`` is ignored in silence.
    """
    options: dict[str, Any] = dict.fromkeys(
        ("A", "J", "N", "S", "e", "j", "k", "o", "p", "P", "q", "r", "v"), ""
    )
    options |= {"h": False, "V": False, "z": False, "l": {}}
    for name, value in [*given, *directives]:
        if name == "-l":
            for request in value.split(","):
                resource, equals, amount = request.partition("=")
                if not equals or not resource.strip() or not amount.strip():
                    raise ValueError("illegal -l value")
                options["l"].setdefault(resource.strip(), amount.strip())
    for name, value in [*directives, *given]:
        letter = name[1]
        if letter == "l":
            continue
        if letter in "hVz":
            options[letter] = True
        elif letter == "j" and value not in ("oe", "eo", "n"):
            raise ValueError("illegal -j value")
        elif letter == "J" and not valid_range(value):
            raise ValueError("illegal -J value")
        elif letter == "N" and not re.fullmatch(r"[A-Za-z0-9][!-~]{0,235}", value):
            raise ValueError("illegal -N value")
        elif letter == "r" and value not in ("y", "n"):
            raise ValueError("illegal -r value")
        elif letter in options:
            options[letter] = value
    return options


def valid_range(text: str) -> bool:
    """Say whether ``X-Y[:Z]`` are the indices of an array: from X, below Y, in steps above 0."""
    found = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text)
    return bool(found and int(found[1]) < int(found[2]) and found[3] != "0")


def job_variables(options: dict[str, Any]) -> dict[str, str]:
    """Choose what of this environment the job gets: little, unless -V or -v ask for more."""
    variables = {
        f"PBS_O_{name}": os.environ[name] for name in SUBMITTER_VARIABLES if name in os.environ
    }
    variables["PBS_O_HOST"] = socket.gethostname()
    variables["PBS_O_SYSTEM"] = os.uname().sysname
    variables["PBS_O_WORKDIR"] = os.getcwd()  # noqa: PTH109
    if options["V"]:
        variables = dict(os.environ) | variables
    for item in filter(None, options["v"].split(",")):
        name, equals, value = item.partition("=")
        if equals:
            variables[name] = value
        elif name in os.environ:
            variables[name] = os.environ[name]
    variables.pop(DIRECTORY_VARIABLE, None)
    return variables


# ----------------------------------------------------------------------------------------- qstat


def qstat(words: list[str]) -> int:
    """Show jobs, one to a line, or with -f all their attributes."""
    if words == ["--version"]:
        print("pbs_version = 22.05.11")
        return 0
    try:
        given, operands = getopt.getopt(words, "ftwx")
    except getopt.GetoptError as error:
        print(f"qstat: {error.msg}", file=sys.stderr)
        sys.stderr.write(QSTAT_USAGE)
        return 2
    options = {name for name, _ in given}
    code = 0
    jobs: list[dict[str, Any]] = []
    for operand in operands or [""]:
        request = {"what": operand, "history": "-x" in options, "subjobs": "-t" in options}
        answer = ask("qstat", {"do": "status", **request})
        if "error" in answer:
            code = fail("qstat", answer["error"])
        else:
            jobs += answer["jobs"]
    if "-f" in options:
        for job in jobs:
            print(f"Job Id: {job['id']}")
            for name, value in job["attributes"].items():
                print(attribute_lines(name, str(value), wide="-w" in options))
            print()
    elif jobs:
        print("Job id            Name             User              Time Use S Queue")
        print("----------------  ---------------- ----------------  -------- - -----")
        for job in jobs:
            facts = job["attributes"]
            print(
                f"{job['id'][:17]:<17} {facts['Job_Name'][:15]:<16} "
                f"{facts['Job_Owner'].split('@')[0][:16]:<16}  "
                f"{facts.get('resources_used.cput', '0'):>8} {facts['job_state']} "
                f"{facts['queue'][:16]:<16}"
            )
    return code


def attribute_lines(name: str, value: str, wide: bool) -> str:
    """Write ``name = value`` as ``qstat -f`` does: wrapped, at commas where that is possible."""
    text = f"    {name} = "
    if wide:
        return text + value
    lines: list[str] = []
    for number, part in enumerate(value.split(",")):
        piece = ("," if number else "") + part
        if len(text) + len(piece) < LINE_LENGTH:
            text += piece
            continue
        if number:
            lines.append(text + ",")
            text, piece = "\t", part
        while len(text) + len(piece) > LINE_LENGTH:
            cut = LINE_LENGTH - len(text)
            lines.append(text + piece[:cut])
            text, piece = "\t", piece[cut:]
        text += piece
    return "\n".join([*lines, text])


# ------------------------------------------------------------------------------------------ qdel


def qdel(words: list[str]) -> int:
    """Delete jobs: those that wait go at once, those that run are signalled."""
    if words == ["--version"]:
        print("pbs_version = 22.05.11")
        return 0
    try:
        given, operands = getopt.getopt(words, "W:x")
    except getopt.GetoptError as error:
        print(f"qdel: {error.msg}", file=sys.stderr)
        operands = []
    if not operands:
        sys.stderr.write(QDEL_USAGE)
        return 2
    code = 0
    for operand in operands:
        force = ("-W", "force") in given
        answer = ask("qdel", {"do": "delete", "what": operand, "force": force})
        if "error" in answer:
            code = fail("qdel", answer["error"])
    return code


# --------------------------------------------------------------------------------------- qselect

QSELECT_USAGE = "usage: qselect [-N jobname] [-u user_list] | --version\n"


def qselect(words: list[str]) -> int:
    """Print the ids of the jobs that have a name and an owner; of its options those two."""
    if words == ["--version"]:
        print("pbs_version = 22.05.11")
        return 0
    try:
        given, operands = getopt.getopt(words, "N:u:")
        if operands:
            raise getopt.GetoptError("")
    except getopt.GetoptError:
        sys.stderr.write(QSELECT_USAGE)
        return 2
    wanted = dict(given)
    answer = ask("qselect", {"do": "status", "what": "", "history": False, "subjobs": False})
    if "error" in answer:
        return fail("qselect", answer["error"])
    for job in answer["jobs"]:
        facts = job["attributes"]
        users = wanted.get("-u", "").split(",")
        owner = facts["Job_Owner"].split("@")[0]
        if wanted.get("-N", facts["Job_Name"]) == facts["Job_Name"] and (
            "-u" not in wanted or owner in users
        ):
            print(job["id"])
    return 0


# ---------------------------------------------------------------------------------------- pbsdsh

PBSDSH_USAGE = """\
Usage: pbsdsh [-c copies][-s][-v][-o] -- program [args...]
       pbsdsh [-n node_index][-s][-v][-o] -- program [args...]
       pbsdsh --version
"""
POLL_S = 0.05


def pbsdsh(words: list[str]) -> int:
    """Start a program on hosts of the job that this runs in, and wait for its end.

    What the program writes goes to the job's output, and its exit code is not ours. A signal that
    asks us to end is passed on to it.
    """
    if words == ["--version"]:
        print("pbs_version = 22.05.11")
        return 0
    try:
        given, program = getopt.getopt(words, "c:n:svo")
        copies, node = (dict(given).get(name) for name in ("-c", "-n"))
        if not program or (copies is not None and node is not None):
            raise getopt.GetoptError("")
        first, count = int(node or 0), int(copies or 0)
    except (getopt.GetoptError, ValueError):
        sys.stderr.write(PBSDSH_USAGE)
        return 1
    if "PBS_ENVIRONMENT" not in os.environ:
        print("pbsdsh: not executing under PBS", file=sys.stderr)
        return 1
    job = {"job": os.environ.get("PBS_JOBID"), "cookie": os.environ.get("PBS_JOBCOOKIE")}
    answer = ask("pbsdsh", {"do": "nodes", **job})
    if "error" in answer:
        print(f"pbsdsh: {answer['error'][1]}", file=sys.stderr)
        return 1
    nodes = answer["nodes"]
    signals: list[int] = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    tasks = []
    for at in [first] if node is not None else range(count if copies is not None else nodes):
        request = {"do": "spawn", **job, "node": at % nodes, "words": program}
        answer = ask("pbsdsh", request)
        if "error" in answer:
            print(f"pbsdsh: spawn failed on node {at} err {answer['error'][1]}", file=sys.stderr)
        else:
            tasks.append(answer["task"])
    while tasks and "-o" not in dict(given):
        if signals:
            for task in tasks:
                print(f"pbsdsh: killing task 0x{task:08X} signal {signals[0]}", flush=True)
                ask("pbsdsh", {"do": "signal", **job, "task": task, "number": signals[0]})
            return 1
        for task in list(tasks):
            status = ask("pbsdsh", {"do": "obit", **job, "task": task}).get("status", 0)
            if status is not None:
                tasks.remove(task)
                if status:
                    print(f"pbsdsh: task 0x{task:08X} exit status {status}", flush=True)
        time.sleep(POLL_S)
    return 0
