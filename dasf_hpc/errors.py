"""What can go wrong for a user: each a class with an exit code, each message one sentence.

A message says what happened, to what, and what to do next. Anything else that reaches the terminal
is a bug and shows its traceback.
"""

from __future__ import annotations


class DasfHpcError(Exception):
    """Base of all errors a user can meet.

    Attributes
    ----------
    exit_code
        What the command exits with.
    """

    exit_code = 1


class SettingsError(DasfHpcError):
    """An option, a variable or a line of a settings file cannot be used."""

    exit_code = 64


class JobFileError(DasfHpcError):
    """The job's script, notebook or module is missing, cannot be read or is not Python."""

    exit_code = 66


class ProgramMissingError(DasfHpcError):
    """A program or package that was asked for is not there or cannot be used."""

    exit_code = 69


class BatchError(DasfHpcError):
    """The batch scheduler refused a job, or does not answer."""

    exit_code = 70


class WorkersError(DasfHpcError):
    """The workers did not come up, or all went away."""

    exit_code = 71


class WalltimeError(DasfHpcError):
    """The node jobs, or the head, reached their time limit first; what was recorded was kept."""

    exit_code = 72


class RunDirectoryError(DasfHpcError):
    """A run's directory cannot be made, written or found."""

    exit_code = 73


class VersionsError(DasfHpcError):
    """Head and workers run versions that do not work together."""

    exit_code = 74


class PortError(DasfHpcError):
    """A network port or interface that was asked for cannot be used."""

    exit_code = 75


class TraceFileError(DasfHpcError):
    """A trace, journal or report cannot be read."""

    exit_code = 76


class DoctorError(DasfHpcError):
    """A check of the doctor failed."""

    exit_code = 78


class ImageError(DasfHpcError):
    """An image could not be built."""

    exit_code = 79


class PartialRecording(DasfHpcError):
    """The job ended with 0, but what was recorded of it is not complete (run.json says why)."""

    exit_code = 80


class Regression(DasfHpcError):
    """The head runs are slower than the base runs (compare, ci)."""

    exit_code = 81


class CannotTell(DasfHpcError):
    """The runs do not tell if they differ: too few, other hardware, not whole (compare, ci)."""

    exit_code = 82


class BaselineError(DasfHpcError):
    """A baseline cannot be read or written."""

    exit_code = 77


class LateNodeJob(DasfHpcError):
    """A node job began when its run was over (of the node job itself, not of submit)."""

    exit_code = 83


class StudyIncomplete(DasfHpcError):
    """Some runs of a scaling study failed; the others are kept (scale)."""

    exit_code = 84


class ScalingError(DasfHpcError):
    """The runs do not tell how a program scales: fewer than two scales (scale, scaling)."""

    exit_code = 85


class InterruptedRun(DasfHpcError):
    """The user ended the run; what was recorded was kept."""

    exit_code = 130


def exit_code_table() -> list[tuple[int, str]]:
    """Give every exit code with its meaning, as documented in the README."""
    rows = [
        (0, "The job ended with 0 (submit), or the command did what was asked."),
        (2, "The command line was not understood."),
    ]
    classes = sorted(DasfHpcError.__subclasses__(), key=lambda c: c.exit_code)
    rows += [(c.exit_code, (c.__doc__ or "").strip()) for c in classes]
    return rows
