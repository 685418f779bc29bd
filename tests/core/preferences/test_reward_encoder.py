"""Another encoder than the retriever rewards: imported first, even if the retriever starts from it."""

from evaluation_world import save_static_retriever

from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import run_stage
from tasks.models import import_models
from tasks.pipeline import Pipeline


class WithoutPrefect(Pipeline):
    def make(self, step_id, title, spec):
        return run_stage(spec, self.open(), no_progress)


def test_the_reward_s_encoder_is_imported_beside_the_retriever(tmp_path):
    folder = str(save_static_retriever(tmp_path / "encoder", ["red", "blue"]))

    def imported(retriever: str, encoder: str) -> dict[str, str]:
        options = JointLoopOptions.model_validate(
            {"retriever": {"model": retriever}, "preferences": {"reward_encoder": encoder}}
        )
        pipeline = WithoutPrefect(str(tmp_path / "store"), options)
        return {role: made.key for role, made in import_models(pipeline).items()}

    both = imported(folder, folder)
    assert both["reward_encoder"] == both["retriever"]  # which training changes, but not the other
    assert imported("tiny", folder) == {"reward_encoder": both["reward_encoder"]}
    assert "reward_encoder" not in imported(folder, "current")
