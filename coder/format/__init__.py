"""The formats of blobs and files.

`blob` has the byte layout of a blob, the frame of one embedding. `container` is the file format of
codecs, models and heads: safetensors and one JSON record. `file_kinds` recognises files by their
first bytes. All three are frozen: docs/format.md is their specification.
"""
