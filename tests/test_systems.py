"""Batch systems: every module keeps what a run relies on, tried with the commands themselves.

SLURM's are real; those of PBS and LSF are the testbed's, which behave as documented.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testbed.lsf import LsfTestbed
from testbed.openpbs import OpenPbsTestbed
from testbed.slurm import SlurmTestbed

from dasf_hpc.errors import BatchError, SettingsError
from dasf_hpc.settings import load_settings
from dasf_hpc.systems import SYSTEMS, batch_job_id
from dasf_hpc.systems.base import BatchSystem, batch_name
from dasf_hpc.systems.lsf import LSF
from dasf_hpc.systems.pbs import PBS
from dasf_hpc.systems.request import Request
from dasf_hpc.systems.slurm import SLURM
from dasf_hpc.systems.states import JobState

ALL = pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: str(system.name))

#: What a submission answers, as documented.
ANSWERS = {
    "slurm": "Submitted batch job 4711\n",
    "pbs": "4711.pbsserver\n",
    "lsf": "Job <4711> is submitted to default queue <normal>.\n",
}

#: Directives with which a job waits.
HELD = {"slurm": "--hold", "pbs": "-h", "lsf": ""}

#: Variables with which a user has commands show, count or do something else.
LEAKS = {
    "slurm": {"SQUEUE_STATES": "COMPLETED", "SQUEUE_USERS": "nobody", "SBATCH_WAIT": "1",
              "SCANCEL_STATE": "SUSPENDED", "SQUEUE_FORMAT": "%i"},
    "pbs": {"PBS_DPREFIX": "#OTHER"},
    "lsf": {"BSUB_QUIET": "Y", "BSUB_BLOCK": "Y"},
}  # fmt: skip


@dataclass
class Site:
    """A batch system with its commands on ``PATH``."""

    system: BatchSystem
    folder: Path
    queue: Callable[[], list[str]]

    def submit(self, name: str, *lines: str, held: bool = False) -> str:
        """Submit a job of a name."""
        directives = [f"{self.system.name_option} {name}"]
        if held and HELD[self.system.name]:
            directives.append(HELD[self.system.name])
        script = self.folder / f"{name}.sh"
        marked = [f"{self.system.mark} {line}" for line in directives]
        script.write_text("\n".join(["#!/bin/bash", *marked, f"cd {self.folder}", *lines, ""]))
        return self.system.submit_script(script, self.folder, name, load_settings({}))

    def state(self, job_id: str) -> JobState:
        """Give what the queue says of a job."""
        found = self.system.ask([job_id]).get(job_id)
        return JobState.GONE if found is None else found.state

    def wait_for(self, job_id: str, state: JobState) -> None:
        """Wait until a job is in a state."""
        deadline = time.monotonic() + 30
        while self.state(job_id) is not state:
            assert time.monotonic() < deadline, (self.state(job_id), self.queue())
            time.sleep(0.1)


@pytest.fixture(
    params=[pytest.param("slurm", marks=pytest.mark.needs("slurm")), "pbs", "lsf"],
)
def site(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Site]:
    """Give each batch system in turn; nothing of a test is left in its queue."""
    system = SYSTEMS[request.param]
    if system is LSF:
        with LsfTestbed() as lsf:
            for name, value in lsf.environment.items():
                monkeypatch.setenv(name, value)
            yield Site(system, tmp_path, lsf.queue)
        return
    cluster: SlurmTestbed | OpenPbsTestbed
    cluster = request.getfixturevalue("slurm" if system is SLURM else "openpbs")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield Site(system, tmp_path, lambda: [str(job) for job in cluster.queue()])
    for variable in LEAKS[system.name]:
        monkeypatch.delenv(variable, raising=False)
    left = [path.stem for path in tmp_path.glob("*.sh")]
    for name in left:
        for job_id in system.find(name):
            subprocess.run(system.cancel_words(job_id, name), check=False, capture_output=True)
    deadline = time.monotonic() + 30
    while any(system.find(name) for name in left) and time.monotonic() < deadline:
        time.sleep(0.2)


def test_a_job_is_followed_from_its_submission_to_its_end(site: Site) -> None:
    name = batch_name("RUN-0")
    job_id = site.submit(name, "while [ ! -e go ]; do sleep 0.1; done", "exit 3")
    site.wait_for(job_id, JobState.RUNNING)
    assert site.system.ask([job_id])[job_id].name == name
    assert site.system.find(name) == [job_id]
    assert site.system.own_id(job_id, name) == job_id
    (site.folder / "go").touch()
    site.wait_for(job_id, JobState.GONE)
    assert site.system.find(name) == []
    assert site.system.how_it_ended(job_id) == "ended with exit code 3"


def test_a_job_knows_its_own_id(site: Site) -> None:
    variable = site.system.job_variable
    job_id = site.submit(batch_name("RUN-0"), f'echo "${variable}" > id')
    site.wait_for(job_id, JobState.GONE)
    assert (site.folder / "id").read_text().strip().split(".")[0] == job_id


def test_what_is_cancelled_is_the_runs_own_alone(site: Site) -> None:
    own = site.submit(batch_name("RUN-0"), "sleep 60")
    others = [site.submit(name, "sleep 60") for name in ("work", batch_name("RUN2-0"))]
    for job_id in (own, *others):
        site.wait_for(job_id, JobState.RUNNING)
    cancelled = site.system.cancel_own([own, *others], "RUN")
    assert cancelled.done == [own]
    assert cancelled.failed == {}
    site.wait_for(own, JobState.GONE)
    assert [site.state(job_id) for job_id in others] == [JobState.RUNNING] * 2
    assert "cancelled" in (how := site.system.how_it_ended(own)) or "kill" in how or "qdel" in how


def test_what_waits_is_cancelled_too(site: Site) -> None:
    name = batch_name("RUN-held")
    job_id = site.submit(name, "sleep 60", held=True)
    assert site.state(job_id) is JobState.PENDING
    assert site.system.cancel_own([job_id], "RUN").done == [job_id]
    site.wait_for(job_id, JobState.GONE)


def test_what_users_set_for_these_commands_does_not_reach_ours(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in LEAKS[site.system.name].items():
        monkeypatch.setenv(variable, value)
    name = batch_name("RUN-0")
    job_id = site.submit(name, "sleep 60")
    site.wait_for(job_id, JobState.RUNNING)
    assert site.system.find(name) == [job_id]
    assert site.system.cancel_own([job_id], "RUN").done == [job_id]
    site.wait_for(job_id, JobState.GONE)


def test_an_id_that_is_another_jobs_is_looked_up_by_the_name(site: Site) -> None:
    foreign = site.submit("work", "sleep 60")
    own = site.submit(batch_name("RUN-0"), "sleep 60")
    assert site.system.own_id(foreign, batch_name("RUN-0")) == own
    with pytest.raises(BatchError, match="is not this run's"):
        site.system.own_id(foreign, batch_name("RUN-1"))


def test_a_job_that_nobody_knows_is_no_error(site: Site) -> None:
    assert site.system.ask(["999999"]) == {}
    assert site.system.ask([]) == {}
    assert site.system.how_it_ended("999999") == ""
    assert site.system.cancel_own(["999999"], "RUN").done == []


@ALL
def test_commands_that_are_not_there_are_told_in_a_sentence(
    system: BatchSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "x.sh").touch()
    with pytest.raises(BatchError, match="could not be run"):
        system.ask(["1"])
    with pytest.raises(BatchError, match="could not be run"):
        system.submit_script(tmp_path / "x.sh", tmp_path, "dasf-RUN-0", load_settings({}))
    assert system.find("dasf-RUN-0") == []
    assert system.how_it_ended("1") == ""


@ALL
@given(before=st.text(max_size=60), after=st.text(max_size=60))
def test_words_of_a_site_around_an_answer_give_no_other_id(
    system: BatchSystem, before: str, after: str
) -> None:
    answer = ANSWERS[system.name]
    assert system.read_ids(answer) == ["4711"]
    banner = f"35 hours left\n{before} 12\n{answer}see ticket 99 {after}\n"
    assert "4711" in system.read_ids(banner) or not answer.startswith(banner)
    assert system.read_ids(f"35 hours are left\n{answer}see ticket 99\n") == ["4711"]


@ALL
@given(text=st.text())
def test_reading_never_fails(system: BatchSystem, text: str) -> None:
    system.read_ids(text)
    system.read(text)
    assert isinstance(system.read_ending(text), str)
    assert system.why_pending(text).sentence
    assert str(system.refusal(text, "a node job", Path("x.sh"))).endswith(".")


@ALL
def test_a_request_that_says_all_becomes_options_of_dasks_job_class(system: BatchSystem) -> None:
    request = Request(
        4, 8 * 10**9, 2, True, "1-01:00:30", 90_030, "gpu", "abc", ("-first", "-second")
    )
    options = system.job_options(request)
    lines = options["job_extra_directives"]
    assert lines[-2:] == ["-first", "-second"]
    assert options["queue"] == "gpu"
    assert "abc" in (options.get("account"), options.get("project"))
    assert any("2" in line for line in [*lines, str(options.get("resource_spec"))])


def test_each_system_says_a_walltime_in_its_own_way() -> None:
    request = Request(1, 10**9, 0, False, "1-01:00:30", 90_030)
    assert SLURM.job_options(request)["walltime"] == "1-01:00:30"
    assert PBS.job_options(request)["walltime"] == "25:00:30"
    assert LSF.job_options(request)["walltime"] == "25:01"  # whole minutes, never less than asked
    assert LSF.read_walltime("90") == "01:30:00"
    assert LSF.read_walltime("2:05") == "02:05:00"


@pytest.mark.parametrize("line", ["-l select=2:ncpus=1", "-lselect=1", "-l walltime=1,select=1"])
def test_a_select_that_pbs_would_ignore_is_refused(line: str) -> None:
    with pytest.raises(SettingsError, match="takes the first select alone"):
        PBS.job_options(Request(1, 10**9, 0, False, "1:00", 60, directives=(line,)))


def test_a_second_place_is_refused_and_a_first_one_taken() -> None:
    line = "-l place=scatter"
    with pytest.raises(SettingsError, match="place=excl"):
        PBS.job_options(Request(1, 10**9, 0, True, "1:00", 60, directives=(line,)))
    options = PBS.job_options(Request(1, 10**9, 0, False, "1:00", 60, directives=(line,)))
    assert options["job_extra_directives"].count(line) == 1


def test_a_chunk_is_added_to_what_a_pbs_job_asks_for_and_prevails() -> None:
    chunk = ("model=a100:mpiprocs=4", "ncpus=36")
    request = Request(1, 10**9, 2, False, "1:00", 60, chunk=chunk, gpu_resource="gpus")
    spec = PBS.job_options(request)["resource_spec"]
    assert spec == "select=1:mem=954MB:gpus=2:model=a100:mpiprocs=4:ncpus=36"


@pytest.mark.parametrize("system", [SLURM, LSF], ids=lambda system: str(system.name))
def test_a_chunk_is_refused_where_there_are_none(system: BatchSystem) -> None:
    with pytest.raises(SettingsError, match="--chunk is for PBS"):
        system.job_options(Request(1, 10**9, 0, False, "1:00", 60, chunk=("a=b",)))


def test_gpus_are_asked_for_by_the_sites_name() -> None:
    request = Request(1, 10**9, 2, False, "1:00", 60, gpu_resource="gpu:a100")
    assert "--gres=gpu:a100:2" in SLURM.job_options(request)["job_extra_directives"]


@pytest.mark.parametrize(
    ("system", "wish", "ours"),
    [(SLURM, "--requeue", "--no-requeue"), (PBS, "-r y", "-r n"), (LSF, "-r", "-rn")],
    ids=lambda part: getattr(part, "name", None),
)
def test_a_job_is_run_again_only_where_that_is_wanted(
    system: BatchSystem, wish: str, ours: str
) -> None:
    plain = system.job_options(Request(1, 10**9, 0, False, "1:00", 60))
    assert ours in plain["job_extra_directives"]
    wished = system.job_options(Request(1, 10**9, 0, False, "1:00", 60, directives=(wish,)))
    assert ours not in wished["job_extra_directives"]


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "ended with exit code 0"),
        (127, "ended with exit code 127"),
        (271, "was ended by qdel or at its walltime (SIGTERM)"),
        (265, "was killed (SIGKILL)"),
        (267, "was ended by signal 11"),
        (-29, "was ended by PBS: it was over its limit of walltime"),
        (-1, "was ended by PBS (Exit_status -1)"),
    ],
)
def test_what_pbs_says_of_an_end(code: int, how: str) -> None:
    answer = f"Job Id: 7.server\n    Job_Name = x\n    Exit_status = {code}\n    job_state = F\n"
    assert PBS.read_ending(answer) == how


def test_a_batch_job_is_known_by_the_variable_of_whichever_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for system in SYSTEMS.values():
        monkeypatch.delenv(system.job_variable, raising=False)
    assert batch_job_id() is None
    for system in SYSTEMS.values():
        monkeypatch.setenv(system.job_variable, "12")
        assert batch_job_id() == "12"
        monkeypatch.delenv(system.job_variable)
    assert len({system.job_variable for system in SYSTEMS.values()}) == len(SYSTEMS)


FACTS = ("SLURM_", "sbatch", "squeue", "scancel", "scontrol", "qsub", "qstat", "qdel", "PBS_",
         "bsub", "bjobs", "LSB_")  # fmt: skip


def test_what_a_batch_system_is_called_by_stands_in_its_module_alone() -> None:
    """Sentences for people and comments may name them; code may not."""
    import ast

    package = Path(__file__).parents[1] / "dasf_hpc"
    named = set()
    for path in package.rglob("*.py"):
        if path.parent.name == "systems":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if " " not in text and any(fact in text for fact in FACTS):
                    named.add((str(path.relative_to(package)), text))
    assert named == set()


def test_every_system_is_a_choice_of_the_command() -> None:
    for name in SYSTEMS:
        assert load_settings({"on": name}).on == name
