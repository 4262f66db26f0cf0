"""The committed table of what the CUDA kernels take holds for the present sources."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from d2ls_fast.benchmarks.cuda_resources import compile as resources
from d2ls_fast.benchmarks.cuda_resources import table

RENEW = "run `make resources-cuda` and commit benchmarks/results/cuda_resources.*"


@pytest.fixture(scope="module")
def committed() -> table.Table:
    return table.load()


def test_compiled_from_the_present_sources(committed: table.Table) -> None:
    assert committed.digest == resources.digest(), RENEW


def test_every_kernel_is_in_it(committed: table.Table) -> None:
    assert [row.plan for row in committed.rows] == resources.plans(), RENEW


def test_both_files_say_the_same(committed: table.Table, tmp_path: Path) -> None:
    assert (table.FOLDER / f"{table.NAME}.md").read_text(encoding="utf-8") == table.markdown(committed), RENEW
    table.save(committed, tmp_path)
    assert table.load(tmp_path) == committed


def test_hot_kernels_do_not_spill(committed: table.Table) -> None:
    assert sum(row.plan.hot for row in committed.rows) >= 32
    assert not [row.plan.name for row in committed.rows if row.plan.hot and row.stack]


def test_hopper_multiplies_by_warpgroups(committed: table.Table) -> None:
    for row in committed.rows:
        warpgroups = row.plan.architecture == "sm_90a" and row.plan.type in ("bf16", "fp16")
        expected = {"HGMMA" if warpgroups else "HMMA"} if row.plan.multiplies else set()
        assert set(row.matrix_instructions) == expected, row.plan.name


def test_blocks_fit_beside_each_other(committed: table.Table) -> None:
    """With the 1 KB that the system takes of every block, and 64 K registers, given out by eights a thread."""
    for row in committed.rows:
        plan = row.plan
        limit = (table.SHARED[plan.architecture] + 1) * 1024
        assert plan.blocks * (plan.shared + 1024) <= limit, plan.name
        assert plan.blocks * plan.threads * ((row.registers + 7) // 8 * 8) <= 65536, plan.name


USAGE = """
 Function _ZN4d2ls4cuda12refine_chunkINS0_10RefinePlanINS0_4HalfINS0_4Fp16EEENS0_6HopperELi256ELb0EEES6_EEvNS0_1RE:
  REG:255 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:1008
 Function _ZN4d2ls4cuda12attend_chunkINS0_10AttendPlanINS0_14RoundedFloat32ENS0_6AmpereELi64EEES4_EEvNS0_15AE:
  REG:6 STACK:0 SHARED:0
"""
SASS = """
	Function : _ZN4d2ls4cuda12refine_chunkINS0_10RefinePlanINS0_4HalfINS0_4Fp16EEENS0_6HopperELi256ELb0EEES6_EEvNS0_1RE
        /*0050*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
        /*0060*/                   HGMMA.64x64x16.F32 R24, R4, gdesc[UR4], R24 ;
	Function : _ZN4d2ls4cuda12attend_chunkINS0_10AttendPlanINS0_14RoundedFloat32ENS0_6AmpereELi64EEES4_EEvNS0_15AE
        /*0050*/                   EXIT ;
"""


def test_reading_what_cuobjdump_prints() -> None:
    key = ("refine_chunk", "fp16", "sm_90a", 256, "blocks")
    assert resources.parsed(USAGE, SASS, "sm_90a") == {key: (255, 16, {"HGMMA": 2})}
    assert list(resources.parsed(USAGE, SASS, "sm_80")) == [("attend_chunk", "tf32", "sm_80", 64, "-")]


def test_digest_is_of_the_code_alone(tmp_path: Path) -> None:
    kernel = tmp_path / "cuda" / "kernel.cuh"
    (tmp_path / "cuda" / "emulator").mkdir(parents=True)

    def digest(text: str) -> str:
        kernel.write_text(text, encoding="utf-8")
        return resources.digest()

    with patch.object(resources, "SOURCES", tmp_path):
        first = digest("int a = 1;  // one\n")
        assert digest("int a =\n    1;\n") == first
        (tmp_path / "cuda" / "emulator" / "block.h").write_text("int b;", encoding="utf-8")
        assert digest("int a = 1;\n") == first
        assert digest("int a = 2;\n") != first
