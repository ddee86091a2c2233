"""`stedm bench`: what training, sampling and the data around them cost on this machine, and where the time goes.

One file a target; `registry` names them. A figure is only comparable with figures of the same run, so every target
measures its variants in turns and prints ratios, and what a network reaches is set against a matrix product of the
same run (`machine.MatmulPeak`).
"""
