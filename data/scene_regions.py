"""Old name of data/scenes/regions.py: checkpoints name it as NETWORK.REGION_ENCODER module:data.scene_regions."""

from data.scenes.regions import *  # noqa: F403
