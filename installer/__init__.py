"""The installer behind `launch.py`: from any Python to a running yuegp.

`probe` examines the machine, `pretend` describes one instead; `choose` decides what to install, `steps` turns that into
commands, `install` runs them, `record` remembers the result, `main` is the command line.

Standard library only, no other import of ours, readable by Python 3.8: it must work before anything is installed."""
