"""Nsight: what can go wrong with a report, each with one sentence a person can act on."""

from __future__ import annotations


class NsightError(Exception):
    """A report could not be exported or read; the message says which, why and what to do."""


class NsysUnavailable(NsightError):
    """What was asked needs nsys or its importer, and there is no usable one."""


class ReportMissing(NsightError):
    """There is no such file, or it may not be read."""


class ReportDamaged(NsightError):
    """The file is truncated, empty, or not what its name says."""


class ReportTooNew(NsightError):
    """A newer nsys than the one at hand wrote the report."""


class ExportFailed(NsightError):
    """The program that exports or imports failed, or did not end in time."""
