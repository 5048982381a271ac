"""Maps that explain a prediction, scaled to be drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from risbench.api import Panel


def attention_panel(title: str, shares: Tensor, whole: str, digits: int) -> Panel:
    """Return the shares (h, w) of an attention scaled to their maximum.

    The title goes on with their range: "TITLE: 1 to 30 % of WHOLE", with a number of digits after the point.
    """
    most = shares.max()
    low, high = (f"{100 * share:.{digits}f}" for share in (shares.min(), most))
    return Panel(f"{title}: {low} to {high} % of {whole}", shares / most.clamp(min=torch.finfo(shares.dtype).tiny))
