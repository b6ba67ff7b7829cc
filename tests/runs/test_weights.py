"""A stranger's checkpoint is plain tensors no larger than its file, or refused; the interpreter lives on."""

import io
import pickletools
import random
import subprocess
import sys
import zipfile

import pytest
import torch

from meta_exp.runs.weights import read_weights


def save(file, values, change=lambda name, data: data, **options):
    """Save as torch does, with each member of the archive changed by ``change``."""
    stream = io.BytesIO()
    torch.save({"state_dict": values}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(file, "w", **options) as archive:
        for name in whole.namelist():
            archive.writestr(name, change(name.split("/")[-1], whole.read(name)))
    return file


def refused(file, message=r"expected a checkpoint of tensors and plain values, got "):
    with pytest.raises(ValueError, match=message) as refusal:
        read_weights(file)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_plain_tensors_come_back(tmp_path):
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    values = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    values["lasting"] = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    values["none"], values["one"] = torch.zeros(0, 3), torch.tensor(1.5)
    values["view"] = torch.rand(5, 5)[1:3, ::2]
    found = read_weights(save(tmp_path / "best.ckpt", values))
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in values.items())


ODD = {
    "quantized": lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "without memory": lambda: torch.empty(3, device="meta"),
    "a parameter": lambda: torch.nn.Parameter(torch.rand(3)),
    "bits": lambda: torch.empty(3, dtype=torch.bits8),
    "eight bits": lambda: torch.rand(3).to(torch.float8_e5m2),
    "complex": lambda: torch.rand(3) * 1j,
    "a dtype": lambda: torch.float32,
    "a set": lambda: {1, 2},
    "a shape": lambda: torch.Size([3]),
    "an array": lambda: bytearray(3),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*Sparse.*")
def test_tensors_of_odd_kinds_are_refused_before_they_are_made(tmp_path, what, monkeypatch):
    file = save(tmp_path / "best.ckpt", {"a": ODD[what]()})
    monkeypatch.setattr(torch, "load", None)
    refused(file, "expected a checkpoint of tensors and plain values, got one that names")


def test_sizes_are_those_of_the_file(tmp_path):
    file = tmp_path / "best.ckpt"
    refused(
        save(file, {"a": torch.zeros(1).expand(10**9)}), r"a: expected a tensor as large as its file says, got \[10000"
    )
    refused(save(file, {"a": torch.zeros(10**6)}, compression=zipfile.ZIP_DEFLATED), "got compressed members")

    def grow(name, data):
        return data.replace(b"K\x00K\x03\x85", b"K\x00J\xff\xff\xff\x0f\x85") if name == "data.pkl" else data

    refused(save(file, {"a": torch.zeros(3)}, grow))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    data = bytearray(file.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    file.write_bytes(data)
    refused(file, "got members larger than the file")


def test_another_format_with_an_archive_behind_it_is_refused(tmp_path):
    file = save(tmp_path / "best.ckpt", {"a": torch.zeros(3)})
    whole = file.read_bytes()
    torch.save({"state_dict": {}}, file, _use_new_zipfile_serialization=False)
    refused(file)
    file.write_bytes(file.read_bytes() + whole)
    refused(file, "got another format")


FUZZ = """
import random, sys
from pathlib import Path
from meta_exp.runs.weights import read_weights
chance, place = random.Random(0), Path(sys.argv[1])
whole = (place / "best.ckpt").read_bytes()
at = whole.index(b"data.pkl") + 8
ends, kept = {}, place / "bad.ckpt"
for _ in range(400):
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[at + chance.randrange(900)] = chance.choice([chance.randrange(256), *b"cRbo0(t\\x81Qj"])
    kept.write_bytes(data)
    try:
        found = read_weights(kept)
        sum(float(value.double().sum()) for value in found.values())
        end = "read"
    except ValueError as error:
        assert str(kept) in str(error) and "\\n" not in str(error)
        end = "refused"
    ends[end] = ends.get(end, 0) + 1
assert ends["refused"] > 200, ends
print("alive")
"""


def test_four_hundred_crooked_checkpoints_leave_the_interpreter_alive(tmp_path):
    """Without the checksum of the member, which would hide the pickle behind its own refusal."""
    values = {f"model.{i}.{kind}": torch.rand(3, 3) for i in range(3) for kind in ("weight", "bias")}
    save(tmp_path / "best.ckpt", values)
    code = "import zipfile\nzipfile.ZipExtFile._update_crc = lambda self, data: None\n" + FUZZ
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=300)
    assert result.stdout == "alive\n", result.stderr[-2000:]


def test_no_name_but_those_admitted_gets_to_torch(tmp_path):
    """Whatever opcode brings it."""
    chance = random.Random(0)
    codes = [
        code for code in pickletools.opcodes if code.name in ("GLOBAL", "STACK_GLOBAL", "INST", "NEWOBJ", "OBJ", "EXT1")
    ]
    for code in codes:
        body = (
            b"\x80\x02"
            + {
                "GLOBAL": b"ctorch\nquint8\n",
                "STACK_GLOBAL": b"\x8c\x05torch\x8c\x06quint8\x93",
                "INST": b"(itorch\nquint8\n",
                "NEWOBJ": b"N)\x81",
                "OBJ": b"(No",
                "EXT1": b"\x82\x01",
            }[code.name]
        )
        pickled = body + bytes([chance.choice(b"0N")]) + b"."
        refused(save(tmp_path / "best.ckpt", {}, lambda name, data, p=pickled: p if name == "data.pkl" else data))
