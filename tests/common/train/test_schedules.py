import pytest

from common.train.plan import RunPlan
from common.train.schedules import LinearSchedule, MultiStepSchedule, PlateauSchedule, build_schedule
from tests.common.train.sections import train_section


class TestSchedules:
    def test_triangle(self):
        schedule = LinearSchedule(warmup_steps=4, total_steps=20)
        assert [schedule(k) for k in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 0.9375]
        assert schedule(20) == schedule(25) == 0

    def test_step(self):
        schedule = MultiStepSchedule((6, 12), 0.1, warmup_steps=4, warmup_factor=0.0)
        assert [schedule(k) for k in range(1, 7)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.1])
        assert schedule(12) == pytest.approx(0.01)

    def test_constant_warmup(self):
        schedule = MultiStepSchedule((), 0.1, warmup_steps=2, warmup_factor=0.25, warmup_method="constant")
        assert [schedule(k) for k in range(4)] == [0.25, 0.25, 1, 1]

    def test_bad_step_schedules_raise(self):
        with pytest.raises(ValueError, match="sorted"):
            MultiStepSchedule((12, 6), 0.1)
        with pytest.raises(ValueError, match="'cosine'"):
            MultiStepSchedule((), 0.1, warmup_method="cosine")

    def test_plateau_falls_after_two_bad_validations_and_resumes(self):
        schedule = PlateauSchedule(factor=0.5)
        factors = []
        for value in (0.3, 0.3, 0.3):
            schedule.observe(value)
            factors.append(schedule(1))
        assert factors == [1, 1, 0.5]
        resumed = PlateauSchedule(factor=0.5)
        resumed.load_state_dict(schedule.state_dict())
        for value in (0.2, 0.2, 0.2, 0.2, 0.2):  # two of them are the cooldown
            schedule.observe(value)
            resumed.observe(value)
            assert schedule(1) == resumed(1)
        assert resumed(1) == 0.25

    def test_build_counts_optimizer_steps(self):
        plan = RunPlan(replicas=1, processes=1, samples=1, accumulation=4, lr=1.0, batches_per_epoch=101, epochs=3)
        assert build_schedule(train_section(), plan) == LinearSchedule(4, 75)
        cfg = train_section(LR_SCHEDULE="step", LR_STEP=(1.0, 2.5), WARMUP=False)
        assert build_schedule(cfg, plan) == MultiStepSchedule((25, 63), 0.1, 0, 0.0, "linear")
        assert isinstance(build_schedule(train_section(LR_SCHEDULE="plateau"), plan), PlateauSchedule)
        with pytest.raises(ValueError, match="'cosine'"):
            build_schedule(train_section(LR_SCHEDULE="cosine"), plan)
