"""The safetensors reader: what it reads, and every way in which a file can be malformed."""

import json

import pytest
import torch

from basedbench.errors import UserError
from basedbench.models.language.safetensors import DTYPES, read_safetensors

BYTES = torch.arange(24, dtype=torch.uint8)


def written(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("spaces", range(8))  # they move the data: tensors may begin at any byte
def test_tensors_of_every_dtype(tmp_path, spaces):
    header, data, expected = {"__metadata__": {"format": "pt"}}, b"", {}
    for name, dtype in DTYPES.items():
        tensor = torch.arange(6).reshape(2, 3).to(dtype)
        raw = bytes(tensor.view(torch.uint8).flatten().tolist())
        header[name] = entry(name, [2, 3], len(data), len(data) + len(raw))
        data, expected[name] = data + raw, tensor
    found = read_safetensors(written(tmp_path / "x", json.dumps(header).encode() + b" " * spaces, data))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == expected[name].dtype


def test_scalars_empty_tensors_and_no_tensors(tmp_path):
    header = {"scalar": entry("I16", [], 0, 2), "empty": entry("F32", [0, 3], 2, 2)}
    found = read_safetensors(written(tmp_path / "x", header, b"\x05\x00"))
    assert found["scalar"].item() == 5
    assert found["empty"].shape == (0, 3)
    assert read_safetensors(written(tmp_path / "y", {})) == {}


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    path = written(tmp_path / "x", {"a": entry("U8", [24], 0, 24)}, bytes(BYTES.tolist()))
    read_safetensors(path)["a"].zero_()
    assert torch.equal(read_safetensors(path)["a"], BYTES)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        ({"a": 3}, "'a' is not a JSON object"),
        ({"a": entry("F8_E4M3", [24], 0, 24)}, "'F8_E4M3'"),
        ({"a": {"shape": [24], "data_offsets": [0, 24]}}, "dtype None"),
        ({"a": entry("U8", [-24], 0, 24)}, r"shape \[-24\]"),
        ({"a": entry("U8", [24.0], 0, 24)}, r"shape \[24.0\]"),
        ({"a": entry("U8", 24, 0, 24)}, "shape 24"),
        ({"a": {"dtype": "U8", "shape": [24], "data_offsets": [0]}}, r"at \[0\]"),
        ({"a": entry("F32", [24], 0, 24)}, "has 24 bytes"),
        ({"a": entry("U8", [10**30], 0, 24)}, "has 24 bytes"),
        ({"a": entry("U8", [24], 24, 0)}, "has -24 bytes"),
        ({"a": entry("U8", [2**70, 0], 0, 0)}, "has 0 bytes"),
        ({"a": entry("U8", [2**40, 2**40, 0], 0, 0)}, "has 0 bytes"),
        ({"a": entry("U8", [16], 8, 24)}, "begins at byte 8"),
        ({"a": entry("U8", [16], 0, 16), "b": entry("U8", [16], 8, 24)}, "'b' begins at byte 8 of the data, not at 16"),
        ({"a": entry("U8", [8], 0, 8), "b": entry("U8", [8], 16, 24)}, "not at 8"),
        ({"a": entry("U8", [16], 0, 16)}, "end at byte 16 of 24"),
        ({"a": entry("U8", [25], 0, 25)}, "end at byte 25 of 24"),
    ],
)
def test_malformed_headers(tmp_path, header, reason):
    path = written(tmp_path / "bad.safetensors", header, bytes(BYTES.tolist()))
    with pytest.raises(UserError, match=reason) as error:
        read_safetensors(path)
    assert "bad.safetensors" in str(error.value)


@pytest.mark.parametrize("length", [3, 10**6, 2**63])
def test_headers_longer_than_the_file_or_cut_short(tmp_path, length):
    with pytest.raises(UserError, match="no whole safetensors file"):
        read_safetensors(written(tmp_path / "x", {"a": entry("U8", [24], 0, 24)}, bytes(24), length))


@pytest.mark.parametrize("content", [b"", b"\x02\x00\x00", b"\x02" + bytes(7)])
def test_files_too_short_for_a_header(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="no whole safetensors file"):
        read_safetensors(tmp_path / "x")


def test_a_file_that_lost_its_end(tmp_path):
    path = written(tmp_path / "x", {"a": entry("U8", [24], 0, 24)}, bytes(24))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="end at byte 24 of 20"):
        read_safetensors(path)
