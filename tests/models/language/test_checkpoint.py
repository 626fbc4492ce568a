"""Checkpoints: files in the released layout, written by hand, give their model back; others are refused."""

import json

import pytest
import torch

from basedbench.errors import UserError
from basedbench.models.language import identify_checkpoint, load_checkpoint, preset

RELEASED = ["based", "attention", "mamba", "mamba2"]


def released(model):
    """The model's weights under the names of the released files, spelled out."""
    own, root, tensors = model.state_dict(), "transformer", {}
    if model.blocks[0].kind in ("mamba", "mamba2"):
        root = "backbone"
        tensors["backbone.embedding.weight"] = own["embedding.weight"]
        tensors["backbone.norm_f.weight"] = own["norm.weight"]
    else:
        tensors["transformer.embeddings.word_embeddings.weight"] = own["embedding.weight"]
        tensors["transformer.ln_f.weight"] = own["norm.weight"]
    for n, block in enumerate(model.blocks):
        part = {name.removeprefix(f"blocks.{n}."): x for name, x in own.items() if name.startswith(f"blocks.{n}.")}
        layer = f"{root}.layers.{n}"
        if block.kind in ("mamba", "mamba2"):
            tensors[f"{layer}.norm.weight"] = part.pop("norm1.weight")
            tensors[f"{layer}.mixer.conv1d.weight"] = part.pop("mixer.conv.weight")[:, None]
            tensors[f"{layer}.mixer.conv1d.bias"] = part.pop("mixer.conv.bias")
        elif block.kind == "linear":
            q, k, v = part.pop("mixer.in_proj.weight").split((16, 16, 32))
            tensors |= {f"{layer}.mixer.proj_{name}.weight": x for name, x in zip("qkv", (q, k, v), strict=True)}
        elif block.kind == "conv":
            tensors[f"{layer}.mixer.conv.conv.weight"] = part.pop("mixer.conv.weight")[:, None]
        else:
            tensors[f"{layer}.mixer.Wqkv.weight"] = part.pop("mixer.qkv.weight")
        tensors |= {f"{layer}.{name}": x for name, x in part.items()}
    return {name: x.contiguous() for name, x in tensors.items()}


def save(path, tensors):
    """A safetensors file for that ending, torch.save's for others."""
    if path.suffix != ".safetensors":
        torch.save(tensors, path)
        return path
    header, data = {}, b""
    for name, x in tensors.items():
        raw = bytes(x.reshape(-1).view(torch.uint8).tolist())
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": f"F{8 * x.element_size()}", "shape": list(x.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def based(tiny):
    return tiny("based", torch.float32)


@pytest.mark.parametrize("file", ["x.safetensors", "x.bin", "x.pt"])
@pytest.mark.parametrize("family", RELEASED)
def test_a_released_file_gives_the_model_back(tiny, tokens, tmp_path, family, file):
    model, other = tiny(family, torch.float32), tiny(family, torch.float32, seed=1)
    assert not torch.equal(other(tokens()), model(tokens()))
    load_checkpoint(other, save(tmp_path / file, released(model)))
    assert torch.equal(other(tokens()), model(tokens()))


def test_names_as_saved_in_training(tiny, based, tokens, tmp_path):
    """In front "model.", behind metrics; the older name of the convolution; the head; frequencies."""
    tensors = {f"model.{name}".replace("conv.conv", "conv1.conv"): x for name, x in released(based).items()}
    tensors["model.lm_head.weight"] = based.embedding.weight.detach()
    tensors["train_metrics.num-tokens.count"] = torch.tensor(7)
    tensors["model.transformer.layers.2.mixer.rotary_emb.inv_freq"] = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    other = tiny("based", torch.float32, seed=1)
    load_checkpoint(other, save(tmp_path / "x.bin", {"state_dict": tensors}))
    assert torch.equal(other(tokens()), based(tokens()))


def test_the_head_may_stand_for_the_embedding(tiny, based, tokens, tmp_path):
    tensors = released(based)
    tensors["lm_head.weight"] = tensors.pop("transformer.embeddings.word_embeddings.weight")
    other = tiny("based", torch.float32, seed=1)
    load_checkpoint(other, save(tmp_path / "x.safetensors", tensors))
    assert torch.equal(other(tokens()), based(tokens()))


