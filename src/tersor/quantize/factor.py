"""From a Hessian to the factor that drives error feedback.

In float64 even where the rest runs in float32: inverting is where precision is lost, it is a small
share of the time, and codes then hardly depend on the machine.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from tersor.format.errors import UsageError

log = logging.getLogger(__name__)

LEAST_DAMPING = 1e-6  # where to start when a Hessian is singular as it stands
MOST_DAMPING = 1e3


def inverse_factor(h: Tensor, percdamp: float) -> Tensor:
    """The upper triangular U with (H + damping)^-1 = U^T U, (C, C) float64.

    `percdamp` is in units of the mean diagonal, and is raised tenfold until H is positive definite.
    """
    h = h.double()
    diagonal = h.diagonal().clone()
    mean = diagonal.mean()
    mean = torch.where(mean == 0, 1.0, mean)
    upper: Tensor
    while True:
        damped = diagonal + percdamp * mean
        # an unseen input, and no damping: independent of all others
        damped = torch.where(damped == 0, mean, damped)
        lower, failed = torch.linalg.cholesky_ex(h - torch.diag(diagonal) + torch.diag(damped))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and bool(torch.isfinite(upper.diagonal()).all()):
            return upper
        percdamp = max(10 * percdamp, LEAST_DAMPING)
        if percdamp > MOST_DAMPING:
            raise UsageError(
                "the Hessian is not positive at any damping; look for NaN in the calibration run"
            )
        log.warning("Hessian is not positive definite; damping raised to %g", percdamp)
