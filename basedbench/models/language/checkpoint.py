"""Weights from files, in the layout of the released checkpoints hazyresearch/{based,attn,mamba}-360m, -1b and -1b-50b.

    ours                                          BASED and attention: transformer.        Mamba: backbone.
    embedding.weight                              embeddings.word_embeddings.weight        embedding.weight
    blocks.N.norm1.weight                         layers.N.norm1.weight                    layers.N.norm.weight
    blocks.N.mixer. in_proj.weight (linear)       proj_q, proj_k, proj_v.weight, stacked
                    qkv.weight                    Wqkv.weight
                    conv.weight (D, W)            conv.conv.weight (D, 1, W)               conv1d.weight (D, 1, W)
    blocks.N.norm2, .mlp.fc1, .mlp.fc2            the same under layers.N
    norm.weight                                   ln_f.weight                              norm_f.weight

Other names agree. "model." may stand in front of all; older files say conv1.conv for conv.conv. Files saved in training
also hold metrics, which are passed over, and frequencies of rotary layers, which must be the model's own. The head
(`lm_head.weight`) is the embedding: a file may hold either, or both if they are equal.

A checkpoint is a .safetensors, .bin or .pt file, or a folder with one of these, or with several and their index. Only
tensors are ever unpickled.
"""

import json
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from os.path import isdir, isfile  # which say no of a name that no file can have; those of pathlib raise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basedbench.errors import UserError
from basedbench.models.language.config import STATE_SPACE, LanguageConfig
from basedbench.models.language.model import LanguageModel, counted
from basedbench.models.language.safetensors import read_safetensors

WHOLE = ("model.safetensors", "pytorch_model.bin")  # what a folder is searched for, in this order
HEAD = "lm_head.weight"
FREQUENCIES = re.compile(r"transformer\.layers\.(\d{1,9})\.mixer\.rotary_emb\.inv_freq")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FIRST_FEW = 3
RENAMED: dict[str, dict[str, tuple[str, ...]]] = {
    "linear": {"in_proj.weight": ("proj_q.weight", "proj_k.weight", "proj_v.weight")},
    "window": {"qkv.weight": ("Wqkv.weight",)},
    "attention": {"qkv.weight": ("Wqkv.weight",)},
    "conv": {"conv.weight": ("conv.conv.weight",), "conv.bias": ("conv.conv.bias",)},
    "mamba": {"conv.weight": ("conv1d.weight",), "conv.bias": ("conv1d.bias",)},
    "mamba2": {"conv.weight": ("conv1d.weight",), "conv.bias": ("conv1d.bias",)},
}
Piece = tuple[str, tuple[int, ...]]  # a released tensor: its name and shape


