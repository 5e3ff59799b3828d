"""Eight float32 side by side in one register, as a type that numba kernels can hold and pass on.

Numba leaves short inner loops over channels to LLVM's loop vectoriser, which gives up on them: the trip count is small
and it cannot know that the arrays do not overlap. With these functions a row of channels is a few registers, whatever
the machine (LLVM splits eight lanes where a register holds four).

Arrays are flat, C-contiguous float32; an index is the position of the first of eight numbers and is not checked.
`load_bits8` and `store_bits8` take uint16, the bits of bf16, or uint32, those of float32 (see `bits`).
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

LANES = 8
intrinsic: Any = extending.intrinsic  # numba's own annotations would give callers the signature of the code generator
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)


class Lanes(types.Type):
    """Numba type of eight float32."""

    def __init__(self) -> None:
        super().__init__(name="Lanes8xFloat32")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


def _constant(value: float, count: int = LANES) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * count)


def _integers(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [ir.Constant(_INT, value)] * LANES)


def _same(builder: Any, scalar: Any) -> Any:
    """All eight lanes equal to a scalar."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), _integers(0))


def _call(builder: Any, name: str, arguments: list[Any]) -> Any:
    """Calls an LLVM intrinsic whose result has the type of its first argument."""
    kind = arguments[0].type
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [a.type for a in arguments]), name)
    return builder.call(function, arguments)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _float_array(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"


@intrinsic
def load8(typingctx: Any, array: Any, index: Any) -> Any:
    """The eight numbers from `array[index]` on."""
    if not _float_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store8(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes eight numbers to `array[index]` and on."""
    if not _float_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


def _bits_array(array: Any) -> bool:
    flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return flat and array.dtype in (types.uint16, types.uint32)


def _bits_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """To eight integers of the array's width, and that width in bits."""
    width = array_type.dtype.bitwidth
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(ir.IntType(width), LANES)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer()), width


@intrinsic
def load_bits8(typingctx: Any, array: Any, index: Any) -> Any:
    """Eight float32 from the bits of bf16 or float32 at `array[index]` and on."""
    if not _bits_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, width = _bits_pointer(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(pointer, align=width // 8)
        if width == 16:
            value = builder.shl(builder.zext(value, _INTS), _integers(16))
        return builder.bitcast(value, _VECTOR)

    return lanes(array, types.intp), codegen


@intrinsic
def store_bits8(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes eight numbers to `array[index]` and on as bits of float32 or bf16, to the nearest, ties to even."""
    if not _bits_array(array):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, width = _bits_pointer(context, builder, signature.args[0], args[0], args[1])
        bits = builder.bitcast(args[2], _INTS)
        if width == 16:
            odd = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
            bits = builder.lshr(builder.add(builder.add(bits, _integers(0x7FFF)), odd), _integers(16))
            bits = builder.trunc(bits, ir.VectorType(ir.IntType(16), LANES))
        builder.store(bits, pointer, align=width // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def same8(typingctx: Any, scalar: Any) -> Any:
    """Eight times one number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _same(builder, args[0])

    return lanes(types.float32), codegen


@intrinsic
def add8(typingctx: Any, a: Any, b: Any) -> Any:
    """a + b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1])

    return lanes(lanes, lanes), codegen


@intrinsic
def sub8(typingctx: Any, a: Any, b: Any) -> Any:
    """a - b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fsub(args[0], args[1])

    return lanes(lanes, lanes), codegen


@intrinsic
def clip8(typingctx: Any, a: Any, least: Any, most: Any) -> Any:
    """a, or the bound where it is beyond; what is not a number stays so."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, least, most = args
        a = builder.select(builder.fcmp_ordered("<", a, least), least, a)
        return builder.select(builder.fcmp_ordered(">", a, most), most, a)

    return lanes(lanes, lanes, lanes), codegen


@intrinsic
def within8(typingctx: Any, a: Any, value: Any, least: Any, most: Any) -> Any:
    """a where least < value < most, 0 elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, value, least, most = args
        above, below = builder.fcmp_ordered(">", value, least), builder.fcmp_ordered("<", value, most)
        return builder.select(builder.and_(above, below), a, _constant(0.0))

    return lanes(lanes, lanes, lanes, lanes), codegen


@intrinsic
def scale8(typingctx: Any, scalar: Any, a: Any) -> Any:
    """scalar * a."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(_same(builder, args[0]), args[1])

    return lanes(types.float32, lanes), codegen


@intrinsic
def axpy8(typingctx: Any, total: Any, scalar: Any, a: Any) -> Any:
    """total + scalar * a, rounded once where the machine has a fused multiply-add."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.fmuladd.v8f32", [_same(builder, args[1]), args[2], args[0]])

    return lanes(lanes, types.float32, lanes), codegen


@intrinsic
def muladd8(typingctx: Any, total: Any, a: Any, b: Any) -> Any:
    """total + a * b for each of the eight, rounded once where the machine has a fused multiply-add."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.fmuladd.v8f32", [args[1], args[2], args[0]])

    return lanes(lanes, lanes, lanes), codegen


@intrinsic
def max8(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each pair."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return lanes(lanes, lanes), codegen


def _reduce(builder: Any, value: Any, join: Any) -> Any:
    """Joins the halves of the lanes until one number is left."""
    width = LANES // 2
    while width:
        order = [(i + width) % LANES for i in range(LANES)]
        mask = ir.Constant(_INTS, [ir.Constant(_INT, i) for i in order])
        value = join(value, builder.shuffle_vector(value, ir.Constant(_VECTOR, ir.Undefined), mask))
        width //= 2
    return builder.extract_element(value, ir.Constant(_INT, 0))


@intrinsic
def largest8(typingctx: Any, a: Any) -> Any:
    """The largest of eight numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _reduce(builder, args[0], lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))

    return types.float32(lanes), codegen


@intrinsic
def sum8(typingctx: Any, a: Any) -> Any:
    """The sum of eight numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _reduce(builder, args[0], builder.fadd)

    return types.float32(lanes), codegen


# exp(r) on |r| <= ln 2 / 2 by Taylor to r^7; what is left out is below 5e-9, under float32 rounding.
_EXP_COEFFICIENTS = [1.0 / math.factorial(k) for k in range(7, -1, -1)]
_LN2_HIGH = 0.693359375  # 10 bits, so that its product with a whole number below 2^13 is exact
_LN2_LOW = math.log(2.0) - _LN2_HIGH
_EXP_FLOOR = -87.0


@intrinsic
def exp8(typingctx: Any, a: Any) -> Any:
    """exp(a) for a <= 88, relative error below 2e-7; 0 below -87, where float32 would leave its normal range."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = args[0]
        low = builder.fcmp_ordered("<", x, _constant(_EXP_FLOOR))
        x = builder.select(low, _constant(_EXP_FLOOR), x)
        n = _call(builder, "llvm.rint.v8f32", [builder.fmul(x, _constant(1.0 / math.log(2.0)))])
        r = _call(builder, "llvm.fmuladd.v8f32", [n, _constant(-_LN2_HIGH), x])
        r = _call(builder, "llvm.fmuladd.v8f32", [n, _constant(-_LN2_LOW), r])
        power = _constant(_EXP_COEFFICIENTS[0])
        for coefficient in _EXP_COEFFICIENTS[1:]:
            power = _call(builder, "llvm.fmuladd.v8f32", [power, r, _constant(coefficient)])
        exponent = builder.shl(builder.add(builder.fptosi(n, _INTS), _integers(127)), _integers(23))
        value = builder.fmul(power, builder.bitcast(exponent, _VECTOR))
        return builder.select(low, _constant(0.0), value)

    return lanes(lanes), codegen
