"""The installer behind `launch.py`: from whatever Python there is to a running yuegp.

`machine` looks, `pretend` describes a machine instead; `choose` decides what to do, `steps` writes it as commands;
`record` remembers what was done, `install` does it, `main` is the command line.

Standard library only, no import of ours, readable by Python 3.8: this must be able to explain itself before anything is
installed."""
