"""From an image, boxes and a text of a user to a prediction; imports nothing of common.train."""
