from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from common.train.plan import RunPlan
from tests.common.train.sections import train_section


class TestRunPlan:
    def test_numbers(self):
        cfg = SimpleNamespace(GPUS="0,1", TRAIN=train_section(BATCH_IMAGES=[4, 12], GRAD_ACCUMULATE_STEPS=2))
        plan = RunPlan.from_config(cfg, processes=3, batches_per_epoch=7)
        assert plan.effective_batch == 3 * 16 * 2
        assert plan.micro_batches == 2
        assert plan.base_lr == pytest.approx(0.096)
        assert [plan.updates_before(1), plan.total_updates] == [3, 7]
        assert plan.describe() == (
            "3 replicas x 16 samples x 2 accumulated = effective batch 96; learning rate 0.001 x 96 = 0.096; "
            "2 epochs x 7 batches = 7 updates"
        )

    def test_a_run_without_an_update_is_refused(self):
        cfg = SimpleNamespace(GPUS="0", TRAIN=train_section(GRAD_ACCUMULATE_STEPS=8))
        with pytest.raises(ConfigError, match="an update takes 8 batches, and the 2 epochs of this run have 4"):
            RunPlan.from_config(cfg, 1, 2).check()
        RunPlan.from_config(cfg, 1, 4).check()

    def test_gpus_of_one_process_become_micro_batches(self):
        cfg = SimpleNamespace(GPUS="0,1,2,3", TRAIN=train_section(GRAD_ACCUMULATE_STEPS=2))
        plan = RunPlan.from_config(cfg, 1, 28)
        assert plan.effective_batch == 4 * 4 * 2
        assert plan.micro_batches == 8
        assert plan.total_updates == 2 * 28 // 8
        assert "GPUS names 4 devices" in plan.describe()

    @pytest.mark.parametrize("gpus", ["", "0"])
    def test_one_device(self, gpus):
        plan = RunPlan.from_config(SimpleNamespace(GPUS=gpus, TRAIN=train_section()), 1, 7)
        assert (plan.replicas, plan.micro_batches) == (1, 1)
