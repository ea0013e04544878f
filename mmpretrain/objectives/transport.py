"""Inexact proximal optimal transport (IPOT, arXiv 1802.04307, algorithm 1), batched over samples of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from mmpretrain.objectives.precision import full_precision, wide


@torch.no_grad()
def ipot(cost_BTV: Tensor, rows_BT: Tensor, columns_BV: Tensor, beta: float = 0.5, iterations: int = 50, inner: int = 1) -> Tensor:
    """The plan that moves uniform mass on the valid rows to uniform mass on the valid columns at low cost.

    Args:
        cost_BTV: cost of moving one unit, (B, T, V), fp32 or fp64.
        rows_BT: True for valid rows.
        columns_BV: True for valid columns.
        beta: step of the proximal point method; larger is smoother and slower.
        iterations: outer steps.
        inner: Sinkhorn steps in each outer one.

    Returns:
        plan (B, T, V): not negative, 0 in masked rows and columns; all 0 where a sample has no valid row or no valid column.
        Each valid row sums to exactly 1 / (valid rows); the sums of columns converge to 1 / (valid columns).
    """
    valid_BTV = rows_BT[:, :, None] & columns_BV[:, None, :]
    cost_BTV = wide(cost_BTV)
    kernel_BTV = torch.exp(cost_BTV / -beta).masked_fill_(~valid_BTV, 0)
    m_B1, n_B1 = valid_BTV.any(2).sum(1, keepdim=True), valid_BTV.any(1).sum(1, keepdim=True)
    m_B11, n_B11 = m_B1.unsqueeze(2).to(cost_BTV.dtype), n_B1.unsqueeze(2).to(cost_BTV.dtype)
    # a masked entry gets the denominator 1 instead of 0; its product with a zero row or column of the kernel stays 0
    idle_BT1 = (~valid_BTV.any(2, keepdim=True)).to(cost_BTV.dtype)
    idle_B1V = (~valid_BTV.any(1, keepdim=True)).to(cost_BTV.dtype)
    plan_BTV = valid_BTV.to(cost_BTV.dtype)
    sigma_BT1 = (1 - idle_BT1) / m_B11.clamp(min=1)
    with full_precision(cost_BTV.device):
        for _ in range(iterations):
            plan_BTV.mul_(kernel_BTV)
            for _ in range(inner):
                delta_B1V = 1 / (n_B11 * torch.bmm(sigma_BT1.transpose(1, 2), plan_BTV) + idle_B1V)
                sigma_BT1 = 1 / (m_B11 * torch.bmm(plan_BTV, delta_B1V.transpose(1, 2)) + idle_BT1)
            plan_BTV.mul_(sigma_BT1).mul_(delta_B1V)
    return plan_BTV
