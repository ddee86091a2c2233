"""Trials of reliability: kills, mutated inputs, full disks, leakage, memory (docs/reliability.md).

A kind of trial is a module with three names (see `trials.Kind`): `GOOD`, the outcomes that are as they should be;
`trials(seed)`, which lists what is to be tried; and `run(trial, workshop)`, which tries one and says what came of it.
To add one, write the module and name it in `__main__.KINDS`; to add a reader to the mutated inputs, add a line to
`readers.READERS`, and to the kills and full disks, a stage to `workshop.STAGES`.
"""
