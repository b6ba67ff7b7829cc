"""A run: a config built, trained, calibrated, tested and pictured; its folder; and restored from it."""
