"""Measurements: a table for people, then one JSON line for programs. Each is made in one run on one machine, beside
what it is compared with, because figures of different runs are not comparable.

`reference` sets our decoding loops against transformers' own; `lm` measures one language model at its real size.
"""
