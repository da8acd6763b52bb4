"""The forms that a matrix can be stored in; a mixed precision has one for each group of matrices. Used by all packages."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Role = Literal["head", "input", ""]  # of a matrix: it gives logits; it is a depth step's input; any other
Forms = Mapping[str, Mapping[str, str]]  # graph -> group -> a name in FORMS
NO_FORMS: Forms = MappingProxyType({})

_ROLES: Mapping[Role, re.Pattern[str]] = {
    "head": re.compile(r"text_linear|steps\.\d+\.output"),
    "input": re.compile(r"steps\.\d+\.input"),
}
_DEPTH_MATRIX = re.compile(r"(steps\.\d+)\.(?:gating\.\d+\.(\w+)|(\w+)\.\d+)")


@dataclass(frozen=True)
class Form:
    """How a matrix is stored: its dtype, and how many weights of a column share a scale (0: a whole column, or no scale)."""

    dtype: str
    block: int = 0

    @property
    def name(self) -> str:
        return f"{self.dtype}/{self.block}" if self.block else self.dtype

    def block_of(self, inputs: int) -> int:
        """How many weights share a scale in a column of `inputs`: the block, or its largest divisor that fits.

        ONNX allows a shorter last block. But TensorRT's parser ignores `block_size`, divides the length by the number of
        scales, and would then scale the wrong weights.
        """
        return math.gcd(inputs, self.block) if self.block else 0


def _forms(*forms: Form) -> Mapping[str, Form]:
    return MappingProxyType({form.name: form for form in forms})


# The smallest first. Engines multiply int8 with one scale per column, ONNX Runtime on a processor int8 in blocks. There,
# 16-bit weights become float32 beside themselves: they need more memory than in fp32. fp8 takes the bytes of int8, and
# drifts ten times as far (docs/precision.md).
FOR_PROCESSORS = _forms(Form("int4", 128), Form("int4", 64), Form("int4", 32), Form("int8", 32))
FOR_ENGINES = _forms(Form("int4", 128), Form("int4", 64), Form("int4", 32), Form("int8"), Form("float16"))
FORMS: Mapping[str, Form] = MappingProxyType({**FOR_PROCESSORS, **FOR_ENGINES})


def offered(compiled: bool) -> Mapping[str, Form]:
    """The forms that a mixed precision chooses from, the smallest first. `compiled`: for engines."""
    return FOR_ENGINES if compiled else FOR_PROCESSORS


def group_of(parameter: str) -> str:
    """The group of a matrix of the temporal or depth graph. Matrices of a group have one form.

    In the temporal graph, each matrix is a group. In the depth graph, a group has the matrices of one kind and step:
    layers.3.attention.in_proj.weight -> layers.3.attention.in_proj; steps.2.gating.4.linear_in.weight -> steps.2.linear_in.
    """
    name = parameter.removesuffix(".weight")
    match = _DEPTH_MATRIX.fullmatch(name)
    return f"{match[1]}.{match[2] or match[3]}" if match else name


def role_of(group: str) -> Role:
    """The role of a group's matrices."""
    return next((role for role, names in _ROLES.items() if names.fullmatch(group)), "")
