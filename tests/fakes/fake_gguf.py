"""What diffusers reads of the package gguf: the numbers of its formats, and how many bytes a block of values takes."""

from __future__ import annotations

from enum import IntEnum

_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19,
    "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30,
}  # fmt: skip
GGMLQuantizationType = IntEnum("GGMLQuantizationType", _NUMBERS)  # type: ignore[misc]
# (values of a block, its bytes)
GGML_QUANT_SIZES = {
    GGMLQuantizationType["Q8_0"]: (32, 2 + 32),  # type: ignore[misc]
    GGMLQuantizationType["Q4_0"]: (32, 2 + 16),  # type: ignore[misc]
}
