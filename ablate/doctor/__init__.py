"""`ablate doctor`: the examination of a cluster or a machine before a run."""

from ablate.doctor.examination import examine
from ablate.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
