"""The life of a batch, from its input file to its output and error files.

``storage`` keeps file bytes, ``expand`` turns an input file into lines, ``feeder`` hands lines to the
store, ``assemble`` writes the results, ``service`` runs all of it beside the recorder.
"""
