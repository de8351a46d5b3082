"""The places where foveate acts on a forward, one file each."""
