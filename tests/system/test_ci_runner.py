"""Files for CI runners: GitHub and GitLab take them, and their scripts run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml
from testbed.slurm import SlurmTestbed

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "gpu.yml"
ACTION = ROOT / ".github" / "actions" / "dasf-hpc" / "action.yml"
GITLAB = ROOT / ".gitlab" / "gpu.yml"
PROGRAMS = Path(sys.executable).parent

JOB = """
    import sys, time
    from distributed import Client

    def work(number, seconds):
        time.sleep(seconds)

    seconds = float(sys.argv[1])
    if seconds < 0:
        sys.exit(3)
    with Client() as client:
        client.gather(client.map(work, range(60), seconds=seconds))
"""


def action() -> Any:
    """Read the composite action."""
    return yaml.safe_load(ACTION.read_text())


def script_of(name: str) -> tuple[str, dict[str, str]]:
    """Give a script as it stands, and the variables that its file sets, by name.

    The name is a step of the action, or ``script`` or ``after_script`` of GitLab's job.
    """
    if name in ("script", "after_script"):
        job = yaml.safe_load(GITLAB.read_text())[".dasf-hpc"]
        return "\n".join(job[name]), job["variables"]
    (step,) = (step for step in action()["runs"]["steps"] if step.get("id") == name)
    return step["run"], step.get("env", {})


def run(
    folder: Path,
    name: str,
    inputs: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with the shell and the variables that a runner gives it."""
    text, variables = script_of(name)
    given = {
        **{key: str(entry.get("default", "")) for key, entry in action()["inputs"].items()},
        **(inputs or {}),
    }

    def value(found: re.Match[str]) -> str:
        return given[found[1].removeprefix("inputs.")]

    environment = {k: re.sub(r"\$\{\{ (\S+) \}\}", value, v) for k, v in variables.items()}
    file = folder / "step.sh"
    file.write_text(text)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)],
        cwd=folder, env={**os.environ, **environment, **(more or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def program(name: str) -> str:
    """Find a linter in this environment, or on PATH."""
    found = shutil.which(name, path=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, f"{name} is not installed: pip install -e '.[test]'"
    return found


@pytest.mark.parametrize(
    ("schema", "file"),
    [("github-workflows", WORKFLOW), ("github-actions", ACTION), ("gitlab-ci", GITLAB)],
    ids=["workflow", "action", "gitlab"],
)
def test_the_files_have_the_structure_that_their_schema_asks_for(schema: str, file: Path) -> None:
    done = subprocess.run(
        [program("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["compare", "comment", "script", "after_script"])
def test_the_scripts_are_clean(name: str) -> None:
    done = subprocess.run(
        [program("shellcheck"), "--shell=bash", "-"],
        input=script_of(name)[0], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    linter = program("actionlint")
    # It does not look into actions: their steps and inputs as those of a workflow.
    content = action()
    inputs = {
        name: {"type": "string", "required": entry.get("required", False)}
        for name, entry in content["inputs"].items()
    }
    steps = {"runs-on": "ubuntu-latest", "steps": content["runs"]["steps"]}
    as_workflow = tmp_path / "action.yml"
    as_workflow.write_text(
        yaml.safe_dump({"on": {"workflow_call": {"inputs": inputs}}, "jobs": {"action": steps}})
    )
    done = subprocess.run(
        [linter, WORKFLOW, as_workflow],
        cwd=ROOT, env={**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_workflow_passes_the_action_what_it_takes() -> None:
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    passed = job["steps"][-1]["with"]
    assert passed == {name: f"${{{{ inputs.{name} }}}}" for name in passed}
    assert set(passed) | {"token"} == set(action()["inputs"])


class Forge(ThreadingHTTPServer):
    """Keeps the comments of one pull or merge request, as GitHub's and GitLab's servers do."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Comments)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.comments = ["Looks good"]
        self.asked: list[str] = []
        self.tokens: set[str] = set()


class Comments(BaseHTTPRequestHandler):
    """Lists comments, adds one, changes one."""

    def do_GET(self) -> None:
        """List them."""
        self.answer()

    def do_POST(self) -> None:
        """Add one."""
        self.answer()

    def do_PATCH(self) -> None:
        """Change one, at GitHub."""
        self.answer()

    def do_PUT(self) -> None:
        """Change one, at GitLab."""
        self.answer()

    def answer(self) -> None:
        """Do what was asked for, and list all comments."""
        forge = self.server
        assert isinstance(forge, Forge)
        path = self.path.split("?")[0]
        forge.asked.append(f"{self.command} {path}")
        forge.tokens.add(self.headers["Authorization"] or self.headers["PRIVATE-TOKEN"])
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if sent:
            body = json.loads(sent)["body"] if sent[0] == "{" else parse_qs(sent)["body"][0]
            if self.command == "POST":
                forge.comments.append(body)
            else:
                forge.comments[int(path.rsplit("/", 1)[1])] = body
        listed = [
            {"id": n, "url": f"{forge.url}/comments/{n}", "body": body}
            for n, body in enumerate(forge.comments)
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(listed).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def forge() -> Iterator[Forge]:
    """Give a server that keeps comments."""
    with Forge() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "asked", "token"),
    [
        (
            "comment",
            ["GET /repos/me/seismic/issues/7/comments", "POST /repos/me/seismic/issues/7/comments",
             "GET /repos/me/seismic/issues/7/comments", "PATCH /comments/1"],
            "Bearer very-secret",
        ),
        (
            "after_script",
            [f"{verb} /projects/5/merge_requests/7/notes{more}"
             for verb, more in (("GET", ""), ("POST", ""), ("GET", ""), ("PUT", "/1"))],
            "very-secret",
        ),
    ],
)  # fmt: skip
def test_a_comment_is_written_once_and_then_changed(
    name: str, asked: list[str], token: str, forge: Forge, tmp_path: Path
) -> None:
    folder = tmp_path / "dasf-hpc-ci"
    folder.mkdir()
    (folder / "head.json").write_text("{}")
    given = {"token": "very-secret", "github.event.pull_request.number": "7"}
    more = {
        "GITHUB_API_URL": forge.url,
        "GITHUB_REPOSITORY": "me/seismic",
        "CI_API_V4_URL": forge.url,
        "CI_PROJECT_ID": "5",
        "CI_MERGE_REQUEST_IID": "7",
        "CI_JOB_NAME_SLUG": "gpu",
        "COMMENT_TOKEN": "very-secret",
    }
    for text in ('### "first" & 100 %\n', "### second\n"):
        (folder / "compare.md").write_text(text)
        done = run(tmp_path, name, given, more)
        assert done.returncode == 0, done.stderr
        assert forge.comments == ["Looks good", f"<!-- dasf-hpc gpu -->\n{text}"]
    assert forge.asked == asked
    assert forge.tokens == {token}


def test_a_job_that_fails_is_no_comparison_and_one_without_a_baseline_is_let_through(
    tmp_path: Path,
) -> None:
    def compare(seconds: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / seconds
        (folder / "dasf-hpc-ci").mkdir(parents=True)
        (folder / "dasf-hpc-ci" / "compare.md").write_text("of a job before")
        (folder / "job.py").write_text(textwrap.dedent(JOB))
        words = "--on local --no-nsys --no-report --repeats"
        repeats = 3 if seconds == "-1" else 1
        inputs = {
            "setup": f"PATH={PROGRAMS}:$PATH",
            "run": f"{words} {repeats} job.py {seconds}",
        }
        return run(folder, "compare", inputs)

    with ThreadPoolExecutor() as pool:
        failed, first = pool.map(compare, ("-1", "0.01"))
    results = tmp_path / "-1" / "dasf-hpc-ci"
    assert failed.returncode == 3, failed.stderr
    assert len(list((results / "runs").iterdir())) == 1
    assert not (results / "compare.md").exists()
    results = tmp_path / "0.01" / "dasf-hpc-ci"
    assert first.returncode == 0, first.stderr
    assert "There is no baseline yet" in (results / "compare.md").read_text()


def test_what_is_no_baseline_is_told_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "job.py").touch()
    (tmp_path / "dasf-hpc-baseline.json").write_text("{}")
    inputs = {"setup": f"PATH={PROGRAMS}:$PATH", "run": "--on local job.py"}
    done = run(tmp_path, "compare", inputs)
    assert done.returncode == 77, done.stderr
    assert not (tmp_path / "dasf-hpc-ci").exists()


@pytest.mark.needs("slurm")
def test_a_baseline_a_slower_job_and_the_same_job_on_nodes(
    slurm: SlurmTestbed, tmp_path: Path
) -> None:
    slurm.wait_until_idle()
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))
    words = (
        "--on slurm --nodes 2 --memory 8GB --interface lo --no-nsys --no-report --relative 25 "
        "--prologue 'export SITE=here'"
    )
    setup = f"PATH={PROGRAMS}:$PATH"
    results = tmp_path / "dasf-hpc-ci"

    def inputs(more: str) -> dict[str, str]:
        return {"setup": setup, "run": f"{words} {more}", "cannot-tell": "fail"}

    def verdict() -> str:
        return str(json.loads((results / "compare.json").read_text())["verdict"])

    done = run(tmp_path, "compare", inputs("--repeats 5 job.py 0.05"), slurm.environment)
    assert done.returncode == 82, done.stderr
    assert verdict() == "cannot tell"
    assert run(tmp_path, "baseline").returncode == 0

    done = run(tmp_path, "compare", inputs("--repeats 1 job.py 0.1"), slurm.environment)
    assert done.returncode == 81, done.stdout + done.stderr
    assert verdict() == "regression"
    # of an only run nobody can say what slowed it: it was run once more
    assert len(list(results.glob("runs/*/trace.h5"))) == 2
    assert "::error title=work%3A regression::" in done.stdout
    assert "<failure" in (results / "compare.xml").read_text()
    summary = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    assert run(tmp_path, "summary", more=summary).returncode == 0
    assert "**`work`**" in (tmp_path / "summary.md").read_text()

    gitlab = {"SETUP": setup, "RUN": f"{words} --repeats 1 job.py 0.05", "CANNOT_TELL": "fail"}
    done = run(tmp_path, "script", more={**slurm.environment, **gitlab})
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdict() == "same"
    made = len(list(results.glob("runs/*/trace.h5")))
    assert made in (1, 2)  # 2 where something held this machine up
    assert run(tmp_path, "after_script", more={"COMMENT_TOKEN": ""}).returncode == 0
    kept = json.loads((tmp_path / "dasf-hpc-baseline.json").read_text())
    assert len(kept["runs"]) == made
