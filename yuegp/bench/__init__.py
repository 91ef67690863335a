"""Measurements: a table for people, then one JSON line for programs. Each is made in one run on one machine, beside
what it is compared with, because figures of different runs are not comparable.

`reference` sets our decoding loops against transformers' own, `streaming` our way of sending layers to a card against
accelerate's; `lm` measures one language model at its real size, `song` a whole song. `noise` and `exl2_noise` write the
random weights that this needs.
"""
