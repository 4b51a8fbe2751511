"""Write the answers of a split for the VQA server: python vqa/test.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --ckpt FILE"""

from common.cli import test

if __name__ == "__main__":
    test("vqa")
