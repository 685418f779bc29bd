"""`expandr show` finds TensorBoard's logs."""

from pathlib import Path

from recorded_store import RUN, unpacked
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.store.store import Store


def test_the_curves_of_a_run_and_of_a_training_are_found(tmp_path):
    folder = unpacked(tmp_path / "store")
    [dpo] = Store(str(folder)).keys("dpo-")

    def shown(what: str) -> str:
        result = CliRunner().invoke(app, ["show", what, "--store", str(folder)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "tensorboard" not in shown(RUN)
    curves = Path(folder, ".scratch", "tensorboard", dpo)
    curves.mkdir(parents=True)
    assert f"tensorboard --logdir {curves}" in shown(RUN)
    assert f"tensorboard --logdir {curves}" in shown(dpo)
    curves.with_name("dpo-0123456789abcdef0123").mkdir()  # of another run
    assert f"tensorboard --logdir {curves}" in shown(RUN)
