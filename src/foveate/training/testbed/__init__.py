"""The models of the testbed, trained from scratch on drawn scenes."""
