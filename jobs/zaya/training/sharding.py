"""FSDP2: each rank keeps a part of every parameter, gradient and moment, and gathers a layer while it computes it.

Parameters are cut along their first axis (torch.distributed.fsdp.fully_shard), one unit a decoder layer and one for the
rest. Experts lie along that axis, so Muon orthogonalises a rank's own experts where they are, as one batch; matrices of
attention are gathered, and every rank orthogonalises all of them. torch.optim.Muon is not used: it takes 2-D alone.
At toy size the flat vectors of optim.py are faster; importing this file costs two seconds of CPU time.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from jobs.zaya.model.network import ZayaForCausalLM
from jobs.zaya.training.optim import Named, adamw, matrix_shape, muon_scale, orthogonalised, parted, take_over


def shard(model: ZayaForCausalLM) -> None:
    """Cuts a model that is the same on all ranks of the default process group over them, in place."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def cut(own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """A state in which every whole tensor is cut as `own` has it; no message is sent. Other leaves stay as they are."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        like = own.get(name)
        if isinstance(like, dict) and isinstance(value, dict):
            found[name] = cut(like, value)
        elif isinstance(like, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor):
            found[name] = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        else:
            found[name] = value
    return found


def _local(value: Tensor | None) -> Tensor:
    """This rank's part of a sharded tensor; writing to it writes to the tensor."""
    return cast("DTensor", value).to_local()


class ShardedOptimizer:
    """Muon and AdamW over a sharded model: the same steps as FlatOptimizer's, each rank on its part."""

    def __init__(self, model: nn.Module, kind: str, decay: float) -> None:
        plain, decayed, matrices = parted(model, kind)
        self.decay, self.steps = decay, 0
        self.adam = [(item, 0.0) for item in plain] + [(item, decay) for item in decayed]
        self.stacks = [item for item in matrices if item[1].dim() > 2]
        flat = [item for item in matrices if item[1].dim() == 2]
        self.batches: list[Named] = [list(group) for _, group in groupby(flat, key=lambda item: matrix_shape(*item))]
        named = [item for item, _ in self.adam] + matrices
        self.parameters = [parameter for _, parameter in named]
        self.mean = {name: torch.zeros_like(parameter.detach()) for name, parameter in named}
        self.square = {name: torch.zeros_like(parameter.detach()) for (name, parameter), _ in self.adam}

    def zero(self) -> None:
        """Forgets the last step's gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def gather(self, loss: Tensor, world: int) -> tuple[float, float]:
        """The mean loss over ranks and the norm of the gradients, which the backward pass has meaned already."""
        squares = torch.stack([_local(one.grad).square().sum() for one in self.parameters]).sum()
        both = torch.stack([loss / world, squares])
        dist.all_reduce(both)
        return float(both[0]), float(both[1].sqrt())

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Scales the gradients, which clipping asks for."""
        for parameter in self.parameters:
            _local(parameter.grad).mul_(factor)

    def finite(self) -> bool:
        """Whether all parameters of all ranks are finite, the same answer on every rank."""
        bad = torch.tensor(sum(int((~_local(one.detach()).isfinite()).sum()) for one in self.parameters))
        dist.all_reduce(bad)
        return int(bad) == 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Moves every parameter along its gradient at a learning rate."""
        self.steps += 1
        for (name, parameter), decay in self.adam:
            mean, square = _local(self.mean[name]), _local(self.square[name])
            adamw(_local(parameter), _local(parameter.grad), mean, square, self.steps, rate, decay)
        for name, parameter in self.stacks:
            shape = matrix_shape(name, parameter)
            direction = self._direction(name, parameter)
            if direction.numel():
                self._move(parameter, orthogonalised(direction.view(-1, *shape)).view_as(direction), shape, rate)
        for batch in self.batches:
            shape = matrix_shape(*batch[0])
            gathered = torch.stack([self._gathered(name, parameter) for name, parameter in batch])
            for (_, parameter), update in zip(batch, orthogonalised(gathered), strict=True):
                like = cast("DTensor", parameter.data)
                part = distribute_tensor(update, like.device_mesh, like.placements, src_data_rank=None)
                self._move(parameter, part.to_local(), shape, rate)

    def _direction(self, name: str, parameter: nn.Parameter) -> Tensor:
        """This rank's part of the gradient with Nesterov's momentum."""
        gradient = _local(parameter.grad)
        return gradient.lerp(_local(self.mean[name]).lerp_(gradient, 0.05), 0.95)

    def _gathered(self, name: str, parameter: nn.Parameter) -> Tensor:
        like = cast("DTensor", parameter.data)
        part = DTensor.from_local(
            self._direction(name, parameter),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
        return part.full_tensor()

    def _move(self, parameter: nn.Parameter, update: Tensor, shape: tuple[int, int], rate: float) -> None:
        _local(parameter).mul_(1 - rate * self.decay).sub_(update, alpha=rate * muon_scale(*shape))

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter name, sharded as the parameters are."""
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError when the state is that of another model or optimizer."""
        take_over(self.state_dict(), state)
        self.steps = int(state["steps"])
