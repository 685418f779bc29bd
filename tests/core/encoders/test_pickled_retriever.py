"""A retriever released as a pickle without a tokenizer: converted at the user's word, or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anchordr_world import make_anchordr, published_weights, save_published, train_pieces
from safetensors.torch import load_file

from expandr_core.encoders import anchordr_checkpoint
from expandr_core.encoders.anchordr_checkpoint import TOKENIZERS, check_published
from expandr_core.errors import DataError
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_source import file_source, model_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import import_model
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def published(pieces, tmp_path) -> Path:
    return save_published(tmp_path / "published", make_anchordr(pieces))


@pytest.fixture
def release(published, tmp_path) -> Path:
    """The same model as the paper's release: a pickle, and no tokenizer."""
    folder = Path(shutil.copytree(published, tmp_path / "release"))
    weights = published_weights(make_anchordr(published / "sp.model"))
    weights["decoder.embed_tokens.weight"] = weights["shared.weight"]  # which share memory
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "sp.model").unlink()
    return folder


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def spec_of(model: Path, allow: bool = False, tokenizer: Path | None = None) -> StageSpec:
    folder, sources = model_source(str(model), allow)
    options, file = RetrieverOptions(model=str(model), allow_pickle_conversion=allow), None
    if tokenizer:
        file, sources[import_model.TOKENIZER] = file_source(str(tokenizer), TOKENIZERS)
    resolved = import_model.OPTIONS.of(options, folder, file)
    return make_spec("import_model", resolved, sources=sources)


def imported(store: Store, spec: StageSpec) -> Artifact:
    return run_stage(spec, store, no_progress)


def test_a_pickle_is_refused_with_the_option_that_allows_its_conversion(release):
    with pytest.raises(DataError, match=r"pickle only .* retriever\.allow_pickle_conversion"):
        model_source(str(release))


def test_the_import_is_that_of_the_same_weights_as_safetensors(store, release, published, pieces):
    converted = imported(store, spec_of(release, True, pieces.parent))
    assert converted.digest == imported(store, spec_of(published)).digest
    assert "pytorch_model.bin" not in converted.files
    assert sorted(path.name for path in release.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_the_key_says_where_the_weights_and_the_tokenizer_are_from(release, pieces):
    spec = spec_of(release, True, pieces.parent)
    assert sorted(spec.sources) == ["config.json", "pytorch_model.bin", "retriever.tokenizer"]


def test_the_permission_changes_nothing_where_there_are_safetensors(store, published):
    torch.save({"another": torch.ones(3)}, published / "pytorch_model.bin")
    assert spec_of(published, allow=True).key == spec_of(published).key
    assert imported(store, spec_of(published, allow=True)).files


def test_shards_are_converted_too(store, release, published, pieces):
    weights = torch.load(release / "pytorch_model.bin", weights_only=True)
    (release / "pytorch_model.bin").unlink()
    index, names = {}, sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, release / file)
        index |= dict.fromkeys(part, file)
    (release / "pytorch_model.bin.index.json").write_text(
        '{"weight_map": {' + ", ".join(f'"{n}": "{f}"' for n, f in index.items()) + "}}"
    )
    converted = imported(store, spec_of(release, True, pieces.parent))
    assert converted.digest == imported(store, spec_of(published)).digest


def test_an_import_that_was_killed_while_it_converted_is_finished(
    store, release, published, pieces, monkeypatch
):
    spec = spec_of(release, True, pieces.parent)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("expandr_core.stages.import_model.import_retriever", die)
        with pytest.raises(KeyboardInterrupt):
            imported(store, spec)
    left = [path.name for path in store.scratch.rglob("model.safetensors")]
    assert left  # of the copy, converted already
    assert imported(store, spec).digest == imported(store, spec_of(published)).digest


def test_without_a_tokenizer_the_error_says_where_to_get_it(store, release):
    with pytest.raises(
        DataError, match=r"no sp\.model .* retriever\.tokenizer to yiqingx/AnchorDR"
    ):
        imported(store, spec_of(release, allow=True))


def other_pieces(folder: Path) -> None:
    (folder / "sp.model").write_bytes((folder / "sp.model").read_bytes() + b"\n")


def other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_pieces, r"sp\.model differs from retriever\.tokenizer .* leave that empty"),
        (other_model, r"retriever\.tokenizer is for AnchorDR, which this is not"),
    ],
)
def test_a_tokenizer_that_is_not_wanted_is_refused(
    store, published, pieces, change: Callable[[Path], None], message
):
    assert imported(store, spec_of(published, tokenizer=pieces.parent)).files
    change(published)
    with pytest.raises(DataError, match=message):
        imported(store, spec_of(published, tokenizer=pieces.parent))


def test_a_folder_without_a_tokenizer_has_none_to_give(tmp_path):
    with pytest.raises(DataError, match=r"no sp\.model or spiece\.model; name a folder"):
        file_source(str(tmp_path), TOKENIZERS)


def test_the_published_tokenizer_must_be_the_known_file(tmp_path, caplog):
    known = anchordr_checkpoint.PUBLISHED_TOKENIZER
    check_published("yiqingx/AnchorDR", tmp_path / "sp.model", known)
    with pytest.raises(DataError, match=r"not the tokenizer that AnchorDR was published with"):
        check_published("yiqingx/AnchorDR", tmp_path / "sp.model", "0" * 64)
    check_published(str(tmp_path), tmp_path / "sp.model", "0" * 64)
    assert "not the tokenizer that AnchorDR was published with" in caplog.text


def test_a_tokenizer_beside_a_tiny_retriever_is_refused():
    with pytest.raises(ValueError, match="the model is 'tiny'"):
        RetrieverOptions(tokenizer="yiqingx/AnchorDR")


def test_only_tensors_are_read_from_a_pickle(store, release, pieces):
    torch.save({"model": load_file, "step": 3}, release / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than tensors"):
        imported(store, spec_of(release, True, pieces.parent))
