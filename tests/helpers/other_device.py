"""A device that no machine has and every machine can compute on: like a GPU it refuses tensors of two devices."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
ELSEWHERE = torch.device("lazy", 0)  # the one name that PyTorch knows without asking for its driver
COPIES = ("aten::_to_copy", "aten::copy_")
BY_ROWS = ("aten::index", "aten::index_put", "aten::index_put_")
ANSWERS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::masked_select", "aten::nonzero")


class There(torch.Tensor):
    """A tensor that says it is elsewhere; its values are ``here``."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        with torch.inference_mode(mode=False):  # a view of what learns is no inference tensor, whoever asks for it
            there: There = torch.Tensor._make_wrapper_subclass(
                cls, here.shape, strides=here.stride(), dtype=here.dtype, device=ELSEWHERE
            )
        there.here = here
        return there

    def tolist(self) -> Any:
        """Through the memory of the host, as from any device."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise RuntimeError("this device is there inside OtherDevice alone")


class OtherDevice(TorchDispatchMode):
    """While it is entered, :data:`ELSEWHERE` is a device like any other, gradients included.

    ``computed`` counts what ran there, ``waits`` names in order what a host would have waited for: copies from there,
    and answers on which the size of a tensor or a branch depends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.computed = 0
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if torch.is_inference_mode_enabled():  # where PyTorch hands over whole operators, and not their parts
            with self:
                parts = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        tensors = [one for one in tree_flatten((args, named))[0] if isinstance(one, torch.Tensor)]
        lands_there = any(isinstance(tensor, There) for tensor in tensors)
        if lands_there and func._schema.name not in COPIES:
            # Rows may be named by numbers of the host, as on a GPU.
            computed = tree_flatten((args[:1], args[2:]))[0] if func._schema.name in BY_ROWS else tensors
            strangers = [one for one in computed if type(one) is torch.Tensor and one.ndim]
            if strangers:
                raise RuntimeError(f"{func} wants all tensors on one device")
            self.computed += 1
        if "device" in named and named["device"] is not None:
            lands_there = torch.device(named["device"]).type == ELSEWHERE.type
            named["device"] = CPU
        if any(isinstance(tensor, There) for tensor in tensors) and _waits(func, args, lands_there=lands_there):
            self.waits.append(func._schema.name)
        answer = func(*tree_map(_here, args), **tree_map(_here, named))
        return tree_map(_there, answer) if lands_there else answer


def _waits(func: Any, args: tuple[Any, ...], *, lands_there: bool) -> bool:
    if func._schema.name in COPIES:
        return not lands_there or (func._schema.name == "aten::copy_" and not isinstance(args[0], There))
    masks = [one for one in tree_flatten(args[1:])[0] if isinstance(one, There) and one.dtype == torch.bool]
    return func._schema.name in ANSWERS or (func._schema.name == "aten::index" and bool(masks))


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _there(value: Any) -> Any:
    return There(value) if isinstance(value, torch.Tensor) else value
