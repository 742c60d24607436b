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
INT64 = ir.IntType(64)


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


def _operation(rule):
    """Make a function that builds code an operation for compiled loops; ``rule`` makes Numba's signature of it from the
    types of its arguments, which are cast to what that says.

    The function gets the builder and the arguments, an array as the pointer to its numbers, a vector as the list of its
    parts, a constant as its value. It returns the result, a vector as the list of its parts.
    """
    def decorate(build):
        @intrinsic(prefer_literal=True)
        @functools.wraps(build)
        def operation(typing_context, *kinds):
            def generate(context, builder, signature, values):
                found = build(builder, *(_open(context, builder, *pair) for pair in zip(signature.args, values)))
                if isinstance(found, list):
                    return cgutils.pack_array(builder, found)
                return context.get_dummy_value() if found is None else found

            return rule(*kinds), generate

        return operation

    return decorate


def _open(context, builder, kind, value):
    """A value of the type ``kind`` as the functions below get it."""
    if isinstance(kind, types.IntegerLiteral):
        return kind.literal_value
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return cgutils.unpack_tuple(builder, value) if isinstance(kind, Lanes) else value


def _vectors(builder, data, index, number):
    """Pointers to ``number`` parts that lie behind one another from ``data[index]`` on: at any address, ``align=1``."""
    first = builder.bitcast(builder.gep(data, [index]), ir.VectorType(data.type.pointee, PART).as_pointer())
    return [builder.gep(first, [INT64(n)]) for n in range(number)]


def _word(builder, data, index, width):
    """Pointer to the ``width`` bits from bit ``index`` on of bytes, both multiples of 8: at any address, too."""
    return builder.bitcast(builder.gep(data, [builder.lshr(index, INT64(3))]), ir.IntType(width).as_pointer())


