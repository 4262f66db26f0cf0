"""Submissions to the contests of data sets whose test labels are not public: written, and checked independently."""

from __future__ import annotations

from d2ls_fast.inference.submissions.contest import Contest
from d2ls_fast.inference.submissions.loveda import LoveDA
from d2ls_fast.inference.submissions.uavid import UAVid

__all__ = ["CONTESTS", "Contest"]

CONTESTS: dict[str, Contest] = {contest.name: contest for contest in (LoveDA(), UAVid())}
