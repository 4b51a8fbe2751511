import pytest

from common.train.progress import Progress, format_duration


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_of_all_processes_and_time_left():
    """Four batches of eight samples in two seconds, by each of three processes."""
    clock = Clock()
    progress = Progress(step=10, clock=clock)
    for _ in range(4):
        progress.count(8)
    clock.now += 2.0
    speed, eta = progress.measure(step=14, remaining=30, world=3)
    assert speed == pytest.approx(4 * 8 * 3 / 2.0)
    assert eta == pytest.approx(30 * 2.0 / 4)


def test_a_window_forgets_the_one_before():
    clock = Clock()
    progress = Progress(clock=clock)
    progress.count(1000)
    clock.now += 50.0
    progress.start(step=7)
    progress.count(6)
    clock.now += 3.0
    assert progress.measure(step=9, remaining=10, world=1) == (pytest.approx(2.0), pytest.approx(15.0))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (3661, "1h 1m 1s"), (93784, "1d 2h 3m 4s")]
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text
