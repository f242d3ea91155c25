"""`python -m ablate.cli`."""

from ablate.cli.entry import main

if __name__ == "__main__":
    main()
