"""Inference in one launch: a model's work on images of one size, captured in a CUDA graph and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from d2ls_fast.errors import UserError
from d2ls_fast.models.base import STRIDE, SegmentationModel, evaluating

WARM_UP = 3
"""Calls before a capture: kernels are compiled, loaded and tuned in the first, which a capture does not allow."""


class Graphs:
    """A function of one CUDA tensor, captured once for every shape that it meets, and replayed from then on.

    A replay reads the weights where they are: changed in place (``load_state_dict``) they count, moved or replaced they
    do not. What is captured stays as it was then: back end, autocast, and the memory, which all graphs share. Threads
    and streams may share one object; their replays follow each other.

    Args:
        run: gives tensors on the same device; neither allocates outside of PyTorch nor waits for the GPU.
        limit: of shapes that are captured; each holds the memory of its results. Others are run without a graph.
        copied: whether results are the caller's own; otherwise the next call overwrites them.
    """

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], limit: int = 8, copied: bool = True) -> None:
        self._run, self._limit, self._copied = run, limit, copied
        self._captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Sequence[Tensor]]] = {}
        self._pool: Any = None
        self._last: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def __call__(self, tensor: Tensor) -> list[Tensor]:
        """What ``run`` gives of ``tensor``."""
        key = (tensor.shape, tensor.dtype, tensor.device)
        with self._lock, torch.cuda.device(tensor.device):
            if key not in self._captured:
                if len(self._captured) == self._limit:
                    return list(self._run(tensor))
                self._captured[key] = self._capture(tensor)
            graph, entrance, results = self._captured[key]
            stream = torch.cuda.current_stream()
            if self._last is not None:  # another stream may still be reading the same memory
                stream.wait_event(self._last)
            entrance.copy_(tensor, non_blocking=True)
            graph.replay()
            given = [result.clone() if self._copied else result for result in results]
            self._last = stream.record_event()
        return given

    def _capture(self, example: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Sequence[Tensor]]:
        with torch.inference_mode(False):  # it is written to in either mode
            entrance = example.clone(memory_format=torch.contiguous_format)
        # Casts of weights that autocast keeps until its block ends would be gone at the replay.
        mixed, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.no_grad(), torch.autocast("cuda", dtype, mixed, cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._run(entrance)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # What other threads do with the GPU meanwhile, such as reading the next images, is no part of it.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                results = self._run(entrance)
        return graph, entrance, results


class CompiledInference:
    """A model's :meth:`predict` for batches of one size, as one CUDA graph: no launch waits for Python.

    Made by :meth:`d2ls_fast.D2LS.compile_for_inference`, which says what it takes. Weights changed in place count;
    after moving or converting the model make another.

    Attributes:
        shape: [B, bands, H, W] of the images it takes.
        dtype: of the images it takes, that of the model's parameters.
    """

    def __init__(
        self,
        model: SegmentationModel,
        size: int | tuple[int, int],
        batch: int = 1,
        dtype: torch.dtype | None = None,
        return_confidence: bool = False,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < STRIDE or batch < 1:
            raise UserError(
                f"compile_for_inference: size {height} x {width}, batch {batch}:"
                f" images are at least {STRIDE} x {STRIDE}, and a batch holds at least 1"
            )
        parameter = next(model.parameters())
        self._device = _gpu(parameter)
        self.shape, self.dtype = (batch, model.backbone.in_chans, height, width), parameter.dtype
        mixed = dtype not in (None, self.dtype)
        if mixed and dtype not in (torch.bfloat16, torch.float16):
            raise UserError(
                f"compile_for_inference: dtype {dtype}: the parameters are {self.dtype};"
                " take that, or bfloat16 or float16 for mixed precision"
            )

        def classify(images: Tensor) -> list[Tensor]:
            with torch.autocast("cuda", dtype if mixed else None, mixed, cache_enabled=False):
                return [each for each in model.classify(images, return_confidence) if each is not None]

        self._graphs = Graphs(classify)
        try:
            with evaluating(model), torch.no_grad():
                self._graphs(torch.zeros(self.shape, dtype=self.dtype, device=self._device))
        except torch.OutOfMemoryError:
            raise UserError(
                f"compile_for_inference: no room on {self._device} for {list(self.shape)}; take a smaller batch or size"
            ) from None
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"compile_for_inference: no CUDA graph of this model ({reason}); use predict") from error

    def predict(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """As :meth:`SegmentationModel.predict` of the model in evaluation mode, for images of this size alone.

        Args:
            images: of :attr:`shape` and :attr:`dtype`, on the model's device or in (pinned) memory.

        Returns:
            labels ``[B, H, W]``, and where it was asked for at the capture their confidence, in new tensors.

        Raises:
            UserError: images of another shape or dtype.
        """
        if tuple(images.shape) != self.shape or images.dtype != self.dtype:
            raise UserError(
                f"images must be {list(self.shape)} {self.dtype} for this graph, got {list(images.shape)}"
                f" {images.dtype}; convert them, capture another with compile_for_inference, or use model.predict"
            )
        labels, *confidence = self._graphs(images.to(self._device, non_blocking=True))
        return (labels, confidence[0]) if confidence else labels


def _gpu(parameter: Tensor) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError("compile_for_inference: PyTorch sees no GPU here and a CUDA graph needs one; use predict")
    if parameter.device.type != "cuda":
        raise UserError(
            f"compile_for_inference: the model is on {parameter.device}; call model.cuda() first, or use predict"
        )
    return parameter.device
