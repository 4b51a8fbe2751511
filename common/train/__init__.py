"""What changes weights over time: runs, trainer, evaluation, optimizers, schedules, metrics."""
