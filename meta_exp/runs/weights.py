"""The weights of a checkpoint that may come from a stranger.

A checkpoint is a zip archive of a pickle and of the bytes of its tensors. Its pickle may name what plain tensors are
made of and nothing else, which is looked at before it is loaded: a tensor of an odd kind, all of whose names PyTorch
admits, can bring the interpreter down. Nothing in it may be larger than the file is.
"""

import os
import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from meta_exp.config.checks import one_line, require

DTYPES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ADMITTED = {  # by a checkpoint's pickle
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    *(f"torch {dtype}Storage" for dtype in DTYPES),
}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights of a Lightning checkpoint, by name.

    Raises:
        ValueError: there is none, it is damaged, or it holds other than plain tensors and values.
    """
    require(file.is_file(), str(file), "the run's best checkpoint", "no such file", "train the run again")
    expected = "a checkpoint of tensors and plain values"
    size = os.path.getsize(file)
    try:
        refused = _refuse(file, size)
        state = {} if refused else torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        named = dict(state.items())
    except Exception as error:  # a damaged archive can provoke anything; what matters is which file
        raise ValueError(f"{file}: expected {expected}, got {one_line(error)[:300]}") from error
    require(not refused, str(file), expected, refused)
    whole = all(type(value) is Tensor and isinstance(name, str) for name, value in named.items())
    require(whole, str(file), "a checkpoint whose state_dict holds tensors", "other values")
    for name, value in named.items():
        held = (
            value.layout is torch.strided and value.numel() * value.itemsize <= value.untyped_storage().nbytes() <= size
        )
        require(held, f"{file}: {name}", "a tensor as large as its file says", list(value.shape))
    return named


def _refuse(file: Path, size: int) -> str:
    """Return what the archive holds that a run's does not, or nothing."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\3\4":  # PyTorch reads another format then, which may have an archive behind it
            return "another format"
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            return "compressed members"
        if sum(member.file_size for member in members) > size:
            return "members larger than the file"
        for member in members:
            if member.filename.endswith(".pkl"):
                for code, argument, _ in pickletools.genops(archive.read(member)):
                    if "GLOBAL" in code.name and argument not in ADMITTED:
                        return f"one that names {argument or 'something unsaid'}"
                    if code.name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                        return f"one that makes objects ({code.name})"
    return ""
