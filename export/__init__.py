"""The integer world: the integer graph, its reference interpreter, one file per dialect, and the proof."""
