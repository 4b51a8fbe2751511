"""Predictions for images of users: `from common.inference import load_predictor`. The code is in common/predict/."""

from common.errors import BoxError, InputError
from common.predict.load import from_pretrained, load_predictor
from common.predict.prediction import Prediction, Slot
from common.predict.predictor import Predictor

__all__ = ["BoxError", "InputError", "Prediction", "Predictor", "Slot", "from_pretrained", "load_predictor"]
