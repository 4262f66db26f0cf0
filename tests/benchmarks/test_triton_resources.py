"""The committed table of Triton resources: that of the present kernels and tiles, without spills where it matters."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton

import d2ls_fast.kernels
from d2ls_fast.benchmarks.triton_resources import table
from d2ls_fast.benchmarks.triton_resources.compile import Configuration, Resources, compiled
from d2ls_fast.benchmarks.triton_resources.digest import digest
from d2ls_fast.benchmarks.triton_resources.renew import assembled, standing

RENEW = "the table is not that of the present sources; renew it with `make resources` and commit benchmarks/results"
MATRIX_INSTRUCTIONS = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma", "default": "HMMA"}
MULTIPLYING = ("attend", "refine", "nce_rows", "nce_columns", "nce_grad")


@pytest.fixture(scope="module")
def committed() -> table.Table:
    return table.load()


def _configuration(architecture: str, kernel: str, kind: str) -> Configuration:
    """The first of this name."""
    return next(c for c in table.configurations() if c.identity[:3] == (architecture, kernel, kind))


def _row(committed: table.Table, configuration: Configuration) -> Resources:
    return next(row for row in committed.rows if row.identity == configuration.identity)


def test_rows_are_those_of_the_present_tiles(committed: table.Table) -> None:
    present = {configuration.identity: configuration.hot for configuration in table.configurations()}
    rows = {row.identity: row.hot for row in committed.rows}
    differing = sorted(set(present.items()) ^ set(rows.items()))
    assert not differing, f"{RENEW}: {differing}"


def test_rows_are_of_the_present_sources(committed: table.Table) -> None:
    present = {configuration.identity: configuration.digest for configuration in table.configurations()}
    edited = sorted({row.identity.kernel for row in committed.rows if present.get(row.identity) != row.digest})
    assert not edited, f"{RENEW}: {edited}"


def test_both_files_say_the_same(committed: table.Table) -> None:
    text = (table.FOLDER / f"{table.NAME}.md").read_text(encoding="utf-8")
    assert text == table.markdown(committed), RENEW


def test_every_row_fits_and_no_hot_one_spills(committed: table.Table) -> None:
    problems = [(row.identity, row.problem) for row in committed.rows if row.must_not_ship]
    assert not problems, f"choose other tiles in kernels/configs.py: {problems}"


def test_hot_products_are_matrix_instructions(committed: table.Table) -> None:
    """Those of attend in the architecture's newest kind."""
    for row in committed.rows:
        if row.identity.kind == "half" and row.identity.kernel.startswith(MULTIPLYING):
            assert row.matrix_instructions, row.identity
            if row.identity.kernel.startswith("attend"):
                assert set(row.matrix_instructions) == {MATRIX_INSTRUCTIONS[row.identity.architecture]}, row.identity


def test_every_launched_kernel_is_in_the_table() -> None:
    """Those that are launched are the ones that say which integers not to specialise."""
    launched = set()
    for module in pkgutil.iter_modules(d2ls_fast.kernels.__path__):
        for name, value in vars(importlib.import_module(f"d2ls_fast.kernels.{module.name}")).items():
            if isinstance(value, triton.JITFunction) and value.do_not_specialize:
                launched.add(name)
    assert launched == {configuration.function.fn.__name__ for configuration in table.configurations()}


@pytest.mark.parametrize(
    ("architecture", "kernel", "kind"),
    [("sm_90", "attend_grad_pixels", "half"), ("sm_80", "pyramid_sum", "half"), ("gfx942", "ratio_means", "ieee")],
)
def test_compiled_now(committed: table.Table, architecture: str, kernel: str, kind: str) -> None:
    configuration = _configuration(architecture, kernel, kind)
    resources = compiled(configuration)
    assert resources.problem == ""
    if triton.__version__ == committed.triton:
        assert resources == _row(committed, configuration), RENEW


def test_a_spilling_or_too_large_row_is_a_problem(committed: table.Table) -> None:
    row = _row(committed, _configuration("sm_90", "attend_grad_pixels", "half"))
    assert not row.must_not_ship
    assert replace(row, stack=8).must_not_ship and replace(row, shared=row.shared_limit + 1).must_not_ship
    slow = replace(row, hot=False)
    assert replace(slow, stack=8).problem == "spills, stack 8 B" and not replace(slow, stack=8).must_not_ship
    assert replace(slow, shared=row.shared_limit + 1).must_not_ship


def test_rows_on_file_are_kept_while_triton_is_the_same(committed: table.Table, tmp_path: Path) -> None:
    assert standing(tmp_path) == {}
    current = replace(committed, triton=triton.__version__)
    table.save(current, tmp_path)
    assert table.load(tmp_path) == current
    assert assembled(standing(tmp_path)) == current
    table.save(replace(committed, triton="0.0"), tmp_path)
    assert standing(tmp_path) == {}


KERNEL = '''
import triton
import triton.language as tl

SCALE = tl.constexpr(2.0)

@triton.jit
def scaled(x):
    return x * SCALE

@triton.jit(do_not_specialize=["size"])
def kernel(out, size, BLOCK: tl.constexpr):
    """What it does."""
    i = tl.arange(0, BLOCK)
    if size > 0:
        tl.store(out + i, scaled(i), mask=i < size)  # why
        tl.store(out, 1)
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("  # why", "", True),
        ("What it does", "Other words", True),
        ("SCALE =", "\n\nSCALE =", True),
        ("(out + i, scaled(i), mask=i < size)", "(\n            out + i, scaled(i), mask=i < size\n        )", True),
        ("i < size", "i <= size", False),
        ("2.0", "3.0", False),
        ("x * SCALE", "x + SCALE", False),
        ("        tl.store(out, 1)", "    tl.store(out, 1)", False),
        ('["size"]', "[]", False),
    ],
)
def test_digest_is_of_the_code_alone(old: str, new: str, same: bool, tmp_path: Path) -> None:
    assert old in KERNEL
    digests = [
        digest(_loaded(text, tmp_path / f"kernel{i}.py"), [])
        for i, text in enumerate((KERNEL, KERNEL.replace(old, new)))
    ]
    assert (digests[0] == digests[1]) == same


def _loaded(text: str, path: Path) -> Any:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel
