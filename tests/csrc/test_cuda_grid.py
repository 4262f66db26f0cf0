"""Launches whose blocks wait for each other, in the emulator: what it refuses, and what it notices."""

from __future__ import annotations

import ctypes

import pytest
from cuda_emulator import compile_library

SOURCE = """
#include "cuda/device.h"
#include "cuda/emulator/library.h"
#include "cuda/instructions/grid.cuh"

using namespace d2ls::cuda;

struct Arguments {
  uint32_t* counter;
  int *numbers, *sums;
  int members, absent;  // the block that does not come to the second meeting
  bool meets;
};

// Every block writes its number, then sums all of them.
D2LS_KERNEL(32, 1) sum_of_blocks(Arguments a) {
  GroupBarrier barrier{a.counter, 0, static_cast<uint32_t>(a.members)};
  a.numbers[block_index()] = static_cast<int>(block_index()) + 1;
  if (a.meets) barrier.meet();
  int sum = 0;
  for (int i = 0; i < a.members; ++i) sum += a.numbers[i];
  a.sums[block_index()] = sum;
  if (block_index() != a.absent) barrier.meet();
}

extern "C" const char* sum_blocks(bool descending, int room, int members, int absent, bool meets, int* sums) {
  uint32_t counter = 0;
  std::vector<int> numbers(members, -100);
  Device device{9, room, {false, descending}};
  return emulator::told(launch_together(device, sum_of_blocks, members, 32, 0,
                                        Arguments{&counter, numbers.data(), sums, members, absent, meets}));
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.cc").write_text(SOURCE, encoding="utf-8")
    compile_library([folder / "grid.cc"], folder / "grid.so", flags="-O0")
    loaded = ctypes.CDLL(str(folder / "grid.so"))
    loaded.sum_blocks.restype = ctypes.c_char_p
    return loaded


def sums(
    library: ctypes.CDLL, descending: bool, room: int = 3, absent: int = -1, meets: bool = True
) -> tuple[str, list[int]]:
    results = (ctypes.c_int * 3)()
    error: bytes | None = library.sum_blocks(descending, room, 3, absent, meets, results)
    return (error or b"").decode(), list(results)


@pytest.mark.parametrize("descending", [False, True])
def test_what_the_others_wrote_is_seen_after_the_meeting(library: ctypes.CDLL, descending: bool) -> None:
    assert sums(library, descending) == ("", [6, 6, 6])
    assert sums(library, descending, meets=False)[1] != [6, 6, 6]


@pytest.mark.parametrize("absent", range(3))
def test_who_waits_forever_is_named(library: ctypes.CDLL, absent: int) -> None:
    error, _ = sums(library, False, absent=absent)
    assert error == f"block {int(absent == 0)}, thread 0: waits forever in group barrier"


def test_more_blocks_than_there_is_room_for_are_refused(library: ctypes.CDLL) -> None:
    assert sums(library, False, room=2)[0] == "3 blocks are to run at once, the device has room for 2"
