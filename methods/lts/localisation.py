"""Localisation: how well each position of the multi-modal feature fits the sentence (eq. 8, eq. 9, Table 5).

B expressions, T words, C channels of F_m3, C_t of the text, h w the grid of F_m3, which is H/8.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from risbench.nn.logits import Logit

from .text import Text


class RelevanceFilter(nn.Module):
    """The sentence becomes a 1x1 kernel on F_m3 (eq. 8), or several kernels that are applied in turn."""

    def __init__(self, text_channels: int, channels: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.kernel = nn.Linear(text_channels, times * channels)

    def forward(self, multi: Tensor, text: Text) -> Tensor:
        """F_m3 (B, C, h, w) and f_text (B, C_t) to the logits of H_mask (B, h, w)."""
        kernels = self.kernel(text.sentence).chunk(self.times, dim=1)  # each (B, C)
        return apply_in_turn(torch.einsum("bchw,bc->bhw", multi, kernel) for kernel in kernels)


class WordFilter(nn.Module):
    """Every word becomes a 1x1 kernel, applied in the words' order, as in DMN (LTS-WordFilter, Table 5)."""

    def __init__(self, text_channels: int, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(text_channels, channels)

    def forward(self, multi: Tensor, text: Text) -> Tensor:
        """F_m3 (B, C, h, w) and h_t (B, T, C_t) to the logits of H_mask (B, h, w)."""
        responses = torch.einsum("bchw,btc->tbhw", multi, self.kernel(text.words))  # (T, B, h, w)
        return apply_in_turn(responses * text.mask.T[:, :, None, None])  # padding responds with 0


def apply_in_turn(responses: Iterable[Tensor]) -> Tensor:
    """Add up the kernels' responses to F_m3 (B, h, w), each weighted by the sigmoid of the sum before it.

    The weighted response is the response to a weighted F_m3. Without weights the kernels would be equal to one kernel.
    """
    heat, *later = responses
    for response in later:
        heat = heat + heat.sigmoid() * response
    return heat


class Transformer(nn.Module):
    """One layer of a transformer's decoder: positions attend to each other and to the sentence (eq. 9)."""

    def __init__(self, text_channels: int, channels: int, heads: int, hidden: int, response: nn.Module) -> None:
        super().__init__()
        self.memory = nn.Linear(text_channels, channels)
        self.layer = nn.TransformerDecoderLayer(channels, heads, hidden, dropout=0.0, batch_first=True)
        self.response = response  # from the layer's output to H_mask

    def forward(self, multi: Tensor, text: Text) -> Tensor:
        """F_m3 (B, C, h, w) and f_text (B, C_t) to the logits of H_mask (B, h, w)."""
        _, channels, height, width = multi.shape
        positions = build_sincos2d_pos_embed(
            [height, width], channels, device=multi.device, dtype=multi.dtype
        )  # (hw, C)
        x = multi.flatten(2).transpose(1, 2) + positions  # (B, hw, C)
        x = self.layer(x, self.memory(text.sentence)[:, None])
        heat: Tensor = self.response(x.transpose(1, 2).unflatten(2, (height, width)), text)
        return heat


class Response(nn.Module):
    """From the transformer's output to H_mask, when there is no filter: by one kernel for all sentences."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = Logit(channels)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """(B, C, h, w) to the logits of H_mask (B, h, w)."""
        heat: Tensor = self.logit(x)
        return heat
