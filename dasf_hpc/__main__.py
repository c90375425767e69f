"""The command line as ``python -m dasf_hpc``."""

from dasf_hpc.cli import main

if __name__ == "__main__":
    main()
