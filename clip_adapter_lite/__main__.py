"""`python -m clip_adapter_lite` is `clip-adapter-lite`."""
from .cli import main

main()
