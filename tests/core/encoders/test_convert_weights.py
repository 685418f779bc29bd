"""Pickled weights become the same weights in safetensors, and nothing but tensors is built of them."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expandr_core.encoders.convert_weights import convert, main
from expandr_core.errors import DataError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3).bfloat16()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    return tmp_path


def same(path: Path, expected: dict[str, torch.Tensor]) -> bool:
    found = load_file(path)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype
        for name in expected
    )


def test_the_weights_stay_the_same_and_the_pickle_stays(folder, monkeypatch, capsys):
    before = (folder / "pytorch_model.bin").read_bytes()
    monkeypatch.setattr(sys, "argv", ["convert_weights", str(folder)])
    main()
    assert capsys.readouterr().out.split() == [str(folder / "model.safetensors")]
    assert same(folder / "model.safetensors", WEIGHTS)
    assert (folder / "pytorch_model.bin").read_bytes() == before


def test_tensors_that_share_memory_and_views_are_written_whole(folder):
    table = torch.arange(12.0).reshape(3, 4)
    shared = {"shared": table, "alias": table, "view": table[1:], "turned": table.T}
    torch.save(shared, folder / "pytorch_model.bin")
    [written] = convert(folder)
    assert same(written, shared)


def test_shards_keep_their_names_in_the_index(folder):
    (folder / "pytorch_model.bin").unlink()
    weight_map = {}
    for number, (name, weight) in enumerate(WEIGHTS.items(), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weight}, folder / file)
        weight_map[name] = file
    index = {"metadata": {"total_size": 30}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert len(convert(folder)) == 3
    written = json.loads((folder / "model.safetensors.index.json").read_text())
    assert written["metadata"] == {"total_size": 30}
    assert written["weight_map"]["a.bias"] == "model-00002-of-00002.safetensors"
    for name, file in written["weight_map"].items():
        assert same(folder / file, {name: WEIGHTS[name]})


def test_modules_in_folders_of_their_own_are_converted_too(folder):
    (folder / "2_Dense").mkdir()
    torch.save(WEIGHTS, folder / "2_Dense" / "pytorch_model.bin")
    modules = [{"path": ""}, {"path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    names = [path.relative_to(folder).as_posix() for path in convert(folder)]
    assert names == ["model.safetensors", "2_Dense/model.safetensors"]


class Trap:
    """Unpickled by a careless reader, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "executed"))


def test_code_in_a_pickle_is_not_run(folder):
    torch.save(WEIGHTS | {"trap": Trap(folder / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than tensors"):
        convert(folder)
    assert not (folder / "executed").exists()
    assert not (folder / "model.safetensors").exists()


def test_a_pickle_without_weights_is_refused(folder, monkeypatch):
    torch.save({"model": WEIGHTS, "step": 3}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="not tensors by name"):
        convert(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(WEIGHTS)[:50])
    with pytest.raises(DataError, match="damaged or holds more"):
        convert(folder)
    (folder / "pytorch_model.bin").unlink()
    monkeypatch.setattr(sys, "argv", ["convert_weights", str(folder)])
    with pytest.raises(SystemExit, match=r"no pytorch_model\.bin"):
        main()
    with pytest.raises(DataError, match="no such folder"):
        convert(folder / "nowhere")


def test_nothing_is_overwritten(folder):
    convert(folder)
    with pytest.raises(DataError, match="exists already"):
        convert(folder)
