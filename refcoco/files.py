"""Names of the data files, relative to DATASET_PATH. Imports no torch."""

IMAGE_FOLDER = "train2014"  # all splits use images of COCO train2014
INSTANCES_FILE = f"annotations/instances_{IMAGE_FOLDER}.json"
DETECTIONS_FILE = "proposal/res101_coco_minus_refer_notime_dets.json"  # in the folder of the data set
REGION_FOLDER = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
