"""What `packing.py` measures: the same trials in packs, one after the other, and by other means."""
