"""D2LS beside its peers."""

from __future__ import annotations

from pathlib import Path

import torch

from d2ls_fast.benchmarks import harness, results
from d2ls_fast.benchmarks.cases import Sizes
from d2ls_fast.benchmarks.cases.peers import peer_cases


def test_parameters_arithmetic_and_rate_stand_beside_the_time(tmp_path: Path) -> None:
    sizes = Sizes(batch=2, size=64, num_classes=3, stages=1, backbone="mobilenetv3_small_050")
    (case,) = peer_cases(sizes)
    case = harness.replace(
        case, variants=[v for v in case.variants if v.name in ("d2ls, reference", "fused d2ls", "prototype")]
    )
    rows = harness.run_case(case, "cpu", harness.Limits(1e9, 1e9), repeats=3)
    reference, fused, prototype = rows
    assert all(row.error is not None and row.error < 1e-4 for row in rows)
    assert reference.facts["M params"] == fused.facts["M params"] > prototype.facts["M params"]
    assert all(float(row.facts["GFLOP"]) > 0 for row in rows)
    assert fused.facts["images/s"] == f"{2e3 / fused.median_ms:.2f}"
    results.write(harness.Report({"threads": torch.get_num_threads()}, rows), tmp_path / "peers")
    head = next(line for line in (tmp_path / "peers.md").read_text().splitlines() if line.startswith("| variant"))
    assert head.endswith("| M params | GFLOP | images/s |")


def test_a_wrong_label_is_noticed() -> None:
    (case,) = peer_cases(Sizes(batch=1, size=64, num_classes=3, stages=1, backbone="mobilenetv3_small_050"))
    fused = case.variants[1]
    assert fused.judge is not None
    (labels,) = fused.run()
    assert float(fused.judge([labels])[0]) > 1 - 1e-6
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    assert float(fused.judge([labels])[0]) < 1 - 1e-4
