"""Images as models take them: read from files, brought to the model's size, cut in windows.

`read` reads image and mask files: pictures itself, and with `rasters` TIFF and JPEG 2000;
`colours` says which colours these may have. `size_rule` has the size rule, `fit_to`, which brings
an image to a model's size; the crops of training are there too. `windows` cuts large images into
windows. `record` defines what a data source is, a record's windows, and the errors of images.
"""