def _splat(builder, scalar):
    """A part that holds ``scalar`` in every lane."""
    part = ir.VectorType(scalar.type, PART)
    first = builder.insert_element(part(ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, part(ir.Undefined), ir.VectorType(ir.IntType(32), PART)(None))


def _bits(builder, flags):
    """Bit ``j`` of a uint64 for lane ``j``, from parts of flags."""
    bits = INT64(0)
    for number, part in enumerate(flags):
        word = builder.zext(builder.bitcast(part, ir.IntType(PART)), INT64)
        bits = builder.or_(bits, builder.shl(word, INT64(PART * number)))
    return bits


def _combine(builder, instruction, parts, other):
    """Parts combined by ``add``, ``sub`` or ``mul`` with others, lane by lane, or with a scalar."""
    others = other if isinstance(other, list) else [_splat(builder, other)] * len(parts)
    prefix = "" if isinstance(parts[0].type.element, ir.IntType) else "f"
    return [getattr(builder, prefix + instruction)(*pair) for pair in zip(parts, others)]


@_operation(lambda array, index, width: Lanes(array.dtype, width.literal_value)(array, types.intp, width))
def load(builder, data, index, width):
    """The vector ``array[index : index + width]``; ``width`` is a constant."""
    return [builder.load(pointer, align=1) for pointer in _vectors(builder, data, index, width // PART)]


@_operation(lambda array, index, lanes: types.void(array, types.intp, lanes))
def store(builder, data, index, lanes):
    """``array[index : index + width] = lanes``."""
    for part, pointer in zip(lanes, _vectors(builder, data, index, len(lanes))):
        builder.store(part, pointer, align=1)


@_operation(lambda array, index: array.dtype(array, types.intp))
def at(builder, data, index):
    """``array[index]``, one-dimensional, for an index that is not negative: to allow for that costs a test."""
    return builder.load(builder.gep(data, [index]))


@_operation(lambda array, index, value: types.void(array, types.intp, array.dtype))
def put(builder, data, index, value):
    """``array[index] = value``, as :func:`at`."""
    builder.store(value, builder.gep(data, [index]))


@_operation(lambda array, index, width: types.uint64(array, types.intp, width))
def load_bits(builder, data, index, width):
    """The ``width`` bits, a constant, from bit ``index`` on, a multiple of 8, of an array of uint8; as a uint64."""
    return builder.zext(builder.load(_word(builder, data, index, width), align=1), INT64)


@_operation(lambda array, index, bits, width: types.void(array, types.intp, types.uint64, width))
def store_bits(builder, data, index, bits, width):
    """Write the lowest ``width`` of ``bits``, a uint64, where :func:`load_bits` reads them."""
    builder.store(builder.trunc(bits, ir.IntType(width)), _word(builder, data, index, width), align=1)


@_operation(lambda scalar, width: Lanes(types.unliteral(scalar), width.literal_value)(types.unliteral(scalar), width))
def fill(builder, scalar, width):
    """A vector that holds ``scalar`` ``width`` times; ``width`` is a constant."""
    return [_splat(builder, scalar)] * (width // PART)


def _offer(operation, instruction):
    """Make a Python operator work on two vectors, and on a vector and a number."""
    @_operation(lambda lanes, other: lanes(lanes, other if isinstance(other, Lanes) else lanes.dtype))
    def combine(builder, lanes, other):
        return _combine(builder, instruction, lanes, other)

    @overload(operation)
    def typed(lanes, other):
        if isinstance(lanes, Lanes) and (other == lanes or isinstance(other, types.Number)):
            return lambda lanes, other: combine(lanes, other)


_offer(operator.add, "add")
_offer(operator.sub, "sub")
_offer(operator.mul, "mul")


@_operation(lambda lanes, bits, other: lanes(lanes, types.uint64, other if isinstance(other, Lanes) else lanes.dtype))
def add_if(builder, lanes, bits, amount):
    """``lanes`` with ``amount``, a number or a vector, added to those whose bit of ``bits``, a uint64, is set."""
    words = [builder.trunc(builder.lshr(bits, INT64(PART * n)), ir.IntType(PART)) for n in range(len(lanes))]
    flags = [builder.bitcast(word, ir.VectorType(ir.IntType(1), PART)) for word in words]
    return [builder.select(*parts) for parts in zip(flags, _combine(builder, "add", lanes, amount), lanes)]


def _comparison(relation):
    @_operation(lambda lanes, threshold: types.uint64(lanes, lanes.dtype))
    def bits(builder, lanes, threshold):
        """Which of at most 64 lanes stand in the relation to ``threshold``: bit ``j`` of a uint64 for lane ``j``."""
        limit = _splat(builder, threshold)
        return _bits(builder, [builder.fcmp_ordered(relation, part, limit) for part in lanes])

    return bits


at_least = _comparison(">=")
at_most = _comparison("<=")


@_operation(lambda lanes, bits: types.uint64(lanes, lanes.dtype))
def meets(builder, lanes, bits):
    """Which lanes, unsigned integers, share a set bit with ``bits``: bit ``j`` of a uint64 for lane ``j``."""
    mask = _splat(builder, bits)
    return _bits(builder, [builder.icmp_unsigned("!=", builder.and_(part, mask), mask.type(None)) for part in lanes])


@_operation(lambda lanes: types.uint64(lanes))
def union(builder, lanes):
    """The bits that are set in any lane, unsigned integers, as a uint64."""
    part = functools.reduce(builder.or_, lanes)
    kind, name = part.type.element, f"llvm.vector.reduce.or.v{PART}{part.type.element}"
    reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [part.type]), name)
    return builder.zext(builder.call(reduce, [part]), INT64)


@_operation(lambda bits: types.intp(types.uint64))
def count(builder, bits):
    """How many bits are set in ``bits``, a uint64."""
    return builder.ctpop(bits)


@_operation(lambda bits: types.intp(types.uint64))
def lowest(builder, bits):
    """Index of the lowest bit that is set in ``bits``, a uint64 that is not 0."""
    return builder.cttz(bits, cgutils.true_bit)
