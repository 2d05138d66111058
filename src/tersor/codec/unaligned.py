"""Loads and stores at any byte of a uint8 array, for numba.

NumPy indexing in numba cannot read eight bytes from an odd address; a bit stream needs just
that. Each function compiles to one machine instruction. There is no bounds check: callers
prove their ranges first (`tersor.codec.fast` says where).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, bits: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    byte = builder.gep(builder.bitcast(data, cgutils.voidptr_t), [index])
    return builder.bitcast(byte, ir.IntType(bits).as_pointer())


def _loader(bits: int) -> Any:
    result = getattr(types, f"uint{bits}")

    @intrinsic
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index64 = context.cast(builder, args[1], signature.args[1], types.int64)
            return builder.load(
                _pointer(context, builder, signature.args[0], args[0], index64, bits), align=1
            )

        return result(array, index), codegen

    return load


def _storer(bits: int) -> Any:
    value_type = getattr(types, f"uint{bits}")

    @intrinsic
    def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index64 = context.cast(builder, args[1], signature.args[1], types.int64)
            value = context.cast(builder, args[2], signature.args[2], value_type)
            builder.store(
                value, _pointer(context, builder, signature.args[0], args[0], index64, bits), align=1
            )
            return context.get_dummy_value()

        return types.void(array, index, value), codegen

    return store


load_u8, load_u16, load_u32, load_u64 = (_loader(bits) for bits in (8, 16, 32, 64))
store_u8, store_u16, store_u32, store_u64 = (_storer(bits) for bits in (8, 16, 32, 64))
