"""Short vectors for compiled loops: the few operations that an event-driven neuron update needs, on whole registers.

Numba turns scalar loops into vector instructions where it can prove that this is safe, which it cannot in the loops of
:mod:`modules.engines.event.kernels`: they gather rows at addresses that lists of spikes hold. With an explicit vector
type the sum of those rows stays in registers, and which of its units reached the threshold comes out as the bits of one
integer. That made both 3 to 5 times faster. A vector is as many registers as it takes.
"""
import functools
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

PART = 16  # lanes of the vectors that LLVM sees: one register of the widest machines


class Lanes(types.Type):
    """Numba's type of a vector of ``width`` numbers of the type ``dtype``; ``width`` is a multiple of ``PART``."""

    def __init__(self, dtype: types.Number, width: int) -> None:
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    """An array of vectors of ``PART`` lanes: LLVM takes a vector whose width is no power of two apart lane by lane."""

    def __init__(self, manager, lanes):
        part = ir.VectorType(manager[lanes.dtype].get_value_type(), PART)
        super().__init__(manager, lanes, ir.ArrayType(part, lanes.width // PART))


def _parts(builder, lanes):
    """The vectors that make up a value."""
    return [builder.extract_value(lanes, number) for number in range(lanes.type.count)]


def _joined(builder, parts):
    """The reverse of :func:`_parts`."""
    lanes = ir.Constant(ir.ArrayType(parts[0].type, len(parts)), ir.Undefined)
    for number, part in enumerate(parts):
        lanes = builder.insert_value(lanes, part, number)
    return lanes


def _element(context, builder, array_type, array, index):
    """Pointer to ``array[index]``, one-dimensional; there is no check of bounds."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _pointers(builder, first, part, number):
    """Pointers to ``number`` vectors from the element ``first`` on."""
    vectors = builder.bitcast(first, part.as_pointer())
    return [builder.gep(vectors, [ir.Constant(ir.IntType(64), n)]) for n in range(number)]


def _splat(builder, scalar):
    """A part that holds ``scalar`` in every lane."""
    part = ir.VectorType(scalar.type, PART)
    first = builder.insert_element(ir.Constant(part, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), PART), None)
    return builder.shuffle_vector(first, ir.Constant(part, ir.Undefined), zeros)


def _flags(builder, bits, number):
    """The bits of a uint64, as ``number`` parts of flags."""
    places = [ir.Constant(ir.IntType(64), PART * n) for n in range(number)]
    words = [builder.trunc(builder.lshr(bits, place), ir.IntType(PART)) for place in places]
    return [builder.bitcast(word, ir.VectorType(ir.IntType(1), PART)) for word in words]


def _bits(builder, flags):
    """The reverse: bit ``j`` of a uint64 for lane ``j``."""
    bits = ir.Constant(ir.IntType(64), 0)
    for number, part in enumerate(flags):
        word = builder.zext(builder.bitcast(part, ir.IntType(PART)), ir.IntType(64))
        bits = builder.or_(bits, builder.shl(word, ir.Constant(ir.IntType(64), PART * number)))
    return bits


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, width):
    """The vector ``array[index : index + width]``; ``width`` is a constant."""
    lanes = Lanes(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        value = context.get_value_type(lanes)
        first = _element(context, builder, signature.args[0], *arguments[:2])
        pointers = _pointers(builder, first, value.element, value.count)
        return _joined(builder, [builder.load(pointer, align=array.dtype.bitwidth // 8) for pointer in pointers])

    return lanes(array, types.intp, width), generate


@intrinsic
def store(typing_context, array, index, lanes):
    """``array[index : index + width] = lanes``."""
    def generate(context, builder, signature, arguments):
        parts = _parts(builder, arguments[2])
        first = _element(context, builder, signature.args[0], *arguments[:2])
        for pointer, part in zip(_pointers(builder, first, parts[0].type, len(parts)), parts):
            builder.store(part, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def at(typing_context, array, index):
    """``array[index]``, one-dimensional, for an index that is not negative: to allow for that costs a test."""
    def generate(context, builder, signature, arguments):
        return builder.load(_element(context, builder, signature.args[0], *arguments))

    return array.dtype(array, types.intp), generate


@intrinsic
def put(typing_context, array, index, value):
    """``array[index] = value``, an integer made one of the array's type or a number of it; otherwise as :func:`at`."""
    def generate(context, builder, signature, arguments):
        own = context.cast(builder, arguments[2], value, array.dtype)
        builder.store(own, _element(context, builder, signature.args[0], *arguments[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic(prefer_literal=True)
def fill(typing_context, scalar, width):
    """A vector that holds ``scalar`` ``width`` times; ``width`` is a constant."""
    def generate(context, builder, signature, arguments):
        return _joined(builder, [_splat(builder, arguments[0])] * (width.literal_value // PART))

    return Lanes(scalar, width.literal_value)(scalar, width), generate


def _arithmetic(instruction):
    """Intrinsic of two vectors and an instruction, ``fadd`` for one."""
    @intrinsic
    def combine(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            pairs = zip(*(_parts(builder, lanes) for lanes in arguments))
            return _joined(builder, [getattr(builder, instruction)(*pair) for pair in pairs])

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
            limit = _splat(builder, arguments[1])
            return _bits(builder, [builder.fcmp_ordered(relation, part, limit)
                                   for part in _parts(builder, arguments[0])])

        return types.uint64(lanes, lanes.dtype), generate

    return bits


at_least = _comparison(">=")
at_most = _comparison("<=")


@intrinsic
def meets(typing_context, lanes, bits):
    """Which lanes, unsigned integers, share a set bit with ``bits``: bit ``j`` of a uint64 for lane ``j``."""
    def generate(context, builder, signature, arguments):
        mask = _splat(builder, context.cast(builder, arguments[1], bits, lanes.dtype))
        zeros = ir.Constant(mask.type, None)
        return _bits(builder, [builder.icmp_unsigned("!=", builder.and_(part, mask), zeros)
                               for part in _parts(builder, arguments[0])])

    return types.uint64(lanes, bits), generate


@intrinsic
def either(typing_context, lanes):
    """The bits that are set in any lane, unsigned integers, as a uint64."""
    def generate(context, builder, signature, arguments):
        part = functools.reduce(builder.or_, _parts(builder, arguments[0]))
        kind = ir.FunctionType(part.type.element, [part.type])
        name = f"llvm.vector.reduce.or.v{PART}{part.type.element}"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.zext(builder.call(reduce, [part]), ir.IntType(64))

    return types.uint64(lanes), generate


@intrinsic
def only(typing_context, lanes, bits):
    """``lanes`` where the bit of ``bits`` is set, 0 elsewhere."""
    def generate(context, builder, signature, arguments):
        parts = _parts(builder, arguments[0])
        zeros = ir.Constant(parts[0].type, None)
        return _joined(builder, [builder.select(flags, part, zeros)
                                 for part, flags in zip(parts, _flags(builder, arguments[1], len(parts)))])

    return lanes(lanes, types.uint64), generate


@intrinsic
def subtract_where(typing_context, lanes, bits, amount):
    """``lanes`` with ``amount``, made a number of their type, subtracted from those whose bit is set."""
    def generate(context, builder, signature, arguments):
        parts = _parts(builder, arguments[0])
        scalar = _splat(builder, context.cast(builder, arguments[2], amount, lanes.dtype))
        subtract = builder.fsub if isinstance(lanes.dtype, types.Float) else builder.sub
        return _joined(builder, [builder.select(flags, subtract(part, scalar), part)
                                 for part, flags in zip(parts, _flags(builder, arguments[1], len(parts)))])

    return lanes(lanes, types.uint64, amount), generate


@intrinsic
def moved(typing_context, lanes, shift):
    """``lanes + shift`` for a vector of integers and an integer."""
    def generate(context, builder, signature, arguments):
        parts = _parts(builder, arguments[0])
        shift = _splat(builder, builder.trunc(arguments[1], parts[0].type.element))
        return _joined(builder, [builder.add(part, shift) for part in parts])

    return lanes(lanes, types.intp), generate


@intrinsic(prefer_literal=True)
def load_bits(typing_context, bytes_, index, width):
    """The ``width`` bits from bit ``index`` on, a multiple of 8, of an array of uint8; as a uint64."""
    def generate(context, builder, signature, arguments):
        number = ir.IntType(width.literal_value)
        byte = builder.lshr(arguments[1], ir.Constant(ir.IntType(64), 3))
        first = _element(context, builder, signature.args[0], arguments[0], byte)
        pointer = builder.bitcast(first, number.as_pointer())
        return builder.zext(builder.load(pointer, align=1), ir.IntType(64))

    return types.uint64(bytes_, types.intp, width), generate


@intrinsic(prefer_literal=True)
def store_bits(typing_context, bytes_, index, bits, width):
    """Write the lowest ``width`` of ``bits``, a uint64, where :func:`load_bits` reads them."""
    def generate(context, builder, signature, arguments):
        number = ir.IntType(width.literal_value)
        byte = builder.lshr(arguments[1], ir.Constant(ir.IntType(64), 3))
        first = _element(context, builder, signature.args[0], arguments[0], byte)
        pointer = builder.bitcast(first, number.as_pointer())
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
