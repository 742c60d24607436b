"""Short vectors for compiled loops: the few operations that an event-driven neuron update needs, on whole registers.

Numba turns scalar loops into vector instructions where it can prove that this is safe, which it cannot in the loops of
:mod:`modules.engines.event.kernels`: they gather rows at addresses that lists of spikes hold. With an explicit vector
type the sum of those rows stays in registers, and which of its units reached the threshold comes out as the bits of one
integer. That made both 3 to 5 times faster. A vector wider than a register of the machine becomes several.
"""
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model


class Lanes(types.Type):
    """Numba's type of a vector of ``width`` numbers of the type ``dtype``."""

    def __init__(self, dtype: types.Number, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        element = manager[lanes.dtype].get_value_type()
        super().__init__(manager, lanes, ir.VectorType(element, lanes.width))


def _address(context, builder, array_type, array, index, vector):
    """Pointer to the vector that starts at ``array[index]``, one-dimensional; there is no check of bounds."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _splat(builder, scalar, vector):
    """A vector that holds ``scalar`` in every lane."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _chosen(builder, bits, width):
    """The lowest ``width`` of 64 bits as what a ``select`` of vectors takes."""
    bits = builder.trunc(bits, ir.IntType(width)) if width < 64 else bits
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), width))


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, width):
    """The vector ``array[index : index + width]``; ``width`` is a constant."""
    lanes = Lanes(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(lanes)
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp, width), generate


@intrinsic
def at(typing_context, array, index):
    """``array[index]``, one-dimensional, for an index that is not negative: to allow for that costs a test."""
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.intp), generate


@intrinsic
def put(typing_context, array, index, value):
    """``array[index] = value``, an integer made one of the array's type or a number of it; otherwise as :func:`at`."""
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        own = context.cast(builder, arguments[2], value, array.dtype)
        builder.store(own, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def store(typing_context, array, index, lanes):
    """``array[index : index + width] = lanes``."""
    def generate(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], arguments[0], arguments[1], arguments[2].type)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic(prefer_literal=True)
def fill(typing_context, scalar, width):
    """A vector that holds ``scalar`` ``width`` times; ``width`` is a constant."""
    lanes = Lanes(scalar, width.literal_value)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], context.get_value_type(lanes))

    return lanes(scalar, width), generate


def _arithmetic(instruction):
    """Intrinsic of two vectors and an instruction, ``fadd`` for one."""
    @intrinsic
    def combine(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments)

        return a(a, b), generate

    return combine


def _offer(operation, instruction):
    """Make a Python operator work on two vectors."""
    combine = _arithmetic(instruction)

    @overload(operation)
    def typed(a, b):
        if isinstance(a, Lanes) and a == b:
            return lambda a, b: combine(a, b)


_offer(operator.add, "fadd")
_offer(operator.sub, "fsub")
_offer(operator.mul, "fmul")


def _comparison(relation):
    @intrinsic
    def bits(typing_context, lanes, threshold):
        """Which of at most 64 lanes stand in the relation to ``threshold``: bit ``j`` of a uint64 for lane ``j``."""
        def generate(context, builder, signature, arguments):
            vector = arguments[0]
            holds = builder.fcmp_ordered(relation, vector, _splat(builder, arguments[1], vector.type))
            return builder.zext(builder.bitcast(holds, ir.IntType(lanes.width)), ir.IntType(64))

        return types.uint64(lanes, lanes.dtype), generate

    return bits


at_least = _comparison(">=")
at_most = _comparison("<=")


@intrinsic
def meets(typing_context, lanes, bits):
    """Which lanes, unsigned integers, share a set bit with ``bits``: bit ``j`` of a uint64 for lane ``j``."""
    def generate(context, builder, signature, arguments):
        vector, mask = arguments
        mask = _splat(builder, context.cast(builder, mask, bits, lanes.dtype), vector.type)
        holds = builder.icmp_unsigned("!=", builder.and_(vector, mask), ir.Constant(vector.type, None))
        return builder.zext(builder.bitcast(holds, ir.IntType(lanes.width)), ir.IntType(64))

    return types.uint64(lanes, bits), generate


@intrinsic
def either(typing_context, lanes):
    """The bits that are set in any lane, unsigned integers, as a uint64."""
    def generate(context, builder, signature, arguments):
        vector = arguments[0].type
        kind, name = ir.FunctionType(vector.element, [vector]), f"llvm.vector.reduce.or.v{vector.count}{vector.element}"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.zext(builder.call(reduce, arguments), ir.IntType(64))

    return types.uint64(lanes), generate


@intrinsic
def only(typing_context, lanes, bits):
    """``lanes`` where the bit of ``bits`` is set, 0 elsewhere."""
    def generate(context, builder, signature, arguments):
        vector, mask = arguments
        return builder.select(_chosen(builder, mask, lanes.width), vector, ir.Constant(vector.type, None))

    return lanes(lanes, types.uint64), generate


@intrinsic
def subtract_where(typing_context, lanes, bits, amount):
    """``lanes`` with ``amount``, made a number of their type, subtracted from those whose bit is set."""
    def generate(context, builder, signature, arguments):
        vector, mask, scalar = arguments
        scalar = _splat(builder, context.cast(builder, scalar, amount, lanes.dtype), vector.type)
        lowered = (builder.fsub if isinstance(lanes.dtype, types.Float) else builder.sub)(vector, scalar)
        return builder.select(_chosen(builder, mask, lanes.width), lowered, vector)

    return lanes(lanes, types.uint64, amount), generate


@intrinsic
def moved(typing_context, lanes, shift):
    """``lanes + shift`` for a vector of integers and an integer."""
    def generate(context, builder, signature, arguments):
        vector, shift = arguments
        return builder.add(vector, _splat(builder, builder.trunc(shift, vector.type.element), vector.type))

    return lanes(lanes, types.intp), generate


@intrinsic(prefer_literal=True)
def load_bits(typing_context, bytes_, index, width):
    """The ``width`` bits from bit ``index`` on, a multiple of 8, of an array of uint8; as a uint64."""
    def generate(context, builder, signature, arguments):
        number = ir.IntType(width.literal_value)
        first = builder.lshr(arguments[1], ir.Constant(ir.IntType(64), 3))
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [first]), number.as_pointer())
        return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

    return types.uint64(bytes_, types.intp, width), generate


@intrinsic(prefer_literal=True)
def store_bits(typing_context, bytes_, index, bits, width):
    """Write the lowest ``width`` of ``bits``, a uint64, where :func:`load_bits` reads them."""
    def generate(context, builder, signature, arguments):
        number = ir.IntType(width.literal_value)
        first = builder.lshr(arguments[1], ir.Constant(ir.IntType(64), 3))
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [first]), number.as_pointer())
        own = arguments[2] if width.literal_value == 64 else builder.trunc(arguments[2], number)
        builder.store(own, pointer, align=1)
        return context.get_dummy_value()

    return types.void(bytes_, types.intp, types.uint64, width), generate


@intrinsic
def count(typing_context, bits):
    """How many bits are set in ``bits``, a uint64."""
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.intp(types.uint64), generate


@intrinsic
def lowest(typing_context, bits):
    """Index of the lowest bit that is set in ``bits``, a uint64 that is not 0."""
    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], cgutils.true_bit)

    return types.intp(types.uint64), generate
