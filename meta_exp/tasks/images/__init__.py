"""Families of image classes, over one checked store."""
