"""The commands of this package: `nec convert`, and `nec encode` of images."""
