"""Write and score the boxes of a split: python refcoco/test.py --cfg FILE --ckpt FILE --split val"""

from common.cli import test

if __name__ == "__main__":
    test("refcoco", splits=("train", "val", "testA", "testB", "test"), default_split="val")
