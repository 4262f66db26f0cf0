"""Whatever the moment at which the disk is full: one line that names the file, and nothing left.

In a process of its own, where no file may grow beyond a limit; the limit goes through the sizes of the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, resource, shutil, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from rasterio.transform import from_origin
from conftest import FullMap
from d2ls_fast.errors import UserError
from d2ls_fast.inference.products import Wanted, write_products
from d2ls_fast.inference.sources import ArraySource
from d2ls_fast.models.checkpoint import ModelCard

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
card = ModelCard({}, list("abcd"), [[0, 0, 9], [9, 9, 0], [0, 9, 0], [9, 0, 0]], [1, 2, 3], [0.0] * 3, [1.0] * 3)
full = FullMap(700, 300, 4)
utm = {"crs": "EPSG:32616", "transform": from_origin(500_000, 4_000_000, 30, 30)}
output, results = Path(sys.argv[2]), []

def products(place, wanted):
    source = ArraySource(np.stack([full.labels] * 3), full.known, place)
    return write_products(source, full.rows(), card, Path("scene.tif"), output, Wanted(overlay=False, **wanted))

for place, wanted in [
    (utm, {"probabilities": True}),
    (utm, {"polygons": True}),
    (utm, {"confidence": True, "cog": True}),
    (None, {"confidence": True}),
]:
    size = products(place, wanted).files[-1].stat().st_size
    shutil.rmtree(output)
    for limit in (0, 300, *(int(size * part) for part in (0.2, 0.6, 0.85, 0.95, 0.99)), size - 1, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            products(place, wanted)
            message = ""
        except UserError as error:
            message = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        results.append((limit >= size, message, sorted(os.listdir(output))))
        shutil.rmtree(output)
print(json.dumps(results))
"""


def test_a_full_disk_leaves_nothing_and_is_told_in_one_line(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert len(results) == 36
    for enough, message, left in results:
        if enough:
            assert (message, bool(left)) == ("", True)
        else:
            assert message.startswith(str(output))
            assert ".part" not in message.split(":")[0]
            assert "cannot be written" in message
            assert message.endswith("choose a writable folder with free space")
            assert left == []
