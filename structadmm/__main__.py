"""`python -m structadmm` is the command `structadmm`."""

from pipeline.cli import main

main()
