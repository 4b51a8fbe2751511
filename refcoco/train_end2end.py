"""Train VL-BERT on RefCOCO+: python refcoco/train_end2end.py --cfg cfgs/refcoco/base_gt_boxes_4x16G.yaml"""

from common.cli import train

if __name__ == "__main__":
    train("refcoco")
