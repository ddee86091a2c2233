"""What training, sampling and the data around them cost on this machine, and where the time goes.

    python -m benchmarks.speed TARGET [CONFIG.yaml]

One file a target (see `__main__`). A figure is only comparable with figures of the same run, so every target measures
its variants in turns and prints ratios, and what a network reaches is set against a matrix product of the same run
(`machine.MatmulPeak`). Nothing of the package is replaced while it is measured: training is a loop written out here,
and networks are watched by torch's hooks.
"""
