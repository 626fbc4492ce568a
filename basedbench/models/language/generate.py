"""Greedy generation that never waits for the host: tokens stay on the device, a step is one CUDA graph.

    generator = Generator(model, batch=128, max_length=2048)
    generator.prefill(tokens_BL)
    tokens_BN = generator.generate(64)

One step writes the token chosen last into a buffer, runs the model on it and chooses the next by argmax over all rows
of the embedding. On CUDA it is captured once and replayed for every token: positions and lengths are tensors on the
device, so that one graph serves every context. Elsewhere, and with `graph=False`, the same step is called.
"""

import torch
from torch import Tensor

from basedbench.errors import UserError
from basedbench.kernels import row_argmax
from basedbench.kernels.dependents import dependents
from basedbench.models.language.attention_step import HOST_LENGTH
from basedbench.models.language.model import LanguageModel


class Generator:
    """Generation for `batch` sequences of at most `max_length` tokens, prompt included, with a state of its own.

    UserError for more tokens than `max_length`, and for a graph with an implementation of attention that needs the
    length from the host. Nothing else may run on the device while the graph is captured.
    """

    def __init__(self, model: LanguageModel, batch: int, max_length: int, *, graph: bool = True) -> None:
        self.model, self.batch, self.max_length = model, batch, max_length
        device = model.embedding.weight.device
        graph = graph and device.type == "cuda"
        if graph and model.attention in HOST_LENGTH and "attention" in model.config.layers:
            raise UserError(
                f"attention {model.attention!r} needs the length from the host, a CUDA graph keeps the one it was "
                "captured with: choose another implementation or graph=False."
            )
        with torch.inference_mode():
            self.state = model.init_state(batch, max_length)
            self.tokens_BL = torch.zeros(batch, max_length, dtype=torch.int64, device=device)
            self._chosen_B = torch.zeros(batch, dtype=torch.int64, device=device)
            self._slot = torch.zeros(1, dtype=torch.int64, device=device)
            self._graph = self._captured(device) if graph else None
            self.start(self._chosen_B.zero_())

    @torch.inference_mode()
    def start(self, tokens_B: Tensor) -> None:
        """Begin with an empty state; `tokens_B` (B,) is each sequence's first token, which `generate` returns first."""
        self._reset()
        self._chosen_B.copy_(tokens_B)

    @torch.inference_mode()
    def prefill(self, tokens_BL: Tensor) -> Tensor:
        """Read a prompt (B, L) int64; returns the logits behind it (B, V), whose argmax `generate` begins with."""
        if tokens_BL.shape[0] != self.batch:
            raise UserError(f"this generator is for {self.batch} sequences, not {tokens_BL.shape[0]}.")
        self._require(tokens_BL.shape[1], f"a prompt of {tokens_BL.shape[1]} tokens")
        self._reset()
        logits_BV, _ = self.model.prefill(tokens_BL, state=self.state)
        self.length = tokens_BL.shape[1]
        self.tokens_BL[:, : self.length] = tokens_BL
        self._slot.fill_(self.length)
        self._chosen_B.copy_(logits_BV.argmax(-1))
        return logits_BV

    @torch.inference_mode()
    def generate(self, count: int) -> Tensor:
        """The next `count` tokens of every sequence, (B, count), on the device. Calls go on from one another."""
        self._require(self.length + count, f"{count} tokens behind {self.length}")
        for _ in range(count):
            self.length += 1
            if self._graph is None:
                self._step(self.length)
            else:
                self._graph.replay()
        return self.tokens_BL[:, self.length - count : self.length].clone()

    def _step(self, extent: int | None) -> None:
        """Keep the chosen token, and choose the one behind it."""
        self.tokens_BL.scatter_(1, self._slot.expand(self.batch, 1), self._chosen_B[:, None])
        with dependents(self._chosen_B.device):
            logits_BV, _ = self.model.step(self._chosen_B, self.state, extent=extent)
            row_argmax(logits_BV, out=self._chosen_B)
        self._slot += 1

    def _captured(self, device: torch.device) -> torch.cuda.CUDAGraph:
        """The step as a graph. It runs once before, since libraries set themselves up on first use."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.device(device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(None)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                self._step(None)
        return graph

    def _reset(self) -> None:
        for tensor in (*self.state.values(), self._slot):
            tensor.zero_()
        self.length = 0  # tokens in the buffer, as the host knows it

    def _require(self, length: int, what: str) -> None:
        if length > self.max_length:
            raise UserError(f"{what} does not fit into max_length = {self.max_length}.")
