"""Answers for any image: `from common.inference import load_predictor`. The code is in common/predict/."""

from common.errors import BoxError, InputError
from common.predict.predictor import Prediction, Predictor, Slot, load_predictor

__all__ = ["BoxError", "InputError", "Prediction", "Predictor", "Slot", "load_predictor"]
