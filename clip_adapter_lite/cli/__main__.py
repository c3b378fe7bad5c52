"""`python -m clip_adapter_lite.cli` is `clip-adapter-lite`."""
from . import main

main()