def test_a_checkpoint_is_known_by_its_weights(tiny, based, tmp_path):
    """However they are packed, and under the older names; any other number or dtype makes it another one."""
    tensors = released(based)
    older = {f"model.{name}".replace("conv.conv.", "conv1.conv."): x for name, x in reversed(tensors.items())}
    found = identify_checkpoint([based.config], save(tmp_path / "x.safetensors", tensors))
    assert found == identify_checkpoint([based.config], save(tmp_path / "x.bin", older))
    half = {name: x.half() for name, x in tensors.items()}
    name, *_ = tensors
    changed = tensors | {name: tensors[name].clone()}
    changed[name].flatten()[-1] += 1
    others = {identify_checkpoint([based.config], save(tmp_path / "y.bin", one)) for one in (half, changed)}
    assert len({found, *others}) == 3
    negative = tensors | {name: torch._neg_view(-tensors[name])}
    assert identify_checkpoint([based.config], save(tmp_path / "z.bin", negative)) == found
    with pytest.raises(UserError, match="does not fit"):
        identify_checkpoint([based.config, tiny("attention").config], tmp_path / "x.safetensors")


def test_weights_that_were_written_meanwhile_are_refused(tiny, based, tmp_path):
    path = save(tmp_path / "x.bin", released(based))
    digest = identify_checkpoint([based.config], path)
    load_checkpoint(based, path, digest)
    save(path, released(tiny("based", torch.float32, seed=1)))
    before = [x.clone() for x in based.parameters()]
    with pytest.raises(UserError, match="was written while this command ran"):
        load_checkpoint(based, path, digest)
    assert all(map(torch.equal, based.parameters(), before))


def test_weights_take_the_model_s_dtype(tiny, based, tokens, tmp_path):
    half = {name: x.half() for name, x in released(based).items()}
    other = tiny("based", torch.bfloat16, seed=1)
    load_checkpoint(other, save(tmp_path / "x.safetensors", half))
    assert other.dtype == torch.bfloat16
    assert (other(tokens()).float() - based(tokens())).norm() < 0.05 * based(tokens()).norm()


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_folders(tiny, based, tokens, tmp_path, ending, index):
    stem, tensors = {"safetensors": "model", "bin": "pytorch_model"}[ending], released(based)
    if index:
        halves = list(tensors)[::2], list(tensors)[1::2]
        files = [f"{stem}-{part}-of-2.{ending}" for part in (1, 2)]
        for file, names in zip(files, halves, strict=True):
            save(tmp_path / file, {name: tensors[name] for name in names})
        places = {name: file for file, names in zip(files, halves, strict=True) for name in names}
        (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        save(tmp_path / f"{stem}.{ending}", tensors)
    other = tiny("based", torch.float32, seed=1)
    load_checkpoint(other, tmp_path)
    assert torch.equal(other(tokens()), based(tokens()))


WRONG = {
    "missing: transformer.ln_f.weight": lambda t: t.pop("transformer.ln_f.weight"),
    "not expected: transformer.layers.9.x": lambda t: t.update({"transformer.layers.9.x": torch.zeros(1)}),
    r"ln_f.weight is \(31,\), not \(32,\)": lambda t: t.update({"transformer.ln_f.weight": torch.zeros(31)}),
    r"proj_k.weight is \(8, 32\), not \(16, 32\)": lambda t: t.update(
        {"transformer.layers.1.mixer.proj_k.weight": torch.zeros(8, 32)}
    ),
    "conv.conv.bias": lambda t: t.update({"transformer.layers.0.mixer.conv.conv.bias": torch.zeros(64)}),
    "lm_head.weight is not the embedding": lambda t: t.update({"lm_head.weight": torch.zeros(40, 32)}),
    "rotary_fraction": lambda t: t.update({"transformer.layers.2.mixer.rotary_emb.inv_freq": torch.ones(4)}),
    "layers.0.mixer.rotary_emb.inv_freq has": lambda t: t.update(
        {"transformer.layers.0.mixer.rotary_emb.inv_freq": torch.ones(4)}
    ),
}


@pytest.mark.parametrize("part", WRONG)
def test_a_file_that_does_not_fit_changes_nothing(based, tmp_path, part):
    tensors = released(based)
    WRONG[part](tensors)
    before = {name: x.clone() for name, x in based.state_dict().items()}
    with torch.no_grad():
        for parameter in based.parameters():
            parameter += 1
    with pytest.raises(UserError, match=part) as error:
        load_checkpoint(based, save(tmp_path / "wrong.bin", tensors))
    assert "wrong.bin does not fit this model" in str(error.value)
    assert all(torch.equal(x, before[name] + 1) for name, x in based.state_dict().items())


TABLE, TURNS = "transformer.embeddings.word_embeddings.weight", "transformer.layers.1.mixer.rotary_emb.inv_freq"
UNLIKELY = {
    "int8": lambda x: x.to(torch.int8),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "float4": lambda x: x.to(torch.uint8).view(torch.float4_e2m1fn_x2),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": torch.Tensor.to_sparse,
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNLIKELY)
@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "lm_head.weight", TURNS])
def test_tensors_that_are_no_plain_weights_are_refused(based, tmp_path, kind, name):
    """Nor where they only stand beside the weights, to be compared with them."""
    tensors = released(based)
    tensors |= {"lm_head.weight": tensors[TABLE], TURNS: torch.ones(4)}
    wrong = UNLIKELY[kind](tensors[name].detach())
    with pytest.raises(UserError, match=f"no plain tensors of floating point: {name}"):
        load_checkpoint(based, save(tmp_path / "x.bin", tensors | {name: wrong}))


