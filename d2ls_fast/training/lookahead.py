"""AdamW inside Lookahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class LookaheadAdamW(torch.optim.AdamW):
    r"""AdamW whose weights :math:`\theta` are drawn back to slow weights :math:`\phi` after every ``every`` steps:

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi

    :math:`\phi` starts as the weights before the first step. It is kept in the optimizer's state beside Adam's
    moments, so ``state_dict`` holds it by the parameter's position and a resumed run goes on exactly.

    Args:
        params: parameters or groups, as for AdamW.
        every: k, AdamW steps between two slow steps.
        alpha: in (0, 1]; 1 is plain AdamW.
        options: any further argument of AdamW.

    Source: Zhang et al. 2019, Lookahead Optimizer: k steps forward, 1 step back (arXiv 1907.08610).
    """

    def __init__(self, params: Any, every: int, alpha: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.every = every
        self.alpha = alpha
        for group in self.param_groups:
            group["fast_steps"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One AdamW step, and the slow step where it is due."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        new = [
            (parameter, parameter.detach().clone())
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter not in self.state
        ]
        super().step()
        for parameter, start in new:
            self.state[parameter]["slow"] = start
        for group in self.param_groups:
            group["fast_steps"] = (group["fast_steps"] + 1) % self.every
            if group["fast_steps"] == 0:
                self._slow_step([parameter for parameter in group["params"] if parameter in self.state])
        return loss

    @torch.no_grad()
    def _slow_step(self, parameters: list[torch.Tensor]) -> None:
        if not parameters:
            return
        slow = [self.state[parameter]["slow"] for parameter in parameters]
        torch._foreach_lerp_(slow, parameters, self.alpha)
        for parameter, value in zip(parameters, slow, strict=True):
            parameter.copy_(value)