def load_checkpoint(model: LanguageModel, path: Path | str, digest: str | None = None) -> None:
    """Fill `model` with the weights at `path`, each cast to the model's dtype; nothing changes unless all fit.

    UserError names the first tensors that are missing, not expected, or of another shape; also if a `digest` is given
    and the weights are not those that `identify_checkpoint` found there.
    """
    pieces, tensors = released(model), _tensors(Path(path))
    names = _check(model, pieces, tensors, path)
    if digest is not None and digest != _digest(tensors, names):
        raise UserError(f"{path} was written while this command ran; give one that stays as it is, such as a copy.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.cat([tensors[piece] for piece, _ in pieces[name]]).view(parameter.shape))


def identify_checkpoint(configs: Collection[LanguageConfig], path: Path | str) -> str:
    """Twelve hex digits for the weights at `path`, however they are packed. UserError unless they fit all `configs`."""
    tensors, names = _tensors(Path(path)), set[str]()
    for config in configs:
        model = counted(config)
        names |= _check(model, released(model), tensors, path)
    return _digest(tensors, names)


def _digest(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    found = sha256()
    for name in sorted(names):
        tensor = tensors[name].resolve_neg().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def _tensors(path: Path) -> dict[str, Tensor]:
    """Those at `path` that are weights, by their released names."""
    return {_plain(name): tensor for name, tensor in read_tensors(path).items() if "metrics" not in name}


def _check(
    model: LanguageModel, pieces: dict[str, list[Piece]], tensors: dict[str, Tensor], path: Path | str
) -> set[str]:
    """The names of what makes up the model, or UserError; the head may stand for the table, and then joins as such."""
    expected = dict(piece for parts in pieces.values() for piece in parts)
    table, _ = pieces["embedding.weight"][0]
    if HEAD in tensors:
        tensors.setdefault(table, tensors[HEAD])
    problems = _problems(expected, tensors) or _unequal(model, table, tensors)
    if problems:
        raise UserError(f"{path} does not fit this model: {'; '.join(problems)}. Is it the checkpoint of this preset?")
    return set(expected)


def released(model: LanguageModel) -> dict[str, list[Piece]]:
    """For each parameter of ours the released tensors that make it up, stacked; UserError where none were released."""
    if len({kind in STATE_SPACE for kind in model.config.layers}) > 1:
        raise UserError("no checkpoint has Mamba layers beside others: there is no layout to read it in.")
    return {name: _pieces(model.config, name, parameter) for name, parameter in model.named_parameters()}


def _pieces(config: LanguageConfig, name: str, parameter: Tensor) -> list[Piece]:
    mamba = config.layers[0] in STATE_SPACE
    shape = tuple(parameter.shape)
    if not name.startswith("blocks."):
        embedding = "embedding" if mamba else "embeddings.word_embeddings"
        stem = embedding if name.startswith("embedding") else "norm_f" if mamba else "ln_f"
        return [(f"{_root(config)}{stem}.weight", shape)]
    _, layer, part = name.split(".", 2)
    prefix, kind = f"{_root(config)}layers.{layer}.", config.layers[int(layer)]
    if not part.startswith("mixer."):
        return [(prefix + (part.replace("norm1", "norm") if mamba else part), shape)]
    own = part.removeprefix("mixer.")
    names = RENAMED[kind].get(own, (own,))
    if own == "conv.weight":
        shape = (shape[0], 1, shape[1])
    keys = config.heads * config.feature_dim
    rows = [shape[0]] if len(names) == 1 else [keys, keys, shape[0] - 2 * keys]
    return [(f"{prefix}mixer.{theirs}", (count, *shape[1:])) for theirs, count in zip(names, rows, strict=True)]


def _root(config: LanguageConfig) -> str:
    return "backbone." if config.layers[0] in STATE_SPACE else "transformer."


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".mixer.conv1.conv.", ".mixer.conv.conv.")


def _problems(expected: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> list[str]:
    """What keeps the tensors from being the expected ones, in words."""
    copies = [name for name in tensors if name == HEAD or FREQUENCIES.fullmatch(name)]
    no_weights = [name for name in (*expected, *copies) if name in tensors and not _plain_floats(tensors[name])]
    plain = [name for name in expected if name in tensors and name not in no_weights]
    shapes = {name: tuple(tensors[name].shape) for name in plain}
    other = [f"{name} is {shape}, not {expected[name]}" for name, shape in shapes.items() if shape != expected[name]]
    groups = {
        "missing": [name for name in expected if name not in tensors],
        "not expected": [name for name in tensors if name not in expected and name not in copies],
        "of another shape": other,
        "no plain tensors of floating point": no_weights,
    }
    return [_few(what, names) for what, names in groups.items() if names]


def _plain_floats(tensor: Tensor) -> bool:
    """Whether it can be copied as it is: quantized weights, 8-bit ones too, are no weights without their scales."""
    return tensor.dtype in FLOATS and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)


def _few(what: str, names: list[str]) -> str:
    more = f" and {len(names) - FIRST_FEW} more" if len(names) > FIRST_FEW else ""
    return f"{what}: {', '.join(names[:FIRST_FEW])}{more}"


def _unequal(model: LanguageModel, table: str, tensors: dict[str, Tensor]) -> list[str]:
    """Copies in the file that are not what they should be copies of."""
    problems = []
    if HEAD in tensors and not torch.equal(tensors[HEAD], tensors[table]):
        problems.append(f"{HEAD} is not the embedding, which is this model's head")
    for name, tensor in tensors.items():
        layer = FREQUENCIES.fullmatch(name)
        if layer and not _own_frequencies(model.config, int(layer[1]), tensor):
            problems.append(f"{name} has other frequencies than the model's rotary_fraction and rotary_base")
    return problems


def _own_frequencies(config: LanguageConfig, layer: int, inv_freq: Tensor) -> bool:
    widths = {"window": config.window_head_dim, "attention": config.head_dim}
    width = int(config.rotary_fraction * widths.get(dict(enumerate(config.layers)).get(layer, "none"), 0))
    own = config.rotary_base ** (-torch.arange(0, width, 2) / max(width, 1))
    return inv_freq.shape == own.shape and torch.allclose(inv_freq.float(), own, rtol=1e-2)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in it. UserError for what cannot be read."""
    return _read_folder(path) if isdir(path) else _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not isfile(path):
        raise UserError(f"checkpoint {path}: no such file or folder; give a local path, nothing is downloaded.")
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in WHOLE:
        if isfile(folder / name):
            return _read_file(folder / name)
        if isfile(folder / f"{name}.index.json"):
            return _read_parts(folder / f"{name}.index.json")
    raise UserError(f"checkpoint {folder}: neither {' nor '.join(WHOLE)} nor an index of one lies in this folder.")


def _read_parts(index: Path) -> dict[str, Tensor]:
    """The files that an index names, each for the tensors it should hold."""
    try:
        places = dict(json.loads(index.read_text())["weight_map"])
        files = sorted(set(places.values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in files):
            raise ValueError("files outside the folder")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{index} is no index of a checkpoint ({error!r}); download it again.") from None
    tensors: dict[str, Tensor] = {}
    for name in files:
        held = _read_file(index.parent / name)
        lost = [tensor for tensor, place in places.items() if place == name and tensor not in held]
        if lost:
            raise UserError(f"{index.parent / name}: {_few('missing, although the index names them', lost)}.")
        tensors |= held
    return tensors


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file leads the unpickler anywhere: into an AssertionError, an IndexError
        # What torch says of most is how to unpickle code, which is never done here.
        reason = str(error) if isinstance(error, OSError) else "cut off, of another format, or with other objects"
        raise UserError(f"{path} is no checkpoint of tensors alone: {reason}; download it again.") from None
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise UserError(f"{path} holds no dict of tensors by name; give a state dict.")
    return loaded
