"""Prediction of referents: python -m refcoco.predict --ckpt FILE --image a.jpg --expression "the left one" """

from common.predict.cli import predict_main
from refcoco.fields import FIELDS

if __name__ == "__main__":
    predict_main("refcoco", FIELDS)
