"""The files that a config of referring expressions names."""

from __future__ import annotations

import pytest

from refcoco.files import DETECTIONS_FILE, INSTANCES_FILE, REGION_FOLDER
from refcoco.needs import needs
from tests.made_up import config

ALWAYS = {"refcoco+/refs(unc).p", "refcoco+/instances.json", INSTANCES_FILE}
PROPOSALS = {f"DATASET.{split}_BOXES": "proposal" for split in ("TRAIN", "VAL", "TEST")}
FEATURES = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": True, "DATASET.REGION_PATH": "regions"}


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {"train2014"}),
        (PROPOSALS, {"train2014", f"refcoco+/{DETECTIONS_FILE}"}),
        ({**PROPOSALS, "DATASET.PROPOSAL_SOURCE": "vg"}, {"train2014", REGION_FOLDER}),
        ({"DATASET.PROPOSAL_SOURCE": "vg"}, {"train2014"}),  # annotated boxes need no regions
        (FEATURES, {"regions"}),
    ],
)
def test_boxes_and_features_decide(changes, more):
    assert {need.names[0] for need in needs(config("refcoco", changes))} == ALWAYS | more
