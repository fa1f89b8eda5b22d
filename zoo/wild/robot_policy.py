"""A diffusion policy for a robot (arXiv 2303.04137): denoises actions; time and observations are the memory.

The blocks are PyTorch's own decoder layers, so their attention is `nn.MultiheadAttention`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .parts import Carried, sinusoid


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return sinusoid(x, self.dim)


class TransformerForDiffusion(nn.Module):
    def __init__(
        self, action_dim: int = 7, horizon: int = 8, obs_dim: int = 10, n_obs_steps: int = 2, n_emb: int = 24
    ) -> None:
        super().__init__()
        self.depth = 4
        memory_len = 1 + n_obs_steps
        self.input_emb = nn.Linear(action_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(obs_dim, n_emb)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, memory_len, n_emb))
        self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        layer = nn.TransformerDecoderLayer(
            n_emb, nhead=2, dim_feedforward=2 * n_emb, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers=self.depth)
        # An action sees no later one, and no observation later than its own; time is at the front of the memory.
        self.register_buffer("mask", self.upper(horizon, horizon, 1))
        self.register_buffer("memory_mask", self.upper(horizon, memory_len, 2))
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, action_dim)
        self.apply(self._init_weights)

    @staticmethod
    def upper(rows: int, columns: int, diagonal: int) -> Tensor:
        return torch.triu(torch.full((rows, columns), float("-inf")), diagonal=diagonal)

    def _init_weights(self, module: nn.Module) -> None:
        """The layers of a decoder are copies of one, so they are drawn anew."""
        if isinstance(module, nn.Linear | nn.MultiheadAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("weight"):
                    nn.init.normal_(parameter, std=0.1)
                else:
                    nn.init.zeros_(parameter)

    def memory(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        timesteps = timestep[None] if timestep.ndim == 0 else timestep
        time_emb = self.time_emb(timesteps.expand(sample.shape[0])).to(sample.dtype).unsqueeze(1)
        cond_emb = torch.cat([time_emb, self.cond_obs_emb(cond)], dim=1)
        return self.encoder(cond_emb + self.cond_pos_emb[:, : cond_emb.shape[1]])

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        memory = self.memory(sample, timestep, cond)
        x = self.input_emb(sample) + self.pos_emb[:, : sample.shape[1]]
        # Told that its mask is causal, the decoder does not look into it, which would break the graph.
        x = self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask, tgt_is_causal=True)
        return self.head(self.ln_f(x))

    def enter(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Carried:
        x = self.input_emb(sample) + self.pos_emb[:, : sample.shape[1]]
        return {"x": x, "memory": self.memory(sample, timestep, cond)}

    def run(self, carried: Carried, first: int, last: int) -> Carried:
        x = carried["x"]
        for i in range(first, last):
            layer = self.decoder.layers[i]
            x = layer(x, carried["memory"], tgt_mask=self.mask, memory_mask=self.memory_mask, tgt_is_causal=True)
        return {**carried, "x": x}

    def leave(self, carried: Carried) -> Tensor:
        return self.head(self.ln_f(carried["x"]))
