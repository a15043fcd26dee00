"""Arrays of a message that travel as one."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.protocol.fields import decoded
from lit_fedbabu.protocol.handshake import WireError
from lit_fedbabu.protocol.packing import LAYOUT, PACKED, pack, unpack

VALUES = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "count": np.array(7),
    "none": np.zeros((0, 4), dtype=np.float16),
}


@pytest.fixture
def content():
    identify_process()
    record = ArrayRecord({name: Array(value) for name, value in VALUES.items()})
    return RecordDict({"arrays": record, "one": ArrayRecord({"only": Array(np.ones(3))}), "config": ConfigRecord()})


def facts(content):
    """Everything that is in a content."""
    arrays = {
        (record, name): (array.dtype, tuple(array.shape), array.stype, array.data)
        for record, each in content.array_records.items()
        for name, array in each.items()
    }
    return list(arrays), arrays, dict(content.config_records)


def packed(content):
    pack([Message(content, 1, "train")])
    return content


def test_what_was_packed_is_what_is_unpacked(content):
    before = facts(content)
    assert [len(record) for record in packed(content).array_records.values()] == [1, 1]
    assert unpack(content) and facts(content) == before
    assert not unpack(content) and facts(content) == before
    for name, value in VALUES.items():
        np.testing.assert_array_equal(decoded(name, content.array_records["arrays"][name]), value)


def test_messages_that_share_a_record_share_what_it_becomes(content):
    other = RecordDict({"arrays": content["arrays"], "own": ArrayRecord({"a": Array(np.ones(2))})})
    pack([Message(content, 1, "train"), Message(other, 2, "train")])
    assert content["arrays"] is other["arrays"] and content["arrays" + LAYOUT] is other["arrays" + LAYOUT]
    assert unpack(content) and unpack(other)


def with_layout(content, **changes):
    content["arrays" + LAYOUT] = ConfigRecord({**content["arrays" + LAYOUT], **changes})


FAULTS = {
    "sizes beyond the bytes": lambda content: with_layout(content, size=[10**12, 152, 136, 128]),
    "a size below zero": lambda content: with_layout(content, size=[304, -152, 136, 280]),
    "bytes that are nobody's": lambda content: with_layout(content, size=[152, 152, 136, 0]),
    "a name twice": lambda content: with_layout(content, name=["weight", "weight", "count", "none"]),
    "a name less": lambda content: with_layout(content, name=["weight", "count", "none"]),
    "names that are numbers": lambda content: with_layout(content, name=[1, 2, 3, 4]),
    "shapes that are none": lambda content: with_layout(content, shape=["2,3", "a", "", "0,4"]),
    "a shape alone": lambda content: with_layout(content, shape="2,3"),
    "no sizes": lambda content: content.__setitem__("arrays" + LAYOUT, ConfigRecord({"name": ["weight"]})),
    "no array": lambda content: content["arrays"].pop(PACKED),
    "no record": lambda content: content.pop("arrays"),
    "a layout of a record without one": lambda content: content.__setitem__("x" + LAYOUT, ConfigRecord()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_layout_that_is_not_that_of_its_array_is_refused(content, fault):
    FAULTS[fault](packed(content))
    with pytest.raises(WireError, match=r"a message whose '(arrays|x) layout' is not that of its arrays \("):
        unpack(content)
