"""The operators through the back end ``triton``, in its interpreter: a process of its own, as it is set at import."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import torch
import d2ls_fast as d2
from d2ls_fast.backends import BackendError, select
from d2ls_fast.ops.attend import attend_definition

torch.manual_seed(0)
tensors = [torch.randn(2, 70, 32), torch.randn(70, 32), torch.randn(2, 6, 32) / 6]

def run(function, backend):
    leaves = [t.detach().requires_grad_() for t in tensors]
    with d2.backend(backend):
        context, lse = function(*leaves)
        (context.square().sum() + lse.sum()).backward()
    return [context.detach(), lse.detach(), *(leaf.grad for leaf in leaves)]

names = "context lse pixels pe query".split()
pairs = zip(run(d2.ops.attend, "triton"), run(d2.ops.attend, "reference"))
for name, (got, wanted) in zip(names, pairs):
    torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4, msg=name)
outputs = torch.ops.d2ls_fast.attend_triton(*tensors)
torch.testing.assert_close(outputs[0], attend_definition(*tensors)[0], rtol=1e-4, atol=1e-4)
with d2.backend("triton"):
    assert select("attend", tensors[0]) == "triton"
    for bad, reason in ((tensors[0][..., :20], "multiple of 16"), (tensors[0].double(), "float64")):
        try:
            select("attend", bad)
        except BackendError as error:
            assert reason in str(error), error
        else:
            raise AssertionError(reason)
    # Several dictionaries over the same pixels, through the public functions.
    queries = torch.cat([tensors[2], 2 * tensors[2]])
    context, lse = d2.ops.attend(*tensors[:2], queries)
    for g in range(2):
        alone = d2.ops.attend(*tensors[:2], queries[2 * g : 2 * g + 2])
        torch.testing.assert_close((context[2 * g : 2 * g + 2], lse[2 * g : 2 * g + 2]), alone)
print("all good")
"""


def test_attend_through_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.stdout.strip().endswith("all good"), finished.stderr[-3000:]
