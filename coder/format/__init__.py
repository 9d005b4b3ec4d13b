"""What files and blobs are made of.

`blob` frames one embedding, `container` holds codecs, models and heads, `file_kinds` tells other
files by their first bytes.
"""
