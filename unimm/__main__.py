"""`python -m unimm`, and `torchrun --nproc-per-node N -m unimm train ...`."""

from unimm.cli.main import main

main()
