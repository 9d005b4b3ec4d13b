"""Images as models take them: read from files, brought to the model's size, cut in windows."""
