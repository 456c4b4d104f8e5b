"""Run-time shape checks, reproducible random examples, and a plotting backend without a screen, for every test."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings
from jaxtyping import install_import_hook

# before any test imports edgeq: beartype then checks each annotated argument of edgeq, the shapes included
install_import_hook("edgeq", "beartype.beartype")

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
