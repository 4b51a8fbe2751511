"""Write the answers of a split for the VQA server: python vqa/test.py --cfg FILE --ckpt FILE"""

from common.cli import test

if __name__ == "__main__":
    test("vqa")
