"""Prediction of masked words: python -m pretrain.predict --ckpt FILE --image a.jpg --caption "a [MASK] on a table" """

from common.predict.cli import predict_main
from pretrain.fields import FIELDS

if __name__ == "__main__":
    predict_main("pretrain", FIELDS)
