"""patch(): somebody else's model computes its parts with our operators."""

from d2ls_fast.models.patching.apply import patch, unpatch
from d2ls_fast.models.patching.report import PatchReport, patch_report

__all__ = ["PatchReport", "patch", "patch_report", "unpatch"]
