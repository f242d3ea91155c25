"""Whether a cluster or a machine is fit for a run: `ablate doctor`."""

from ablate.doctor.examination import examine
from ablate.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