def test_a_layer_of_more_digits_than_python_reads(based, tmp_path):
    name = TURNS.replace("1", "1" * 5000)
    with pytest.raises(UserError, match="not expected: transformer"):
        load_checkpoint(based, save(tmp_path / "x.bin", released(based) | {name: torch.ones(4)}))


def test_a_model_too_large_to_be_counted(based, tmp_path):
    large = preset("based-360m", vocab_size=2**31 - 1, d_model=2**31 - 32)
    with pytest.raises(UserError, match="more bytes than can be counted"):
        identify_checkpoint({large}, save(tmp_path / "x.bin", released(based)))


def test_a_checkpoint_of_another_model_names_the_first_few(tiny, based, tmp_path):
    path = save(tmp_path / "x.bin", released(tiny("mamba")))
    with pytest.raises(
        UserError, match=r"missing: \S+, \S+, \S+ and \d+ more; not expected: backbone\S+, \S+, \S+ and"
    ):
        load_checkpoint(based, path)


def test_mixed_models_were_never_released(tiny, based, tmp_path):
    with pytest.raises(UserError, match="no checkpoint has Mamba layers beside others"):
        load_checkpoint(tiny("mixed"), save(tmp_path / "x.bin", released(based)))


class Harmful:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such file"),
        (b"nonsense", "tensors alone: cut off"),
        (b"", "tensors alone: cut off"),
        ({1: torch.zeros(1)}, "no dict of tensors by name"),
        (Harmful(), "tensors alone"),
        ([1, 2], "no dict"),
        ({"a": 1}, "no dict"),
    ],
)
def test_files_that_are_no_checkpoint(based, tmp_path, capsys, content, part):
    path = tmp_path / "x.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=part):
        load_checkpoint(based, path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("failure", [AssertionError, IndexError, AttributeError])
def test_whatever_a_damaged_file_leads_the_unpickler_into(based, tmp_path, monkeypatch, failure):
    def load(*arguments, **options):
        raise failure

    path = save(tmp_path / "x.bin", released(based))
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match="tensors alone: cut off"):
        load_checkpoint(based, path)


@pytest.mark.parametrize(
    ("index", "part"),
    [
        (None, "nor an index"),
        ("{", "no index"),
        ({}, "no index"),
        ({"weight_map": {"a": "../x.bin"}}, "outside the folder"),
        ({"weight_map": {"a": 3}}, "no index"),
        ({"weight_map": {"a": "part.bin"}}, "missing, although the index names them: a"),
        ({"weight_map": {"a": "other.bin"}}, "no such file"),
        ({"weight_map": {"a": ""}}, "no such file"),  # the folder itself, whose index names it
        ({"weight_map": {"a": ".."}}, "no such file"),
        ({"weight_map": {"a": "x" * 5000}}, "no such file"),
        ("[" * 100_000, "no index"),
    ],
)
def test_folders_that_are_no_checkpoint(based, tmp_path, index, part):
    torch.save({"b": torch.zeros(1)}, tmp_path / "part.bin")
    if index is not None:
        text = index if isinstance(index, str) else json.dumps(index)
        (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(UserError, match=part):
        load_checkpoint(based, tmp_path)
