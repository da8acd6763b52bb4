"""Messages read and written without a schema."""

import onnx
import pytest
from onnx import TensorProto

from pplex.runtime.protobuf import BYTES, FIXED32, VARINT, Field, fields, integer, message, nested, text


def test_a_message_is_written_as_it_was_read() -> None:
    tensor = TensorProto(name="w", data_type=1, dims=[3, 1 << 40], float_data=[1.5, -2.0], raw_data=b"\0\1")
    tensor.int64_data.extend([-1, 5])
    node = onnx.helper.make_node(
        "Op", ["x"], ["y"], alpha=1.25, name="n" * 300
    )  # a float32 field; a length of two bytes
    for original in (tensor, node):
        data = original.SerializeToString()
        assert message(fields(data)) == data
    assert FIXED32 in [one.wire for one in fields(next(one.value for one in fields(data) if one.number == 5))]  # type: ignore[arg-type]


def test_other_programs_read_what_is_written() -> None:
    entry = message([text(1, "key"), text(2, "ä")])
    tensor = TensorProto.FromString(message([integer(1, 1 << 40), integer(2, 7), text(8, "name"), nested(13, entry)]))
    assert list(tensor.dims) == [1 << 40] and tensor.data_type == 7 and tensor.name == "name"
    assert (tensor.external_data[0].key, tensor.external_data[0].value) == ("key", "ä")


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x08", b"\x08\xff", b"\x0d\x01\x02", b"\x0b", b"\x80" * 11])
def test_damaged_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        list(fields(data))


def test_fields_are_read_in_order() -> None:
    found = list(fields(b"\x08\x96\x01\x12\x02hi\x08\x00"))
    assert found == [Field(1, VARINT, 150), Field(2, BYTES, memoryview(b"hi")), Field(1, VARINT, 0)]
